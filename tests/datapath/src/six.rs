//! What nodes of both families have beside IPv4.
//!
//! Each address has an IPv6 one that ends with it, so that one constant of a test names both.

use crate::node::{HAIRPIN, Node, POD_NET, PORT, SERVICE_NET, link};
use agent_sys::bpf::Datapath;
use agent_sys::maps::ChoiceTable;
use ebpf_common::config;
use ebpf_common::net::{Addr, Be16, MacAddr};
use ebpf_common::network::{NetworkKey, PODS, SERVICES};
use ebpf_common::service::{ACTIVE, Backend, Frontend, FrontendKey, algorithm};
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
pub(crate) fn prepare(netns: &NetNs, addr: Ipv4Addr) {
    netns.enter(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
    });
    let own = six(addr).to_string();
    let on_link = format!("{own}/120");
    netns.ip(&["-6", "addr", "add", &on_link, "dev", "eth0", "nodad"]);
    let (services, bits) = block(SERVICE_NET);
    let services = format!("{services}/{bits}");
    for to in [services, HAIRPIN6.to_string()] {
        netns.ip(&["-6", "route", "add", &to, "dev", "foil0", "src", &own]);
    }
}

/// The address blocks beside those of IPv4.
pub(crate) fn put_networks(datapath: &Datapath) {
    for (net, kind) in [(POD_NET, PODS), (SERVICE_NET, SERVICES)] {
        let (addr, bits) = block(net);
        let key = NetworkKey::new(IpAddr::from(addr).into(), bits);
        let maps = datapath.maps();
        maps.put_network(&key, kind).expect("put network");
    }
}

/// Addresses, routes and neighbours of a pod behind the interface `host`.
pub(crate) fn add_pod(node: &NetNs, pod: &NetNs, host: &str, addr: Ipv4Addr, node_addr: Ipv4Addr) {
    let own = six(addr).to_string();
    let mac = |(_, bytes): (u32, [u8; 6])| MacAddr { bytes }.to_string();
    let (host_mac, pod_mac) = (mac(link(node, host)), mac(link(pod, "eth0")));
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

impl Node {
    /// A service of IPv6, beside `vip`, with these backends, beside their addresses.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_service6(
        &self,
        vip: Ipv4Addr,
        id: u32,
        protocol: u8,
        backends: &[(u32, Ipv4Addr, u16)],
        affinity: u32,
    ) {
        let maps = self.datapath.maps();
        for (backend, addr, port) in backends {
            let value = Backend {
                addr: addr6(*addr),
                service_port: id,
                port: Be16::new(*port),
                protocol,
                state: ACTIVE,
                weight: 1,
                pad: 0,
            };
            maps.put_backend(*backend, &value, &format!("test/backend-{backend}"))
                .expect("put backend");
        }
        let table = ChoiceTable {
            service_port: id,
            algorithm: algorithm::HASH,
            entries: backends.iter().map(|(id, _, _)| *id).collect(),
        };
        maps.put_choices(&[table]).expect("put choices");
        let frontend = Frontend {
            service_port: id,
            service: id,
            affinity,
            external: 0,
            flags: 0,
        };
        let key = FrontendKey {
            addr: addr6(vip),
            port: Be16::new(PORT),
            protocol,
            pad: 0,
        };
        maps.put_frontend(&key, &frontend, "test/service:port")
            .expect("put frontend");
    }
}

// The hairpin addresses of both families are one number.
const _: () = {
    let (v4, v6) = (HAIRPIN.octets(), HAIRPIN6.octets());
    assert!(v4[0] == v6[12] && v4[1] == v6[13] && v4[2] == v6[14] && v4[3] == v6[15]);
};
