//! Shims of other releases, played by a listener on a pod's socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use proto::v1::shim_container::State;
use proto::v1::{ShimContainers, ShimError as WireError};

use super::*;

const UID: &str = "u";

/// A shim that speaks these versions; `asked`: which requests it did.
struct Shim {
    layout: Layout,
    asked: Arc<Mutex<Vec<&'static str>>>,
    _folder: tempfile::TempDir,
}

impl Shim {
    /// One of version 0 checks nothing, as it does not know the field.
    fn new(spoken: RangeInclusive<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("lib"), folder.path().join("run"));
        layout.create().unwrap();
        std::fs::create_dir(layout.shim(UID)).unwrap();
        let listener = UnixListener::bind(layout.shim_socket(UID)).unwrap();
        let asked = Arc::new(Mutex::default());
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &spoken, &log);
            }
        });
        Self {
            layout,
            asked,
            _folder: folder,
        }
    }

    async fn client(&self, ours: RangeInclusive<u32>) -> Client {
        let client = Client::connect_as(&self.layout, UID, ours).await;
        client.unwrap()
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(mut stream: UnixStream, spoken: &RangeInclusive<u32>, log: &Mutex<Vec<&'static str>>) {
    let mut input = Vec::new();
    let mut piece = [0; 4096];
    loop {
        while let Some(message) = frame::take::<ShimRequest>(&mut input).unwrap() {
            let request = message.request.unwrap();
            let theirs = message.oldest_protocol..=message.protocol;
            let version = (*spoken.end() > 0 && !is_stable(&request))
                .then(|| protocol::check(spoken, &theirs).err())
                .flatten();
            let response = match version {
                Some(mismatch) => Response::Error(WireError {
                    kind: shim_error::Kind::Version as i32,
                    message: mismatch.to_string(),
                }),
                None => {
                    log.lock().unwrap().push(deadline(&request).0);
                    answer(&request)
                }
            };
            let bytes = frame::encode(&ShimResponse {
                response: Some(response),
                protocol: *spoken.end(),
                oldest_protocol: *spoken.start(),
            });
            stream.write_all(&bytes).unwrap();
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(count) => input.extend_from_slice(&piece[..count]),
        }
    }
}

fn answer(request: &Request) -> Response {
    if matches!(request, Request::List(_)) {
        let container = ShimContainer {
            id: "u_c_0".into(),
            state: State::Running as i32,
            ..ShimContainer::default()
        };
        return Response::Containers(ShimContainers {
            containers: vec![container],
            shim_pid: 1,
        });
    }
    Response::Ok(ShimOk::default())
}

#[tokio::test]
async fn a_shim_of_another_release_is_adopted_and_stopped_and_refuses_the_rest_by_name() {
    // (the shim's versions, the agent's, how the shim is called; None: they understand)
    for (theirs, ours, age) in [
        (0..=0, SPOKEN, None),
        (SPOKEN, SPOKEN, None),
        (1..=4, SPOKEN, None),
        (5..=9, SPOKEN, Some("newer")),
        (0..=0, 2..=3, Some("older")),
        (1..=1, 2..=3, Some("older")),
    ] {
        let shim = Shim::new(theirs.clone());
        let what = format!("{theirs:?} {ours:?}");
        let mut client = shim.client(ours.clone()).await;
        let (containers, _) = client.list().await.unwrap();
        assert_eq!(containers[0].id, "u_c_0", "{what}");
        client.kill("u_c_0", 15, false).await.unwrap();
        client.delete("u_c_0").await.unwrap();
        drop(client);
        shim.client(ours.clone()).await.watch().await.unwrap();
        shim.asked();

        let create = shim
            .client(ours.clone())
            .await
            .create(ShimCreate::default())
            .await;
        let start = shim.client(ours.clone()).await.start("u_c_0").await;
        let exec = shim
            .client(ours.clone())
            .await
            .exec(ShimExec::default())
            .await;
        let results = [create.map(drop), start, exec.map(drop)];
        for result in results {
            match (age, result) {
                (None, result) => result.unwrap(),
                (Some(age), Err(error @ ShimError::Version(_))) => {
                    assert!(error.to_string().contains(age), "{what}: {error}");
                    assert!(error.is_answer() && !error.is_dead(), "it lives");
                }
                (Some(_), other) => panic!("{what}: {other:?}"),
            }
        }
        let done = shim.asked();
        let unstable = done.iter().filter(|call| **call != "a list").count();
        assert_eq!(
            unstable,
            if age.is_none() { 3 } else { 0 },
            "{what}: {done:?}"
        );
        shim.client(ours).await.shutdown().await.unwrap();
    }
}
