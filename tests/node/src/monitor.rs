//! What others change in links, addresses, routes and neighbours: what rtnetlink tells
//! of it, and that the agent makes good what it needs.

use std::net::Ipv4Addr;
use std::time::Duration;

use agent_sys::link::{Changes, Monitor, Netlink};
use proto::v1::change::Change;
use tests_harness::{NetNs, process, wait_until};

use crate::link::{inside, node, pod_link, route};
use crate::node::{Node, pod, ready, started_ms};

const ROUTING: Changes = Changes {
    routing: true,
    ours: false,
};
const OURS: Changes = Changes {
    routing: false,
    ours: true,
};
const ALL: Changes = Changes {
    routing: true,
    ours: true,
};

#[test]
fn changes_are_told_by_what_they_are_about() {
    let (node, pod) = (node(), NetNs::create("pod"));
    let link = pod_link(&pod, 2);
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        netlink.add_pod_link(&link).await.unwrap();
        let pods = route(Ipv4Addr::new(10, 244, 2, 0), 24, "up0", None, None);
        // The kernel tells of the carrier up to a second after the link is up: the state has to
        // be UP, as the flag of that name is from the begin. The bridge has no carrier to gain.
        wait_until("the pod's link to have a carrier", || {
            let shown = node.ip(&["-br", "link", "show", "dev", &link.name]);
            if shown.split_ascii_whitespace().nth(1) == Some("UP") {
                Ok(())
            } else {
                Err(shown)
            }
        });
        let mut monitor = Monitor::open().unwrap();
        node.ip(&["route", "add", "192.0.2.0/24", "dev", "up0"]);
        assert_eq!(monitor.next().await.unwrap(), ROUTING);
        netlink.replace_route(&pods).await.unwrap();
        assert_eq!(monitor.next().await.unwrap(), OURS);
        // Which route it is depends on rules and nexthop objects as well.
        for change in [
            &["rule", "add", "to", "192.0.2.0/24", "table", "100"][..],
            &["rule", "del", "to", "192.0.2.0/24", "table", "100"],
            &[
                "nexthop",
                "add",
                "id",
                "5",
                "via",
                "172.31.9.77",
                "dev",
                "up0",
            ],
            &[
                "nexthop",
                "replace",
                "id",
                "5",
                "via",
                "172.31.9.78",
                "dev",
                "up0",
            ],
            &["nexthop", "del", "id", "5"],
        ] {
            node.ip(change);
            assert_eq!(monitor.next().await.unwrap(), ROUTING, "{change:?}");
        }
        // What is learnt of a neighbour is of no interest; what is ours is.
        let learnt = ["lladdr", "02:00:00:00:00:09", "nud", "stale"];
        node.ip(&[&["neigh", "add", "172.31.9.9", "dev", "up0"][..], &learnt].concat());
        node.ip(&["neigh", "del", "10.244.9.2", "dev", &link.name]);
        assert_eq!(monitor.next().await.unwrap(), OURS);
        node.ip(&["addr", "del", "172.31.9.12/24", "dev", "up0"]);
        assert_eq!(monitor.next().await.unwrap(), ALL);
        node.ip(&["link", "del", &link.name]);
        assert_eq!(monitor.next().await.unwrap(), OURS);
        node.ip(&["link", "set", "up0", "down"]);
        assert_eq!(monitor.next().await.unwrap(), ALL);
    });
}

/// `ip -batch` of so many routes, "add" or "del".
fn batch(netns: &str, verb: &str, count: usize) {
    let lines: String = (0..count)
        .map(|n| format!("route {verb} 100.{}.{}.0/24 dev up0\n", n / 256, n % 256))
        .collect();
    let mut command = std::process::Command::new("ip");
    command.args(["-n", netns, "-batch", "-"]);
    let limit = Duration::from_secs(120);
    process::run_with(&mut command, Some(lines.as_bytes()), limit).success();
}

#[test]
fn many_routes_are_a_few_reports_and_lost_messages_are_told() {
    const COUNT: usize = 50_000;
    let node = node();
    inside(&node, async || {
        let mut monitor = Monitor::open().unwrap();
        // Nobody listens: the kernel's queue overflows.
        batch(node.name(), "add", COUNT);
        assert_eq!(monitor.next().await.unwrap(), ALL, "messages were lost");
        let name = node.name().to_owned();
        let mut reports = 0;
        let mut changed = tokio::task::spawn_blocking(move || batch(&name, "del", COUNT));
        loop {
            tokio::select! {
                changes = monitor.next() => {
                    assert!(changes.unwrap().routing);
                    reports += 1;
                }
                changed = &mut changed => break changed.unwrap(),
            }
        }
        assert!(reports < COUNT / 100, "{reports} reports");
    });
}

#[test]
fn what_others_delete_is_made_again_and_the_pod_runs_on() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let spec = pod("cut", 5, "while :; do sleep 0.1; done");
    node.control.push(vec![Change::Pod(spec)]);
    let before = node.control.status("cut", ready);
    let name = crate::agent::agent_link("cut");
    let index = || {
        let shown = node.netns.ip(&["-o", "link", "show"]);
        let line = shown.lines().find(|l| l.contains(&name));
        line.and_then(|l| l.split(':').next()?.trim().parse::<u32>().ok())
    };
    let pinned = |index: u32| {
        let pins = node.folder.join("bpf/links");
        ["tc_from_pod", "tc_to_pod"].map(|hook| pins.join(format!("{index}_{hook}")).exists())
    };
    let reachable = || {
        let mut ping = node.netns.command("/bin/busybox");
        let out = process::run(ping.args(["ping", "-c1", "-W1", "10.244.1.5"]));
        if out.code == 0 {
            Ok(())
        } else {
            Err(out.stdout)
        }
    };
    reachable().unwrap();
    let first = index().expect("the pod's link");
    assert_eq!(pinned(first), [true, true]);

    node.netns.ip(&["link", "del", &name]);
    let second = wait_until("another link", || {
        index()
            .filter(|i| *i != first)
            .ok_or_else(|| "none".to_owned())
    });
    wait_until("the pod answers", reachable);
    wait_until("the programs are attached", || {
        match (pinned(second), pinned(first)) {
            ([true, true], [false, false]) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // Less than the link: it is repaired, not made anew.
    let contains = |args: &[&str], what: &str| {
        wait_until(what, || {
            let shown = node.netns.ip(args);
            if shown.contains(what) {
                Ok(())
            } else {
                Err(shown)
            }
        });
    };
    node.netns.ip(&["neigh", "del", "10.244.1.5", "dev", &name]);
    contains(
        &["neigh", "show", "dev", &name],
        "10.244.1.5 lladdr 0a:58:0a:f4:01:05 PERMANENT",
    );
    node.netns.ip(&["route", "del", "10.244.1.5"]);
    contains(&["route", "show"], &format!("10.244.1.5 dev {name}"));
    node.netns.ip(&["link", "set", &name, "down"]);
    wait_until("the pod answers", reachable);
    assert_eq!(index(), Some(second));

    // A route of another one: flows ask for their way again.
    let bumps = || {
        node.agent
            .as_ref()
            .unwrap()
            .log()
            .matches("flows ask again")
            .count()
    };
    for change in [
        &["route", "add", "192.0.2.0/24", "dev", "eth0"][..],
        &["rule", "add", "to", "192.0.2.0/24", "table", "100"],
        &[
            "nexthop",
            "add",
            "id",
            "5",
            "via",
            "172.31.0.99",
            "dev",
            "eth0",
        ],
    ] {
        let told = bumps();
        node.netns.ip(change);
        wait_until(&format!("flows ask again after {change:?}"), || {
            let now = bumps();
            if now > told {
                Ok(())
            } else {
                Err(format!("{now}"))
            }
        });
    }

    // The node's own routes.
    contains(&["route", "show"], "unreachable 10.244.1.0/24");
    node.netns
        .ip(&["route", "del", "unreachable", "10.244.1.0/24"]);
    contains(&["route", "show"], "unreachable 10.244.1.0/24");
    node.netns.ip(&["route", "del", "10.96.0.0/16"]);
    contains(&["route", "show"], "10.96.0.0/16 dev foil0");
    // With the uplink down its routes are gone, and up again they are back.
    let route = proto::v1::NodeRoute {
        node: "n2".into(),
        pod_cidrs: vec!["10.244.2.0/24".into()],
        node_ips: vec!["172.31.0.12".into()],
    };
    node.control.push(vec![Change::Route(route)]);
    contains(&["route", "show"], "10.244.2.0/24 via 172.31.0.12");
    node.netns.ip(&["link", "set", "eth0", "down"]);
    assert!(!node.netns.ip(&["route", "show"]).contains("10.244.2.0/24"));
    node.netns.ip(&["link", "set", "eth0", "up"]);
    contains(&["route", "show"], "10.244.2.0/24 via 172.31.0.12");

    let after = node.control.status("cut", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);
    assert_eq!(after.pod_ips, ["10.244.1.5"]);
    assert!(
        node.control
            .reasons("cut")
            .contains(&"NetworkChanged".to_owned())
    );
}

#[test]
fn a_node_ip_that_no_link_has_is_refused() {
    let mut node = Node::new();
    node.add_to_config("node_ip = \"172.31.0.99\"");
    node.start();
    let mut agent = node.agent.take().expect("started");
    assert_eq!(agent.wait(), 1);
    let log = process::tail(&node.log(), 5);
    assert!(log.contains("node_ip 172.31.0.99"), "{log}");
    assert!(log.contains("no link has it"), "{log}");
}
