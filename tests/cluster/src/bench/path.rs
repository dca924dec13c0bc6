//! Where clients and servers of the round trips are: bare namespaces, peers with the rules of
//! kube-proxy, and pods.
//!
//! Server and client are the same program on every path and run without a container's filter
//! and limits, in the pods' network namespaces: only the network differs. All of them run on one
//! CPU with a real-time priority: two CPUs would measure how an idle one wakes up.

use super::peer::{self, BULK_PORT, PORT};
use crate::{limits, objects};
use std::process::Command;
use tests_harness::{Cluster, NetNs, Process};

/// Pins to a CPU, first in, first out.
const PINNED: [&str; 6] = ["chrt", "-f", "10", "taskset", "-c", "1"];
/// Sets the client's port range, and enters a control group if one is named.
const PREPARE: &str = "echo \"$1\" > /proc/sys/net/ipv4/ip_local_port_range || exit; \
     [ -z \"$2\" ] || echo $$ > \"$2\" || exit; shift 2; exec \"$@\"";

/// A client's place and whom it calls.
pub(super) struct Path {
    pub(super) name: String,
    /// `--net=FILE` of the client.
    inside: String,
    /// `cgroup.procs` of the group that it enters, or nothing.
    group: String,
    /// Address of the server, or of the service.
    pub(super) address: String,
    /// The address that is called in turn with `address`, from the same port.
    pub(super) other: Option<String>,
}

impl Path {
    fn new(name: &str, inside: &str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            inside: inside.to_owned(),
            group: String::new(),
            address: address.to_owned(),
            other: None,
        }
    }

    /// `app` where the client is; the kernel chooses its ports from `ports`.
    pub(super) fn client(&self, ports: (u16, u16)) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(&self.inside).args(["sh", "-c", PREPARE, "sh"]);
        command.args([&format!("{} {}", ports.0, ports.1), &self.group]);
        command.args(PINNED).arg(tests_harness::binary("app"));
        command
    }

    /// Whether its client is in the same place as another path's.
    pub(super) fn has_client_of(&self, other: &Self) -> bool {
        self.inside == other.inside
    }

    /// The path whose figure this one is compared with, beside bare veth.
    pub(super) fn direct(&self) -> Option<&'static str> {
        match self.name.strip_prefix("clusterip.")? {
            "two" => Some("direct.two"),
            _ => Some("direct.same"),
        }
    }
}

/// Servers and namespaces that end with the measurement.
#[derive(Default)]
pub(super) struct Guards {
    servers: Vec<Process>,
    spaces: Vec<NetNs>,
}

impl Guards {
    fn serve(&mut self, cluster: &Cluster, inside: &str, name: &str) {
        let mut command = Command::new("nsenter");
        command.arg(inside).args(PINNED);
        command.arg(tests_harness::binary("app"));
        command.args(["echo", "--port", &PORT.to_string()]);
        let log = cluster.root().join(format!("bench-{name}.log"));
        self.servers.push(Process::spawn(name, &mut command, &log));
    }
}

/// `--net=FILE` of a namespace.
fn inside(space: &NetNs) -> String {
    format!("--net={}", space.path().display())
}

/// Two namespaces joined by a veth, and two joined by a third one that forwards.
pub(super) fn bare(cluster: &Cluster, guards: &mut Guards) -> Vec<Path> {
    let spaces = ["a", "b"].map(|label| NetNs::named(&format!("{}-bench-{label}", cluster.name())));
    let [a, b] = &spaces;
    join(a, "192.0.2.1", b, "192.0.2.2");
    guards.serve(cluster, &inside(b), "veth");
    let client = inside(a);
    let mixed = Path {
        other: Some("192.0.2.2".to_owned()),
        ..Path::new("veth.mixed", &client, "192.0.2.2")
    };
    let paths = vec![Path::new("veth", &client, "192.0.2.2"), mixed];
    guards.spaces.extend(spaces);
    paths
        .into_iter()
        .chain([routed(cluster, guards, "forward", None)])
        .collect()
}

/// Two namespaces joined by a third one that forwards; with rules, the client calls their service.
fn routed(cluster: &Cluster, guards: &mut Guards, name: &str, rules: Option<&peer::Rules>) -> Path {
    let spaces = ["client", "router", "server"]
        .map(|label| NetNs::named(&format!("{}-{name}-{label}", cluster.name())));
    let [client, router, server] = &spaces;
    join(client, "192.0.2.5", router, "192.0.2.6");
    join(server, peer::SERVER, router, "192.0.2.10");
    client.ip(&["route", "add", "default", "via", "192.0.2.6"]);
    server.ip(&["route", "add", "default", "via", "192.0.2.10"]);
    let on = router.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    on.expect("forwarding in the namespace");
    let address = rules.map_or(peer::SERVER, |rules| {
        rules.load(router);
        peer::SERVICE
    });
    guards.serve(cluster, &inside(server), name);
    let path = Path::new(name, &inside(client), address);
    guards.spaces.extend(spaces);
    path
}

/// A path through each rule set that can be loaded here.
pub(super) fn peers(cluster: &Cluster, guards: &mut Guards) -> Vec<Path> {
    let all = peer::all();
    let paths = all.iter().map(|rules| {
        eprintln!("loading {}", rules.name);
        routed(cluster, guards, &rules.name, Some(rules))
    });
    paths.collect()
}

/// A veth between two namespaces, /30 on each side.
fn join(a: &NetNs, a_ip: &str, b: &NetNs, b_ip: &str) {
    let tail = |ip: &str| ip.rsplit('.').next().unwrap_or_default().to_owned();
    let (a_dev, b_dev) = (format!("foil{}", tail(a_ip)), format!("foil{}", tail(b_ip)));
    let link = ["link", "add", &a_dev, "type", "veth", "peer", "name"];
    a.ip(&[&link[..], &[&b_dev, "netns", b.name()]].concat());
    for (space, dev, ip) in [(a, &a_dev, a_ip), (b, &b_dev, b_ip)] {
        space.ip(&["addr", "add", &format!("{ip}/30"), "dev", dev]);
        space.ip(&["link", "set", dev, "up"]);
    }
}

/// Pods of the round trips.
pub(super) const PODS: [&str; 3] = ["bench-client", "bench-same", "bench-two"];

/// A client on n1, servers on n1 and n2, a service for each server.
pub(super) fn pods(cluster: &Cluster, guards: &mut Guards) -> Vec<Path> {
    let mut manifest = String::new();
    for (name, node) in PODS.into_iter().zip(["n1", "n1", "n2"]) {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: app, image: 'foil/app:1', command: [app, serve]}}\n---\n"
        ));
    }
    for name in &PODS[1..] {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
             selector: {{app: {name}}}\n  ports:\n  - {{name: echo, port: {PORT}}}\n  \
             - {{name: datagrams, port: {PORT}, protocol: UDP}}\n  \
             - {{name: bulk, port: {BULK_PORT}}}\n---\n"
        ));
    }
    cluster
        .foil_with_input(&["apply", "-f", "-"], &manifest)
        .success();
    let pods = PODS.map(|name| objects::ready(cluster, name));
    let [client, servers @ ..] = &pods;
    let inside = |pod| format!("--net=/proc/{}/ns/net", limits::init_pid(cluster, pod));
    let group = limits::unified(cluster, client);
    let client = inside(client);
    let mut paths = Vec::new();
    for (place, pod) in ["same", "two"].into_iter().zip(servers) {
        guards.serve(cluster, &inside(pod), &pod.name);
        objects::backends_are(cluster, &pod.name, std::slice::from_ref(pod));
        let service = objects::cluster_ip(cluster, &pod.name);
        paths.push(Path::new(&format!("direct.{place}"), &client, &pod.ip));
        paths.push(Path::new(&format!("clusterip.{place}"), &client, &service));
        let (Some(group), "same") = (&group, place) else {
            continue;
        };
        let socket = |name: &str| Path {
            group: group.join("cgroup.procs").display().to_string(),
            ..Path::new(name, &client, &service)
        };
        paths.push(socket("clusterip.socket"));
        paths.push(Path {
            other: Some(pod.ip.clone()),
            ..socket("clusterip.mixed")
        });
    }
    paths
}
