//! Ports of nodes that pods take for themselves (`hostPort`): the scheduler gives no node two
//! pods that want the same one.
//!
//! As Kubernetes' pkg/scheduler/framework/types.go (HostPortInfo) has it. Counted by
//! `pod.rs`, asked by `filter.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

/// A port of a node's address, or of all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    protocol: String,
    number: i32,
    /// Empty: all addresses of the node.
    address: String,
}

/// The ports that a pod takes: those of its containers and sidecars.
pub(crate) fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> + '_ {
    let spec = pod.spec.iter();
    let is_sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.flat_map(move |spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
        spec.containers.iter().chain(sidecars)
    });
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().unwrap_or_default();
        let is_all = matches!(address.as_str(), "0.0.0.0" | "::");
        Some(HostPort {
            protocol: port.protocol.clone().unwrap_or_default(),
            number,
            address: if is_all { String::new() } else { address },
        })
    })
}

/// How often each port of a node is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostPorts(BTreeMap<HostPort, u32>);

impl HostPorts {
    /// A pod takes it.
    pub(crate) fn take(&mut self, port: HostPort) {
        *self.0.entry(port).or_default() += 1;
    }

    /// A pod that had taken it is gone.
    pub(crate) fn release(&mut self, port: &HostPort) {
        if let Some(count) = self.0.get_mut(port) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(port);
            }
        }
    }

    /// True when no port is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when the port, or one that includes it or is included in it, is taken.
    pub(crate) fn conflicts(&self, port: &HostPort) -> bool {
        let all = HostPort {
            address: String::new(),
            ..port.clone()
        };
        let same =
            |other: &HostPort| (&other.protocol, other.number) == (&port.protocol, port.number);
        let from_all = self.0.range(&all..);
        let mut there = from_all.map(|(port, _)| port).take_while(|port| same(port));
        there.any(|other| {
            other.address.is_empty() || port.address.is_empty() || other.address == port.address
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::typed;

    fn pod(port: serde_json::Value) -> Pod {
        typed(json!({
            "metadata": {"name": "p", "namespace": "d"},
            "spec": {
                "containers": [{"name": "c", "image": "x", "ports": [port]}],
                "initContainers": [
                    {"name": "i", "image": "x", "ports": [{"containerPort": 1, "hostPort": 1}]},
                    {"name": "s", "image": "x", "restartPolicy": "Always",
                        "ports": [{"containerPort": 2, "hostPort": 2, "protocol": "TCP"}]},
                ],
            },
        }))
    }

    #[test]
    fn ports_conflict_by_protocol_number_and_address() {
        let port = |protocol: &str, number: i32, address: &str| {
            let port = json!({"containerPort": 80, "hostPort": number, "protocol": protocol, "hostIP": address});
            host_ports(&pod(port)).next().unwrap()
        };
        let mut taken = HostPorts::default();
        for port in [
            port("TCP", 80, ""),
            port("TCP", 81, "192.0.2.1"),
            port("TCP", 81, "192.0.2.2"),
            port("UDP", 82, "0.0.0.0"),
        ] {
            taken.take(port);
        }
        for (protocol, number, address, expected) in [
            ("TCP", 80, "", true),
            ("TCP", 80, "192.0.2.1", true),
            ("UDP", 80, "", false),
            ("TCP", 81, "", true),
            ("TCP", 81, "0.0.0.0", true),
            ("TCP", 81, "192.0.2.2", true),
            ("TCP", 81, "192.0.2.3", false),
            ("TCP", 82, "", false),
            ("UDP", 82, "192.0.2.1", true),
            ("UDP", 83, "", false),
        ] {
            let got = taken.conflicts(&port(protocol, number, address));
            assert_eq!(got, expected, "{protocol} {address}:{number}");
        }
        // Twice taken, and given back once.
        taken.take(port("TCP", 80, ""));
        taken.release(&port("TCP", 80, ""));
        assert!(taken.conflicts(&port("TCP", 80, "")));
        taken.release(&port("TCP", 80, ""));
        assert!(!taken.conflicts(&port("TCP", 80, "")));
    }

    #[test]
    fn sidecars_take_ports_and_other_init_containers_do_not() {
        let pod = pod(json!({"containerPort": 3}));
        let ports: Vec<i32> = host_ports(&pod).map(|port| port.number).collect();
        assert_eq!(ports, [2]);
    }
}
