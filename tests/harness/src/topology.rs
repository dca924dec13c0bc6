//! The wire: one namespace with a bridge, one namespace per node, veths between them.
//!
//! ```text
//! foil-PID-SEQ-wire   foil-br 172.31.0.1/24  <- control plane, registry, `foil`
//!        |  \
//!        n1  n2       eth0 172.31.0.11, .12  <- one foil-agent in each
//! ```
//! Addresses are the same in each topology: namespaces keep them apart.
//! Called by `cluster`; tests that need only a network use it directly.

use crate::NetNs;

/// Address of the control plane and of the registry.
pub const WIRE_IP: &str = "172.31.0.1";
/// Links that lead to nodes begin with this, as all our links do.
const BRIDGE: &str = "foil-br";

/// Namespaces and links of one cluster. Links go with their namespaces.
#[derive(Debug)]
pub struct Topology {
    wire: NetNs,
    nodes: Vec<NetNs>,
}

impl Topology {
    /// `name` is unique, see [`crate::unique_name`].
    ///
    /// # Panics
    /// If a link or namespace cannot be made.
    pub fn create(name: &str, nodes: usize) -> Self {
        let wire = NetNs::named(&format!("{name}-wire"));
        wire.ip(&[
            "link",
            "add",
            BRIDGE,
            "type",
            "bridge",
            "forward_delay",
            "0",
        ]);
        wire.ip(&["addr", "add", &format!("{WIRE_IP}/24"), "dev", BRIDGE]);
        wire.ip(&["link", "set", BRIDGE, "up"]);
        let mut this = Self {
            wire,
            nodes: Vec::new(),
        };
        for index in 0..nodes {
            this.add_node(name, index);
        }
        this
    }

    fn add_node(&mut self, name: &str, index: usize) {
        let node = NetNs::named(&format!("{name}-{}", node_name(index)));
        let port = format!("foil-{}", node_name(index));
        self.wire.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            node.name(),
        ]);
        self.wire
            .ip(&["link", "set", &port, "master", BRIDGE, "up"]);
        node.ip(&[
            "addr",
            "add",
            &format!("{}/24", node_ip(index)),
            "dev",
            "eth0",
        ]);
        node.ip(&["link", "set", "eth0", "up"]);
        node.ip(&["route", "add", "default", "via", WIRE_IP]);
        self.nodes.push(node);
    }

    pub fn wire(&self) -> &NetNs {
        &self.wire
    }

    /// The namespace of node `index`, from 0.
    pub fn node(&self, index: usize) -> &NetNs {
        &self.nodes[index]
    }

    /// Number of nodes' namespaces.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }
}

/// `n1`, `n2`, ...
pub fn node_name(index: usize) -> String {
    format!("n{}", index + 1)
}

/// `172.31.0.11`, ...
pub fn node_ip(index: usize) -> String {
    format!("172.31.0.{}", index + 11)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn nodes_reach_the_wire_and_each_other() {
        let topology = Topology::create(&crate::unique_name(), 2);
        for (server, address) in [
            (topology.wire(), WIRE_IP.to_owned()),
            (topology.node(1), node_ip(1)),
        ] {
            let listener = server.enter(|| TcpListener::bind((address.as_str(), 4000)));
            let listener = listener.expect("listen");
            let client = topology
                .node(0)
                .enter(|| TcpStream::connect((address.as_str(), 4000)));
            let mut client = client.expect("connect");
            let (mut accepted, _) = listener.accept().expect("accept");
            client.write_all(b"x").expect("write");
            let mut byte = [0];
            accepted.read_exact(&mut byte).expect("read");
            assert_eq!(&byte, b"x");
        }
    }
}
