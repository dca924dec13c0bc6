//! The memory of an entry is given to another flow while a packet is decided by it.

use crate::live::Raise;
use crate::node::Node;
use crate::packet::{at, key, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{Flow, FlowKey4};
use ebpf_common::net::protocol::UDP;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// On another node, in two blocks.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 9);
/// How often the entry is removed and its memory given away.
const ROUNDS: u32 = 20_000;
/// Packets of one call.
const PACKETS: u32 = 1_000;

/// Packets of a flow look for its route anew while its entry is removed and its memory given to
/// another flow: no copy of that one becomes the entry of the first.
#[test]
fn an_entry_that_is_given_away_is_not_taken_for_the_own_one() {
    let node = Node::new(&[CLIENT]);
    let route = |how, via| {
        for block in ["10.244.2.0/24", "10.244.3.0/24"] {
            node.netns.ip(&["route", how, block, "via", via]);
        }
    };
    route("add", "172.31.0.13");
    let maps = node.datapath.maps();
    let client = at(CLIENT, 40_000);
    let begun = |to| -> (FlowKey4, Flow) {
        node.from_pod(0, &udp(client, at(to, 8080), b"query"));
        let key = key(node.pods[0].ifindex, UDP, client, at(to, 8080));
        (key, maps.flow(&key).expect("flow").expect("an entry"))
    };
    let (own, other) = (begun(REMOTE), begun(OTHER));
    // Each time that the entry is put back it has a route that is not current.
    route("replace", "172.31.0.12");
    maps.bump_node_generation().expect("bump");
    let stop = AtomicBool::new(false);
    let packet = udp(client, at(REMOTE, 8080), b"query");
    let send = || {
        while !stop.load(Ordering::Relaxed) {
            let ifindex = node.pods[0].ifindex;
            let run = &node.datapath;
            run.test_run(Program::FromPod, &packet, ifindex, 0, PACKETS)
                .expect("test_run");
        }
    };
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| node.netns.enter(send));
        for round in 0..ROUNDS {
            if let Some(flow) = maps.flow(&own.0).expect("flow") {
                assert_eq!((flow.dst, flow.dport), (own.1.dst, own.1.dport), "{round}");
            }
            maps.put_flows(&[own]).expect("put");
            maps.delete_flow(&own.0).expect("delete");
            // The map gives away first what the same CPU has freed last.
            maps.put_flows(&[other]).expect("put");
            maps.delete_flow(&other.0).expect("delete");
        }
    });
}
