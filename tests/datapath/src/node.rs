//! A node in a namespace of its own, with pods, an uplink, the service device and the data
//! plane on them.
//!
//! The same shape that the agent makes, made here with `ip`, so that this tier needs no agent.

pub use crate::folder::Folder;
use crate::six;
use agent_sys::bpf::{Config, Datapath, FlowEntries, NodeFacts, Program, Ran, Role};
use agent_sys::maps::Counted;
use ebpf_common::config;
use ebpf_common::counter::{Count, Hook};
use ebpf_common::drop::Drop as Reason;
use ebpf_common::endpoint::{Endpoint, FIRST_POD};
use ebpf_common::net::{Addr, Be16, MacAddr, protocol};
use ebpf_common::network::{NetworkKey, PODS, SERVICES};
use ebpf_common::service::FrontendKey;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use tests_harness::{NetNs, binary};

/// Block of all pods.
pub const POD_NET: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// Block of all services.
pub const SERVICE_NET: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 96, 0, 0), 16);
/// Address of the first service.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
/// Address of another service.
pub const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 8);
/// Source of connections whose client and backend are in the same place.
pub const HAIRPIN: Ipv4Addr = Ipv4Addr::from_octets(config::HAIRPIN);
/// Port of the services.
pub const PORT: u16 = 80;

/// One pod: its namespace and the host side of its veth.
pub struct Pod {
    /// Its own namespace.
    pub netns: NetNs,
    /// Its address.
    pub addr: Ipv4Addr,
    /// Host side.
    pub ifindex: u32,
    /// Endpoint id.
    pub id: u16,
}

/// One node.
pub struct Node {
    /// Pods, in the order in which they were asked for.
    pub pods: Vec<Pod>,
    /// Its namespace.
    pub netns: NetNs,
    /// Address on the wire.
    pub addr: Ipv4Addr,
    /// The uplink's ifindex, 0 without a wire.
    pub uplink: u32,
    /// Its Ethernet address.
    pub uplink_mac: [u8; 6],
    /// The service device's.
    pub service: u32,
    /// Programs and maps.
    pub datapath: Datapath,
    folder: Folder,
    settings: Settings,
}

/// What nodes differ in.
struct Settings {
    object: PathBuf,
    flow_events: bool,
    flow_entries: u32,
    ipv6: bool,
}

impl Settings {
    fn new() -> Self {
        Self {
            object: binary("hydrofoil.bpf.o"),
            flow_events: true,
            flow_entries: 1 << 16,
            ipv6: false,
        }
    }
}

/// `ifindex` and Ethernet address of a link.
///
/// # Panics
/// If there is no such link.
pub fn link(netns: &NetNs, name: &str) -> (u32, [u8; 6]) {
    netns.enter(|| {
        // /sys shows the namespace of its mount, so ask by address instead.
        let all = nix::ifaddrs::getifaddrs().expect("getifaddrs");
        let address = all
            .filter(|one| one.interface_name == name)
            .find_map(|one| {
                one.address?
                    .as_link_addr()?
                    .addr()
                    .map(|mac| (one.interface_name, mac))
            });
        let (name, mac) = address.unwrap_or_else(|| panic!("no link {name}"));
        let index = nix::net::if_::if_nametoindex(name.as_str()).expect("if_nametoindex");
        (index, mac)
    })
}

fn sysctl(netns: &NetNs, all: &[(&str, &str)]) {
    netns.enter(|| {
        for (name, value) in all {
            std::fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
        }
    });
}

/// No packets but those of the test.
pub(crate) fn without_ipv6(netns: &NetNs) {
    if Path::new("/proc/sys/net/ipv6").exists() {
        let names = [
            "ipv6/conf/all/disable_ipv6",
            "ipv6/conf/default/disable_ipv6",
        ];
        sysctl(netns, &names.map(|name| (name, "1")));
    }
}

/// No wait for addresses, and no routers.
fn with_ipv6(netns: &NetNs) {
    for (name, value) in [
        ("accept_dad", "0"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
    ] {
        for of in ["all", "default"] {
            sysctl(netns, &[(&format!("ipv6/conf/{of}/{name}"), value)]);
        }
    }
}

impl Node {
    /// A node with these pods and no wire.
    pub fn new(pods: &[Ipv4Addr]) -> Self {
        Self::with(Ipv4Addr::new(172, 31, 0, 11), pods, Folder::new())
    }

    /// A node with these pods; `addr` is on the device `eth0`, a veth whose other end `wire` is
    /// still in the node's namespace.
    ///
    /// # Panics
    /// If anything of it cannot be made.
    pub fn with(addr: Ipv4Addr, pods: &[Ipv4Addr], folder: Folder) -> Self {
        Self::build(addr, pods, folder, Settings::new())
    }

    /// As `with`, of both families: each address has an IPv6 one beside it (`six`).
    pub fn dual(addr: Ipv4Addr, pods: &[Ipv4Addr]) -> Self {
        let settings = Settings {
            ipv6: true,
            ..Settings::new()
        };
        Self::build(addr, pods, Folder::new(), settings)
    }

    /// A node whose programs report drops only, as agents set it up.
    pub fn quiet(pods: &[Ipv4Addr]) -> Self {
        let settings = Settings::new();
        Self::measured(pods, &settings.object, settings.flow_entries)
    }

    /// The same with the programs of this object and a flow map of this size.
    pub fn measured(pods: &[Ipv4Addr], object: &Path, flow_entries: u32) -> Self {
        let settings = Settings {
            object: object.to_owned(),
            flow_events: false,
            flow_entries,
            ipv6: false,
        };
        let addr = Ipv4Addr::new(172, 31, 0, 11);
        Self::build(addr, pods, Folder::new(), settings)
    }

    /// The same of both families.
    pub fn measured_dual(pods: &[Ipv4Addr], object: &Path, flow_entries: u32) -> Self {
        let settings = Settings {
            object: object.to_owned(),
            flow_events: false,
            flow_entries,
            ipv6: true,
        };
        let addr = Ipv4Addr::new(172, 31, 0, 11);
        Self::build(addr, pods, Folder::new(), settings)
    }

    fn build(addr: Ipv4Addr, pods: &[Ipv4Addr], folder: Folder, settings: Settings) -> Self {
        let netns = NetNs::create("node");
        sysctl(&netns, &[("ipv4/ip_forward", "1")]);
        // As strict as nodes are set up to be: what works then works otherwise too.
        sysctl(
            &netns,
            &[
                ("ipv4/conf/all/rp_filter", "1"),
                ("ipv4/conf/default/rp_filter", "1"),
            ],
        );
        if settings.ipv6 {
            with_ipv6(&netns);
        } else {
            without_ipv6(&netns);
        }
        netns.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "wire",
        ]);
        netns.ip(&["addr", "add", &format!("{addr}/24"), "dev", "eth0"]);
        netns.ip(&["link", "set", "eth0", "up"]);
        netns.ip(&["link", "set", "wire", "up"]);
        netns.ip(&[
            "link", "add", "foil0", "type", "veth", "peer", "name", "foil0p",
        ]);
        for name in ["foil0", "foil0p"] {
            netns.ip(&["link", "set", name, "arp", "off", "up"]);
        }
        let services = format!("{}/{}", SERVICE_NET.0, SERVICE_NET.1);
        let own = addr.to_string();
        netns.ip(&["route", "add", &services, "dev", "foil0", "src", &own]);
        let hairpin = HAIRPIN.to_string();
        netns.ip(&["route", "add", &hairpin, "dev", "foil0", "src", &own]);
        if settings.ipv6 {
            six::prepare(&netns, addr, SERVICE_NET);
        }
        let (uplink, uplink_mac) = link(&netns, "eth0");
        let (service, mac) = link(&netns, "foil0");
        let config = Config {
            object: settings.object.clone(),
            folder: folder.path().to_owned(),
            flow_entries: FlowEntries::Exactly(settings.flow_entries),
            node: NodeFacts {
                address: addr,
                address6: settings.ipv6.then(|| six::six(addr)),
                service_device: Some((service, mac)),
                flow_events: settings.flow_events,
            },
        };
        let datapath = netns.enter(|| {
            let datapath = Datapath::open(&config).expect("open the data plane");
            datapath
                .attach(uplink, Role::Uplink)
                .expect("attach uplink");
            datapath
                .attach(service, Role::Service)
                .expect("attach foil0");
            datapath
        });
        for ((addr, prefix), kind) in [(POD_NET, PODS), (SERVICE_NET, SERVICES)] {
            let key = NetworkKey::new(addr.into(), prefix);
            datapath
                .maps()
                .put_network(&key, kind)
                .expect("put network");
        }
        if settings.ipv6 {
            six::put_networks(&datapath, [(POD_NET, PODS), (SERVICE_NET, SERVICES)]);
        }
        let mut this = Self {
            pods: Vec::new(),
            netns,
            addr,
            uplink,
            uplink_mac,
            service,
            datapath,
            folder,
            settings,
        };
        for addr in pods {
            this.add_pod(*addr);
        }
        this
    }

    /// Where the pins are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration that the data plane was opened with.
    pub fn config(&self) -> Config {
        let (service, mac) = link(&self.netns, "foil0");
        Config {
            object: self.settings.object.clone(),
            folder: self.folder.path().to_owned(),
            flow_entries: FlowEntries::Exactly(self.settings.flow_entries),
            node: NodeFacts {
                address: self.addr,
                address6: self.settings.ipv6.then(|| six::six(self.addr)),
                service_device: Some((service, mac)),
                flow_events: self.settings.flow_events,
            },
        }
    }

    /// Makes a pod as the agent does, and its endpoint.
    ///
    /// # Panics
    /// If anything of it cannot be made.
    pub fn add_pod(&mut self, addr: Ipv4Addr) {
        let number = self.pods.len();
        let host = format!("foilp{number}");
        let pod = NetNs::create("pod");
        if self.settings.ipv6 {
            with_ipv6(&pod);
        } else {
            without_ipv6(&pod);
        }
        let node = &self.netns;
        node.ip(&[
            "link",
            "add",
            &host,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            pod.name(),
        ]);
        node.ip(&["link", "set", &host, "up"]);
        pod.ip(&["link", "set", "eth0", "up"]);
        let text = format!("{addr}/32");
        pod.ip(&["addr", "add", &text, "dev", "eth0"]);
        let (ifindex, host_mac) = link(node, &host);
        let (_, pod_mac) = link(&pod, "eth0");
        let mac = |mac: [u8; 6]| MacAddr { bytes: mac }.to_string();
        let gateway = "169.254.1.1";
        pod.ip(&[
            "neigh",
            "add",
            gateway,
            "lladdr",
            &mac(host_mac),
            "dev",
            "eth0",
            "nud",
            "permanent",
        ]);
        pod.ip(&[
            "route", "add", "default", "via", gateway, "dev", "eth0", "onlink",
        ]);
        node.ip(&[
            "route",
            "add",
            &text,
            "dev",
            &host,
            "src",
            &self.addr.to_string(),
        ]);
        node.ip(&[
            "neigh",
            "add",
            &addr.to_string(),
            "lladdr",
            &mac(pod_mac),
            "dev",
            &host,
            "nud",
            "permanent",
        ]);
        let ipv6 = self.settings.ipv6;
        if ipv6 {
            let macs = [host_mac, pod_mac];
            six::add_pod((&self.netns, self.addr), (&pod, addr), &host, macs);
        }
        let endpoint = Endpoint {
            addr: addr.into(),
            addr6: if ipv6 {
                IpAddr::from(six::six(addr)).into()
            } else {
                Addr::default()
            },
            ifindex,
            identity: 0,
            id: FIRST_POD + number as u16,
            mac: MacAddr { bytes: pod_mac },
        };
        let datapath = &mut self.datapath;
        // First: with IPv6 the pod's stack sends by itself.
        datapath
            .maps()
            .put_endpoint(&endpoint, &format!("test/pod-{number}"))
            .expect("put endpoint");
        node.enter(|| datapath.attach(ifindex, Role::Pod).expect("attach pod"));
        self.pods.push(Pod {
            netns: pod,
            addr,
            ifindex,
            id: endpoint.id,
        });
    }

    /// Runs the program of a hook on a packet as if it were on `ifindex`. One from the network is
    /// for the uplink's Ethernet address.
    ///
    /// # Panics
    /// If the kernel does not run it.
    pub fn run(&self, program: Program, ifindex: u32, packet: &[u8]) -> Ran {
        let mut frame = packet.to_vec();
        let original = match frame.first_chunk_mut::<6>() {
            Some(receiver) if program == Program::FromNetdev && ifindex == self.uplink => {
                Some(std::mem::replace(receiver, self.uplink_mac))
            }
            Some(_) | None => None,
        };
        let mut ran = self.run_frame(program, ifindex, &frame);
        if let (Some(original), Some(receiver)) = (original, ran.packet.first_chunk_mut())
            && *receiver == self.uplink_mac
        {
            *receiver = original;
        }
        ran
    }

    /// The same with the frame's own Ethernet addresses.
    ///
    /// # Panics
    /// If the kernel does not run it.
    pub fn run_frame(&self, program: Program, ifindex: u32, frame: &[u8]) -> Ran {
        self.netns.enter(|| {
            self.datapath
                .test_run(program, frame, ifindex, 0, 1)
                .expect("test_run")
        })
    }

    /// Runs `tc_from_pod` on a packet of a pod.
    pub fn from_pod(&self, pod: usize, packet: &[u8]) -> Ran {
        self.run(Program::FromPod, self.pods[pod].ifindex, packet)
    }

    /// All counters that are not zero, in order.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn counters(&self) -> Vec<(Counted, Hook, u64)> {
        let all = self.datapath.maps().counters().expect("counters");
        all.into_iter()
            .map(|one| {
                let Count { packets, .. } = one.count;
                (one.what, one.hook, packets)
            })
            .collect()
    }

    /// Asserts that exactly these were counted.
    ///
    /// # Panics
    /// If others were, or others as often.
    pub fn assert_counters(&self, mut wanted: Vec<(Counted, Hook, u64)>) {
        wanted.sort_unstable();
        let mut found = self.counters();
        found.sort_unstable();
        assert_eq!(found, wanted);
    }

    /// Connections that were given to a backend.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn connections(&self, backend: u32) -> u64 {
        let stats = self.datapath.maps().backend_stats(backend);
        stats.expect("backend stats").connections
    }
}

/// Key of a frontend on `PORT`.
pub fn frontend_key(vip: Ipv4Addr, protocol: u8) -> FrontendKey {
    FrontendKey {
        addr: vip.into(),
        port: Be16::new(PORT),
        protocol,
        pad: 0,
    }
}

/// A counter of drops.
pub fn dropped(reason: Reason, hook: Hook, packets: u64) -> (Counted, Hook, u64) {
    (Counted::Dropped(reason), hook, packets)
}

/// A counter of decisions.
pub fn decided(hook: Hook, packets: u64) -> (Counted, Hook, u64) {
    (Counted::Decided, hook, packets)
}

/// TCP, for services.
pub const TCP: u8 = protocol::TCP;
/// UDP, for services.
pub const UDP: u8 = protocol::UDP;
