//! `Drop`: every reason for which a packet does not go on, numbered once, with its sentence.
//!
//! A number is never used again for something else: counters, events and people's notes hold
//! it. The stage that returns a reason is found by searching for its name in `ebpf-programs`.

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal; )*) => {
        /// Why a packet was dropped or refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Drop {
            $( $(#[doc = $doc])+ $name = $number, )*
        }

        impl Drop {
            /// All, in order of their numbers.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// Reads what a counter's index or an event holds.
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $( $number => Some(Self::$name), )*
                    _ => None,
                }
            }

            /// Name for tools: `SPOOFED_SOURCE`.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $( Self::$name => concat!($( $doc, )+).trim_ascii(), )*
                }
            }
        }
    };
}

reasons! {
    /// The frame ends before its headers do.
    Truncated = 1, "TRUNCATED";
    /// Neither IPv4 nor ARP.
    NotIp = 2, "NOT_IP";
    /// The IP version or header length is impossible.
    BadIpHeader = 3, "BAD_IP_HEADER";
    /// The IP total length is shorter than the headers or longer than the frame.
    BadIpLength = 4, "BAD_IP_LENGTH";
    /// The IP header has options, or extension headers in front of what would have to be translated.
    IpOptions = 5, "IP_OPTIONS";
    /// The TCP data offset is impossible.
    BadTcpHeader = 6, "BAD_TCP_HEADER";
    /// The TCP flags are a combination that no sender uses.
    BadTcpFlags = 7, "BAD_TCP_FLAGS";
    /// The UDP length does not fit the IP length.
    BadUdpLength = 8, "BAD_UDP_LENGTH";
    /// A fragment of a flow that would have to be translated, or to a service address.
    Fragment = 9, "FRAGMENT";
    /// The source address is not that of the pod that sent it, or is a pod's and came from the network.
    SpoofedSource = 10, "SPOOFED_SOURCE";
    /// The interface does not belong to a known pod.
    NoEndpoint = 11, "NO_ENDPOINT";
    /// No service has this address, port and protocol.
    NoFrontend = 12, "NO_FRONTEND";
    /// The service has no ready backend.
    NoBackend = 13, "NO_BACKEND";
    /// The backend that the flow belongs to was removed.
    BackendGone = 14, "BACKEND_GONE";
    /// There is no route to the destination.
    NoRoute = 15, "NO_ROUTE";
    /// No source port was free that would make the replies unambiguous.
    NoPort = 16, "NO_PORT";
    /// The flow entry could not be created.
    NoFlowEntry = 17, "NO_FLOW_ENTRY";
    /// The kernel refused to change the packet.
    RewriteFailed = 18, "REWRITE_FAILED";
    /// A packet from outside the cluster to an address that only the cluster may use.
    ExternalService = 19, "EXTERNAL_SERVICE";
    /// An ICMP error for an unknown flow.
    IcmpNoFlow = 20, "ICMP_NO_FLOW";
    /// The packet came from the network with this node's own address, a service's or the hairpin address as its source.
    MartianSource = 21, "MARTIAN_SOURCE";
    /// The pod has as many flow entries as it may have: as many as are free for all.
    FlowQuota = 22, "FLOW_QUOTA";
    /// The service takes connections from outside to backends of this node only, and has none here.
    NoLocalBackend = 23, "NO_LOCAL_BACKEND";
    /// The client's address is in none of the service's source ranges.
    SourceRange = 24, "SOURCE_RANGE";
    /// No port of the node was free for a connection from outside to a backend of another node.
    SnatPorts = 25, "SNAT_PORTS";
    /// A pod says that it is a router, or that another one is to be used.
    RouterMessage = 28, "ROUTER_MESSAGE";
    /// An IPv6 packet has an IPv4 address, mapped into IPv6, as its source or destination.
    MappedAddress = 29, "MAPPED_ADDRESS";
    /// IPv6 extension headers that are too many, or end before their length.
    ExtensionHeaders = 30, "EXTENSION_HEADERS";
    /// The packet was to be forwarded to another machine, and had no hop left (time to live).
    HopLimit = 31, "HOP_LIMIT";
}

/// One more than the largest number that a counter may stand for.
pub const REASONS: usize = 64;

// 0 and the last are no reasons, see `counter`.
const _: () = assert!((Drop::ALL[Drop::ALL.len() - 1] as usize) < REASONS - 1);

#[cfg(test)]
mod tests {
    use super::{Drop, REASONS};

    #[test]
    fn numbers_are_used_once_and_have_a_counter() {
        assert!(Drop::ALL.is_sorted_by(|a, b| (*a as u8) < *b as u8));
        for reason in Drop::ALL {
            assert!((*reason as usize) < REASONS);
            assert_eq!(Drop::from_u8(*reason as u8), Some(*reason));
            assert!(reason.sentence().ends_with('.'), "{reason:?}");
        }
        assert_eq!(Drop::from_u8(0), None);
    }
}
