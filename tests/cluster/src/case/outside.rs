//! Clients outside of the cluster: node ports, load balancer and external addresses.

use crate::fixture::{delete_pod, web_and_client};
use crate::objects::{self, Pod};
use crate::scene::Scene;
use crate::traffic::{self, Calls};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use tests_harness::{Cluster, process, wait_until};

const EXTERNAL: &str = "192.0.2.9";

fn manifest(more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: front}}\nspec:\n  type: LoadBalancer\n  \
         externalIPs: [{EXTERNAL}]\n  selector: {{app: web}}\n  \
         ports: [{{port: 80, targetPort: http}}]\n{more}"
    )
}

fn front(cluster: &Cluster) -> Value {
    cluster.get("services", "front").unwrap_or_default()
}

/// Requests of the machine on the wire, which is no node.
fn call_from_outside(cluster: &Cluster, target: &str, count: u32) -> Calls {
    let mut command = cluster.wire().command(tests_harness::binary("app"));
    command.args(["call", target, "-n", &count.to_string()]);
    Calls::parse(&process::run(&mut command).stdout)
}

/// Calls until exactly these pods answer, as nodes come to know of a change later.
fn answered_by(what: &str, expected: &BTreeSet<String>, call: impl Fn() -> Calls) {
    wait_until(what, || {
        let calls = call();
        let pods: BTreeSet<String> = calls.by_pod().into_keys().collect();
        if calls.failed == 0 && pods == *expected {
            Ok(())
        } else {
            Err(format!("{calls:?}, not {expected:?}"))
        }
    });
}

fn names<'a>(pods: impl Iterator<Item = &'a Pod>) -> BTreeSet<String> {
    pods.map(|pod| pod.name.clone()).collect()
}

/// Status line and body of what a node tells a load balancer.
fn health(cluster: &Cluster, node: &str, port: u64) -> Result<String, std::io::Error> {
    let target = format!("{node}:{port}");
    let mut stream = cluster.wire().enter(|| TcpStream::connect(&target))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub(crate) fn clients_outside_reach_every_backend(scene: &mut Scene<'_>) {
    let (web, _) = web_and_client(scene);
    let all = names(web.iter());
    scene
        .apply_text(&manifest(""), "a Service of the type LoadBalancer")
        .success();
    let balanced = wait_until("an address for the load balancer", || {
        let object = front(scene.cluster);
        let ip = &object["status"]["loadBalancer"]["ingress"][0]["ip"];
        ip.as_str()
            .map(str::to_owned)
            .ok_or_else(|| object.to_string())
    });
    let node_port = front(scene.cluster)["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .expect("a node port");
    let ips: Vec<String> = scene.cluster.nodes().iter().map(|n| n.ip.clone()).collect();
    // As a router does: one node for each address.
    let routes = [(balanced.as_str(), &ips[0]), (EXTERNAL, &ips[1])];
    for (address, via) in routes {
        let route = ["route", "replace", address, "via", via.as_str()];
        scene.cluster.wire().ip(&route);
    }
    let mut targets: Vec<String> = ips[..2]
        .iter()
        .map(|ip| format!("{ip}:{node_port}"))
        .collect();
    targets.extend([format!("{balanced}:80"), format!("{EXTERNAL}:80")]);
    for target in &targets {
        answered_by(target, &all, || {
            call_from_outside(scene.cluster, target, 60)
        });
        answered_by(target, &all, || {
            traffic::call_from_pod(scene.cluster, "client", target, 60)
        });
        scene.check(&format!("{target}, from outside and from a pod"), true, "");
    }

    let local = manifest("  externalTrafficPolicy: Local\n");
    scene.apply_text(&local, "the same with Local").success();
    let port = wait_until("a port for health checks", || {
        let object = front(scene.cluster);
        let port = object["spec"]["healthCheckNodePort"].as_u64();
        port.ok_or_else(|| object.to_string())
    });
    for (index, node) in ips[..2].iter().enumerate() {
        let name = scene.cluster.nodes()[index].name.clone();
        let own = names(web.iter().filter(|pod| pod.node == name));
        assert!(!own.is_empty() && own.len() < all.len(), "{web:?}");
        let target = &targets[index];
        answered_by(target, &own, || {
            call_from_outside(scene.cluster, target, 60)
        });
        // A pod is no client outside.
        answered_by(target, &all, || {
            traffic::call_from_pod(scene.cluster, "client", &format!("{balanced}:80"), 60)
        });
        let count = format!("\"localEndpoints\": {}", own.len());
        wait_until("the health check", || {
            let text = health(scene.cluster, node, port).unwrap_or_else(|error| error.to_string());
            if text.starts_with("HTTP/1.1 200") && text.contains(&count) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }
    let limited = manifest("  loadBalancerSourceRanges: [203.0.113.0/24]\n");
    scene
        .apply_text(&limited, "the same for other clients")
        .success();
    let target = format!("{balanced}:80");
    wait_until("clients outside of the ranges are kept out", || {
        let calls = call_from_outside(scene.cluster, &target, 1);
        if calls.ok == 0 {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    // Node ports and external addresses have no ranges.
    for target in targets.iter().filter(|other| **other != target) {
        answered_by(target, &all, || {
            call_from_outside(scene.cluster, target, 60)
        });
    }
    scene.foil(&["delete", "service", "front"]);
    wait_until("the node port is closed", || {
        let calls = call_from_outside(scene.cluster, &targets[0], 1);
        if calls.errors.iter().any(|error| error.contains("refused")) {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    for (address, _) in routes {
        scene.cluster.wire().ip(&["route", "del", address]);
    }
}

/// At the addresses of one node alone, for as long as the pod is there.
pub(crate) fn host_ports_lead_to_their_pod(scene: &mut Scene<'_>) {
    const PORT: u16 = 18_080;
    scene.apply("client");
    let client = objects::ready(scene.cluster, "client");
    let nodes: Vec<(String, String)> = scene.cluster.nodes()[..2]
        .iter()
        .map(|node| (node.name.clone(), node.ip.clone()))
        .collect();
    let manifest = |name: &str, node: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: app, image: 'foil/app:1', command: [app], args: [serve, --port, '8080'],\n     \
             ports: [{{containerPort: 8080, hostPort: {PORT}{ip}}}]}}\n"
        )
    };
    // One on each node, with the same port; the second by its node's address.
    let second = format!(", hostIP: {}", nodes[1].1);
    for (name, node, ip) in [
        ("held-a", &nodes[0].0, ""),
        ("held-b", &nodes[1].0, second.as_str()),
    ] {
        scene
            .apply_text(&manifest(name, node, ip), "a pod with a port of its node")
            .success();
        objects::ready(scene.cluster, name);
    }
    for (name, (_, ip)) in ["held-a", "held-b"].iter().zip(&nodes) {
        let target = format!("{ip}:{PORT}");
        let only = BTreeSet::from([(*name).to_owned()]);
        answered_by(&target, &only, || {
            call_from_outside(scene.cluster, &target, 20)
        });
        // The client is on one of the two nodes.
        answered_by(&target, &only, || {
            traffic::call_from_pod(scene.cluster, &client.name, &target, 20)
        });
        scene.check(&format!("{target}, from outside and from a pod"), true, "");
    }
    // Their user is told of ports that are not the pod's alone.
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: held-own}\nspec:\n  hostNetwork: true\n  \
                nodeName: NODE\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
                - {name: app, image: 'foil/app:1', command: [app], args: [serve, --port, '18081']}\n";
    scene
        .apply_text(&host.replace("NODE", &nodes[0].0), "a server of the node")
        .success();
    objects::ready(scene.cluster, "held-own");
    let shared = ", hostIP: 0.0.0.0}, {containerPort: 8081, hostPort: 18081}, \
                  {containerPort: 8082, hostPort: 32766";
    scene
        .apply_text(
            &manifest("held-c", &nodes[0].0, shared),
            "a pod with ports of others",
        )
        .success();
    wait_until("events of the ports", || {
        let events = objects::events(scene.cluster, "held-c");
        let parts = [
            "Warning HostPortConflict: ",
            "hostPort 18080: in use",
            "hostPort 18081: also used by a process of this node",
            "hostPort 32766: in the range of node ports",
        ];
        match parts.iter().find(|part| !events.contains(*part)) {
            None => Ok(()),
            Some(part) => Err(format!("no {part:?}: {events}")),
        }
    });
    delete_pod(scene, "held-c");
    delete_pod(scene, "held-own");
    let target = format!("{}:{PORT}", nodes[0].1);
    delete_pod(scene, "held-a");
    wait_until("the port of the node is closed", || {
        let calls = call_from_outside(scene.cluster, &target, 1);
        if calls.errors.iter().any(|error| error.contains("refused")) {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    delete_pod(scene, "held-b");
}
