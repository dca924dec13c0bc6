//! Names of the programs in the object; at most 15 characters.

/// Packets that leave a pod: ingress of the veth's host side.
pub const FROM_POD: &str = "tc_from_pod";
/// Packets from the host's stack to a pod: egress of the veth's host side.
pub const TO_POD: &str = "tc_to_pod";
/// Packets from the network: ingress of an uplink.
pub const FROM_NETDEV: &str = "tc_from_netdev";
/// Packets of the node itself: egress of an uplink and of the service device.
pub const TO_NETDEV: &str = "tc_to_netdev";
/// Removes expired flows; run by the agent, attached nowhere.
pub const FLOW_SWEEP: &str = "flow_sweep";
/// Does nothing; what the others are measured against.
pub const EMPTY: &str = "tc_empty";
