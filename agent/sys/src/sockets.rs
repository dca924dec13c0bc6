//! Ports of the node's own processes: those that they wait for clients at, and those that the
//! kernel and the data plane give to connections. Of the network namespace of this process.
//!
//! Called by the daemon's `kernel.rs` and `preflight.rs`. Blocks as long as the kernel needs to
//! print its tables.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ebpf_common::net::protocol;
use ebpf_logic::nat::SNAT;

const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// include/net/tcp_states.h: TCP_LISTEN, and TCP_CLOSE, which a datagram socket without a peer has.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// A socket that waits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// IANA's number: 6 or 17.
    pub protocol: u8,
    /// Unspecified: all addresses of the node.
    pub address: Ipv4Addr,
    /// Host order.
    pub port: u16,
}

/// The source ports that the data plane gives to connections that it forwards with the node's
/// address, host order.
pub fn snat_ports() -> RangeInclusive<u16> {
    let last = SNAT.first + SNAT.count - 1;
    SNAT.first as u16..=last as u16
}

/// The ports that the kernel gives to the node's own connections, host order
/// (Documentation/networking/ip-sysctl.rst, ip_local_port_range, ip_local_reserved_ports).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPorts {
    /// From here they are chosen ...
    pub range: RangeInclusive<u16>,
    /// ... but for these.
    pub reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Whether the kernel may choose one of these ports.
    pub fn overlap(&self, ports: &RangeInclusive<u16>) -> bool {
        let is_reserved = |port: &u16| self.reserved.iter().any(|range| range.contains(port));
        let (first, last) = (self.range.start(), self.range.end());
        let mut both = *first.max(ports.start())..=*last.min(ports.end());
        both.any(|port| !is_reserved(&port))
    }
}

/// Reads them.
///
/// # Errors
/// A file cannot be read, or has something else than ports.
pub fn local_ports() -> io::Result<LocalPorts> {
    let invalid = |path: &str, text: &str| io::Error::other(format!("{path}: {:?}", text.trim()));
    let text = fs::read_to_string(LOCAL_PORTS)?;
    let range = parse_range(&text).ok_or_else(|| invalid(LOCAL_PORTS, &text))?;
    let text = fs::read_to_string(RESERVED_PORTS)?;
    let reserved = parse_list(&text).ok_or_else(|| invalid(RESERVED_PORTS, &text))?;
    Ok(LocalPorts { range, reserved })
}

/// "32768\t60999"
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace();
    let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(first..=last)
}

/// "8080,30000-32767"; empty: none.
fn parse_list(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let parts = text.trim().split(',').filter(|part| !part.is_empty());
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    parts.map(range).collect()
}

/// Sockets of TCP and UDP that IPv4 clients reach.
///
/// # Errors
/// One of the kernel's tables in /proc/net cannot be read; those of IPv6 may be absent.
pub fn listeners() -> io::Result<BTreeSet<Listener>> {
    let mut found = BTreeSet::new();
    for (table, protocol, state) in [
        ("tcp", protocol::TCP, LISTEN),
        ("tcp6", protocol::TCP, LISTEN),
        ("udp", protocol::UDP, CLOSE),
        ("udp6", protocol::UDP, CLOSE),
    ] {
        match File::open(format!("/proc/self/net/{table}")) {
            Ok(file) => read(BufReader::new(file), protocol, state, &mut found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Adds the sockets in this state of a table of proc_pid_net(5).
fn read(
    table: impl BufRead,
    protocol: u8,
    state: &str,
    found: &mut BTreeSet<Listener>,
) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        let (local, _remote, of) = (words.next(), words.next(), words.next());
        if of != Some(state) {
            if protocol == protocol::TCP {
                // Listeners come first (net/ipv4/tcp_ipv4.c, tcp_get_idx); connections, of which
                // there may be very many, are not read.
                break;
            }
            continue;
        }
        if let Some((address, port)) = local.and_then(parse_local)
            && port != 0
        {
            found.insert(Listener {
                protocol,
                address,
                port,
            });
        }
    }
    Ok(())
}

/// "0100007F:1F90": the address in words of the machine's byte order. An IPv6 socket of all
/// addresses takes IPv4 clients too, unless it was told not to, which the tables do not say.
fn parse_local(text: &str) -> Option<(Ipv4Addr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    if address.len() == 8 {
        return Some((word(0)?.into(), port));
    }
    let mut bytes = [0; 16];
    for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&word(at)?);
    }
    let address = Ipv6Addr::from(bytes);
    if address.is_unspecified() {
        return Some((Ipv4Addr::UNSPECIFIED, port));
    }
    Some((address.to_ipv4_mapped()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(parse_range("32768"), None);
        assert_eq!(parse_range("a b"), None);
        assert_eq!(parse_range("1 65536"), None);
        assert_eq!(snat_ports(), 61_000..=65_522);
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("80,1-3\n"), Some(vec![80..=80, 1..=3]));
        assert_eq!(parse_list("80,x\n"), None);
        let range = local_ports().unwrap().range;
        assert!(range.start() <= range.end());
    }

    #[test]
    fn reserved_ports_are_not_chosen() {
        let ports = |reserved| LocalPorts {
            range: 1024..=60_999,
            reserved,
        };
        for (reserved, asked, overlap) in [
            (vec![], 30_000..=32_767, true),
            (vec![], 60_999..=61_000, true),
            (vec![], 61_000..=65_522, false),
            (vec![], 1..=1023, false),
            (vec![30_000..=32_767], 30_000..=32_767, false),
            (
                vec![30_000..=31_000, 31_001..=32_767],
                30_000..=32_767,
                false,
            ),
            (vec![30_001..=32_767], 30_000..=32_767, true),
        ] {
            assert_eq!(
                ports(reserved.clone()).overlap(&asked),
                overlap,
                "{reserved:?} {asked:?}"
            );
        }
    }

    /// Of this process, by the kernel's own tables.
    #[test]
    fn servers_are_found_and_connections_are_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.2:0").unwrap();
        let connected = UdpSocket::bind("127.0.0.3:0").unwrap();
        connected.connect(udp.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let has = |found: &BTreeSet<Listener>, protocol, address: SocketAddr| {
            let SocketAddr::V4(address) = address else {
                panic!("{address}")
            };
            found.contains(&Listener {
                protocol,
                address: *address.ip(),
                port: address.port(),
            })
        };
        let tcp = tcp.local_addr().unwrap();
        let all = all.local_addr().unwrap();
        let udp = udp.local_addr().unwrap();
        // The kernel may skip one if another socket is closed while it prints.
        let complete = (0..100).any(|_| {
            let found = listeners().unwrap();
            assert!(!has(&found, protocol::UDP, connected.local_addr().unwrap()));
            assert!(!has(&found, protocol::TCP, client.local_addr().unwrap()));
            let servers = [
                (protocol::TCP, tcp),
                (protocol::TCP, all),
                (protocol::UDP, udp),
            ];
            servers
                .iter()
                .all(|(protocol, address)| has(&found, *protocol, *address))
        });
        assert!(complete);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn tables_of_both_families_are_read() {
        let text = "  sl  local_address remote_address st ...\n\
            \x20  0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n\
            \x20  1: 0000000000000000FFFF0000010200C0:0051 00000000000000000000000000000000:0000 0A 0\n\
            \x20  2: 000080FE00000000FF005450B6EC2C68:0052 00000000000000000000000000000000:0000 0A 0\n\
            \x20  3: 0100007F:0053 00000000:0000 0A 0\n\
            \x20  4: 0100007F:0054 0100007F:0053 01 0\n\
            \x20  5: 0100007F:0055 00000000:0000 0A 0\n";
        let mut found = BTreeSet::new();
        read(text.as_bytes(), protocol::TCP, LISTEN, &mut found).unwrap();
        let rows: Vec<String> = found
            .iter()
            .map(|l| format!("{}:{}", l.address, l.port))
            .collect();
        assert_eq!(rows, ["0.0.0.0:80", "127.0.0.1:83", "192.0.2.1:81"]);
    }
}
