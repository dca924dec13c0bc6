//! `exec`: bytes both ways, exit codes.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::json;
use tests_control::deployment;

use crate::node::Node;
use crate::run::Bench;

/// A pod with two containers, and a deployment that selects it.
fn bench() -> (Bench, Node) {
    let bench = Bench::new();
    let node = bench.node("n1");
    bench.put(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}}));
    bench.put(&deployment("web", 0, "i"));
    bench.until_ready(1);
    (bench, node)
}

#[test]
fn the_exit_code_is_passed_on() {
    let (bench, _node) = bench();
    let ended = bench.foil(&["exec", "p", "-c", "b", "--", "exit", "42"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (42, "p/b: exit 42\ncommand terminated with exit code 42\n")
    );
    let ended = bench.foil(&["exec", "deploy/web", "--", "true"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (0, "Defaulted container \"a\" out of: a, b\np/a: true\n")
    );
}

#[test]
fn standard_input_reaches_the_process() {
    let (bench, _node) = bench();
    let ended = bench.foil_with(&["exec", "-i", "p", "-c", "a", "--", "cat"], "one\ntwo\n");
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "one\ntwo\n"),
        "{ended:?}"
    );
}

#[test]
fn refused() {
    let (bench, _node) = bench();
    assert_eq!(
        bench
            .foil(&["exec", "p", "-c", "zzz", "--", "ls"])
            .refused(),
        "error: container zzz is not valid for pod p; choose one of: a, b\n"
    );
    assert_eq!(
        bench.foil(&["exec", "nope", "--", "ls"]).refused(),
        "Error from server (NotFound): pods \"nope\" not found\n"
    );
    assert_eq!(
        bench
            .foil(&["exec", "-t", "p", "-c", "a", "--", "sh"])
            .refused(),
        "error: -t needs a terminal as standard input\n"
    );
    for words in [
        ["exec", "p"].as_slice(),
        &["exec", "p", "ls"],
        &["exec", "p", "ls", "-l"],
    ] {
        let ended = bench.foil(words);
        assert!(
            ended.code == 2 && ended.err.contains("foil exec p -- "),
            "{ended:?}"
        );
    }
}

#[test]
fn a_terminal_is_raw_as_long_as_it_is_the_container_s() {
    let (bench, _node) = bench();
    let size = Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).unwrap();
    let side = |of: &OwnedFd| Stdio::from(of.try_clone().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_foil"))
        .args(["exec", "-it", "p", "-c", "a", "--", "sh", "7"])
        .env_clear()
        .env("FOIL_CONFIG", bench.folder.path().join("config"))
        .stdin(side(&pty.slave))
        .stdout(side(&pty.slave))
        .stderr(side(&pty.slave))
        .spawn()
        .unwrap();
    let mut screen = std::fs::File::from(pty.master.try_clone().unwrap());
    let mut seen = String::new();
    let mut until = |wanted: &str| {
        let mut buffer = [0; 1024];
        while !seen.contains(wanted) {
            let length = screen.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    // Control-C is a byte like others: it comes back from the other side.
    until("p/a: sh 7 on 101x33");
    let local = || tcgetattr(&pty.slave).unwrap().local_flags;
    while local().contains(LocalFlags::ICANON) {
        std::thread::yield_now();
    }
    let mut keyboard = std::fs::File::from(pty.master.try_clone().unwrap());
    keyboard.write_all(b"\x03abc").unwrap();
    until("\u{3}abc");
    // Control-D, which the node takes for the end.
    keyboard.write_all(b"\x04").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(local().contains(LocalFlags::ICANON | LocalFlags::ECHO));
}
