//! Pods with ports of the node, in the model: put, left to others, taken away.

use std::sync::Arc;

use super::*;
use crate::conflict::NodeSockets;
use crate::event;
use crate::pod;
use crate::settings::Settings;
use crate::simulate::{pod_spec, settings, simulate};
use crate::time::{Moment, Monotonic};
use crate::world::Desired;

const NONE: [&str; 0] = [];

/// What the user of a pod is told if it does not get port 8080.
fn in_use(pod: &str) -> String {
    format!(
        "{pod}: hostPort 8080: in use by a node port of a service or by another pod; the pod gets \
         it once it is free"
    )
}

fn port(container: u32, host: u32, protocol: &str, ip: &str) -> v1::ContainerPort {
    v1::ContainerPort {
        container_port: container,
        host_port: host,
        protocol: protocol.into(),
        host_ip: ip.into(),
        ..Default::default()
    }
}

fn spec(uid: &str, last: u8, ports: &[v1::ContainerPort]) -> v1::PodSpec {
    let mut spec = pod_spec(uid, 1);
    spec.ips = vec![format!("10.244.1.{last}")];
    spec.containers[0].ports = ports.to_vec();
    spec
}

struct Node {
    desired: Desired,
    observed: Observed,
    settings: Settings,
    now: Moment,
}

impl Node {
    fn new() -> Self {
        let desired = Desired {
            complete: true,
            ..Desired::default()
        };
        let mut node = Self {
            desired,
            observed: Observed::default(),
            settings: settings(),
            now: Moment::from_ms(1_000_000, 1_000_000),
        };
        let own = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        node.observed.network.addresses = own.into();
        node
    }

    fn want(&mut self, spec: v1::PodSpec) {
        self.desired.pods.insert(spec.uid.clone(), Arc::new(spec));
    }

    /// Plans a pod until nothing is due; the events about ports, and the moment of the next plan.
    fn settle(&mut self, uid: &str) -> (Vec<String>, Option<Monotonic>) {
        let mut told = Vec::new();
        for _ in 0..64 {
            let (desired, observed) = (&self.desired, &self.observed);
            let plan = pod::plan(uid, desired, observed, &self.settings, self.now);
            if plan.actions.is_empty() {
                assert_eq!(plan.problems, []);
                return (told, plan.wake);
            }
            for action in &plan.actions {
                let note = event::begun(action, &self.observed);
                let note = note.filter(|note| note.reason == "HostPortConflict");
                told.extend(note.map(|note| format!("{}: {}", note.name, note.message)));
                simulate(&mut self.observed, action, self.now);
            }
        }
        panic!("does not converge");
    }

    /// (address, port, protocol, where it leads to), by the tables and backends.
    fn ports(&self) -> Vec<(String, u16, u8, String)> {
        let maps = &self.observed.maps;
        let rows = maps.frontends().iter().map(|(key, frontend)| {
            assert_eq!(frontend.service_port, frontend.external);
            let entries = &maps.tables()[&frontend.service_port].entries;
            let [slot] = entries[..] else {
                panic!("one backend: {entries:?}")
            };
            let backend = maps.backends()[&slot];
            let to = format!("{}:{}", backend.addr, backend.port.get());
            let ip = key.addr.to_string();
            (ip, key.port.get(), key.protocol, to)
        });
        rows.collect()
    }

    fn is_bare(&self) -> bool {
        let maps = &self.observed.maps;
        maps.frontends().is_empty() && maps.tables().is_empty() && maps.backends().is_empty()
    }
}

fn row(ip: &str, port: u16, protocol: u8, to: &str) -> (String, u16, u8, String) {
    (ip.to_owned(), port, protocol, to.to_owned())
}

#[test]
fn the_ports_of_a_pod_stand_as_long_as_its_sandbox() {
    let mut node = Node::new();
    let ports = [
        port(80, 8080, "TCP", ""),
        port(53, 5353, "UDP", "192.0.2.2"),
        // All addresses, another's, none, and what the data plane does not have.
        port(81, 8081, "", "0.0.0.0"),
        port(82, 8082, "TCP", "198.51.100.9"),
        port(83, 0, "TCP", ""),
        port(84, 8084, "SCTP", ""),
        port(85, 8085, "TCP", "fd00::1"),
    ];
    node.want(spec("u", 5, &ports));
    let (told, wake) = node.settle("u");
    assert_eq!(told, NONE);
    assert_eq!(wake, Some(node.now.monotonic + AGAIN_MS));
    let wanted = [
        row("0.0.0.0", 8080, 6, "10.244.1.5:80"),
        row("0.0.0.0", 8081, 6, "10.244.1.5:81"),
        row("192.0.2.2", 5353, 17, "10.244.1.5:53"),
    ];
    let sorted = |node: &Node| {
        let mut ports = node.ports();
        ports.sort();
        ports
    };
    assert_eq!(sorted(&node), wanted);
    // An agent that starts anew takes them for its own, and nothing else.
    let stray = service_port_of_nobody(&mut node);
    let owners = Owners::of(&node.observed);
    let actions = crate::service::sweep(&node.desired, &owners, &node.observed.maps);
    assert_eq!(actions, [Action::DeleteTable { port_id: stray }]);
    simulate(&mut node.observed, &actions[0], node.now);
    assert_eq!(sorted(&node), wanted);

    node.desired.pods.clear();
    node.settle("u");
    // Two seconds of grace.
    node.now = Moment::from_ms(1_100_000, 1_100_000);
    node.settle("u");
    assert!(node.observed.pods.is_empty());
    assert!(node.is_bare(), "{:?}", node.observed.maps);
}

/// A table with a number of a pod that is not there.
fn service_port_of_nobody(node: &mut Node) -> u32 {
    let number = OWN | 60_000 << INDEX_BITS;
    node.observed
        .maps
        .put_table(number, table::build(0, vec![]));
    number
}

#[test]
fn a_port_that_is_in_use_is_left_until_it_is_free() {
    let mut node = Node::new();
    node.want(spec("a", 5, &[port(80, 8080, "TCP", "")]));
    node.want(spec(
        "b",
        6,
        &[port(80, 8080, "TCP", ""), port(80, 8090, "TCP", "")],
    ));
    node.settle("a");
    assert_eq!(node.settle("b").0, [in_use("b")]);
    // Once.
    assert_eq!(node.settle("b").0, NONE);
    let both = [
        row("0.0.0.0", 8080, 6, "10.244.1.5:80"),
        row("0.0.0.0", 8090, 6, "10.244.1.6:80"),
    ];
    assert_eq!(node.ports(), both);
    node.desired.pods.remove("a");
    node.settle("a");
    node.now = Moment::from_ms(1_100_000, 1_100_000);
    node.settle("a");
    assert_eq!(node.settle("b").0, NONE);
    assert_eq!(node.ports()[0], row("0.0.0.0", 8080, 6, "10.244.1.6:80"));

    // A node port of a service that comes later has it, and gives it back.
    change(&mut node, Some(&service()));
    assert_eq!(node.settle("b").0, [in_use("b")]);
    let at = |node: &Node| {
        let maps = &node.observed.maps;
        let mut found = maps.frontends().iter();
        let found = found.find(|(key, _)| key.port.get() == 8080);
        found.map(|(_, frontend)| frontend.service)
    };
    assert_eq!(at(&node), Some(1));
    change(&mut node, None);
    assert_eq!(at(&node), None);
    assert_eq!(node.settle("b").0, NONE);
    assert_eq!(node.ports()[0], row("0.0.0.0", 8080, 6, "10.244.1.6:80"));
}

#[test]
fn a_node_port_comes_before_a_port_of_one_address() {
    let mut node = Node::new();
    node.want(spec("a", 5, &[port(80, 8080, "TCP", "192.0.2.2")]));
    assert_eq!(node.settle("a").0, NONE);
    let own = [row("192.0.2.2", 8080, 6, "10.244.1.5:80")];
    assert_eq!(node.ports(), own);
    change(&mut node, Some(&service()));
    assert_eq!(node.settle("a").0, [in_use("a")]);
    let addresses: Vec<String> = node
        .observed
        .maps
        .frontends()
        .keys()
        .filter(|key| key.port.get() == 8080)
        .map(|key| key.addr.to_string())
        .collect();
    assert_eq!(addresses, ["0.0.0.0"]);
    change(&mut node, None);
    assert_eq!(node.settle("a").0, NONE);
    assert_eq!(node.ports(), own);
}

/// The pod has these ports, and its user is told who else uses them, once.
#[test]
fn ports_that_the_node_uses_are_told_of() {
    let mut node = Node::new();
    node.desired.config.dns_address = "10.96.0.10".into();
    node.desired.config.node_ports = Some(v1::PortRange {
        first: 30_000,
        last: 32_767,
    });
    let listener = |protocol, address: &str, port| Listener {
        protocol,
        address: address.parse().unwrap(),
        port,
    };
    node.observed
        .network
        .addresses
        .insert([10, 96, 0, 10].into());
    node.observed.network.sockets = NodeSockets {
        listeners: [
            listener(protocol::TCP, "0.0.0.0", 22),
            listener(protocol::TCP, "192.0.2.2", 23),
            listener(protocol::TCP, "192.0.2.1", 24),
            listener(protocol::TCP, "127.0.0.1", 25),
            listener(protocol::UDP, "0.0.0.0", 26),
            listener(protocol::UDP, "10.96.0.10", 53),
            listener(protocol::UDP, "0.0.0.0", 40_000),
        ]
        .into(),
        local_ports: Some(Ports {
            first: 32_768,
            last: 60_999,
        }),
        reserved: vec![Ports {
            first: 50_000,
            last: 50_000,
        }],
    };
    let ports = [
        port(1, 22, "TCP", ""),
        port(2, 23, "TCP", ""),
        port(3, 24, "TCP", "192.0.2.2"),
        port(4, 25, "TCP", ""),
        port(5, 26, "TCP", ""),
        port(6, 53, "UDP", ""),
        port(7, 30_000, "TCP", ""),
        port(8, 32_768, "TCP", ""),
        port(9, 40_000, "UDP", ""),
        port(10, 8080, "TCP", ""),
        port(11, 50_000, "TCP", ""),
    ];
    node.want(spec("a", 5, &ports));
    let wanted = "a: hostPort 22, 23: also used by a process of this node; connections from other \
                  machines and from pods lead to the pod; \
                  hostPort 30000: in the range of node ports (30000-32767); a service that gets \
                  it as node port takes precedence; \
                  hostPort 32768, 40000: in this node's net.ipv4.ip_local_port_range \
                  (32768-60999); connections of the node that get it as their own port break";
    assert_eq!(node.settle("a").0, [wanted]);
    assert_eq!(node.ports().len(), ports.len());
    assert_eq!(node.settle("a").0, NONE);
    // The process ends, and comes back.
    let before = std::mem::take(&mut node.observed.network.sockets.listeners);
    assert_eq!(node.settle("a").0, NONE);
    node.observed.network.sockets.listeners = before;
    let wanted = wanted.split("; hostPort 30000").next().unwrap();
    assert_eq!(node.settle("a").0, [wanted]);
}

/// With the node port 8080.
fn service() -> v1::Service {
    v1::Service {
        namespace: "default".into(),
        name: "s".into(),
        id: 1,
        cluster_ips: vec!["10.96.0.1".into()],
        ports: vec![v1::ServicePort {
            protocol: "TCP".into(),
            port: 80,
            node_port: 8080,
            id: 10,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// What the plan of that service does.
fn change(node: &mut Node, wanted: Option<&v1::Service>) {
    let place = crate::choice::Place::default();
    let (actions, _) = crate::service::plan(1, wanted, place, &node.observed.maps);
    for action in &actions {
        simulate(&mut node.observed, action, node.now);
    }
}

#[test]
fn a_pod_in_the_nodes_network_has_its_port_itself() {
    let mut node = Node::new();
    let mut host = spec("u", 5, &[port(80, 80, "TCP", "")]);
    host.host_network = true;
    node.want(host);
    node.settle("u");
    assert!(node.is_bare());
}
