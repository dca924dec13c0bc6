//! Routes between nodes whose next hop is an IPv6 address (RFC 5549).

use crate::live::{cluster, everybody};

#[test]
fn everybody_reaches_everything_through_ipv6_next_hops() {
    let cluster = cluster();
    let sides = [
        ("fe80::b", "fe80::c", "10.244.2.0/24"),
        ("fe80::c", "fe80::b", "10.244.1.0/24"),
    ];
    for (node, (own, via, block)) in cluster.nodes.iter().zip(sides) {
        let netns = &node.netns;
        netns.enter(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0")
                .expect("a kernel with IPv6");
        });
        netns.ip(&["addr", "add", &format!("{own}/64"), "dev", "eth0", "nodad"]);
        netns.ip(&[
            "route", "replace", block, "via", "inet6", via, "dev", "eth0",
        ]);
        node.datapath.maps().bump_node_generation().expect("bump");
    }
    everybody(&cluster);
}
