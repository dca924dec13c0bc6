//! Switches a device's checksum offload off, so that the kernel computes checksums itself and
//! the receiver verifies them: a wrong one is then lost traffic, not silence.
//!
//! One ethtool request over generic netlink (`uapi/linux/ethtool_netlink.h`), written by hand.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsRawFd as _, OwnedFd};
use tests_harness::NetNs;

const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const FEATURES_SET: u8 = 12;
const NESTED: u16 = 0x8000;

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((4 + payload.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    attribute(kind, &bytes)
}

/// Sends a request and returns the first message of the answer, from behind its generic header.
fn request(socket: &OwnedFd, family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend((20 + attributes.len() as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty()).expect("send to netlink");
    let mut answer = vec![0; 65_536];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("netlink answer");
    answer.truncate(len);
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = i32::from_ne_bytes(answer[16..20].try_into().expect("4 bytes"));
        assert_eq!(code, 0, "netlink refuses command {command}");
    }
    answer.split_off(20)
}

/// No transmit checksums and no segmentation by the device `name` from now on.
///
/// # Panics
/// If the kernel refuses.
pub(crate) fn switch_off(netns: &NetNs, name: &str) {
    netns.enter(|| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .expect("netlink socket");
        let wanted = text(CTRL_ATTR_FAMILY_NAME, "ethtool");
        let answer = request(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &wanted);
        let mut rest = answer.as_slice();
        let family = loop {
            let length = u16::from_ne_bytes([rest[0], rest[1]]) as usize;
            if u16::from_ne_bytes([rest[2], rest[3]]) == CTRL_ATTR_FAMILY_ID {
                break u16::from_ne_bytes([rest[4], rest[5]]);
            }
            rest = &rest[length.next_multiple_of(4)..];
        };
        let header = attribute(1 | NESTED, &text(2, name));
        // A bit that is named without a value is to be off.
        let bit = attribute(1 | NESTED, &text(2, "tx-checksum-ip-generic"));
        let bits = attribute(3 | NESTED, &bit);
        let mut attributes = header;
        attributes.extend(attribute(3 | NESTED, &bits));
        // A socket of its own: the first one still has the acknowledgement to read.
        let socket = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .expect("netlink socket");
        request(&socket, family, FEATURES_SET, &attributes);
    });
}
