//! Why a Service is refused that asks for addresses or ports: a value of `ipam.rs` and
//! `nodeport.rs`, told by control-server.

use crate::pool::PortRange;

/// What a Service needs a port of every node for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `spec.ports[index]`.
    Port(usize),
    /// `spec.healthCheckNodePort`.
    HealthCheck,
}

impl Use {
    /// The field that names the port.
    pub fn field(self) -> String {
        match self {
            Use::Port(index) => format!("spec.ports[{index}].nodePort"),
            Use::HealthCheck => "spec.healthCheckNodePort".to_owned(),
        }
    }
}

/// Why a Service cannot have what it asks for, or needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceProblem {
    /// `spec.clusterIPs[index]` is not an address of the range, or not one
    /// that is given out.
    OutOfRange {
        /// Which.
        index: usize,
        /// What was asked for.
        address: String,
    },
    /// Another service has it.
    Taken {
        /// Which.
        index: usize,
        /// What was asked for.
        address: String,
    },
    /// A port of every node is not one that services may have.
    PortOutOfRange {
        /// What for.
        of: Use,
        /// What was asked for.
        port: i32,
        /// Those that they may have.
        range: PortRange,
    },
    /// Another service has the port of every node.
    PortTaken {
        /// What for.
        of: Use,
        /// What was asked for.
        port: i32,
    },
    /// Nothing is left: "addresses", "service numbers", "port numbers", "node ports".
    UsedUp {
        /// What of.
        what: &'static str,
    },
}
