//! Which backends of a service port take new connections on this node: by the service's
//! traffic policies, the hints of its endpoints, and the node's name and zone.
//!
//! Kubernetes' pkg/proxy/topology.go (CategorizeEndpoints, topologyModeFromHints). Those
//! that are not chosen keep the connections that they have. Called by `service.rs`.

use std::collections::BTreeSet;

use proto::v1;
use proto::v1::backend::State;

use crate::settings::Settings;
use crate::world::Desired;

/// Where this node is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Its zone; empty: none is known.
    pub zone: &'a str,
}

impl<'a> Place<'a> {
    /// Of the node with these settings.
    pub fn of(settings: &'a Settings, desired: &'a Desired) -> Self {
        Place {
            node: &settings.node_name,
            zone: &desired.config.zone,
        }
    }
}

/// For each backend, whether it is chosen under this policy.
pub(crate) fn chosen(
    policy: v1::TrafficPolicy,
    backends: &[v1::Backend],
    place: Place<'_>,
) -> Vec<bool> {
    let may_use: Box<dyn Fn(&v1::Backend) -> bool> = match policy {
        v1::TrafficPolicy::Local => Box::new(|b| is_local(b, place)),
        v1::TrafficPolicy::Cluster => match preference(backends, place) {
            Some(prefers) => Box::new(move |b| prefers(b, place)),
            None => Box::new(|_| true),
        },
    };
    let best: fn(&v1::Backend) -> bool = match backends.iter().any(|b| is_ready(b) && may_use(b)) {
        true => is_ready,
        false => |b| b.last_resort,
    };
    backends.iter().map(|b| best(b) && may_use(b)).collect()
}

/// Ready endpoints of a service on this node.
pub fn local_endpoints(service: &v1::Service, place: Place<'_>) -> usize {
    let backends = service.ports.iter().flat_map(|port| &port.backends);
    let local = backends.filter(|b| is_ready(b) && is_local(b, place));
    let addresses: BTreeSet<&str> = local.map(|b| b.address.as_str()).collect();
    addresses.len()
}

fn is_local(backend: &v1::Backend, place: Place<'_>) -> bool {
    !backend.node.is_empty() && backend.node == place.node
}

fn is_ready(backend: &v1::Backend) -> bool {
    backend.state() != State::Terminating && !backend.last_resort
}

type Prefers = fn(&v1::Backend, Place<'_>) -> bool;

/// Hints count only if every ready endpoint has them: an endpoint without may be one
/// that its controller has not seen yet.
fn preference(backends: &[v1::Backend], place: Place<'_>) -> Option<Prefers> {
    let same_node: Prefers = |b, place| b.for_nodes.iter().any(|n| n == place.node);
    let same_zone: Prefers =
        |b, place| !place.zone.is_empty() && b.for_zones.iter().any(|z| z == place.zone);
    let usable = |has_hints: fn(&v1::Backend) -> bool, prefers: Prefers| {
        let mut ready = backends.iter().filter(|b| is_ready(b));
        let all_have = ready.clone().all(has_hints);
        all_have && ready.any(|b| prefers(b, place))
    };
    if usable(|b| !b.for_nodes.is_empty(), same_node) {
        Some(same_node)
    } else if usable(|b| !b.for_zones.is_empty(), same_zone) {
        Some(same_zone)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Is {
        Ready,
        Last,
        Ending,
    }

    /// A backend on a node, with hints for a zone and a node.
    fn backend(is: Is, node: &str, zone: &str, for_node: &str) -> v1::Backend {
        let hint = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        v1::Backend {
            node: node.into(),
            state: match is {
                Is::Ready => State::Active.into(),
                Is::Last | Is::Ending => State::Terminating.into(),
            },
            last_resort: matches!(is, Is::Last),
            for_zones: hint(zone).into_iter().collect(),
            for_nodes: hint(for_node).into_iter().collect(),
            ..Default::default()
        }
    }

    /// Name, policy, backends, those that are chosen.
    type Row = (
        &'static str,
        v1::TrafficPolicy,
        &'static [(Is, &'static str, &'static str, &'static str)],
        &'static [usize],
    );

    #[test]
    fn backends_of_a_node() {
        use Is::{Ending, Last, Ready};
        use v1::TrafficPolicy::{Cluster, Local};
        let rows: &[Row] = &[
            (
                "no hints",
                Cluster,
                &[(Ready, "n1", "", ""), (Ready, "n2", "", "")],
                &[0, 1],
            ),
            ("no endpoint", Cluster, &[], &[]),
            (
                "ready before the last resort",
                Cluster,
                &[
                    (Ready, "n2", "", ""),
                    (Last, "n1", "", ""),
                    (Ending, "n1", "", ""),
                ],
                &[0],
            ),
            (
                "the last resort",
                Cluster,
                &[
                    (Ending, "n1", "", ""),
                    (Last, "n1", "", ""),
                    (Last, "n2", "", ""),
                ],
                &[1, 2],
            ),
            (
                "local",
                Local,
                &[(Ready, "n1", "", ""), (Ready, "n2", "", "")],
                &[0],
            ),
            (
                "none is local",
                Local,
                &[(Ready, "n2", "", ""), (Ready, "", "", "")],
                &[],
            ),
            (
                "a local last resort, although others are ready",
                Local,
                &[(Ready, "n2", "", ""), (Last, "n1", "", "")],
                &[1],
            ),
            (
                "policy Local knows no hints",
                Local,
                &[(Ready, "n1", "b", "n2"), (Ready, "n2", "a", "n2")],
                &[0],
            ),
            (
                "same zone",
                Cluster,
                &[
                    (Ready, "n2", "a", ""),
                    (Ready, "n3", "b", ""),
                    (Ready, "n1", "a", ""),
                ],
                &[0, 2],
            ),
            (
                "none in the zone",
                Cluster,
                &[(Ready, "n2", "c", ""), (Ready, "n3", "b", "")],
                &[0, 1],
            ),
            (
                "one has no hint",
                Cluster,
                &[(Ready, "n1", "a", ""), (Ready, "n3", "", "")],
                &[0, 1],
            ),
            (
                "one that is not ready needs no hint",
                Cluster,
                &[
                    (Ready, "n1", "a", ""),
                    (Ready, "n3", "b", ""),
                    (Ending, "n1", "", ""),
                ],
                &[0],
            ),
            (
                "only a terminating one is in the zone",
                Cluster,
                &[(Last, "n1", "a", ""), (Ready, "n3", "b", "")],
                &[1],
            ),
            (
                "the last resort knows no zones",
                Cluster,
                &[(Last, "n1", "a", ""), (Last, "n3", "b", "")],
                &[0, 1],
            ),
            (
                "same node",
                Cluster,
                &[(Ready, "n1", "a", "n1"), (Ready, "n2", "a", "n2")],
                &[0],
            ),
            (
                "none on the node: same zone",
                Cluster,
                &[(Ready, "n2", "a", "n2"), (Ready, "n3", "b", "n3")],
                &[0],
            ),
            (
                "none on the node nor in the zone",
                Cluster,
                &[(Ready, "n2", "b", "n2"), (Ready, "n3", "b", "n3")],
                &[0, 1],
            ),
            (
                "a hint for another node than its own",
                Cluster,
                &[(Ready, "n2", "", "n1"), (Ready, "n1", "", "n2")],
                &[0],
            ),
        ];
        let place = Place {
            node: "n1",
            zone: "a",
        };
        for (name, policy, backends, expected) in rows {
            let backends: Vec<_> = backends
                .iter()
                .map(|b| backend(b.0, b.1, b.2, b.3))
                .collect();
            let chosen = chosen(*policy, &backends, place);
            let got: Vec<usize> = (0..)
                .zip(chosen)
                .filter(|(_, is)| *is)
                .map(|(i, _)| i)
                .collect();
            assert_eq!(got, *expected, "{name}");
        }
    }

    /// The control plane says "active" of those that terminate where no other is ready,
    /// for agents that judge by nothing else.
    #[test]
    fn what_the_cluster_calls_active_is_judged_anew() {
        let mut last = backend(Is::Last, "n1", "", "");
        last.state = State::Active.into();
        let place = Place {
            node: "n1",
            zone: "",
        };
        let both = [last, backend(Is::Ready, "n2", "", "")];
        assert_eq!(
            chosen(v1::TrafficPolicy::Cluster, &both, place),
            [false, true]
        );
        assert_eq!(
            chosen(v1::TrafficPolicy::Cluster, &both[..1], place),
            [true]
        );
    }

    /// A node without a zone is in none.
    #[test]
    fn a_node_without_a_zone() {
        let mut unzoned = backend(Is::Ready, "n2", "", "");
        unzoned.for_zones = vec![String::new()];
        let both = [unzoned, backend(Is::Ready, "n3", "a", "")];
        let place = Place {
            node: "n1",
            zone: "",
        };
        assert_eq!(
            chosen(v1::TrafficPolicy::Cluster, &both, place),
            [true, true]
        );
    }
}
