//! Sockets, and the address that one is to be connected to or says that it is connected to.
//!
//! Unsafe code, as in `packet`: the fields of the kernel's context, one load or store each, and the
//! map whose values are kept in sockets.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use core::ptr::NonNull;
use ebpf_common::net::{Addr, Be16, Be32, protocol};
use ebpf_common::socket::TranslatedSocket;

/// `SOCK_STREAM`
const STREAM: u32 = 1;

#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<TranslatedSocket> = SkStorage::new();

/// A socket of the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Socket(Option<NonNull<bpf_sock>>);

impl Socket {
    #[inline(always)]
    pub(crate) fn new(raw: *mut bpf_sock) -> Self {
        Self(NonNull::new(raw))
    }

    /// Null where a packet belongs to no socket.
    #[inline(always)]
    pub(crate) fn raw(self) -> Option<*mut bpf_sock> {
        self.0.map(NonNull::as_ptr)
    }
}

/// The family of the hook.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`; the address may be an IPv4 one that is mapped into it.
    V6,
}

/// The address at a hook on sockets.
pub(crate) struct SockAddr {
    raw: *mut bpf_sock_addr,
    family: Family,
}

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(raw: *mut bpf_sock_addr, family: Family) -> Self {
        Self { raw, family }
    }

    /// The hooks are called for each protocol.
    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        // SAFETY: `raw` is the context that the kernel gave to the program.
        let kind = unsafe { &raw const (*self.raw).type_ };
        // SAFETY: as above. Volatile here and below: two fields must not become one load.
        let kind = unsafe { kind.read_volatile() };
        // SAFETY: as above.
        let protocol = unsafe { &raw const (*self.raw).protocol };
        // SAFETY: as above.
        kind == STREAM && unsafe { protocol.read_volatile() } == protocol::TCP as u32
    }

    /// The socket.
    #[inline(always)]
    pub(crate) fn socket(&self) -> Socket {
        // SAFETY: as above.
        let at = unsafe { &raw const (*self.raw).__bindgen_anon_1.sk };
        // SAFETY: as above.
        Socket::new(unsafe { at.read_volatile() })
    }

    /// Cookie of its network namespace.
    #[inline(always)]
    pub(crate) fn netns_cookie(&self) -> u64 {
        // SAFETY: as above.
        unsafe { helpers::bpf_get_netns_cookie(self.raw.cast()) }
    }

    /// The address, mapped if it is an IPv4 one.
    #[inline(always)]
    pub(crate) fn addr(&self) -> Addr {
        match self.family {
            Family::V4 => {
                // SAFETY: as above.
                let at = unsafe { &raw const (*self.raw).user_ip4 };
                // SAFETY: as above.
                let be = unsafe { at.read_volatile() };
                Addr::v4(Be32 { be })
            }
            Family::V6 => Addr {
                words: [self.word(0), self.word(1), self.word(2), self.word(3)],
            },
        }
    }

    #[inline(always)]
    fn word(&self, index: usize) -> Be32 {
        // SAFETY: as above.
        let at = unsafe { &raw const (*self.raw).user_ip6 }.cast::<u32>();
        // SAFETY: callers name one of the four words.
        let at = unsafe { at.add(index) };
        // SAFETY: as above.
        let be = unsafe { at.read_volatile() };
        Be32 { be }
    }

    /// The port.
    #[inline(always)]
    pub(crate) fn port(&self) -> Be16 {
        // SAFETY: as above.
        let at = unsafe { &raw const (*self.raw).user_port };
        // SAFETY: as above.
        let be = unsafe { at.read_volatile() } as u16;
        Be16 { be }
    }

    /// Puts another address of the same family, and port, in its place.
    #[inline(always)]
    pub(crate) fn set(&self, addr: Addr, port: Be16) {
        let [a, b, c, d] = addr.words;
        match self.family {
            Family::V4 => {
                // SAFETY: as above.
                let at = unsafe { &raw mut (*self.raw).user_ip4 };
                // SAFETY: as above; the kernel lets these hooks write address and port.
                unsafe { at.write_volatile(d.be) };
            }
            Family::V6 => {
                // SAFETY: as above.
                let at = unsafe { &raw mut (*self.raw).user_ip6 }.cast::<u32>();
                // SAFETY: as above, the first of the four words.
                unsafe { at.write_volatile(a.be) };
                // SAFETY: the second of the four.
                let second = unsafe { at.add(1) };
                // SAFETY: as above.
                unsafe { second.write_volatile(b.be) };
                // SAFETY: the third of the four.
                let third = unsafe { at.add(2) };
                // SAFETY: as above.
                unsafe { third.write_volatile(c.be) };
                // SAFETY: the last of the four.
                let last = unsafe { at.add(3) };
                // SAFETY: as above.
                unsafe { last.write_volatile(d.be) };
            }
        }
        // SAFETY: as above.
        let at = unsafe { &raw mut (*self.raw).user_port };
        // SAFETY: as above.
        unsafe { at.write_volatile(port.be as u32) };
    }
}

/// What the socket was connected to instead of a service.
#[inline(always)]
pub(crate) fn translated(socket: Socket) -> Option<&'static TranslatedSocket> {
    let map = (&raw const SOCKETS).cast_mut().cast();
    let socket = socket.raw()?;
    // SAFETY: a map and a socket of the kernel, of which the kernel checks that it is a whole one.
    let at = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or an element, which is freed after a grace period, and we are inside one.
    unsafe { at.cast::<TranslatedSocket>().as_ref() }
}

/// Keeps it in a socket that has none; false without memory for it.
#[inline(always)]
pub(crate) fn put_translated(socket: Socket, value: &mut TranslatedSocket) -> bool {
    let map = (&raw const SOCKETS).cast_mut().cast();
    let Some(socket) = socket.raw() else {
        return false;
    };
    let value = core::ptr::from_mut(value).cast();
    let flags = BPF_SK_STORAGE_GET_F_CREATE as u64;
    // SAFETY: as above; `value` has the size of an element.
    !unsafe { bpf_sk_storage_get(map, socket.cast(), value, flags) }.is_null()
}

/// The socket is about to be connected anew.
#[inline(always)]
pub(crate) fn remove_translated(socket: Socket) {
    let map = (&raw const SOCKETS).cast_mut().cast();
    if let Some(socket) = socket.raw() {
        // SAFETY: as above. That there was none is no error.
        unsafe { bpf_sk_storage_delete(map, socket.cast()) };
    }
}

/// A number that nothing else depends on.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_get_prandom_u32() }
}
