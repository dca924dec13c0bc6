//! Further processes in a container, with and without a terminal.

use std::fs;

use agent_sys::cgroup::Version;
use agent_sys::shim::{Exec, ExecEvent, ShimError};
use proto::v1::shim_container::State;
use proto::v1::shim_error::Kind;
use proto::v1::{ShimCreate, ShimExec};
use tests_harness::wait_until;

use crate::pod::Pod;

fn sleeper(pod: &mut Pod) -> String {
    let create = pod.message("web", &["sleep", "1000"]);
    pod.run(create)
}

fn message(id: &str, args: &[&str]) -> ShimExec {
    ShimExec {
        id: id.into(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        ..ShimExec::default()
    }
}

fn begin(pod: &Pod, exec: ShimExec) -> Exec {
    let client = pod.client();
    pod.wait(client.exec(exec)).expect("exec")
}

/// Reads until the output contains a text.
fn expect(pod: &Pod, exec: &mut Exec, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match pod.wait(exec.output.next()).expect("output") {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            ExecEvent::Exit(code) => panic!("{text:?} did not come before exit {code}: {seen:?}"),
        }
    }
}

#[test]
fn exit_code_output_and_namespaces() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    assert_eq!(
        pod.exec(&id, &["sh", "-c", "echo hi; exit 5"]).unwrap(),
        (5, "hi\n".into())
    );
    // The last two are real-time signals.
    for signal in [9, 34, 64] {
        let command = format!("kill -{signal} $$");
        let ended = pod.exec(&id, &["sh", "-c", &command]).unwrap();
        assert_eq!(ended.0, 128 + signal, "{signal}");
    }
    assert_eq!(pod.list().0[0].state(), State::Running);
    let namespaces = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let kinds = "cd /proc/PID/ns; for n in net ipc uts pid mnt cgroup; do readlink $n; done";
    let of_init = pod
        .exec(&id, &["sh", "-c", &kinds.replace("PID", "1")])
        .unwrap()
        .1;
    let own = pod
        .exec(&id, &["sh", "-c", &kinds.replace("PID", "self")])
        .unwrap()
        .1;
    assert_eq!(namespaces(&of_init).len(), 6);
    assert_eq!(namespaces(&own), namespaces(&of_init));
    // In the container's groups, so its limits hold.
    let groups = pod.exec(&id, &["cat", "/proc/self/cgroup"]).unwrap().1;
    let whole = match pod.groups.version() {
        Version::V1 => ":memory:/",
        Version::V2 => "0::/",
    };
    assert!(groups.lines().any(|l| l.ends_with(whole)), "{groups}");
}

#[test]
fn a_command_that_is_not_there() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let Err(ShimError::Refused { kind, message }) = pod.exec(&id, &["nosuch"]) else {
        panic!("not refused");
    };
    assert_eq!(kind, Kind::Command);
    assert_eq!(
        message,
        "unable to start container process: exec: \"nosuch\": executable file not found in $PATH"
    );
    assert_eq!(pod.exec(&id, &["true"]).unwrap().0, 0);
}

#[test]
fn stdin_reaches_the_process_and_ends() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    // More than any buffer on the way, so that every one of them fills up.
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let mut exec = begin(
        &pod,
        ShimExec {
            stdin: true,
            ..message(&id, &["md5sum"])
        },
    );
    pod.wait(async {
        for piece in input.chunks(100_000) {
            exec.input.write(piece.to_vec()).await.expect("write");
        }
        exec.input.close().await.expect("close");
    });
    let (code, output) = pod.wait(exec.collect(1000)).unwrap();
    let file = pod.folder().join("input");
    fs::write(&file, &input).unwrap();
    let expected = std::process::Command::new("md5sum")
        .arg(&file)
        .output()
        .unwrap()
        .stdout;
    assert_eq!(code, 0);
    assert_eq!(output[..32], expected[..32]);
}

#[test]
fn output_waits_for_a_slow_reader() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let script = "dd if=/dev/zero bs=1000 count=5000 2>/dev/null; echo end >&2";
    let mut exec = begin(&pod, message(&id, &["sh", "-c", script]));
    let shim = pod.shim_pid;
    // The writer is stopped by a full pipe, not the shim by memory.
    wait_until("a stopped writer", || {
        let pids = pod.group_file("pids", "web", "cgroup.procs");
        let stopped = pids.lines().any(|pid| {
            fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|w| w.contains("pipe"))
        });
        if stopped { Ok(()) } else { Err(pids) }
    });
    assert!(agent_sys::process::resident_bytes(shim).unwrap() < 12 << 20);
    let (mut out, mut err) = (0, Vec::new());
    loop {
        match pod.wait(exec.output.next()).unwrap() {
            ExecEvent::Stdout(bytes) => out += bytes.len(),
            ExecEvent::Stderr(bytes) => err.extend(bytes),
            ExecEvent::Exit(code) => break assert_eq!(code, 0),
        }
    }
    assert_eq!((out, &err[..]), (5_000_000, &b"end\n"[..]));
}

#[test]
fn a_terminal() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let mut exec = begin(
        &pod,
        ShimExec {
            tty: true,
            stdin: true,
            columns: 91,
            rows: 23,
            ..message(
                &id,
                &["sh", "-c", "tty; echo size $(stty size) $TERM; exec sh"],
            )
        },
    );
    expect(&pod, &mut exec, "size 23 91 xterm");
    pod.wait(async {
        exec.input.resize(100, 30).await.expect("resize");
        exec.input
            .write(b"stty size\n".to_vec())
            .await
            .expect("write");
    });
    expect(&pod, &mut exec, "30 100");
    // Control-C ends the command, not the shell.
    pod.wait(exec.input.write(b"sleep 2000\n".to_vec()))
        .unwrap();
    wait_until("the command in the foreground", || {
        let pids = pod.group_file("pids", "web", "cgroup.procs");
        if pids.lines().any(is_foreground_sleep) {
            Ok(())
        } else {
            Err(pids)
        }
    });
    pod.wait(exec.input.write(b"\x03".to_vec())).unwrap();
    pod.wait(exec.input.write(b"echo $((40+2)) after; exit 9\n".to_vec()))
        .unwrap();
    expect(&pod, &mut exec, "42 after");
    let (code, _) = pod.wait(exec.collect(1000)).unwrap();
    assert_eq!(code, 9);
}

/// Executed, and of the process group that the terminal's signals go to.
fn is_foreground_sleep(pid: &str) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&read("stat")).into_owned();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    read("cmdline") == b"sleep\x002000\0" && fields.get(2) == fields.get(5)
}

#[test]
fn a_container_with_a_terminal_logs_it() {
    let mut pod = Pod::new();
    let create = ShimCreate {
        tty: true,
        ..pod.message(
            "web",
            &[
                "sh",
                "-c",
                "tty; test -t 0 && echo input; test -t 2 && echo error",
            ],
        )
    };
    let (end, lines) = pod.finish(create);
    assert_eq!(end.exit_code, 0);
    // A terminal ends its lines in its own way.
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("stdout F /dev/"), "{lines:?}");
    assert_eq!(lines[1..], ["stdout F input\r", "stdout F error\r"]);
}

#[test]
fn output_of_orphans_that_never_ends_does_not_hold_up_the_end() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let exec = begin(&pod, message(&id, &["sh", "-c", "yes & exit 7"]));
    let (code, _) = pod.wait(exec.collect(1000)).unwrap();
    assert_eq!(code, 7);
}

#[test]
fn a_process_dies_with_its_connection() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let exec = begin(&pod, message(&id, &["sleep", "2000"]));
    let count = |pod: &Pod| {
        pod.group_file("pids", "web", "cgroup.procs")
            .lines()
            .count()
    };
    wait_until("two processes", || match count(&pod) {
        2 => Ok(()),
        n => Err(n.to_string()),
    });
    drop(exec);
    wait_until("one process", || match count(&pod) {
        1 => Ok(()),
        n => Err(n.to_string()),
    });
}

#[test]
fn many_at_once() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let script = |n: i32| format!("sleep 0.2; echo {n}; exit {n}");
    let running: Vec<_> = (0..20)
        .map(|n| begin(&pod, message(&id, &["sh", "-c", &script(n)])))
        .collect();
    for (n, exec) in (0..).zip(running) {
        let (code, output) = pod.wait(exec.collect(100)).unwrap();
        assert_eq!((code, output), (n, format!("{n}\n").into_bytes()));
    }
}

#[test]
fn it_ends_with_the_container() {
    let mut pod = Pod::new();
    let id = sleeper(&mut pod);
    let exec = begin(&pod, message(&id, &["sleep", "2000"]));
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    assert_eq!(pod.wait(exec.collect(10)).unwrap().0, 137);
    assert_eq!(pod.exited(&id).exit_code, 137);
    pod.delete(&id).unwrap();
}

/// In the host's process namespace a session's process outlives its container's first one,
/// and is killed with what else is left in the group.
#[test]
fn sessions_that_end_with_their_container_s_removal_are_told_so() {
    let mut pod = Pod::new();
    let create = ShimCreate {
        pid_ns: "host".into(),
        ..pod.message("web", &["sleep", "1000"])
    };
    let id = pod.run(create);
    let mut sessions = Vec::new();
    for _ in 0..16 {
        let command = ["sh", "-c", "echo here; exec sleep 1000"];
        let mut exec = begin(&pod, message(&id, &command));
        expect(&pod, &mut exec, "here");
        sessions.push(exec);
    }
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    pod.delete(&id).unwrap();
    for exec in sessions {
        let (code, _) = pod.wait(exec.collect(1000)).unwrap();
        assert_eq!(code, 128 + libc::SIGKILL);
    }
}
