//! Whether the kernel gives ports to the node's own connections that the data plane leads
//! elsewhere. Called by `preflight.rs`.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use agent_sys::sockets::{self, LocalPorts};
use agent_sys::state::Layout;
use proto::v1;

use crate::pushed_file;

/// Of the control plane (`node_port_range`), until the node is told its own.
const DEFAULT_NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Ports of the node's own connections, and those of the data plane.
#[derive(Debug)]
pub(crate) struct Ports {
    local: LocalPorts,
    node_ports: RangeInclusive<u16>,
}

/// # Errors
/// The kernel's ports cannot be read.
pub(crate) fn read(layout: &Layout) -> io::Result<Ports> {
    // A file that cannot be read is told of by other checks.
    let cluster = pushed_file::config(layout).ok().flatten();
    let node_ports = node_ports(cluster.and_then(|config| config.node_ports));
    let local = sockets::local_ports()?;
    Ok(Ports { local, node_ports })
}

fn node_ports(told: Option<v1::PortRange>) -> RangeInclusive<u16> {
    let range = told.and_then(|ports| {
        let (first, last) = (ports.first.try_into().ok()?, ports.last.try_into().ok()?);
        Some(first..=last)
    });
    range.unwrap_or(DEFAULT_NODE_PORTS)
}

impl Ports {
    /// What the data plane uses ports of the node's connections for; `None`: it uses none.
    pub(crate) fn overlap(&self) -> Option<String> {
        let uses = [
            ("node ports", self.node_ports.clone()),
            ("ports of forwarded clients", sockets::snat_ports()),
        ];
        let uses = uses.iter().filter(|(_, ports)| self.local.overlap(ports));
        let uses: Vec<String> = uses
            .map(|(what, ports)| format!("{what} ({}-{})", ports.start(), ports.end()))
            .collect();
        (!uses.is_empty()).then(|| uses.join(" and "))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = &self.local.range;
        write!(f, "{}-{}", range.start(), range.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_nodes_connections_are_compared() {
        let both = "node ports (30000-32767) and ports of forwarded clients (61000-65522)";
        let other = v1::PortRange {
            first: 20_000,
            last: 20_100,
        };
        for (range, reserved, told, wanted) in [
            (32_768..=60_999, vec![], None, None),
            (1_024..=65_535, vec![], None, Some(both)),
            (
                32_767..=60_999,
                vec![],
                None,
                Some("node ports (30000-32767)"),
            ),
            (32_767..=60_999, vec![], Some(other), None),
            (
                1_024..=60_999,
                vec![],
                Some(other),
                Some("node ports (20000-20100)"),
            ),
            (1_024..=60_999, vec![20_000..=20_100], Some(other), None),
        ] {
            let ports = Ports {
                local: LocalPorts { range, reserved },
                node_ports: node_ports(told),
            };
            assert_eq!(ports.overlap().as_deref(), wanted, "{ports:?}");
        }
    }
}
