//! What comes over the socket and is not ours, or of another release: the shim closes the
//! connection, or refuses, and lives on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proto::frame;
use proto::protocol::SPOKEN;
use proto::v1::shim_error::Kind;
use proto::v1::shim_request::Request;
use proto::v1::shim_response::Response;
use proto::v1::{ShimExec, ShimKill, ShimList, ShimRequest, ShimResponse, ShimStart};

use crate::pod::Pod;

#[test]
fn garbage_closes_its_connection_only() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    let id = pod.run(create);
    let socket = pod.layout.shim_socket(&pod.uid);
    let list = frame::encode(&ShimRequest {
        request: Some(Request::List(ShimList {})),
        ..ShimRequest::default()
    });
    let garbage: [&[u8]; 6] = [
        &[0xff; 4096],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 0x0a],
        &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 2],
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for bytes in garbage {
        let mut peer = UnixStream::connect(&socket).unwrap();
        peer.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        if bytes == [0, 0, 0, 2] {
            // Long, but allowed: it waits for the rest, which never comes.
            drop(peer);
            continue;
        }
        // Closed with our bytes unread is a reset; the point is that it is closed.
        assert!(
            matches!(peer.read_to_end(&mut answer), Ok(0) | Err(_)),
            "{bytes:?}: {answer:?}"
        );
    }
    // Cut at every place.
    for cut in 0..list.len() {
        UnixStream::connect(&socket)
            .unwrap()
            .write_all(&list[..cut])
            .unwrap();
    }
    assert_eq!(pod.list().0[0].id, id);
}

#[test]
fn requests_in_one_piece_are_answered_in_order() {
    let pod = Pod::new();
    let list = frame::encode(&ShimRequest {
        request: Some(Request::List(ShimList {})),
        ..ShimRequest::default()
    });
    let mut peer = UnixStream::connect(pod.layout.shim_socket(&pod.uid)).unwrap();
    peer.write_all(&list.repeat(100)).unwrap();
    for _ in 0..100 {
        let answer = frame::read::<ShimResponse>(&mut peer).unwrap().unwrap();
        assert!(answer.response.is_some());
    }
}

#[test]
fn input_without_exec_is_an_error_and_no_more() {
    let pod = Pod::new();
    let mut peer = UnixStream::connect(pod.layout.shim_socket(&pod.uid)).unwrap();
    for request in [Request::Stdin(vec![1]), Request::StdinClosed(true)] {
        frame::write(
            &mut peer,
            &ShimRequest {
                request: Some(request),
                ..ShimRequest::default()
            },
        )
        .unwrap();
        let answer = frame::read::<ShimResponse>(&mut peer).unwrap().unwrap();
        assert!(format!("{answer:?}").contains("input without exec"));
    }
}

#[test]
fn an_agent_of_another_release_lists_and_stops_and_runs_nothing() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    let id = pod.run(create.clone());
    let mut peer = UnixStream::connect(pod.layout.shim_socket(&pod.uid)).unwrap();
    let mut ask = |request| {
        let request = ShimRequest {
            request: Some(request),
            protocol: 9,
            oldest_protocol: 8,
        };
        frame::write(&mut peer, &request).unwrap();
        let answer = frame::read::<ShimResponse>(&mut peer).unwrap().unwrap();
        assert_eq!(answer.protocol, *SPOKEN.end());
        answer.response.unwrap()
    };
    for request in [
        Request::Create(create),
        Request::Start(ShimStart { id: id.clone() }),
        Request::Exec(ShimExec {
            id: id.clone(),
            args: vec!["true".into()],
            ..ShimExec::default()
        }),
    ] {
        let Response::Error(error) = ask(request) else {
            panic!("not refused");
        };
        assert_eq!(error.kind(), Kind::Version);
        assert!(error.message.contains("8 to 9"), "{}", error.message);
    }
    assert!(
        matches!(ask(Request::List(ShimList {})), Response::Containers(all)
        if all.containers.len() == 1)
    );
    let kill = ShimKill {
        id: id.clone(),
        signal: libc::SIGKILL,
        all: true,
    };
    assert!(matches!(ask(Request::Kill(kill)), Response::Ok(_)));
    pod.exited(&id);
    pod.delete(&id).unwrap();
}
