//! The node's own devices while the agent runs: `foil0` and the uplink are removed, changed and
//! replaced by others, and services and routes work again without a restart of the agent.

use std::fs;

use nix::sys::signal::Signal;
use proto::v1;
use proto::v1::change::Change;
use tests_harness::{NetNs, process, wait_until};

use crate::agent::agent_link;
use crate::node::{Node, pod, ready, started_ms};

const VIP: &str = "10.96.0.9";

/// A node with a pod that serves on a service address, and a route to another node.
fn serving() -> (Node, v1::PodStatus) {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let serve = "mkdir -p /www; echo served > /www/index.html; httpd -f -p 8080 -h /www";
    node.control.push(vec![Change::Pod(pod("web", 5, serve))]);
    let status = node.control.status("web", ready);
    let backend = v1::Backend {
        address: "10.244.1.5".into(),
        port: 8080,
        node: "n1".into(),
        pod: "web".into(),
        pod_name: "default/web".into(),
        state: v1::backend::State::Active.into(),
        ..v1::Backend::default()
    };
    let service = v1::Service {
        namespace: "default".into(),
        name: "web".into(),
        id: 1,
        generation: 1,
        cluster_ips: vec![VIP.into()],
        ports: vec![v1::ServicePort {
            name: "http".into(),
            protocol: "TCP".into(),
            port: 80,
            backends: vec![backend],
            id: 1,
            ..v1::ServicePort::default()
        }],
        ..v1::Service::default()
    };
    let route = v1::NodeRoute {
        node: "n2".into(),
        pod_cidrs: vec!["10.244.2.0/24".into()],
        node_ips: vec!["172.31.0.12".into()],
    };
    node.control
        .push(vec![Change::Service(service), Change::Route(route)]);
    wait_until("the service", || served(&node));
    (node, status)
}

/// Asks the service from the node, over `foil0`.
fn served(node: &Node) -> Result<(), String> {
    let mut wget = node.netns.command("/bin/busybox");
    let url = format!("http://{VIP}/");
    let out = process::run(wget.args(["timeout", "2", "wget", "-q", "-O-", &url]));
    match out.stdout.trim() {
        "served" => Ok(()),
        other => Err(format!("{other} {}", out.stderr)),
    }
}

/// Index and Ethernet address.
fn link(node: &Node, name: &str) -> Option<(u32, String)> {
    let shown = node.netns.ip(&["-o", "link", "show"]);
    let of = |line: &&str| {
        let field = line.split(' ').nth(1).unwrap_or_default();
        field.trim_end_matches(':').split('@').next() == Some(name)
    };
    let line = shown.lines().find(of)?;
    let mac = line.split("link/ether ").nth(1)?.split(' ').next()?;
    Some((line.split(':').next()?.parse().ok()?, mac.to_owned()))
}

/// Interfaces that `hook` is pinned for.
fn pinned(node: &Node, hook: &str) -> Vec<u32> {
    let entries = fs::read_dir(node.folder.join("bpf/links")).expect("pins");
    let mut all: Vec<u32> = entries
        .filter_map(|entry| entry.expect("a pin").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(hook)?.strip_suffix('_')?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

fn shows(node: &Node, args: &[&str], what: &str) {
    wait_until(what, || {
        let shown = node.netns.ip(args);
        if shown.contains(what) {
            Ok(())
        } else {
            Err(shown)
        }
    });
}

fn equal<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{found:?}, not {wanted:?}"))
    }
}

/// How often the uplink was said to be in use again.
fn restored(node: &Node) -> usize {
    let agent = node.agent.as_ref().expect("an agent");
    agent.log().matches("eth0 is in use again").count()
}

/// All that foil0 is for works, and it is the same as it was.
fn whole(node: &Node, before: &Option<(u32, String)>, what: &[&str]) {
    wait_until(&format!("foil0 after {what:?}"), || {
        equal(link(node, "foil0"), before.clone())
    });
    wait_until(&format!("the service after {what:?}"), || served(node));
}

#[test]
fn foil0_is_made_again_as_it_was() {
    let (node, before) = serving();
    let other = NetNs::create("other");
    let first = link(&node, "foil0");
    let changes: [&[&str]; 6] = [
        &["link", "del", "foil0"],
        &["link", "del", "foil0p"],
        &["link", "set", "foil0", "down"],
        &["link", "set", "foil0", "address", "02:00:00:00:00:77"],
        &["link", "set", "foil0", "netns", other.name()],
        &["link", "set", "foil0", "down", "name", "foilx"],
    ];
    for change in changes {
        node.netns.ip(change);
        whole(&node, &first, change);
        shows(&node, &["route", "show"], "169.254.1.2 dev foil0");
    }
    // Again while it is being made.
    let twice = ["link", "del", "foil0"];
    node.netns.ip(&twice);
    wait_until("foil0 for the second time", || {
        let out = process::run(node.netns.command("ip").args(twice));
        equal(out.code, 0)
    });
    whole(&node, &first, &twice);
    let after = node.control.status("web", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    let reasons = node.control.reasons("n1");
    for reason in ["NetworkDeviceLost", "NetworkDeviceRestored"] {
        assert!(reasons.contains(&reason.to_owned()), "{reasons:?}");
    }
}

#[test]
fn an_uplink_that_is_replaced_gets_programs_and_routes_again() {
    let (node, before) = serving();
    let pod_link = link(&node, &agent_link("web"));
    let first = link(&node, "eth0").expect("an uplink").0;
    assert_eq!(pinned(&node, "tc_from_netdev"), [first]);
    let add = [
        "link", "add", "eth0", "type", "veth", "peer", "name", "wire",
    ];
    let address = ["address", "add", "172.31.0.11/24", "dev", "eth0"];
    let attached = |to: u32| {
        for hook in ["tc_from_netdev", "tc_to_netdev"] {
            wait_until(hook, || {
                let foil0 = link(&node, "foil0").map(|(index, _)| index);
                let mut found = pinned(&node, hook);
                found.retain(|index| Some(*index) != foil0);
                equal(found, vec![to])
            });
        }
    };
    let routed = || {
        shows(&node, &["route"], "10.244.2.0/24 via 172.31.0.12 dev eth0");
        shows(&node, &["route"], "10.96.0.0/16 dev foil0");
        let pod = format!(
            "10.244.1.5 dev {} proto 70 scope link src",
            agent_link("web")
        );
        shows(&node, &["route"], &pod);
        wait_until("the service", || served(&node));
    };

    node.netns.ip(&["link", "del", "eth0"]);
    wait_until("the loss to be noticed", || {
        let reasons = node.control.reasons("n1");
        let lost = ["NetworkDeviceLost", "NodeAddressLost"];
        match lost.iter().all(|r| reasons.contains(&(*r).to_owned())) {
            true => Ok(()),
            false => Err(format!("{reasons:?}")),
        }
    });
    // Its pods are still routed to, by whatever address the node has.
    let pod = format!("10.244.1.5 dev {}", agent_link("web"));
    shows(&node, &["route"], &pod);

    // It is there and up, and its address comes later.
    node.netns.ip(&add);
    for name in ["wire", "eth0"] {
        node.netns.ip(&["link", "set", name, "up"]);
    }
    let second = link(&node, "eth0").expect("another uplink").0;
    assert_ne!(second, first);
    attached(second);
    node.netns.ip(&address);
    routed();

    // Replaced twice, faster than anybody can look.
    let mut lines = String::new();
    for _ in 0..2 {
        for args in [
            &["link", "del", "eth0"][..],
            &add,
            &address,
            &["link", "set", "wire", "up"],
            &["link", "set", "eth0", "up"],
        ] {
            lines.push_str(&args.join(" "));
            lines.push('\n');
        }
    }
    let mut batch = node.netns.command("ip");
    let limit = std::time::Duration::from_secs(30);
    process::run_with(batch.args(["-batch", "-"]), Some(lines.as_bytes()), limit).success();
    attached(link(&node, "eth0").expect("the last uplink").0);
    routed();

    // The same with the index that it has.
    let told = restored(&node);
    let index = link(&node, "eth0").expect("the uplink").0;
    let number = index.to_string();
    let with_index = [&["link", "add", "eth0", "index", &number], &add[3..]].concat();
    let lines = format!(
        "link del eth0\n{}\n{}\n",
        with_index.join(" "),
        address.join(" ")
    );
    let mut batch = node.netns.command("ip");
    process::run_with(batch.args(["-batch", "-"]), Some(lines.as_bytes()), limit).success();
    for name in ["wire", "eth0"] {
        node.netns.ip(&["link", "set", name, "up"]);
    }
    let live = || {
        // Told after the kernel was asked whether the programs are there.
        let back = restored(&node);
        if back > told {
            Ok(())
        } else {
            Err(format!("{back}"))
        }
    };
    wait_until("programs on a link of the same index", live);
    routed();

    assert_eq!(link(&node, &agent_link("web")), pod_link, "not touched");
    let after = node.control.status("web", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
}

/// The programs hold foil0's index: an agent that cannot have it again ends, and the next one
/// loads them anew.
#[test]
fn an_index_that_another_link_took_is_given_up() {
    let (mut node, before) = serving();
    let (first, _) = link(&node, "foil0").expect("foil0");
    let mut agent = node.agent.take().expect("an agent");
    agent.signal(Signal::SIGSTOP);
    node.netns.ip(&["link", "del", "foil0"]);
    let index = first.to_string();
    node.netns
        .ip(&["link", "add", "other0", "index", &index, "type", "bridge"]);
    agent.signal(Signal::SIGCONT);
    assert_eq!(agent.wait(), 1);
    let log = process::tail(&node.log(), 5);
    let text = format!("another link has its interface index {first}");
    assert!(log.contains(&text), "{log}");
    node.start();
    wait_until("the service", || served(&node));
    assert_ne!(link(&node, "foil0").expect("foil0").0, first);
    let after = node.control.status("web", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
}
