//! What nodes of both families have beside IPv4.
//!
//! Each address has an IPv6 one that ends with it, so that one constant of a test names both.

use agent_sys::bpf::Datapath;
use ebpf_common::config;
use ebpf_common::net::{Addr, MacAddr};
use ebpf_common::network::NetworkKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tests_harness::NetNs;

/// Next hop of a pod's routes; its neighbour entry is permanent.
const GATEWAY: &str = "fe80::a9fe:101";
/// Source of connections whose client and backend are in the same place.
pub const HAIRPIN6: Ipv6Addr = Ipv6Addr::from_octets(config::HAIRPIN6);

/// The IPv6 address beside `addr`.
pub const fn six(addr: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = addr.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, high, low)
}

/// As maps have it.
pub fn addr6(addr: Ipv4Addr) -> Addr {
    IpAddr::from(six(addr)).into()
}

/// The block beside one of IPv4.
fn block((addr, bits): (Ipv4Addr, u32)) -> (Ipv6Addr, u32) {
    (six(addr), bits + 96)
}

/// Addresses and routes of the node itself.
pub(crate) fn prepare(netns: &NetNs, addr: Ipv4Addr, services: (Ipv4Addr, u32)) {
    netns.enter(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
    });
    let own = six(addr).to_string();
    let on_link = format!("{own}/120");
    netns.ip(&["-6", "addr", "add", &on_link, "dev", "eth0", "nodad"]);
    let (services, bits) = block(services);
    let services = format!("{services}/{bits}");
    for to in [services, HAIRPIN6.to_string()] {
        netns.ip(&["-6", "route", "add", &to, "dev", "foil0", "src", &own]);
    }
}

/// The address blocks beside those of IPv4.
pub(crate) fn put_networks(datapath: &Datapath, networks: [((Ipv4Addr, u32), u32); 2]) {
    for (net, kind) in networks {
        let (addr, bits) = block(net);
        let key = NetworkKey::new(IpAddr::from(addr).into(), bits);
        let maps = datapath.maps();
        maps.put_network(&key, kind).expect("put network");
    }
}

/// Addresses, routes and neighbours of a pod behind the interface `host`; `macs` are that
/// interface's and the pod's.
pub(crate) fn add_pod(
    (node, node_addr): (&NetNs, Ipv4Addr),
    (pod, addr): (&NetNs, Ipv4Addr),
    host: &str,
    macs: [[u8; 6]; 2],
) {
    let own = six(addr).to_string();
    let [host_mac, pod_mac] = macs.map(|bytes| MacAddr { bytes }.to_string());
    pod.ip(&["-6", "addr", "add", &own, "dev", "eth0", "nodad"]);
    let neighbour = |netns: &NetNs, addr: &str, mac: &str, dev: &str| {
        netns.ip(&[
            "-6",
            "neigh",
            "replace",
            addr,
            "lladdr",
            mac,
            "dev",
            dev,
            "nud",
            "permanent",
        ]);
    };
    neighbour(pod, GATEWAY, &host_mac, "eth0");
    pod.ip(&[
        "-6", "route", "add", "default", "via", GATEWAY, "dev", "eth0",
    ]);
    let source = six(node_addr).to_string();
    node.ip(&["-6", "route", "add", &own, "dev", host, "src", &source]);
    neighbour(node, &own, &pod_mac, host);
}

// The hairpin addresses of both families are one number.
const _: () = {
    let (v4, v6) = (config::HAIRPIN, HAIRPIN6.octets());
    assert!(v4[0] == v6[12] && v4[1] == v6[13] && v4[2] == v6[14] && v4[3] == v6[15]);
};
