//! Cluster DNS: hands what was pushed to the server of `agent-dns`, and keeps that served.
//!
//! It starts from what is on disk, before anything else of the node is opened, so that an
//! agent's restart is short for clients. Called by `main.rs` and the loop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_dns::PORT;
use agent_dns::resolver::Resolver;
use agent_dns::server::Server;
use agent_plan::world::Desired;
use agent_sys::clock;
use proto::v1;
use proto::v1::change::Change;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::pushed::Touched;
use crate::pushed_file::Kept;

/// Before another try when the address cannot be served.
const PAUSE: Duration = Duration::from_secs(5);

/// The server of this node.
#[derive(Debug)]
pub(crate) struct Dns {
    resolver: Arc<Resolver>,
    /// Where it serves, and the task that does.
    served: Option<(IpAddr, JoinHandle<()>)>,
}

fn milliseconds() -> u64 {
    u64::try_from(clock::monotonic_ms()).unwrap_or(0)
}

impl Dns {
    /// Serves what was pushed last, if anything was. Needs a tokio runtime.
    pub(crate) fn start(config: &Config, kept: Option<&Kept>) -> Dns {
        let resolver = Resolver::new(config.resolv_conf.clone(), milliseconds);
        let mut dns = Dns {
            resolver: Arc::new(resolver),
            served: None,
        };
        for change in kept.into_iter().flat_map(|kept| &kept.changes) {
            if let Change::Service(service) = change {
                dns.resolver.change(|zone| zone.put(service));
            } else if let Change::Config(config) = change {
                dns.configure(config);
            }
        }
        dns
    }

    /// Records what a step has touched.
    pub(crate) fn take(&mut self, desired: &Desired, touched: &Touched) {
        self.resolver.change(|zone| {
            if touched.all {
                zone.retain(|name| desired.services.contains_key(name));
                desired
                    .services
                    .values()
                    .for_each(|service| zone.put(service));
            }
            for name in &touched.names {
                match desired.services.get(name) {
                    Some(service) => zone.put(service),
                    None => zone.remove(name),
                }
            }
        });
        if touched.config || touched.all {
            self.configure(&desired.config);
        }
    }

    fn configure(&mut self, config: &v1::ClusterConfig) {
        self.resolver.configure(config);
        let wanted: Option<IpAddr> = config.dns_address.parse().ok();
        if self.served.as_ref().map(|(address, _)| *address) == wanted {
            return;
        }
        if let Some((_, task)) = self.served.take() {
            task.abort();
        }
        self.served = wanted.map(|address| {
            let serving = serve(self.resolver.clone(), SocketAddr::new(address, PORT));
            (address, tokio::spawn(serving))
        });
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if let Some((_, task)) = self.served.take() {
            task.abort();
        }
    }
}

/// Serves until it is aborted.
async fn serve(resolver: Arc<Resolver>, address: SocketAddr) {
    let mut told = false;
    loop {
        match Server::start(&resolver, address, &Handle::current()) {
            Ok(_server) => {
                tracing::info!(%address, "cluster DNS is served");
                return std::future::pending().await;
            }
            Err(error) if !told => {
                tracing::error!(%error, "cluster DNS is not served; trying again");
                told = true;
            }
            Err(error) => tracing::debug!(%error, "cluster DNS is not served"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
