//! Cluster DNS over a restart of the agent: what a service manager keeps of it.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
    bind, listen, recvmsg, setsockopt, socket, sockopt,
};
use proto::v1;
use proto::v1::change::Change;
use tests_harness::{NetNs, process, retry_on_intr, wait_until};

use crate::node::Node;

const ADDRESS: &str = "10.96.0.10";
/// Longest wait for a message of the agent, in milliseconds.
const PATIENCE_MS: u16 = 60_000;
/// Longest wait of a client for a reply.
const PATIENCE: &str = "+time=60";

fn dig(netns: &NetNs, args: &[&str]) -> Command {
    let mut command = netns.command("dig");
    command
        .arg(format!("@{ADDRESS}"))
        .args(["+tries=1", PATIENCE]);
    command.args(args);
    command.args(["+short", "TXT", "dns-version.cluster.local."]);
    command
}

/// A socket as the agent makes its own.
fn bound(kind: SockType) -> OwnedFd {
    let address: SocketAddrV4 = format!("{ADDRESS}:53").parse().expect("an address");
    let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    setsockopt(&fd, sockopt::ReusePort, &true).expect("SO_REUSEPORT");
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).expect("bind");
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(16).expect("backlog")).expect("listen");
    }
    fd
}

/// Bytes that wait in UDP sockets of port 53.
fn queued(netns: &NetNs) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp"));
    let text = text.expect("/proc/net/udp");
    let rows = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, queues) = (*fields.get(1)?, *fields.get(4)?);
        let received = queues.split_once(':')?.1;
        local
            .ends_with(":0035")
            .then(|| u64::from_str_radix(received, 16).ok())?
    });
    rows.sum()
}

/// Waits until the agent is ready and has asked for sockets to be kept; how many.
fn kept(manager: &UnixDatagram) -> usize {
    let (mut ready, mut count) = (false, 0);
    while !ready || count == 0 {
        let (text, sockets) = told(manager);
        ready |= text == "READY=1\n";
        let is_kept = text.contains("FDSTORE=1\n") && text.contains("FDNAME=dns\n");
        assert!(sockets == 0 || is_kept, "{text}");
        count += sockets;
    }
    count
}

/// The agent's next message, and how many descriptors came with it.
fn told(manager: &UnixDatagram) -> (String, usize) {
    // A time-out of the socket would be EINTR whenever the process is stopped.
    let mut readable = [PollFd::new(manager.as_fd(), PollFlags::POLLIN)];
    let ready = retry_on_intr(|| Ok(poll(&mut readable, PollTimeout::from(PATIENCE_MS))?));
    assert_eq!(ready.expect("poll"), 1, "the agent sends nothing");
    let mut bytes = [0; 1024];
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(manager.as_raw_fd(), &mut iov, Some(&mut space), flags);
    let message = message.expect("a message of the agent");
    let mut count = 0;
    for control in message.cmsgs().expect("control messages") {
        if let ControlMessageOwned::ScmRights(fds) = control {
            count += fds.len();
            fds.into_iter()
                .for_each(|fd| nix::unistd::close(fd).expect("close"));
        }
    }
    let length = message.bytes;
    (
        String::from_utf8_lossy(&bytes[..length]).into_owned(),
        count,
    )
}

#[test]
fn what_is_asked_while_no_agent_runs_is_answered_by_the_next() {
    let mut node = Node::new();
    let manager = UnixDatagram::bind(node.folder.join("notify")).expect("a socket");
    node.start_kept(&[]);
    let revision = node.control.push(vec![Change::Config(v1::ClusterConfig {
        pod_cidrs: vec!["10.244.0.0/16".into()],
        service_cidrs: vec!["10.96.0.0/16".into()],
        node_pod_cidrs: vec!["10.244.1.0/24".into()],
        dns_address: ADDRESS.into(),
        ..Default::default()
    })]);
    assert!(kept(&manager) >= 2, "UDP and TCP");
    wait_until("an answer of cluster DNS", || {
        let out = process::run(&mut dig(&node.netns, &["+tries=1"]));
        if out.stdout == "\"1.1.0\"\n" {
            Ok(())
        } else {
            Err(out.stdout)
        }
    });
    node.saved(revision);
    let status = process::run(&mut node.agent_command("dns")).success();
    assert!(
        status.contains("queries_udp ") && status.contains("replies_noerror "),
        "{status}"
    );
    node.kill();
    // Nothing holds the sockets: clients are told so at once, and give up.
    let out = process::run(&mut dig(&node.netns, &[]));
    assert!(out.code != 0 && out.stdout.contains("refused"), "{out:?}");

    let sockets = node
        .netns
        .enter(|| [SockType::Datagram, SockType::Stream].map(bound));
    let clients = ["+notcp", "+notcp", "+notcp", "+tcp", "+tcp"].map(|transport| {
        let mut command = dig(&node.netns, &[transport]);
        std::thread::spawn(move || process::run(&mut command))
    });
    wait_until("queries in the socket", || match queued(&node.netns) {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    node.start_kept(&sockets);
    for client in clients {
        let out = client.join().expect("dig");
        assert_eq!(out.stdout, "\"1.1.0\"\n", "{out:?}");
    }
    assert!(kept(&manager) >= 2, "for the one after it");
}
