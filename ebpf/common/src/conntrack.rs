//! Flows: one entry says all that happens to the next packet of one direction of a connection.
//!
//! The decision (service, backend, route, and later policy) is taken for the first packet and
//! written here, together with the generations under which it was taken; a later packet costs
//! this one lookup and the comparison of the numbers. Transitions are in `ebpf-logic`.

use crate::{
    address::Address,
    family_abi, map_abi,
    net::{Addr, Be16, Be32},
};

/// Scope of packets that came in from a network device, see `FlowKey::scope`.
pub const SCOPE_NETDEV: u32 = 0;
/// Scope of packets of the node itself. Interface 1 is always loopback, so no pod has it.
pub const SCOPE_HOST: u32 = 1;

family_abi! {
    /// One direction of a flow, as it arrives at a hook (before translation).
    ///
    /// 16 bytes for IPv4: with a 64-byte value an entry fills two cache lines. 40 for IPv6.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FlowKey<A> {
        /// Source address.
        pub src: A,
        /// Destination address.
        pub dst: A,
        /// Source port.
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// Where it came from and what it is: `from << 8 | protocol`, where `from` is
        /// `SCOPE_NETDEV`, `SCOPE_HOST` or the interface of the pod that sent it.
        ///
        /// The interface is in the key because it is what ties a source address to its pod: a
        /// packet with another pod's address cannot hit that pod's flows.
        pub scope: u32,
    }

    /// What happens to a packet of the flow: 64 bytes for IPv4, one cache line; 104 for IPv6.
    pub struct Flow<A> {
        /// Epoch in which the decision was known to stand; see `ebpf_logic::generation`.
        pub epoch: u32,
        /// Low 32 bits of jiffies, written at most once a second.
        pub last_seen: u32,
        /// Packets that took this entry. Not atomic: two CPUs at once may lose one.
        pub packets: u64,
        /// Their bytes (skb length without Ethernet header), likewise.
        pub bytes: u64,
        /// Backend that was chosen, 0 for none.
        pub backend: u32,
        /// Its generation then.
        pub backend_gen: u32,
        /// Generations of `peer` and of the node's routes then, as one number.
        pub route_gen: u32,
        /// The interface that `action` is about; with `PASS`, that of the pod that answers, if
        /// it is a pod of this node.
        pub ifindex: u32,
        /// Next hop on `ifindex`, for `NEIGH` and `POD_NEIGH`; zero when it is an address of the
        /// other family, which the kernel looks up for each packet.
        pub nexthop: A,
        /// Source address after translation (as in the key when nothing changes).
        pub src: A,
        /// Destination address after translation.
        pub dst: A,
        /// Source port after translation.
        pub sport: Be16,
        /// Destination port after translation.
        pub dport: Be16,
        /// Endpoint that it goes to on this node, 0 for none.
        pub peer: u16,
        /// Ones' complement difference that the addresses make (IPv4 header and pseudo header).
        pub addr_delta: u16,
        /// Ones' complement difference that the ports make.
        pub port_delta: u16,
        /// `action::*`, and `NAT`, `REPLY`, `ANSWERS_*`.
        pub action: u8,
        /// `state::*`.
        pub state: u8,
        /// Named padding, zero.
        pub pad: FlowPad<A>,
    }

    /// Named padding that makes a `Flow` a multiple of eight bytes. A struct, because rustc 1.95
    /// fails on closures that copy a field whose type is an associated one.
    #[derive(Default)]
    pub struct FlowPad<A> {
        /// Zero.
        pub zero: <A as Address>::FlowPad,
    }
}

/// Key of an IPv4 flow.
pub type FlowKey4 = FlowKey<Be32>;
/// Key of an IPv6 flow.
pub type FlowKey6 = FlowKey<Addr>;
/// An IPv4 flow.
pub type Flow4 = Flow<Be32>;
/// An IPv6 flow.
pub type Flow6 = Flow<Addr>;

map_abi! {
    /// Entries of a flow map that are counted for one owner, see `ebpf_logic::quota`. The first
    /// two numbers only go up.
    #[derive(Default)]
    pub struct FlowUsage {
        /// Entries that were made.
        pub made: u64,
        /// Entries that were removed.
        pub removed: u64,
        /// Low 32 bits of jiffies at the end of the sweep's last pass; of `ALL_FLOWS` only, for
        /// both families.
        pub swept: u64,
    }
}

impl FlowUsage {
    /// How many there are; 0 if more were removed than made, as when the agent has begun to count
    /// anew.
    #[inline(always)]
    pub const fn entries(&self) -> u64 {
        let there = self.made.wrapping_sub(self.removed) as i64;
        if there < 0 { 0 } else { there as u64 }
    }
}

map_abi! {
    /// What the packet that runs `flow_sweep` begins with: entries to be counted.
    #[derive(Default)]
    pub struct SweepHead {
        /// Index into `flow_usage`, or `PASS_IS_OVER`.
        pub owner: u32,
        /// To be added to `FlowUsage::made`.
        pub made: u32,
        /// To be added to `FlowUsage::removed`.
        pub removed: u32,
    }
}

const _: () = assert!(
    size_of::<SweepHead>() <= 14,
    "as long as an Ethernet header"
);

/// In place of the owner of a `SweepHead`: all entries were looked at, and the counts are right.
pub const PASS_IS_OVER: u32 = u32::MAX;

/// Index into `flow_usage` of the count of all entries; others are endpoint ids. Of IPv6 with
/// `Address::USAGE` added.
pub const ALL_FLOWS: u32 = 0;

const _: () = assert!(size_of::<FlowKey4>() == 16 && size_of::<Flow4>() == 64);
const _: () = assert!(size_of::<FlowKey6>() == 40 && size_of::<Flow6>() == 104);

/// Where a packet goes; the low four bits of `Flow::action`.
pub mod action {
    /// On through the host's stack.
    pub const PASS: u8 = 1;
    /// Into the pod behind `ifindex`, by `bpf_redirect_peer`.
    pub const PEER: u8 = 2;
    /// Out of `ifindex` to `nexthop`, by `bpf_redirect_neigh`.
    pub const NEIGH: u8 = 3;
    /// From the node's own stack into the pod behind `ifindex`: as `NEIGH`, and marked.
    pub const POD_NEIGH: u8 = 4;
    /// Into the node's own stack, through the service device.
    pub const SERVICE: u8 = 5;
    /// The bits of the above.
    pub const MASK: u8 = 0x0f;
    /// Addresses or ports change.
    pub const NAT: u8 = 0x10;
    /// Written as the reply direction of another entry.
    pub const REPLY: u8 = 0x20;
    /// The answers come from the node itself.
    pub const ANSWERS_HOST: u8 = 0x40;
    /// The answers come in from a network device.
    pub const ANSWERS_NETDEV: u8 = 0x80;
    /// The bits of these two; without either the answers come from the pod behind `ifindex`.
    pub const ANSWERS: u8 = ANSWERS_HOST | ANSWERS_NETDEV;
    /// The bits that are a route's.
    pub const ROUTE: u8 = MASK | ANSWERS;

    /// The word for it.
    pub const fn text(action: u8) -> &'static str {
        match action & MASK {
            PASS => "pass",
            PEER => "pod",
            NEIGH => "neigh",
            POD_NEIGH => "pod-neigh",
            SERVICE => "host",
            _ => "?",
        }
    }
}

/// Where one direction of a connection stands, seen from the middle. `FAST` ones need no slow
/// path. Transitions and timeouts are in `ebpf-logic`.
pub mod state {
    /// The bit of states that the fast path forwards.
    pub const FAST: u8 = 0x80;
    /// TCP: this direction has sent SYN, the other nothing yet.
    pub const SYN_SENT: u8 = 1;
    /// TCP: SYN answered, not yet acknowledged.
    pub const SYN_RECEIVED: u8 = 2;
    /// TCP: acknowledged both ways.
    pub const ESTABLISHED: u8 = 3 | FAST;
    /// TCP: this direction has sent FIN; it still acknowledges what the other one sends.
    pub const FIN_SENT: u8 = 4 | FAST;
    /// TCP: the other direction has sent FIN.
    pub const FIN_RECEIVED: u8 = 5 | FAST;
    /// TCP: FIN both ways.
    pub const TIME_WAIT: u8 = 6;
    /// TCP: RST seen.
    pub const CLOSED: u8 = 7;
    /// UDP: has no states.
    pub const STATELESS: u8 = 8 | FAST;
    /// TCP: first seen in the middle of the connection, and nothing of the other direction yet.
    pub const PICKED_UP: u8 = 9;
    /// TCP: this direction has sent nothing yet, the other one is `SYN_SENT` or `PICKED_UP`.
    pub const UNREPLIED: u8 = 10;

    /// The word for it, as `ss` and `conntrack` have them.
    pub const fn text(state: u8) -> &'static str {
        match state {
            SYN_SENT => "SYN-SENT",
            SYN_RECEIVED => "SYN-RECV",
            ESTABLISHED => "ESTAB",
            FIN_SENT => "FIN-WAIT",
            FIN_RECEIVED => "CLOSE-WAIT",
            TIME_WAIT => "TIME-WAIT",
            CLOSED => "CLOSED",
            STATELESS => "UDP",
            PICKED_UP => "PICKED-UP",
            UNREPLIED => "UNREPLIED",
            _ => "?",
        }
    }
}

/// `FlowKey::scope` of a protocol and an origin (`SCOPE_NETDEV`, `SCOPE_HOST` or an ifindex).
#[inline(always)]
pub const fn scope(from: u32, protocol: u8) -> u32 {
    from << 8 | protocol as u32
}

impl<A: Address> FlowKey<A> {
    /// The origin in `scope`.
    #[inline(always)]
    pub const fn from(&self) -> u32 {
        self.scope >> 8
    }

    /// The protocol in `scope`.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.scope as u8
    }
}

impl<A: Address> Flow<A> {
    /// Whether addresses or ports change.
    #[inline(always)]
    pub const fn translates(&self) -> bool {
        self.action & action::NAT != 0
    }

    /// Whether it was written as the reply direction of another entry.
    #[inline(always)]
    pub const fn is_reply(&self) -> bool {
        self.action & action::REPLY != 0
    }

    /// Whose packets the answers will be: the `from` of the other direction's key.
    #[inline(always)]
    pub const fn answered_from(&self) -> u32 {
        match self.action & action::ANSWERS {
            action::ANSWERS_NETDEV => SCOPE_NETDEV,
            action::ANSWERS_HOST => SCOPE_HOST,
            _ => self.ifindex,
        }
    }

    /// Key of the other direction of the flow that has `key` here.
    #[inline(always)]
    pub const fn answer_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            scope: scope(self.answered_from(), key.protocol()),
        }
    }
}
