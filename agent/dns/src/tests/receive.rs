//! One datagram for a test's client, whose socket has a time-out.

use std::io::{ErrorKind, Result};
use std::net::UdpSocket;

/// A process that was stopped and continued gets EINTR from such a socket, without any handler.
pub(crate) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
