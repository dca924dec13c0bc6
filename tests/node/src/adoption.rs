//! A shim outlives the process that started it, and is found again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use agent_sys::process::Pidfd;
use agent_sys::shim::{self, Client, ShimError};
use proto::v1::shim_container::State;
use tests_harness::{binary, wait_until};

use crate::pod::{Pod, log_lines};

/// Set for the process that this test starts from its own binary.
const STARTER: &str = "FOIL_TEST_STARTER";

/// Plays the agent: starts the shim of the pod whose folder it is told, and stays.
#[test]
fn starter() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how the parent test tells this one its pod"
    )]
    let Ok(told) = std::env::var(STARTER) else {
        return;
    };
    let (folder, uid) = told.split_once(' ').expect("FOLDER UID");
    let layout = agent_sys::state::Layout::new(format!("{folder}/lib"), format!("{folder}/run"));
    shim::spawn(&layout, &binary("foil-shim"), uid).expect("shim");
    println!("\nspawned");
    std::thread::park();
}

/// Ends the shim that the starter left, also when the test fails.
struct Second<'a>(&'a Pod);

/// uid of the second pod.
const SECOND: &str = "second";

impl Drop for Second<'_> {
    fn drop(&mut self) {
        if let Err(error) = shim::kill(&self.0.layout, SECOND) {
            eprintln!("the shim of pod {SECOND} stays: {error}");
        }
    }
}

#[test]
fn a_shim_survives_kill_9_of_its_agent_and_is_adopted() {
    let pod = Pod::new();
    // Another shim, that of a second process, for a pod of its own name.
    let uid = SECOND;
    let _second = Second(&pod);
    let mut agent = Command::new("/proc/self/exe")
        .args(["--exact", "adoption::starter", "--nocapture"])
        .env(STARTER, format!("{} {uid}", pod.folder().display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|l| l == "spawned"));

    let mut client = pod.wait(Client::connect(&pod.layout, uid)).unwrap();
    let (_, shim_pid) = pod.wait(client.list()).unwrap();
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let create = pod.message("web", &["sh", "-c", script]);
    let id = create.id.clone();
    let log = pod.log_path("web");
    pod.wait(client.create(create)).unwrap();
    pod.wait(client.start(&id)).unwrap();
    let before = pod.wait(client.list()).unwrap().0.remove(0);

    agent.kill().unwrap();
    agent.wait().unwrap();
    drop(client);
    let written = log_lines(&log).len();
    wait_until("lines after the agent's death", || {
        match log_lines(&log).len() {
            n if n > written + 3 => Ok(()),
            n => Err(n.to_string()),
        }
    });

    assert!(shim::list(&pod.layout).unwrap().contains(&uid.to_owned()));
    let mut client = pod.wait(Client::connect(&pod.layout, uid)).unwrap();
    let (containers, adopted) = pod.wait(client.list()).unwrap();
    assert_eq!(adopted, shim_pid);
    assert_eq!(containers, [before], "same process, same start");
    // Nothing of the agent is open in it.
    for entry in fs::read_dir(format!("/proc/{shim_pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let target = target.display().to_string();
        let ours = target.contains(&pod.folder().display().to_string())
            || ["/dev/null", "pipe:", "socket:", "anon_inode:"]
                .iter()
                .any(|p| target.starts_with(p));
        assert!(ours, "{target} is open");
    }
    let stat = fs::read_to_string(format!("/proc/{shim_pid}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, shim_pid.to_string(), "a session of its own");

    pod.wait(client.kill(&id, libc::SIGKILL, false)).unwrap();
    wait_until("its end", || {
        match pod.wait(client.list()).unwrap().0.remove(0).state() {
            State::Exited => Ok(()),
            other @ (State::Unspecified | State::Created | State::Starting | State::Running) => {
                Err(format!("{other:?}"))
            }
        }
    });
    pod.wait(client.delete(&id)).unwrap();
    pod.wait(client.shutdown()).unwrap();
    let process = Pidfd::open(shim_pid);
    assert!(process.is_err() || process.unwrap().wait(10_000).unwrap());
    shim::remove(&pod.layout, uid).unwrap();
    assert_eq!(
        shim::list(&pod.layout).unwrap(),
        std::slice::from_ref(&pod.uid)
    );
    let gone = pod.wait(Client::connect(&pod.layout, uid));
    assert!(matches!(gone, Err(ShimError::Connect { .. })), "{gone:?}");
}

#[test]
fn a_container_that_is_killed_is_reported_to_a_watcher() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    let id = pod.run(create);
    let pid = pod.list().0[0].pid;
    let mut watch = pod.wait(pod.client().watch()).unwrap();
    let first = pod.wait(watch.next()).unwrap().unwrap();
    assert_eq!(
        (first.id.as_str(), first.state()),
        (id.as_str(), State::Running)
    );
    // As if killed by another process.
    Pidfd::open(pid).unwrap().signal(libc::SIGKILL).unwrap();
    let second = pod.wait(watch.next()).unwrap().unwrap();
    assert_eq!((second.state(), second.exit_code), (State::Exited, 137));
    let again = pod.message("again", &["true"]);
    pod.create(again.clone()).unwrap();
    pod.start(&again.id).unwrap();
    let states: Vec<State> = (0..3)
        .map(|_| pod.wait(watch.next()).unwrap().unwrap().state())
        .collect();
    assert_eq!(states, [State::Created, State::Running, State::Exited]);
}

#[test]
fn a_program_that_cannot_serve_is_an_error() {
    let pod = Pod::new();
    let error = shim::spawn(&pod.layout, "/bin/false".as_ref(), "other").unwrap_err();
    assert!(matches!(error, ShimError::Ended { .. }), "{error}");
    let error = shim::spawn(&pod.layout, "/nonexistent".as_ref(), "other").unwrap_err();
    assert!(matches!(error, ShimError::Spawn { .. }), "{error}");
}
