//! `getpeername` of a connection that was translated at `connect`: tells the address that the
//! process asked for.

use crate::socket::{SockAddr, translated};

/// Puts the service's address in the backend's place.
#[inline(always)]
pub(crate) fn run(address: &SockAddr) {
    if !address.is_tcp() {
        return;
    }
    let Some(socket) = translated(address.socket()) else {
        return;
    };
    let (Some(peer), Some(backend), Some(service)) = (
        address.v4(),
        socket.backend_addr.as_v4(),
        socket.service_addr.as_v4(),
    ) else {
        return;
    };
    if peer.be == backend.be && address.port().be == socket.backend_port.be {
        address.set(service, socket.service_port);
    }
}
