//! Connections of real pods to a service: translated at `connect` by default, packet by packet if
//! the agent is configured so, and the one after the other.

use std::fs;
use std::net::Ipv4Addr;

use agent_sys::maps::Maps;
use proto::v1;
use proto::v1::change::Change;
use proto::v1::open::What;
use tests_harness::wait_until;

use crate::node::{Node, pod, ready};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

fn service() -> Change {
    Change::Service(v1::Service {
        namespace: "default".into(),
        name: "web".into(),
        id: 1,
        generation: 1,
        cluster_ips: vec![VIP.to_string()],
        ports: vec![v1::ServicePort {
            name: "http".into(),
            protocol: "TCP".into(),
            port: 80,
            backends: vec![v1::Backend {
                address: WEB.to_string(),
                port: 8080,
                node: "n1".into(),
                pod: "web".into(),
                pod_name: "default/web".into(),
                state: v1::backend::State::Active.into(),
                ..v1::Backend::default()
            }],
            id: 1,
            ..v1::ServicePort::default()
        }],
        ..v1::Service::default()
    })
}

/// Asks the service from a container, once.
fn served(node: &Node, uid: &str, attempt: &str) -> Result<(), String> {
    // busybox without the machine's libraries: its wget ends by a signal.
    let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {VIP} 80");
    let exec = node.control.open(
        attempt,
        What::Exec(v1::OpenExec {
            pod_uid: uid.into(),
            container: "main".into(),
            command: ["sh", "-c", &ask].map(Into::into).into(),
            ..Default::default()
        }),
    );
    let text = String::from_utf8_lossy(&exec.output);
    if text.trim_end().ends_with("served") && exec.exit_code == Some(0) {
        Ok(())
    } else {
        Err(format!("{text} {:?}", exec.exit_code))
    }
}

/// Clients' flows to the service, and to its backend directly, of TCP.
fn flows(node: &Node) -> (usize, usize) {
    let maps = Maps::open(&node.folder.join("bpf")).expect("maps");
    let flows = maps.flows().expect("flows");
    let to = |addr: Ipv4Addr, port: u16| {
        let rows = flows.iter().filter(|(key, flow)| {
            !flow.is_reply() && Ipv4Addr::from(key.dst) == addr && key.dport.get() == port
        });
        rows.count()
    };
    (to(VIP, 80), to(WEB, 8080))
}

fn links(node: &Node) -> usize {
    let entries = fs::read_dir(node.folder.join("bpf/links")).expect("pins");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("sock_")).count()
}

#[test]
fn connections_are_translated_at_connect_unless_it_is_switched_off() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let serve = "mkdir -p /www; echo served > /www/index.html; httpd -f -p 8080 -h /www";
    let wait = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let mut host = pod("host", 7, wait);
    host.host_network = true;
    host.ips = vec!["172.31.0.11".into()];
    let pods = [pod("web", 5, serve), pod("client", 6, wait), host];
    let mut changes: Vec<Change> = pods.into_iter().map(Change::Pod).collect();
    changes.push(service());
    node.control.push(changes);
    for uid in ["web", "client", "host"] {
        node.control.status(uid, ready);
    }
    let mut attempt = 0;
    let mut ask = |node: &Node, uid: &str| {
        wait_until("an answer of the service", || {
            attempt += 1;
            served(node, uid, &format!("{uid}-{attempt}"))
        });
    };
    ask(&node, "client");
    assert_eq!(links(&node), 4);
    let (translated, direct) = flows(&node);
    assert_eq!((translated, direct > 0), (0, true));
    // A pod of the host network is the node's own; a pod that is its own backend sends nothing.
    ask(&node, "host");
    assert_eq!(flows(&node), (1, direct));
    ask(&node, "web");
    assert_eq!(flows(&node), (1, direct));

    node.saved(2);
    node.kill();
    node.add_to_config("connect_translation = false");
    node.start();
    node.control.hello(2);
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    assert_eq!(links(&node), 0);
    ask(&node, "client");
    let (translated, direct) = flows(&node);
    assert!(translated > 1, "{translated} {direct}");

    node.kill();
    node.configure("", &node.control.ca_hash);
    node.start();
    node.control.hello(3);
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    assert_eq!(links(&node), 4);
    ask(&node, "client");
    let (still, more) = flows(&node);
    assert!(still == translated && more > direct, "{still} {more}");
}
