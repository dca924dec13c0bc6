//! Our links, routes and addresses in the kernel while the agent runs: listens to rtnetlink, observes
//! again when something changed that is ours or that ours goes with.
//!
//! A part of the node. What a change means is decided in `agent-plan` (`seen.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::link::{Cidr, Hop, Route, SERVICE_LINK};
use agent_plan::outcome::Outcome;
use agent_plan::seen::{Expected, Link, Seen};
use agent_sys::link::{self, Changes, Monitor};

use crate::event::Event;
use crate::startup::Sys;

/// Before another try when the kernel could not be listened to or asked.
const PAUSE: Duration = Duration::from_secs(1);

/// Asking the kernel, one question at a time.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    asking: bool,
    again: bool,
}

impl Kernel {
    /// Asks what there is; while an answer is awaited, once more after it.
    pub(crate) fn ask(&mut self, sys: &Arc<Sys>, expected: impl FnOnce() -> Expected) {
        if std::mem::replace(&mut self.asking, true) {
            self.again = true;
            return;
        }
        let (sys, expected) = (sys.clone(), Box::new(expected()));
        tokio::spawn(async move {
            let seen = loop {
                match sys.netlink.observe().await {
                    Ok(observed) => break seen(&observed, &sys.settings.uplink),
                    Err(error) => tracing::warn!(%error, "cannot observe links"),
                }
                tokio::time::sleep(PAUSE).await;
            };
            let seen = Box::new(seen);
            sys.tell(Outcome::Seen { expected, seen }).await;
        });
    }

    /// The answer came; true if it is to be asked again.
    pub(crate) fn answered(&mut self) -> bool {
        self.asking = false;
        std::mem::take(&mut self.again)
    }
}

/// Listens for as long as the agent runs, and tells the loop. `monitor` was opened
/// before the node was observed, so that no change falls between the two.
pub(crate) async fn listen(sys: Arc<Sys>, mut monitor: Monitor) {
    loop {
        match monitor.next().await {
            Ok(changes) => sys.tell(Event::Kernel(changes)).await,
            Err(error) => {
                tracing::error!(%error, "lost notifications of links and routes; subscribing again");
                monitor = reopened().await;
                // Whatever was missed.
                let missed = Changes {
                    routing: true,
                    ours: true,
                };
                sys.tell(Event::Kernel(missed)).await;
            }
        }
    }
}

async fn reopened() -> Monitor {
    loop {
        tokio::time::sleep(PAUSE).await;
        match Monitor::open() {
            Ok(monitor) => return monitor,
            Err(error) => tracing::error!(%error, "cannot open an rtnetlink socket"),
        }
    }
}

/// As the plans have it.
pub(crate) fn seen(observed: &link::Observed, uplink: &str) -> Seen {
    let mut links: BTreeMap<String, Link> = observed
        .links
        .iter()
        .map(|l| {
            let link = Link {
                ifindex: l.index,
                up: l.up,
                ..Link::default()
            };
            (l.name.clone(), link)
        })
        .collect();
    let mut routes = BTreeMap::new();
    for route in &observed.routes {
        let (IpAddr::V4(address), bits) = route.destination else {
            continue;
        };
        let destination = Cidr { address, bits };
        let v4 = |ip: Option<IpAddr>| match ip {
            Some(IpAddr::V4(v4)) => Some(v4),
            Some(IpAddr::V6(_)) | None => None,
        };
        let hop = match &route.hop {
            link::Hop::Unreachable => Hop::Unreachable,
            link::Hop::Link { name, via, source } if name == SERVICE_LINK || name == uplink => {
                Hop::Link {
                    name: name.clone(),
                    via: v4(*via),
                    source: v4(*source),
                }
            }
            // Pods' routes come and go with their links.
            link::Hop::Link { name, .. } => {
                if let Some(link) = links.get_mut(name).filter(|_| bits == 32) {
                    link.routed.push(address);
                }
                continue;
            }
        };
        routes.insert(destination, Route { destination, hop });
    }
    for neighbour in &observed.neighbours {
        if let (Some(link), IpAddr::V4(address)) =
            (links.get_mut(&neighbour.link), neighbour.address)
        {
            link.neighbours.push((address, neighbour.mac));
        }
    }
    Seen { links, routes }
}
