//! `getpeername` of a connection that was translated at `connect`: tells the address that the
//! process asked for.

use crate::socket::{SockAddr, translated};
use ebpf_common::address::Address as _;

/// Puts the service's address in the backend's place.
#[inline(always)]
pub(crate) fn run(address: &SockAddr) {
    if !address.is_tcp() {
        return;
    }
    let Some(socket) = translated(address.socket()) else {
        return;
    };
    if address.addr().is(socket.backend_addr) && address.port().be == socket.backend_port.be {
        address.set(socket.service_addr, socket.service_port);
    }
}
