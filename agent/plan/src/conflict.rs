//! Why a port of the node that a pod wants (`hostPort`) does not lead all of its clients to the pod.
//!
//! Values only: found by `hostport.rs`, told to users by `event.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// Ports that are named in one message.
const SHOWN: usize = 8;

/// A socket of the node that waits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// IANA's number: 6 or 17.
    pub protocol: u8,
    /// Unspecified: all addresses of the node.
    pub address: Ipv4Addr,
    /// Host order.
    pub port: u16,
}

/// Ports in host order; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Range {
    /// Whether the port belongs to it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ports that the node itself uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSockets {
    /// Those of servers.
    pub listeners: BTreeSet<Listener>,
    /// net.ipv4.ip_local_port_range: those that the kernel gives to the node's own connections.
    pub local_ports: Option<Range>,
    /// net.ipv4.ip_local_reserved_ports: those of them that it does not give.
    pub reserved: Vec<Range>,
}

impl NodeSockets {
    /// The range from which the kernel may give this port to a connection of the node.
    pub(crate) fn local_range(&self, port: u16) -> Option<Range> {
        let is_reserved = self.reserved.iter().any(|range| range.contains(port));
        let range = self.local_ports.filter(|range| range.contains(port));
        range.filter(|_| !is_reserved)
    }
}

/// Who else has, or may get, a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A service's node port, or another pod.
    InUse,
    /// A process of the node.
    Process,
    /// Services that get a node port of this range.
    NodePorts(Range),
    /// The node's own connections.
    LocalPorts(Range),
}

/// Ports of one pod, by cause; a port is named once.
pub type Conflicts = BTreeMap<Cause, BTreeSet<u16>>;

/// What is new in `now` against `before`, in words; `None`: nothing.
pub(crate) fn news(before: &Conflicts, now: &Conflicts) -> Option<String> {
    let new = now
        .iter()
        .filter(|(cause, ports)| before.get(cause) != Some(ports));
    let texts: Vec<String> = new.map(|(cause, ports)| text(*cause, ports)).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn text(cause: Cause, ports: &BTreeSet<u16>) -> String {
    let names: Vec<String> = ports.iter().take(SHOWN).map(u16::to_string).collect();
    let names = names.join(", ");
    let more = match ports.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let why = match cause {
        Cause::InUse => {
            "in use by a node port of a service or by another pod; the pod gets it once it is free"
                .to_owned()
        }
        Cause::Process => "also used by a process of this node; connections from other machines \
                           and from pods lead to the pod"
            .to_owned(),
        Cause::NodePorts(range) => format!(
            "in the range of node ports ({range}); a service that gets it as node port takes \
             precedence"
        ),
        Cause::LocalPorts(range) => format!(
            "in this node's net.ipv4.ip_local_port_range ({range}); connections of the node that \
             get it as their own port break"
        ),
    };
    format!("hostPort {names}{more}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told_and_not_at_any_length() {
        let ports = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<u16>>();
        let range = Range {
            first: 30_000,
            last: 32_767,
        };
        let before = Conflicts::from([(Cause::InUse, ports(&[80]))]);
        assert_eq!(news(&before, &before), None);
        assert_eq!(news(&before, &Conflicts::new()), None);
        let mut now = before.clone();
        now.insert(Cause::NodePorts(range), ports(&[30_001, 30_002]));
        let wanted = "hostPort 30001, 30002: in the range of node ports (30000-32767); a service \
                      that gets it as node port takes precedence";
        assert_eq!(news(&before, &now).as_deref(), Some(wanted));
        let many: Vec<u16> = (1..=4096).collect();
        let many = Conflicts::from([(Cause::Process, ports(&many))]);
        let text = news(&before, &many).unwrap();
        let begin = "hostPort 1, 2, 3, 4, 5, 6, 7, 8 and 4088 more: also used by a process";
        assert!(text.starts_with(begin), "{text}");
    }
}
