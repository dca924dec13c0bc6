//! Ports of the node that lead to a pod: defaults and rules of `hostPort` and `hostIP`, as
//! ValidatePodSpec in Kubernetes' pkg/apis/core/validation has them. Called by `podspec`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::invalid::{Causes, Field};
use crate::name;

const UNSUPPORTED: &str =
    "IPv6 and loopback addresses of a node are not supported by Hydrofoil yet";

/// In the node's network a port is the node's (SetDefaults_Pod).
pub(crate) fn set_defaults(spec: &mut PodSpec) {
    if spec.host_network != Some(true) {
        return;
    }
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        for port in container.ports.iter_mut().flatten() {
            if port.host_port.unwrap_or_default() == 0 {
                port.host_port = Some(port.container_port);
            }
        }
    }
}

/// Judges the ports of all containers; `at` is the PodSpec.
pub(crate) fn validate(spec: &PodSpec, at: &Field, causes: &mut Causes) {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    // Init containers run one after the other, each before the others: theirs may be the same.
    let is_sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let mut taken = BTreeSet::new();
    for (list, containers) in [("initContainers", init), ("containers", &spec.containers)] {
        for (i, container) in containers.iter().enumerate() {
            let shares = list == "containers" || is_sidecar(container);
            let at = at.child(list).index(i).child("ports");
            validate_ports(spec, container, shares.then_some(&mut taken), &at, causes);
        }
    }
}

fn validate_ports<'a>(
    spec: &PodSpec,
    container: &'a Container,
    mut taken: Option<&mut BTreeSet<(&'a str, &'a str, i32)>>,
    at: &Field,
    causes: &mut Causes,
) {
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let at = at.index(i);
        let ip = port.host_ip.as_deref().unwrap_or_default();
        match (ip, ip.parse::<IpAddr>()) {
            ("", _) => {}
            (_, Ok(IpAddr::V4(v4))) if !v4.is_loopback() => {}
            (_, Ok(_)) => causes.forbidden(&at.child("hostIP"), UNSUPPORTED),
            (_, Err(_not_an_address)) => {
                let detail = name::ip(ip).err().unwrap_or_default();
                causes.invalid(&at.child("hostIP"), ip, detail);
            }
        }
        let number = port.host_port.unwrap_or_default();
        if number == 0 {
            continue;
        }
        if let Err(detail) = name::port(number) {
            causes.invalid(&at.child("hostPort"), number, detail);
        } else if spec.host_network == Some(true) && number != port.container_port {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            causes.invalid(&at.child("containerPort"), port.container_port, detail);
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if let Some(taken) = &mut taken
            && !taken.insert((protocol, ip, number))
        {
            let text = format!("{protocol}/{ip}/{number}");
            causes.duplicate(&at.child("hostPort"), &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(host_network: bool, ports: &[Value], init: &[Value]) -> PodSpec {
        let text = json!({
            "hostNetwork": host_network,
            "containers": [{"name": "a", "image": "x", "ports": ports}],
            "initContainers": [{"name": "i", "image": "x", "ports": init}],
        });
        serde_json::from_value(text).unwrap()
    }

    fn port(container: i32, host: i32, ip: &str) -> Value {
        json!({"containerPort": container, "hostPort": host, "hostIP": ip, "protocol": "TCP"})
    }

    #[test]
    fn ports_of_the_node_are_judged() {
        let clash = "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\"";
        let range = "spec.containers[0].ports[0].hostPort: Invalid value: 65536: must be between 1 and 65535, inclusive";
        let ip = "spec.containers[0].ports[0].hostIP: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        let own = "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true";
        let family = "spec.containers[0].ports[0].hostIP: Forbidden: IPv6 and loopback addresses of a node are not supported by Hydrofoil yet";
        for (host_network, ports, wanted) in [
            (false, vec![port(80, 8080, ""), port(80, 8081, "")], None),
            (
                false,
                vec![port(80, 80, ""), port(81, 80, "10.0.0.1")],
                None,
            ),
            (false, vec![port(80, 0, ""), port(81, 0, "")], None),
            (false, vec![port(80, 80, ""), port(81, 80, "")], Some(clash)),
            (false, vec![port(80, 65_536, "")], Some(range)),
            (false, vec![port(80, 8080, "x")], Some(ip)),
            (false, vec![port(80, 8080, "fd00::1")], Some(family)),
            (false, vec![port(80, 8080, "127.0.0.1")], Some(family)),
            (true, vec![port(80, 80, "")], None),
            (true, vec![port(80, 8080, "")], Some(own)),
        ] {
            let spec = spec(host_network, &ports, &[port(80, 80, "")]);
            let mut causes = Causes::default();
            validate(&spec, &Field::root("spec"), &mut causes);
            let found = causes.into_vec().into_iter();
            let found: Vec<String> = found
                .map(|c| format!("{}: {}", c.field, c.message))
                .collect();
            let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
            assert_eq!(found, wanted, "{ports:?}");
        }
    }

    #[test]
    fn in_the_nodes_network_the_port_is_the_nodes() {
        let ports = [json!({"containerPort": 80})];
        let mut inside = spec(true, &ports, &ports);
        set_defaults(&mut inside);
        let all = inside
            .containers
            .iter()
            .chain(inside.init_containers.iter().flatten());
        let numbers = all
            .flat_map(|c| c.ports.iter().flatten())
            .map(|p| p.host_port);
        assert_eq!(numbers.collect::<Vec<_>>(), [Some(80), Some(80)]);
        let mut outside = spec(false, &ports, &[]);
        set_defaults(&mut outside);
        assert_eq!(outside, spec(false, &ports, &[]));
    }
}
