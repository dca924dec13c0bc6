//! Pod links, routes and neighbours in namespaces of our own: what is made is
//! observed again, packets pass, and nothing is left after a failure.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use agent_sys::link::{
    Hop, Link, LinkError, Neighbour, Netlink, Observed, PodLink, Route, ServiceLink, set_sysctl,
};
use tests_harness::{NetNs, retry_on_intr};

const NODE_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 9, 11);

/// Runs a future on a runtime of one thread inside the namespace.
pub(crate) fn inside<T: Send>(node: &NetNs, future: impl AsyncFnOnce() -> T + Send) -> T {
    node.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future())
    })
}

/// A node with an uplink `up0` and its addresses. A bridge: not every kernel has dummies.
pub(crate) fn node() -> NetNs {
    let node = NetNs::create("node");
    node.ip(&["link", "add", "up0", "mtu", "1400", "type", "bridge"]);
    node.ip(&["addr", "add", "172.31.9.11/24", "dev", "up0"]);
    node.ip(&["addr", "add", "172.31.9.12/24", "dev", "up0"]);
    node.ip(&["link", "set", "up0", "up"]);
    node
}

pub(crate) fn route(
    destination: Ipv4Addr,
    bits: u8,
    link: &str,
    via: Option<Ipv4Addr>,
    source: Option<Ipv4Addr>,
) -> Route {
    Route {
        destination: (IpAddr::V4(destination), bits),
        hop: Hop::Link {
            name: link.to_owned(),
            via: via.map(IpAddr::V4),
            source: source.map(IpAddr::V4),
        },
    }
}

pub(crate) fn pod_link(pod: &NetNs, number: u8) -> PodLink {
    PodLink {
        name: format!("foil00000000{number:02x}"),
        host_mac: [0x02, 0, 0, 0, 1, number],
        pod_mac: [0x02, 0, 0, 0, 2, number],
        mtu: 1400,
        addresses: vec![Ipv4Addr::new(10, 244, 9, number)],
        node_ip: Some(NODE_IP),
        netns: pod.path(),
    }
}

/// Without the links that every namespace has.
fn ours(mut observed: Observed) -> Observed {
    observed.others.clear();
    observed.addresses.clear();
    observed
}

fn service_link() -> ServiceLink {
    ServiceLink {
        name: "foil0".into(),
        mtu: 1400,
        fixed: None,
        owner: "/run/test".into(),
    }
}

/// Whatever others made of it, it is whole afterwards, with the index that was asked for.
#[test]
fn put_service_link() {
    let (node, other) = (node(), NetNs::create("other"));
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        let mut link = service_link();
        let first = netlink.put_service_link(&link).await.unwrap();
        assert_eq!(netlink.put_service_link(&link).await.unwrap(), first);
        link.fixed = Some(first);
        let changes: [&[&str]; 8] = [
            &["link", "set", "foil0p", "down"],
            &[
                "link",
                "set",
                "foil0",
                "address",
                "02:00:00:00:00:77",
                "mtu",
                "1000",
            ],
            &["link", "set", "foil0", "arp", "on", "alias", "x"],
            &["link", "del", "foil0"],
            &["link", "del", "foil0p"],
            &["link", "set", "foil0", "netns", other.name()],
            &["link", "set", "foil0p", "netns", other.name()],
            &["link", "set", "foil0", "down", "name", "foilx"],
        ];
        for change in changes {
            node.ip(change);
            let again = netlink.put_service_link(&link).await.unwrap();
            assert_eq!(again, first, "{change:?}");
            let observed = netlink.observe().await.unwrap();
            let names: Vec<_> = observed.links.iter().map(|l| l.name.as_str()).collect();
            assert_eq!(names, ["foil0", "foil0p"], "{change:?}");
            let [one, two] = [&observed.links[0], &observed.links[1]];
            assert!(one.up && two.up, "{change:?}");
            assert_eq!(
                (one.peer_index, two.peer_index),
                (Some(two.index), Some(one.index))
            );
            assert_eq!((one.mtu, two.mtu), (1400, 1400), "{change:?}");
            assert_eq!(one.alias.as_deref(), Some("/run/test"), "{change:?}");
            assert!(
                node.ip(&["link", "show", "foil0"]).contains("NOARP"),
                "{change:?}"
            );
        }
        node.ip(&["link", "del", "foil0"]);
        let index = first.0.to_string();
        node.ip(&["link", "add", "up1", "index", &index, "type", "bridge"]);
        let refused = netlink.put_service_link(&link).await.unwrap_err();
        assert!(
            matches!(refused, LinkError::IndexInUse { index, .. } if index == first.0),
            "{refused}"
        );
        assert_eq!(netlink.observe().await.unwrap().links, []);
    });
}

#[test]
fn create_pod_link() {
    let (node, first, second) = (node(), NetNs::create("pod"), NetNs::create("pod"));
    let links = [pod_link(&first, 2), pod_link(&second, 3)];
    let observed = inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        for link in &links {
            netlink.add_pod_link(link).await.unwrap();
        }
        let again = netlink.add_pod_link(&links[0]).await.unwrap_err();
        assert!(
            matches!(&again, LinkError::Link { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists),
            "{again}"
        );
        netlink.observe().await.unwrap()
    });
    for (link, seen) in links.iter().zip(&observed.links) {
        let expected = Link {
            name: link.name.clone(),
            index: seen.index,
            kind: "veth".to_owned(),
            mac: link.host_mac,
            mtu: 1400,
            up: true,
            peer_index: seen.peer_index,
            alias: None,
        };
        assert_eq!(*seen, expected);
        assert!(seen.peer_index.is_some());
    }
    let routes: Vec<Route> = links
        .iter()
        .map(|link| route(link.addresses[0], 32, &link.name, None, Some(NODE_IP)))
        .collect();
    assert_eq!(observed.routes, routes);
    let neighbours: Vec<Neighbour> = links
        .iter()
        .map(|link| Neighbour {
            link: link.name.clone(),
            address: IpAddr::V4(link.addresses[0]),
            mac: link.pod_mac,
        })
        .collect();
    assert_eq!(observed.neighbours, neighbours);

    // The pod's side, by the eyes of iproute2.
    let address = first.ip(&["-br", "addr", "show", "eth0"]);
    assert!(
        address.contains("UP") && address.contains("10.244.9.2/32"),
        "{address}"
    );
    assert!(!address.contains("fe80"), "no address by itself: {address}");
    let route = first.ip(&["route", "show"]);
    assert!(
        route.contains("default via 169.254.1.1 dev eth0") && route.contains("onlink"),
        "{route}"
    );
    let gateway = first.ip(&["neigh", "show", "dev", "eth0"]);
    assert!(
        gateway.contains("169.254.1.1 lladdr 02:00:00:00:01:02 PERMANENT"),
        "{gateway}"
    );
    let quiet = node.ip(&["-br", "addr", "show", "foil0000000002"]);
    assert!(!quiet.contains("fe80"), "{quiet}");

    // A packet from pod to pod, over the node's routes, and one from the node.
    let receiver = second.enter(|| UdpSocket::bind("10.244.9.3:7000").unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut buffer = [0; 16];
    first.enter(|| {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(b"pod", "10.244.9.3:7000")
            .unwrap()
    });
    let (length, from) = retry_on_intr(|| receiver.recv_from(&mut buffer)).unwrap();
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"pod"[..], IpAddr::V4(links[0].addresses[0]))
    );
    node.enter(|| {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(b"node", "10.244.9.3:7000")
            .unwrap()
    });
    let (length, from) = retry_on_intr(|| receiver.recv_from(&mut buffer)).unwrap();
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"node"[..], IpAddr::V4(NODE_IP))
    );
}

#[test]
fn delete_link() {
    let (node, pod) = (node(), NetNs::create("pod"));
    let link = pod_link(&pod, 2);
    let observed = inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        netlink.add_pod_link(&link).await.unwrap();
        netlink.delete_link(&link.name).await.unwrap();
        netlink.delete_link(&link.name).await.unwrap();
        netlink.observe().await.unwrap()
    });
    assert_eq!(ours(observed), Observed::default());
    let left = pod.ip(&["-br", "link", "show"]);
    assert!(!left.contains("eth0"), "{left}");
}

#[test]
fn a_link_that_fails_leaves_nothing() {
    let (node, pod) = (node(), NetNs::create("pod"));
    // The name that the pod's side wants is taken.
    pod.ip(&["link", "add", "eth0", "type", "bridge"]);
    let (error, gone, observed) = inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        let error = netlink.add_pod_link(&pod_link(&pod, 2)).await.unwrap_err();
        let absent = PodLink {
            netns: "/run/netns/foil-is-not-there".into(),
            ..pod_link(&pod, 3)
        };
        let gone = netlink.add_pod_link(&absent).await.unwrap_err();
        (error, gone, netlink.observe().await.unwrap())
    });
    assert!(
        error.to_string().contains("create link foil0000000002"),
        "{error}"
    );
    assert!(matches!(gone, LinkError::Namespace { .. }), "{gone}");
    assert_eq!(ours(observed), Observed::default());
}

#[test]
fn create_service_link_and_replace_route() {
    let node = node();
    node.ip(&[
        "route",
        "add",
        "192.0.2.0/24",
        "dev",
        "up0",
        "proto",
        "static",
    ]);
    let service =
        |source: Ipv4Addr| route(Ipv4Addr::new(10, 96, 0, 0), 16, "foil0", None, Some(source));
    let next = Some(Ipv4Addr::new(172, 31, 9, 77));
    let pods = route(Ipv4Addr::new(10, 244, 2, 0), 24, "up0", next, None);
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        let (index, _) = netlink.put_service_link(&service_link()).await.unwrap();
        let second = Ipv4Addr::new(172, 31, 9, 12);
        for route in [
            service(NODE_IP),
            service(second),
            service(second),
            pods.clone(),
        ] {
            netlink.replace_route(&route).await.unwrap();
        }
        let observed = netlink.observe().await.unwrap();
        assert_eq!(
            observed.routes,
            [service(second), pods.clone()],
            "the static route is not ours"
        );
        let links: Vec<_> = observed
            .links
            .iter()
            .map(|l| (l.name.as_str(), l.up))
            .collect();
        assert_eq!(links, [("foil0", true), ("foil0p", true)]);
        assert_eq!(observed.links[0].index, index);

        netlink.delete_route(&pods).await.unwrap();
        netlink.delete_route(&pods).await.unwrap();
        // Without our mark, so never deleted.
        let theirs = Route {
            destination: (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24),
            ..pods.clone()
        };
        netlink.delete_route(&theirs).await.unwrap();
        assert_eq!(netlink.observe().await.unwrap().routes, [service(second)]);
        let absent = route(Ipv4Addr::new(10, 244, 2, 0), 24, "foil9", next, None);
        let absent = netlink.replace_route(&absent).await.unwrap_err();
        assert!(matches!(absent, LinkError::NoLink { .. }), "{absent}");
    });
    assert!(node.ip(&["route", "show"]).contains("192.0.2.0/24"));

    // No program there: a packet to a service is lost on the other side, and
    // does not go round; no ARP request is sent for it either.
    node.enter(|| {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(b"x", "10.96.0.1:53")
            .unwrap()
    });
    let statistics = node.ip(&["-s", "-j", "link", "show", "foil0"]);
    let statistics: serde_json::Value = serde_json::from_str(&statistics).unwrap();
    assert_eq!(statistics[0]["stats64"]["tx"]["packets"], 1, "{statistics}");
    assert_eq!(node.ip(&["neigh", "show", "dev", "foil0"]), "");

    inside(&node, async || {
        Netlink::open().unwrap().delete_link("foil0").await.unwrap()
    });
    assert!(!node.ip(&["-br", "link", "show"]).contains("foil0"));
}

#[test]
fn uplink_facts() {
    let node = node();
    let (uplink, absent) = inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        (
            netlink.uplink("up0").await.unwrap(),
            netlink.uplink("up9").await.unwrap_err(),
        )
    });
    assert_eq!(
        (uplink.name.as_str(), uplink.mtu, uplink.up),
        ("up0", 1400, true)
    );
    let expected = [
        (IpAddr::V4(NODE_IP), 24),
        (IpAddr::V4(Ipv4Addr::new(172, 31, 9, 12)), 24),
    ];
    assert_eq!(
        uplink.addresses, expected,
        "the primary address first, no link-local one"
    );
    assert!(matches!(absent, LinkError::NoLink { .. }), "{absent}");
}

#[test]
fn sysctls_are_of_the_namespace() {
    let node = node();
    let here = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    node.enter(|| {
        let value = if here.trim() == "1" { "0" } else { "1" };
        set_sysctl("net.ipv4.ip_forward", value).unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .unwrap()
                .trim(),
            value
        );
        assert!(matches!(
            set_sysctl("net.ipv4.no_such_thing", "1"),
            Err(LinkError::Sysctl { .. })
        ));
    });
    assert_eq!(
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        here
    );
}

#[test]
fn repair_pod_link() {
    let (node, pod) = (node(), NetNs::create("pod"));
    let link = pod_link(&pod, 2);
    let name = link.name.clone();
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        let index = netlink.add_pod_link(&link).await.unwrap();
        let whole = netlink.observe().await.unwrap();
        node.ip(&["neigh", "del", "10.244.9.2", "dev", &name]);
        node.ip(&["route", "del", "10.244.9.2"]);
        node.ip(&["link", "set", &name, "down"]);
        pod.ip(&["route", "del", "default"]);
        assert_ne!(netlink.observe().await.unwrap(), whole);
        assert_eq!(netlink.repair_pod_link(&link).await.unwrap(), index);
        assert_eq!(netlink.observe().await.unwrap(), whole);
        assert!(pod.ip(&["route", "show"]).contains("default"));
        // Without the pod's side there is nothing to repair.
        netlink.delete_link(&name).await.unwrap();
        netlink.repair_pod_link(&link).await.unwrap_err();
    });
}

#[test]
fn an_address_that_no_pod_has_is_unreachable_at_once() {
    let (node, pod) = (node(), NetNs::create("pod"));
    // All else leaves by the default route.
    node.ip(&["route", "add", "default", "via", "172.31.9.1"]);
    let range = Route {
        destination: (IpAddr::V4(Ipv4Addr::new(10, 244, 9, 0)), 24),
        hop: Hop::Unreachable,
    };
    let reach = |address: &str| {
        node.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((address, 7000)).map_err(|e| e.kind())
        })
    };
    assert_eq!(reach("10.244.9.3"), Ok(()));
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        netlink.add_pod_link(&pod_link(&pod, 2)).await.unwrap();
        netlink.replace_route(&range).await.unwrap();
        netlink.replace_route(&range).await.unwrap();
        let routes = netlink.observe().await.unwrap().routes;
        assert!(routes.contains(&range) && routes.len() == 2, "{routes:?}");
    });
    assert_eq!(reach("10.244.9.2"), Ok(()), "a pod's own route wins");
    let dead = reach("10.244.9.3");
    assert_eq!(dead, Err(std::io::ErrorKind::HostUnreachable));
    inside(&node, async || {
        let netlink = Netlink::open().unwrap();
        netlink.delete_route(&range).await.unwrap();
        assert_eq!(netlink.observe().await.unwrap().routes.len(), 1);
    });
    assert_eq!(reach("10.244.9.3"), Ok(()));
}
