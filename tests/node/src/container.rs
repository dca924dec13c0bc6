//! Containers from create to delete: how they end, and what is left of them.

use std::fs;
use std::time::Duration;

use proto::v1::shim_container::State;
use proto::v1::shim_error::Kind;
use proto::v1::{self, ShimCreate, ShimMount};

use agent_sys::process::Pidfd;
use agent_sys::shim::ShimError;
use tests_harness::wait_until;

use crate::pod::{Pod, log_lines, logged};

fn refusal<T: std::fmt::Debug>(result: Result<T, ShimError>) -> (Kind, String) {
    match result {
        Err(ShimError::Refused { kind, message }) => (kind, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn exit_codes_and_output_are_kept() {
    let mut pod = Pod::new();
    let script = "echo out; echo err >&2; exit 7";
    let id = pod.run(pod.message("web", &["sh", "-c", script]));
    let end = pod.exited(&id);
    assert_eq!((end.exit_code, end.signal, end.oom_killed), (7, 0, false));
    assert!(
        end.started_ms > 0 && end.finished_ms >= end.started_ms,
        "{end:?}"
    );
    // Kept until it is deleted, over connections.
    pod.connect();
    assert_eq!(pod.list().0, [end]);
    let mut lines = log_lines(&pod.log_path("web"));
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out"]);
    pod.delete(&id).unwrap();
    assert_eq!(pod.list().0, []);
    assert_eq!(
        log_lines(&pod.log_path("web")).len(),
        2,
        "the log outlives the container"
    );
}

#[test]
fn the_life_of_a_container() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    let id = create.id.clone();
    pod.create(create.clone()).unwrap();
    let (all, _) = pod.list();
    assert_eq!(all[0].state(), State::Created);
    assert!(fs::exists(format!("/proc/{}", all[0].pid)).unwrap());
    assert_eq!(refusal(pod.create(create)).0, Kind::Invalid);
    assert_eq!(refusal(pod.exec(&id, &["true"])).0, Kind::Invalid);

    pod.start(&id).unwrap();
    let running = pod.list().0.remove(0);
    assert_eq!(running.state(), State::Running);
    let command = fs::read(format!("/proc/{}/cmdline", running.pid)).unwrap();
    assert_eq!(command, b"sleep\x001000\0", "started means executed");
    assert_eq!(refusal(pod.start(&id)).0, Kind::Invalid);
    assert_eq!(refusal(pod.delete(&id)).0, Kind::Invalid);
    assert_eq!(refusal(pod.shutdown()).0, Kind::Invalid);

    pod.kill(&id, libc::SIGKILL, false).unwrap();
    let end = pod.exited(&id);
    assert_eq!((end.exit_code, end.signal), (137, libc::SIGKILL));
    pod.kill(&id, libc::SIGTERM, false)
        .expect("too late is no error");
    pod.delete(&id).unwrap();
    for call in [Pod::start, Pod::delete] {
        assert_eq!(refusal(call(&mut pod, &id)).0, Kind::NotFound);
    }
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    let id = create.id.clone();
    pod.create(create).unwrap();
    let pid = pod.list().0[0].pid;
    pod.delete(&id).unwrap();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_handler_sees_sigterm_before_sigkill() {
    let mut pod = Pod::new();
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let polite = pod.run(pod.message("polite", &["sh", "-c", script]));
    let deaf = pod.run(pod.message("deaf", &["sleep", "1000"]));
    let log = pod.log_path("polite");
    wait_until("the handler", || match log_lines(&log).as_slice() {
        [] => Err("no line yet".into()),
        lines => {
            assert_eq!(lines, ["stdout F ready"]);
            Ok(())
        }
    });
    for id in [&polite, &deaf] {
        pod.kill(id, libc::SIGTERM, false).unwrap();
    }
    let end = pod.exited(&polite);
    assert_eq!((end.exit_code, end.signal), (3, 0));
    assert_eq!(log_lines(&log), ["stdout F ready", "stdout F bye"]);
    // The first process of a namespace does not die of a signal that it does not handle.
    let left = pod.list().0.into_iter().find(|c| c.id == deaf).unwrap();
    assert_eq!(left.state(), State::Running);
    pod.kill(&deaf, libc::SIGKILL, false).unwrap();
    assert_eq!(pod.exited(&deaf).exit_code, 137);
}

#[test]
fn real_time_signals_are_signals() {
    let mut pod = Pod::new();
    // What systemd ends by: SIGRTMIN+3.
    let script = "trap 'exit 3' 37; echo ready; while :; do sleep 0.1; done";
    let id = pod.run(pod.message("init", &["sh", "-c", script]));
    logged(&pod.log_path("init"), "ready");
    pod.kill(&id, 37, false).unwrap();
    assert_eq!(pod.exited(&id).exit_code, 3);
    // One that is not the first of a process namespace ends by it, and its shim sees that.
    let mut create = pod.message("plain", &["sleep", "1000"]);
    create.pid_ns = "host".into();
    let id = pod.run(create);
    for signal in [0, -1, 65] {
        let refused = pod.kill(&id, signal, false);
        assert_eq!(refusal(refused).0, Kind::Runtime, "{signal}");
    }
    pod.kill(&id, 64, false).unwrap();
    let end = pod.exited(&id);
    assert_eq!((end.exit_code, end.signal), (192, 64));
    pod.delete(&id).unwrap();
}

/// The program is held between the order to execute it and its execution.
#[test]
fn a_container_that_is_slow_to_start_is_listed_as_starting_and_started_once() {
    let mut pod = Pod::new();
    let create = pod.message("slow", &["sleep", "1000"]);
    let id = create.id.clone();
    pod.create(create).unwrap();
    let process = Pidfd::open(pod.list().0[0].pid).unwrap();
    process.signal(libc::SIGSTOP).unwrap();
    let mut watch = pod.wait(pod.client().watch()).unwrap();
    // Another agent, or the same one after its call was given up.
    let (mut caller, mut other) = (pod.client(), pod.client());
    pod.wait(async {
        let start = caller.start(&id);
        let held = async {
            while other.list().await.unwrap().0[0].state() != State::Starting {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let again = other.start(&id).await;
            assert_eq!(refusal(again).0, Kind::Invalid);
            process.signal(libc::SIGCONT).unwrap();
        };
        let (started, ()) = tokio::join!(start, held);
        started.unwrap();
    });
    assert_eq!(pod.list().0[0].state(), State::Running);
    // Who watches hears of it.
    let states: Vec<State> = (0..2)
        .map(|_| pod.wait(watch.next()).unwrap().unwrap().state())
        .collect();
    assert_eq!(states, [State::Created, State::Running]);
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    assert_eq!(pod.exited(&id).exit_code, 137);
}

#[test]
fn a_command_that_cannot_run_is_the_users_error() {
    let mut pod = Pod::new();
    fs::write(pod.rootfs().join("etc/plain"), "text").unwrap();
    fs::write(pod.rootfs().join("bin/broken"), "\x7fELF?").unwrap();
    fs::set_permissions(
        pod.rootfs().join("bin/broken"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let text = "unable to start container process: exec: ";
    for (command, reason) in [
        ("nosuch", "\"nosuch\": executable file not found in $PATH"),
        (
            "/nosuch",
            "\"/nosuch\": stat /nosuch: no such file or directory",
        ),
        ("/etc/plain", "\"/etc/plain\": permission denied"),
    ] {
        let create = pod.message("web", &[command]);
        assert_eq!(
            refusal(pod.create(create)),
            (Kind::Command, format!("{text}{reason}"))
        );
    }
    // Only execve knows.
    let create = pod.message("web", &["broken"]);
    let id = create.id.clone();
    pod.create(create).unwrap();
    assert_eq!(
        refusal(pod.start(&id)),
        (
            Kind::Command,
            "unable to start container process: exec broken: exec format error".to_owned()
        )
    );
    assert_ne!(pod.exited(&id).exit_code, 0);
    pod.delete(&id).unwrap();
    // Failures leave the shim and the name usable.
    let create = pod.message("web", &["true"]);
    assert_eq!(pod.finish(create).0.exit_code, 0);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut pod = Pod::new();
    let good = pod.message("web", &["true"]);
    let bad = [
        (
            Kind::Invalid,
            ShimCreate {
                args: vec![],
                ..good.clone()
            },
        ),
        (
            Kind::Invalid,
            ShimCreate {
                id: "../x".into(),
                ..good.clone()
            },
        ),
        (
            Kind::Invalid,
            ShimCreate {
                capabilities: vec!["CAP_FLY".into()],
                ..good.clone()
            },
        ),
        (
            Kind::Runtime,
            ShimCreate {
                rootfs: "/nonexistent".into(),
                ..good.clone()
            },
        ),
        (
            Kind::Runtime,
            ShimCreate {
                net_ns: "/nonexistent".into(),
                ..good.clone()
            },
        ),
    ];
    for (kind, create) in bad {
        let what = format!("{create:?}");
        assert_eq!(refusal(pod.create(create)).0, kind, "{what}");
        assert_eq!(pod.list().0, [], "{what}");
    }
    assert_eq!(pod.finish(good).0.exit_code, 0);
}

#[test]
fn environment_folder_and_hostname() {
    let mut pod = Pod::new();
    let script = "echo $A; echo \"$B\"; pwd; hostname; echo $PATH";
    let variable = |name: &str, value: &str| v1::EnvVar {
        name: name.into(),
        value: value.into(),
        expand: false,
    };
    let create = pod.message_for("web", &["sh", "-c", script], |spec| {
        spec.env = vec![
            variable("A", "1"),
            variable("B", "x y=z"),
            variable("A", "2"),
        ];
        spec.working_dir = "/tmp".into();
    });
    let (_, lines) = pod.finish(create);
    assert_eq!(
        lines,
        [
            "stdout F 2",
            "stdout F x y=z",
            "stdout F /tmp",
            "stdout F web-0",
            "stdout F /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
    );
}

#[test]
fn mounts_are_those_asked_for() {
    let mut pod = Pod::new();
    let volume = pod.folder().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content\n").unwrap();
    let mount = |destination: &str, options: &[&str]| ShimMount {
        source: volume.display().to_string(),
        destination: destination.into(),
        r#type: "bind".into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    };
    let script = "cat /data/file; echo new > /data/other; echo x > /fixed/no; cat /etc/one; \
                  for m in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup; do \
                  grep -q \" $m \" /proc/mounts || echo missing $m; done; \
                  echo x > /sys/kernel/mm/no; ls -d /dev/null /dev/ptmx";
    let mut create = pod.message("web", &["sh", "-c", script]);
    create.mounts.extend([
        mount("/data", &["rbind", "rw"]),
        mount("/fixed", &["rbind", "ro"]),
        ShimMount {
            source: volume.join("file").display().to_string(),
            ..mount("/etc/one", &["bind", "ro"])
        },
    ]);
    let (end, lines) = pod.finish(create);
    assert_eq!(end.exit_code, 0, "{lines:?}");
    let out: Vec<_> = lines
        .iter()
        .filter_map(|l| l.strip_prefix("stdout F "))
        .collect();
    assert_eq!(out, ["content", "content", "/dev/null", "/dev/ptmx"]);
    let errors = lines
        .iter()
        .filter(|l| l.ends_with("Read-only file system"))
        .count();
    assert_eq!(errors, 2, "{lines:?}");
    assert_eq!(fs::read_to_string(volume.join("other")).unwrap(), "new\n");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !table.contains("/rootfs/data"),
        "a container's mounts stay in it"
    );
}

#[test]
fn nothing_is_left_of_a_container() {
    let mut pod = Pod::new();
    for round in 0..3 {
        let script = "sleep 1000 & sleep 1000 & exec sleep 1000";
        let id = pod.run(pod.message("web", &["sh", "-c", script]));
        let group = pod.group("web");
        let pids = pod.group_file("pids", "web", "cgroup.procs");
        pod.kill(&id, libc::SIGKILL, false).unwrap();
        pod.exited(&id);
        pod.delete(&id).unwrap();
        for pid in pids.lines() {
            assert!(
                !fs::exists(format!("/proc/{pid}")).unwrap(),
                "round {round}: {pid} lives"
            );
        }
        let below = fs::read_dir("/sys/fs/cgroup").unwrap();
        let hierarchies = below.map(|h| h.unwrap().path()).filter(|h| h.is_dir());
        for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
            let path = format!("{}{group}", hierarchy.display());
            assert!(
                !fs::exists(&path).unwrap(),
                "round {round}: {path} is there"
            );
        }
    }
    let state = pod.layout.shim(&pod.uid).join("state");
    assert_eq!(fs::read_dir(state).unwrap().count(), 0);
    let shim = pod.shim_pid;
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = open();
    for _ in 0..5 {
        let create = pod.message("web", &["true"]);
        pod.finish(create);
    }
    wait_until("closed descriptors", || match open() {
        now if now <= before => Ok(()),
        now => Err(format!("{before} descriptors before, {now} now")),
    });
    pod.shutdown().unwrap();
    wait_until("the shim's end", || {
        if fs::exists(format!("/proc/{shim}")).unwrap() {
            Err("alive".into())
        } else {
            Ok(())
        }
    });
}

#[test]
fn orphans_in_the_nodes_pid_namespace_end_with_their_container() {
    let mut pod = Pod::new();
    let create = ShimCreate {
        pid_ns: "host".into(),
        ..pod.message("web", &["sh", "-c", "sleep 1000 & sleep 1000 & exit 0"])
    };
    let id = pod.run(create);
    pod.exited(&id);
    let pids = pod.group_file("pids", "web", "cgroup.procs");
    assert_eq!(pids.lines().count(), 2, "{pids}");
    pod.delete(&id).unwrap();
    // Their ends are collected after the answer.
    wait_until("their end", || {
        match pids
            .lines()
            .find(|pid| fs::exists(format!("/proc/{pid}")).unwrap())
        {
            Some(pid) => Err(format!("{pid} lives")),
            None => Ok(()),
        }
    });
}

#[test]
fn orphans_that_write_without_end_do_not_hold_up_the_end() {
    let mut pod = Pod::new();
    let create = ShimCreate {
        pid_ns: "host".into(),
        ..pod.message("web", &["sh", "-c", "yes & exit 7"])
    };
    let (end, _) = pod.finish(create);
    assert_eq!(end.exit_code, 7);
}
