//! The packet: bounds-checked loads and stores, and the helpers that take it.
//!
//! One of the rooms for unsafe code, with `socket` and `maps`. Offsets are constants and are checked against the
//! bounds that were proven when the headers were borrowed, by the compiler.

use crate::socket::Socket;
use crate::wire::Wire;
use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_redir_neigh};
use aya_ebpf::helpers;
use core::marker::PhantomData;
use ebpf_common::abi::MapType;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{FlowKey4, FlowKey6};
use ebpf_common::net::Be16;

/// `BPF_F_MARK_MANGLED_0`
pub(crate) const MANGLED_ZERO: u64 = 0x20;
/// `PACKET_HOST`: for this machine.
pub(crate) const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`: for another machine, whose frames this one sees.
pub(crate) const PACKET_OTHERHOST: u32 = 3;
/// `BPF_F_INGRESS`
const INGRESS: u64 = 1;

/// A packet at a hook.
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

/// The headers of a packet of the family `A`, readable and writable in place: Ethernet, IP, and `N`
/// bytes behind. Offsets of `l4_*` are behind the IP header, others in the frame.
///
/// Any helper that changes the packet ends it; the compiler does not know, the verifier does.
pub(crate) struct Headers<'a, A, const N: usize> {
    start: *mut u8,
    packet: PhantomData<(&'a Skb, A)>,
}

/// The result of a lookup in the routing table (`BPF_FIB_LKUP_RET_*`).
pub(crate) enum Fib<A> {
    /// Out of this interface to this next hop, unspecified if `redirect_neigh` is to look it up.
    Forward { ifindex: u32, nexthop: A },
    /// Not forwarded: an address of this host.
    Local,
    /// A blackhole, unreachable or prohibit route.
    Unreachable,
    /// Only the stack can forward it.
    Stack,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The pointer, for another function of the program.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// Bytes from the Ethernet header on.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: `raw` is the context that the kernel gave to the program.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }

    /// Whom its link layer address is, of `PACKET_*`; as the kernel has found it at a device's
    /// ingress.
    #[inline(always)]
    pub(crate) fn pkt_type(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).pkt_type }
    }

    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).mark }
    }

    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: as above; the kernel lets classifiers write the mark.
        unsafe { (*self.raw).mark = mark }
    }

    /// The socket that sent the packet. A pod's packets still have theirs where they leave it.
    #[inline(always)]
    pub(crate) fn socket(&self) -> Socket {
        // SAFETY: as above.
        let at = unsafe { &raw const (*self.raw).__bindgen_anon_2.sk };
        // SAFETY: as above. Volatile: one load of the whole field.
        Socket::new(unsafe { at.read_volatile() })
    }

    /// EtherType as it is loaded; 0 of a packet that has none.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> u16 {
        self.load_value::<Be16>(12).map_or(0, |value| value.be)
    }

    /// The headers, when they and `N` bytes behind them are in the linear part.
    #[inline(always)]
    pub(crate) fn headers<A: Wire, const N: usize>(&self) -> Option<Headers<'_, A, N>> {
        // SAFETY: as above.
        let data = unsafe { (*self.raw).data };
        // SAFETY: as above.
        let end = unsafe { (*self.raw).data_end };
        let (data, end) = (data as usize, end as usize);
        if data + A::L4 + N > end {
            return None;
        }
        Some(Headers {
            start: data as *mut u8,
            packet: PhantomData,
        })
    }

    /// Brings the first `len` bytes into the linear part and makes them ours to write.
    #[inline(always)]
    pub(crate) fn pull(&self, len: u32) -> bool {
        // SAFETY: `raw` is the context.
        unsafe { helpers::bpf_skb_pull_data(self.raw, len) == 0 }
    }

    /// Copies `N` bytes at `FROM` of the packet to `TO` of `into`, wherever they are; false when
    /// the packet ends before.
    #[inline(always)]
    pub(crate) fn load<const FROM: usize, const TO: usize, const N: usize, const M: usize>(
        &self,
        into: &mut [u8; M],
    ) -> bool {
        const { assert!(TO + N <= M) }
        let to = into.as_mut_ptr();
        // SAFETY: `TO` is inside of `into`.
        let to = unsafe { to.add(TO) }.cast();
        // SAFETY: `to` has `N` bytes.
        unsafe { helpers::bpf_skb_load_bytes(self.raw.cast(), FROM as u32, to, N as u32) == 0 }
    }

    /// As `load`, from a place that is not known before.
    #[inline(always)]
    pub(crate) fn load_at<const TO: usize, const N: usize, const M: usize>(
        &self,
        from: u32,
        into: &mut [u8; M],
    ) -> bool {
        const { assert!(TO + N <= M) }
        let to = into.as_mut_ptr();
        // SAFETY: `TO` is inside of `into`.
        let to = unsafe { to.add(TO) }.cast();
        // SAFETY: `to` has `N` bytes.
        unsafe { helpers::bpf_skb_load_bytes(self.raw.cast(), from, to, N as u32) == 0 }
    }

    /// Adds a difference to the sum that the device has made over the whole packet, if it has.
    #[inline(always)]
    pub(crate) fn add_to_sum(&self, delta: u16) {
        // SAFETY: `raw` is the context that the kernel gave to the program.
        unsafe { helpers::bpf_csum_update(self.raw, delta as u32) };
    }

    /// A value that is in the packet at `at`; `None` when the packet ends before.
    #[inline(always)]
    pub(crate) fn load_value<T: MapType>(&self, at: u32) -> Option<T> {
        let mut value = T::zeroed();
        let to = (&raw mut value).cast();
        // SAFETY: `to` has `size_of::<T>()` bytes, and any bytes are a `T`.
        let failed = unsafe {
            helpers::bpf_skb_load_bytes(self.raw.cast(), at, to, size_of::<T>() as u32) != 0
        };
        if failed { None } else { Some(value) }
    }

    /// Copies bytes in.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, at: u32, bytes: &[u8; N]) -> bool {
        let from = bytes.as_ptr().cast();
        // SAFETY: `from` has `N` bytes.
        unsafe { helpers::bpf_skb_store_bytes(self.raw, at, from, N as u32, 0) == 0 }
    }

    /// Makes the packet this long.
    #[inline(always)]
    pub(crate) fn resize(&self, len: u32) -> bool {
        // SAFETY: `raw` is the context.
        unsafe { helpers::bpf_skb_change_tail(self.raw, len, 0) == 0 }
    }

    /// Adds `delta` to what the checksum field at `at` covers.
    #[inline(always)]
    pub(crate) fn l4_checksum(&self, at: u32, delta: u16, flags: u64) -> bool {
        // SAFETY: `raw` is the context.
        unsafe { helpers::bpf_l4_csum_replace(self.raw, at, 0, delta as u64, flags) == 0 }
    }

    /// Asks the routing table as if the packet were forwarded from where it came in.
    #[inline(always)]
    pub(crate) fn fib_lookup<A: Wire>(&self, src: A, dst: A) -> Fib<A> {
        // struct bpf_fib_lookup as words: 0 family, 2 ifindex, 4 to 7 source, 8 to 11 destination.
        let mut words = [0u32; 16];
        words[0] = A::AF;
        words[2] = self.ifindex();
        [words[4], words[5], words[6], words[7]] = src.words();
        [words[8], words[9], words[10], words[11]] = dst.words();
        let params: *mut bpf_fib_lookup = words.as_mut_ptr().cast();
        // SAFETY: `params` has the 64 bytes of a bpf_fib_lookup.
        let answer = unsafe {
            helpers::bpf_fib_lookup(self.raw.cast(), params, size_of_val(&words) as i32, 0)
        };
        match answer {
            // Success, or no neighbour yet: the redirect resolves it. The kernel has written the
            // next hop's family into the first byte. It may be another one (RFC 5549), for which
            // a flow has no field: the kernel looks it up for each packet.
            0 | 7 => Fib::Forward {
                ifindex: words[2],
                nexthop: if words[0].to_ne_bytes()[0] as u32 == A::AF {
                    A::from_words([words[8], words[9], words[10], words[11]])
                } else {
                    A::UNSPECIFIED
                },
            },
            1..=3 => Fib::Unreachable,
            4 => Fib::Local,
            _ => Fib::Stack,
        }
    }

    /// Into the pod whose veth's host side is `ifindex`. From an ingress hook only.
    #[inline(always)]
    pub(crate) fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { helpers::bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Out of `ifindex` to a next hop whose link address the kernel knows or finds out;
    /// unspecified: to the one of the packet's route.
    #[inline(always)]
    pub(crate) fn redirect_neigh<A: Wire>(&self, ifindex: u32, nexthop: A) -> i32 {
        if nexthop.is(A::UNSPECIFIED) {
            // SAFETY: no parameters, of no length.
            return unsafe {
                helpers::bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
            };
        }
        let [a, b, c, d] = nexthop.words();
        let mut words = [A::AF, a, b, c, d];
        let params: *mut bpf_redir_neigh = words.as_mut_ptr().cast();
        let len = size_of_val(&words) as i32;
        // SAFETY: `params` has the 20 bytes of a bpf_redir_neigh.
        unsafe { helpers::bpf_redirect_neigh(ifindex, params, len, 0) as i32 }
    }

    /// Into the stack, as if it had come in on `ifindex`.
    #[inline(always)]
    pub(crate) fn redirect_ingress(&self, ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { helpers::bpf_redirect(ifindex, INGRESS) as i32 }
    }
}

impl<A: Wire, const N: usize> Headers<'_, A, N> {
    #[inline(always)]
    pub(crate) fn u8<const AT: usize>(&self) -> u8 {
        const { assert!(AT < A::L4 + N) }
        // SAFETY: `AT` is in the bytes that were proven.
        let at = unsafe { self.start.add(AT) };
        // SAFETY: in bounds as above.
        unsafe { at.read() }
    }

    #[inline(always)]
    pub(crate) fn u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= A::L4 + N) }
        // SAFETY: two bytes at `AT` are in the bytes that were proven.
        let at = unsafe { self.start.add(AT) }.cast::<u16>();
        // SAFETY: in bounds; the BPF machine has no alignment on the targets that we build for.
        unsafe { at.read() }
    }

    #[inline(always)]
    pub(crate) fn u32<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= A::L4 + N) }
        // SAFETY: four bytes at `AT` are in the bytes that were proven.
        let at = unsafe { self.start.add(AT) }.cast::<u32>();
        // SAFETY: as above.
        unsafe { at.read() }
    }

    #[inline(always)]
    pub(crate) fn l4_u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= N) }
        // SAFETY: two bytes at `AT` of the `N` that were proven behind the IP header.
        let at = unsafe { self.start.add(A::L4 + AT) }.cast::<u16>();
        // SAFETY: as above.
        unsafe { at.read() }
    }

    #[inline(always)]
    pub(crate) fn set_l4_u16<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= N) }
        // SAFETY: two bytes at `AT` of the `N` that were proven behind the IP header.
        let at = unsafe { self.start.add(A::L4 + AT) }.cast::<u16>();
        // SAFETY: as above; packets are not shared while a program runs on them.
        unsafe { at.write(value) }
    }

    #[inline(always)]
    pub(crate) fn set_l4_u32<const AT: usize>(&self, value: u32) {
        const { assert!(AT + 4 <= N) }
        // SAFETY: four bytes at `AT` of the `N` that were proven behind the IP header.
        let at = unsafe { self.start.add(A::L4 + AT) }.cast::<u32>();
        // SAFETY: as above.
        unsafe { at.write(value) }
    }

    #[inline(always)]
    pub(crate) fn set_u16<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= A::L4 + N) }
        // SAFETY: two bytes at `AT` are in the bytes that were proven.
        let at = unsafe { self.start.add(AT) }.cast::<u16>();
        // SAFETY: as above; packets are not shared while a program runs on them.
        unsafe { at.write(value) }
    }

    #[inline(always)]
    pub(crate) fn set_u32<const AT: usize>(&self, value: u32) {
        const { assert!(AT + 4 <= A::L4 + N) }
        // SAFETY: four bytes at `AT` are in the bytes that were proven.
        let at = unsafe { self.start.add(AT) }.cast::<u32>();
        // SAFETY: as above.
        unsafe { at.write(value) }
    }
}

/// Makes all bytes of a value zero, in place.
#[inline(always)]
pub(crate) fn clear<T: Zero>(value: &mut T) {
    // SAFETY: `Zero` says that zero bytes are a value.
    unsafe { core::ptr::write_bytes(value, 0, 1) }
}

/// Types for which zero bytes are a value.
///
/// # Safety
///
/// They must be.
pub(crate) unsafe trait Zero {}

// SAFETY: integers, and `Fragment`, whose first variant is 0.
unsafe impl<A: Address> Zero for crate::flow::PacketContext<A> {}

/// Calls `each` with 0, 1, .. up to `count`, exclusive, until it returns 1.
#[inline(always)]
pub(crate) fn repeat<T>(count: u32, each: extern "C" fn(u32, *mut T) -> i64, with: &mut T) {
    let with: *mut T = with;
    // SAFETY: `each` has the signature that the kernel calls, and `with` lives longer than the
    // call.
    unsafe { helpers::bpf_loop(count, each as *mut _, with.cast(), 0) };
}

/// What a function of the program was given by its caller in the program.
#[inline(always)]
pub(crate) fn borrowed<'a, T>(from: *const T) -> Option<&'a T> {
    // SAFETY: the verifier lets a program call a global function only with null or with memory
    // of this size that lives as long as the call.
    unsafe { from.as_ref() }
}

/// The same, to be written to.
#[inline(always)]
pub(crate) fn borrowed_mut<'a, T>(from: *mut T) -> Option<&'a mut T> {
    // SAFETY: as above, and the caller does not touch it meanwhile.
    unsafe { from.as_mut() }
}

/// A key from addresses, ports and scope as they are loaded: four stores of four bytes. The hash
/// reads the key in such words, and waits for a word that was stored in two halves.
#[inline(always)]
pub(crate) fn flow_key4(words: [u32; 4]) -> FlowKey4 {
    // SAFETY: a `MapType` of this size, and any bytes are one.
    unsafe { core::mem::transmute(words) }
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn flow_key6(words: [u32; 10]) -> FlowKey6 {
    // SAFETY: a `MapType` of this size, and any bytes are one.
    unsafe { core::mem::transmute(words) }
}

/// Low 32 bits of the kernel's ticks.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_jiffies64() as u32 }
}

/// `CLOCK_MONOTONIC` in nanoseconds; for events, not for every packet.
#[inline(always)]
pub(crate) fn nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_ktime_get_ns() }
}

/// `CLOCK_MONOTONIC` of the last tick, in nanoseconds.
#[inline(always)]
pub(crate) fn coarse_nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_ktime_get_coarse_ns() }
}
