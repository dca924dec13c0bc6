//! Names of the programs in the object; at most 15 characters.

/// Packets that leave a pod: ingress of the veth's host side.
pub const FROM_POD: &str = "tc_from_pod";
/// Packets from the host's stack to a pod: egress of the veth's host side.
pub const TO_POD: &str = "tc_to_pod";
/// Packets from the network: ingress of an uplink.
pub const FROM_NETDEV: &str = "tc_from_netdev";
/// Packets of the node itself: egress of an uplink and of the service device.
pub const TO_NETDEV: &str = "tc_to_netdev";
/// TCP connections of pods to a service, IPv4: become connections to a backend.
pub const SOCK_CONNECT4: &str = "sock_connect4";
/// The same of IPv6 sockets, also to IPv4 addresses mapped into IPv6.
pub const SOCK_CONNECT6: &str = "sock_connect6";
/// `getpeername` of such connections: tells the service's address.
pub const SOCK_GETPEER4: &str = "sock_getpeer4";
/// The same of IPv6 sockets.
pub const SOCK_GETPEER6: &str = "sock_getpeer6";
/// Removes expired flows; run by the agent, attached nowhere.
pub const FLOW_SWEEP: &str = "flow_sweep";
/// The same for IPv6; loaded where it is in use.
pub const FLOW_SWEEP6: &str = "flow_sweep6";
/// Does nothing; what the others are measured against.
pub const EMPTY: &str = "tc_empty";
