//! TCP connections of pods to a service: the socket is connected to a backend instead, and no
//! packet of it is translated.
//!
//! What cannot be decided here stays as it is, and its packets are decided by `tc_from_pod`: a
//! service without backends among them, whose client is refused there.

use crate::maps;
use crate::socket::{SockAddr, put_translated, random, remove_translated};
use crate::stage::backend::{Picked, by_hash};
use ebpf_common::net::{Addr, Be32, protocol};
use ebpf_common::service::FrontendKey;
use ebpf_common::socket::TranslatedSocket;
use ebpf_logic::service::at_connect;

/// Chooses the backend. Processes in the node's own network namespace are left to
/// `tc_to_netdev`, pods of the host network among them: nothing of ours sees all of their packets,
/// so that nothing would end their connections to a backend that is gone.
#[inline(always)]
pub(crate) fn run(address: &SockAddr) {
    if !address.is_tcp() {
        return;
    }
    let socket = address.socket();
    remove_translated(socket);
    let addr = address.addr();
    // The unspecified address is this machine, as the kernel will have it, and the key of node
    // ports.
    if addr.is_unspecified() || address.netns_cookie() == maps::netns_cookie() {
        return;
    }
    let port = address.port();
    let key = FrontendKey {
        addr,
        port,
        protocol: protocol::TCP,
        pad: 0,
    };
    let Some(frontend) = maps::frontend(&key) else {
        return;
    };
    if !at_connect(frontend) {
        return;
    }
    let Some(table) = maps::choice_table(frontend.service_port) else {
        return;
    };
    let picked = if addr.as_v4().is_some() {
        by_hash::<Be32>(table, random()).map(Picked::of_any)
    } else {
        by_hash::<Addr>(table, random())
    };
    let Some(picked) = picked else {
        return;
    };
    let mut value = TranslatedSocket {
        service_addr: key.addr,
        backend_addr: picked.addr,
        backend: picked.id,
        backend_gen: picked.generation,
        service_port: port,
        backend_port: picked.port,
    };
    if !put_translated(socket, &mut value) {
        return;
    }
    maps::count_connection(picked.id);
    address.set(picked.addr, picked.port);
}
