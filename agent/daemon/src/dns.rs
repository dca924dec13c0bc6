//! Cluster DNS: hands what was pushed to the server of `agent-dns`, and keeps that served.
//!
//! It starts from what is on disk, before anything else of the node is opened, so that an
//! agent's restart is short for clients. The service manager keeps its sockets meanwhile: what
//! clients ask waits in them, and is not refused. Called by `main.rs` and the loop.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agent_dns::PORT;
use agent_dns::resolver::Resolver;
use agent_dns::server::{ServeError, Server, Sockets};
use agent_dns::zone::Service;
use agent_plan::world::Desired;
use agent_sys::{clock, fdstore};
use proto::v1;
use proto::v1::change::Change;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::pushed_file::Found;
use crate::touched::Touched;

/// Under which the service manager keeps the sockets.
const KEPT: &str = "dns";
/// Before another try when the address cannot be served.
const PAUSE: Duration = Duration::from_secs(5);

/// The server of this node.
#[derive(Debug)]
pub(crate) struct Dns {
    resolver: Arc<Resolver>,
    /// Where it serves, and the task that does.
    served: Option<(IpAddr, JoinHandle<()>)>,
    /// Sockets of the agent before this one, until the address is known.
    inherited: Vec<OwnedFd>,
}

fn milliseconds() -> u64 {
    u64::try_from(clock::monotonic_ms()).unwrap_or(0)
}

impl Dns {
    /// Serves what was pushed last, if anything was. `inherited`: what the service manager
    /// has kept. Needs a tokio runtime.
    pub(crate) fn start(
        config: &Config,
        kept: Option<&Found>,
        inherited: Vec<(String, OwnedFd)>,
    ) -> Dns {
        let inherited = inherited.into_iter().filter(|(name, _)| name == KEPT);
        let resolver = Resolver::new(config.resolv_conf.clone(), milliseconds);
        let mut dns = Dns {
            resolver: Arc::new(resolver),
            served: None,
            inherited: inherited.map(|(_, fd)| fd).collect(),
        };
        for change in kept.into_iter().flat_map(|kept| &kept.changes) {
            if let Change::Service(service) = change {
                let service = Service::from(service);
                dns.resolver.change(|zone| zone.put(service));
            } else if let Change::Config(config) = change {
                dns.configure(config);
            }
        }
        dns
    }

    /// Records what a step has touched.
    pub(crate) fn take(&mut self, desired: &Desired, touched: &Touched) {
        let find = |name: &String| desired.services.get(name);
        // Before the names are locked: a service may have thousands of endpoints.
        let new: Vec<Service> = if touched.all {
            desired.services.values().map(Service::from).collect()
        } else {
            let named = touched.names.iter().filter_map(find);
            named.map(Service::from).collect()
        };
        self.resolver.change(|zone| {
            if touched.all {
                zone.retain(|name| desired.services.contains_key(name));
            }
            for service in new {
                zone.put(service);
            }
            for name in touched.names.iter().filter(|name| find(name).is_none()) {
                zone.remove(name);
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
            forget();
        }
        let inherited = std::mem::take(&mut self.inherited);
        if wanted.is_none() && !inherited.is_empty() {
            forget();
        }
        self.served = wanted.map(|address| {
            let address = SocketAddr::new(address, PORT);
            let serving = serve(self.resolver.clone(), address, inherited);
            (address.ip(), tokio::spawn(serving))
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
async fn serve(resolver: Arc<Resolver>, address: SocketAddr, mut inherited: Vec<OwnedFd>) {
    let mut told = false;
    loop {
        match open(&resolver, address, std::mem::take(&mut inherited)) {
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

fn open(
    resolver: &Arc<Resolver>,
    address: SocketAddr,
    inherited: Vec<OwnedFd>,
) -> Result<Server, ServeError> {
    let were = inherited.len();
    let sockets = Sockets::open(address, inherited);
    if sockets.as_ref().map_or(0, Sockets::reused) < were {
        forget();
    }
    let sockets = sockets?;
    if let Err(error) = fdstore::keep(KEPT, &sockets.fds()) {
        tracing::warn!(%error, "the service manager does not keep the sockets of cluster DNS");
    }
    Server::start(resolver, sockets, &Handle::current())
}

/// The manager is to close the sockets that it keeps: clients' queries to one that is not
/// served would get no answer.
fn forget() {
    if let Err(error) = fdstore::forget(KEPT) {
        tracing::warn!(%error, "the service manager still keeps sockets of cluster DNS");
    }
}
