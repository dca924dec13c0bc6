//! Rule sets as kube-proxy writes them, for a client, a node that forwards, and a server.
//!
//! Not kube-proxy's code: the tables, chains and order of rules that its documentation and a
//! running one of version 1.33 show, with one ready endpoint for each service port. Each set has
//! as many services as its name says; the one that is called is in the middle.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use tests_harness::{NetNs, process};

/// Port of the echo servers; the pods' own program has 8080.
pub(super) const PORT: u16 = 9000;
/// Port of the sink for bulk data.
pub(super) const BULK_PORT: u16 = PORT + 1;
/// Address of the server behind the service that is called.
pub(super) const SERVER: &str = "192.0.2.9";
/// Address of that service.
pub(super) const SERVICE: &str = "10.96.0.1";
/// Services of a set. More are not loaded: `nft` 1.0.6 takes a minute for 10,000, and the time grows
/// with the square of them.
const SERVICES: [u32; 3] = [1, 1_000, 10_000];
/// Addresses of pods: others may be masqueraded.
const PODS: &str = "10.244.0.0/16";

/// A rule set, and the program that loads it.
pub(super) struct Rules {
    pub(super) name: String,
    program: &'static str,
    arguments: &'static [&'static str],
    text: String,
}

impl Rules {
    /// Loads it in a namespace.
    ///
    /// # Panics
    /// If the program refuses it.
    pub(super) fn load(&self, space: &NetNs) {
        let mut command = space.command(self.program);
        let input = Some(self.text.as_bytes());
        let limit = std::time::Duration::from_secs(600);
        process::run_with(command.args(self.arguments), input, limit).success();
    }
}

/// Every set whose program is installed.
pub(super) fn all() -> Vec<Rules> {
    let mut all = Vec::new();
    for (kind, program, package, arguments, write) in [
        (
            "nft",
            "nft",
            "nftables",
            &["-f", "-"][..],
            nftables as fn(&[Port]) -> String,
        ),
        ("iptables", "iptables-restore", "iptables", &[], iptables),
    ] {
        let version = Command::new(program).arg("--version").output();
        if version.is_err() {
            eprintln!(
                "{program} is not installed: its figures will be missing (apt-get install {package})"
            );
            continue;
        }
        all.extend(SERVICES.into_iter().map(|services| Rules {
            name: format!("{kind}.{services}"),
            program,
            arguments,
            text: write(&ports(services)),
        }));
    }
    all
}

/// A port of a service, with its endpoint.
struct Port {
    /// As kube-proxy's comments and names of chains have it, without namespace.
    name: String,
    id: usize,
    address: Ipv4Addr,
    protocol: &'static str,
    port: u16,
    endpoint: (Ipv4Addr, u16),
}

/// The ports of so many services.
fn ports(services: u32) -> Vec<Port> {
    let called: Ipv4Addr = SERVICE.parse().expect("an address");
    let server: Ipv4Addr = SERVER.parse().expect("an address");
    let mut all = Vec::new();
    for number in 0..services {
        let id = all.len();
        if number != services / 2 {
            // Behind the one that is called, so that no address is used twice.
            all.push(Port {
                name: format!("service-{number}:http"),
                id,
                address: Ipv4Addr::from(u32::from(called) + 1 + number),
                protocol: "tcp",
                port: 80,
                endpoint: (Ipv4Addr::from(0x0af4_0000 + number), 8080),
            });
            continue;
        }
        let own = [
            ("echo", "tcp", PORT),
            ("datagrams", "udp", PORT),
            ("bulk", "tcp", BULK_PORT),
        ];
        all.extend(
            own.into_iter()
                .enumerate()
                .map(|(more, (name, protocol, port))| Port {
                    name: format!("bench:{name}"),
                    id: id + more,
                    address: called,
                    protocol,
                    port,
                    endpoint: (server, port),
                }),
        );
    }
    all
}

/// `--proxy-mode=iptables`.
fn iptables(ports: &[Port]) -> String {
    let mut out = String::from(
        "*filter\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n\
         :KUBE-FORWARD - [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n",
    );
    for (chain, rest) in [
        (
            "INPUT",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
        ),
        (
            "INPUT",
            "-m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS",
        ),
        (
            "INPUT",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
        ),
        ("INPUT", "-j KUBE-FIREWALL"),
        (
            "FORWARD",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
        ),
        (
            "FORWARD",
            "-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
        ),
        (
            "FORWARD",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        ),
        (
            "FORWARD",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
        ),
        (
            "OUTPUT",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
        ),
        (
            "OUTPUT",
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        ),
        ("OUTPUT", "-j KUBE-FIREWALL"),
        (
            "KUBE-FIREWALL",
            "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        ),
        ("KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP"),
        (
            "KUBE-FORWARD",
            "-m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT",
        ),
        (
            "KUBE-FORWARD",
            "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
    ] {
        line(&mut out, format_args!("-A {chain} {rest}"));
    }
    out.push_str(
        "COMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    for port in ports {
        line(&mut out, format_args!(":KUBE-SVC-{:016} - [0:0]", port.id));
        line(&mut out, format_args!(":KUBE-SEP-{:016} - [0:0]", port.id));
    }
    out.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
         -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for port in ports {
        let Port {
            name,
            id,
            address,
            protocol,
            port,
            endpoint,
        } = port;
        let portal = format!(
            "-d {address}/32 -p {protocol} -m comment --comment \"default/{name} cluster IP\" \
             -m {protocol} --dport {port}"
        );
        line(
            &mut out,
            format_args!("-A KUBE-SERVICES {portal} -j KUBE-SVC-{id:016}"),
        );
        line(
            &mut out,
            format_args!("-A KUBE-SVC-{id:016} ! -s {PODS} {portal} -j KUBE-MARK-MASQ"),
        );
        let (to, to_port) = endpoint;
        line(
            &mut out,
            format_args!(
                "-A KUBE-SVC-{id:016} -m comment --comment \"default/{name} -> {to}:{to_port}\" \
                 -j KUBE-SEP-{id:016}"
            ),
        );
        let comment = format!("-m comment --comment \"default/{name}\"");
        line(
            &mut out,
            format_args!("-A KUBE-SEP-{id:016} -s {to}/32 {comment} -j KUBE-MARK-MASQ"),
        );
        line(
            &mut out,
            format_args!(
                "-A KUBE-SEP-{id:016} -p {protocol} {comment} -m {protocol} -j DNAT \
                 --to-destination {to}:{to_port}"
            ),
        );
    }
    out.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be \
         the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string");
}

/// `--proxy-mode=nftables`.
fn nftables(ports: &[Port]) -> String {
    let mut out = String::from(
        "table ip kube-proxy {\n\
         set cluster-ips {\ntype ipv4_addr\n}\n\
         set nodeport-ips {\ntype ipv4_addr\n}\n\
         map no-endpoint-services {\ntype ipv4_addr . inet_proto . inet_service : verdict\n}\n\
         map no-endpoint-nodeports {\ntype inet_proto . inet_service : verdict\n}\n\
         map firewall-ips {\ntype ipv4_addr . inet_proto . inet_service : verdict\n}\n\
         map service-nodeports {\ntype inet_proto . inet_service : verdict\n}\n\
         map service-ips {\ntype ipv4_addr . inet_proto . inet_service : verdict\n}\n\
         chain mark-for-masquerade {\nmeta mark set meta mark or 0x4000\n}\n\
         chain masquerading {\nmeta mark and 0x4000 == 0 return\n\
         meta mark set meta mark xor 0x4000\nmasquerade fully-random\n}\n\
         chain reject-chain {\nreject\n}\n\
         chain firewall-check {\nip daddr . meta l4proto . th dport vmap @firewall-ips\n}\n\
         chain service-endpoints-check {\n\
         ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}\n\
         chain nodeport-endpoints-check {\n\
         ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports\n}\n\
         chain cluster-ips-check {\nip daddr @cluster-ips reject\nip daddr 10.96.0.0/16 drop\n}\n\
         chain services {\nip daddr . meta l4proto . th dport vmap @service-ips\n\
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n}\n\
         chain filter-prerouting {\ntype filter hook prerouting priority dstnat - 10; policy accept;\n\
         ct state new jump firewall-check\n}\n\
         chain filter-input {\ntype filter hook input priority -110; policy accept;\n\
         ct state new jump nodeport-endpoints-check\nct state new jump service-endpoints-check\n}\n\
         chain filter-forward {\ntype filter hook forward priority -110; policy accept;\n\
         ct state new jump service-endpoints-check\nct state new jump cluster-ips-check\n}\n\
         chain filter-output {\ntype filter hook output priority -110; policy accept;\n\
         ct state new jump service-endpoints-check\nct state new jump firewall-check\n}\n\
         chain filter-output-post-dnat {\ntype filter hook output priority -90; policy accept;\n\
         ct state new jump cluster-ips-check\n}\n\
         chain nat-prerouting {\ntype nat hook prerouting priority dstnat; policy accept;\n\
         jump services\n}\n\
         chain nat-output {\ntype nat hook output priority -100; policy accept;\njump services\n}\n\
         chain nat-postrouting {\ntype nat hook postrouting priority srcnat; policy accept;\n\
         jump masquerading\n}\n",
    );
    for Port {
        id,
        address,
        protocol,
        port,
        endpoint: (to, to_port),
        ..
    } in ports
    {
        line(
            &mut out,
            format_args!(
                "chain endpoint-{id:08} {{\nip saddr {to} jump mark-for-masquerade\n\
                 meta l4proto {protocol} dnat to {to}:{to_port}\n}}\n\
                 chain service-{id:08} {{\nip daddr {address} {protocol} dport {port} \
                 ip saddr != {PODS} jump mark-for-masquerade\n\
                 numgen random mod 1 vmap {{ 0 : goto endpoint-{id:08} }}\n}}"
            ),
        );
    }
    out.push_str("}\n");
    for Port {
        id,
        address,
        protocol,
        port,
        ..
    } in ports
    {
        line(
            &mut out,
            format_args!(
                "add element ip kube-proxy cluster-ips {{ {address} }}\n\
                 add element ip kube-proxy service-ips {{ {address} . {protocol} . {port} : \
                 goto service-{id:08} }}"
            ),
        );
    }
    out
}
