//! What a container may do: filter, capabilities, users, read-only root, hidden paths.

use std::collections::BTreeMap;
use std::fs;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use proto::v1::ShimCreate;

use crate::pod::{Pod, privileged};

/// Fields of /proc/self/status from a container's log.
fn status(lines: &[String]) -> BTreeMap<&str, &str> {
    lines
        .iter()
        .filter_map(|l| l.strip_prefix("stdout F ")?.split_once(":\t"))
        .map(|(name, value)| (name, value.trim()))
        .collect()
}

/// The fourteen of Kubernetes' defaults.
const DEFAULTS: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";

#[test]
fn the_filter_and_capabilities_hold_in_init_and_exec() {
    let mut pod = Pod::new();
    let create = pod.message(
        "web",
        &[
            "sh",
            "-c",
            "cat /proc/self/status; echo all; exec sleep 1000",
        ],
    );
    let id = pod.run(create);
    let text = pod.exec(&id, &["cat", "/proc/self/status"]).unwrap().1;
    let of_exec: Vec<String> = text.lines().map(|l| format!("stdout F {l}")).collect();
    crate::pod::logged(&pod.log_path("web"), "all");
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    let of_init = crate::pod::log_lines(&pod.log_path("web"));
    for lines in [&of_init, &of_exec] {
        let status = status(lines);
        assert_eq!(status["Seccomp"], "2", "{lines:?}");
        assert_eq!(status["Seccomp_filters"], "1");
        assert_eq!(status["NoNewPrivs"], "0");
        for set in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(status[set], DEFAULTS, "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(status[set], NONE, "{set}");
        }
        // Nothing of the shim's survives into the program.
        for set in ["SigBlk", "SigIgn"] {
            assert_eq!(status[set], NONE, "{set}");
        }
    }
}

#[test]
fn the_filter_refuses() {
    let mut pod = Pod::new();
    let script = "unshare -m true; mount -t tmpfs x /tmp; echo done";
    let capable = |create: ShimCreate| ShimCreate {
        // The capability alone would be enough.
        capabilities: vec!["CAP_SYS_CHROOT".into()],
        ..create
    };
    let create = capable(pod.message("web", &["sh", "-c", script]));
    let (_, lines) = pod.finish(create);
    assert_eq!(
        lines
            .iter()
            .filter(|l| l.contains("Operation not permitted"))
            .count(),
        1,
        "{lines:?}"
    );
    assert_eq!(
        lines
            .iter()
            .filter(|l| l.contains("ermission denied"))
            .count(),
        1,
        "{lines:?}"
    );
    assert!(lines.contains(&"stdout F done".to_owned()), "{lines:?}");
}

#[test]
fn unconfined_and_privileged() {
    let mut pod = Pod::new();
    let script = "cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted";
    let open = ShimCreate {
        seccomp: false,
        ..pod.message("open", &["sh", "-c", script])
    };
    let (_, lines) = pod.finish(open);
    assert_eq!(status(&lines)["Seccomp"], "0");
    assert_eq!(status(&lines)["CapEff"], DEFAULTS);
    let all = pod.message_for("all", &["sh", "-c", script], privileged);
    let (_, lines) = pod.finish(all);
    assert_eq!(status(&lines)["Seccomp"], "0");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = own
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:\t"))
        .unwrap();
    assert_eq!(
        status(&lines)["CapEff"],
        bounding,
        "as much as the machine has"
    );
    assert_eq!(lines.last().unwrap(), "stdout F mounted");
}

#[test]
fn another_user() {
    let mut pod = Pod::new();
    let script = "id -u; id -g; id -G; echo $HOME; cat /proc/self/status; \
                  echo opened 1 > /proc/self/fd/1; echo opened 2 > /proc/self/fd/2; \
                  echo x > /etc/no";
    let mut create = ShimCreate {
        uid: 1000,
        gid: 2000,
        additional_gids: vec![2000, 3000, 4000],
        no_new_privileges: true,
        ..pod.message("web", &["sh", "-c", &format!("{script}; exec sleep 1000")])
    };
    create.env.retain(|entry| !entry.starts_with("HOME="));
    let account = agent_sys::image::user::by_number(&pod.rootfs(), 1000).unwrap();
    agent_plan::create::set_home(&mut create, &account.home);
    let id = pod.run(create);
    let (_, text) = pod.exec(&id, &["sh", "-c", script]).unwrap();
    let log = pod.log_path("web");
    crate::pod::logged(&log, "Permission denied");
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    let of_exec: Vec<String> = text.lines().map(|l| format!("stdout F {l}")).collect();
    for lines in [crate::pod::log_lines(&log), of_exec] {
        let out: Vec<_> = lines
            .iter()
            .filter_map(|l| l.strip_prefix("stdout F "))
            .collect();
        assert_eq!(out[..4], ["1000", "2000", "2000 3000 4000", "/home/app"]);
        let status = status(&lines);
        assert_eq!(status["CapEff"], NONE);
        assert_eq!(status["CapPrm"], NONE);
        assert_eq!(status["CapBnd"], DEFAULTS);
        assert_eq!(status["NoNewPrivs"], "1");
        assert_eq!(status["Seccomp"], "2");
        let denied = lines.iter().filter(|l| l.ends_with("Permission denied"));
        assert_eq!(denied.count(), 1, "{lines:?}");
        for opened in ["opened 1", "opened 2"] {
            assert!(lines.iter().any(|l| l.ends_with(opened)), "{lines:?}");
        }
    }
}

#[test]
fn a_read_only_root_and_hidden_paths() {
    let mut pod = Pod::new();
    let script = "echo x > /tmp/no; echo x > /proc/sys/kernel/domainname; \
                  wc -c < /proc/timer_list; ls /sys/firmware | wc -l; echo ok > /dev/shm/yes && cat /dev/shm/yes";
    let create = ShimCreate {
        read_only_root: true,
        ..pod.message("web", &["sh", "-c", script])
    };
    let (_, lines) = pod.finish(create);
    assert_eq!(
        lines
            .iter()
            .filter(|l| l.ends_with("Read-only file system"))
            .count(),
        2,
        "{lines:?}"
    );
    let out: Vec<_> = lines
        .iter()
        .filter_map(|l| l.strip_prefix("stdout F "))
        .collect();
    assert_eq!(out, ["0", "0", "ok"]);
}

#[test]
fn devices_are_the_usual_ones() {
    let mut pod = Pod::new();
    let script = "mknod /tmp/sda b 8 0 && cat /tmp/sda; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo fine";
    let create = pod.message("web", &["sh", "-c", script]);
    let (_, lines) = pod.finish(create);
    assert!(
        lines.iter().any(|l| l.ends_with("Operation not permitted")),
        "{lines:?}"
    );
    assert!(lines.contains(&"stdout F fine".to_owned()), "{lines:?}");
}

/// Where version 1 has no controller for it, and on machines of version 2 alone.
#[test]
fn devices_are_filtered_by_a_program() {
    // In a mount namespace of a thread of its own.
    let machine = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).unwrap();
        match umount("/sys/fs/cgroup/devices") {
            // Not there: version 2 alone.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => panic!("unmount the devices controller here: {e}"),
        }
        let mut pod = Pod::new();
        let script = "mknod /tmp/$0 b 8 0 && head -c1 /tmp/$0; mknod /tmp/$0c c 5 1 && true > /tmp/$0c; \
                      mknod /tmp/$0null c 1 3 && echo x > /tmp/$0null && echo fine; exec sleep ${1:-0}";
        let refused = |lines: &[String]| {
            let all = lines.iter();
            all.filter(|l| l.contains("peration not permitted")).count()
        };
        let create = pod.message("web", &["sh", "-c", script, "init", "1000"]);
        let id = pod.run(create);
        crate::pod::logged(&pod.log_path("web"), "fine");
        let lines = crate::pod::log_lines(&pod.log_path("web"));
        assert_eq!(refused(&lines), 2, "{lines:?}");
        let (_, text) = pod.exec(&id, &["sh", "-c", script, "exec"]).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(refused(&lines), 2, "{lines:?}");
        assert!(text.contains("fine"), "{text}");
        // One that may do everything may do that too: there is no such device, or there is.
        let all = pod.message_for("all", &["sh", "-c", script, "all"], privileged);
        let (_, lines) = pod.finish(all);
        assert_eq!(refused(&lines), 0, "{lines:?}");
        pod.kill(&id, libc::SIGKILL, false).unwrap();
        pod.exited(&id);
        pod.delete(&id).unwrap();
    });
    machine.join().unwrap();
}

#[test]
fn sysctls_of_the_pods_namespaces() {
    let mut pod = Pod::new();
    let create = ShimCreate {
        sysctls: [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "7".to_owned(),
        )]
        .into(),
        ..pod.message(
            "web",
            &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"],
        )
    };
    assert_eq!(pod.finish(create).1, ["stdout F 7"]);
}

#[test]
fn a_refused_oom_score_is_said_and_gone_without() {
    let mut pod = Pod::new();
    let script = &["cat", "/proc/self/oom_score_adj"];
    let raise = ShimCreate {
        oom_score_adj: 900,
        ..pod.message("web", script)
    };
    assert_eq!(pod.finish(raise).1, ["stdout F 900"]);
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let create = ShimCreate {
        oom_score_adj: -997,
        ..pod.message("web", script)
    };
    let id = create.id.clone();
    let warnings = pod.create(create).unwrap();
    pod.start(&id).unwrap();
    pod.exited(&id);
    let lines = crate::pod::log_lines(&pod.log_path("web"));
    match warnings.as_slice() {
        // The machine allows it.
        [] => assert_eq!(lines.last().unwrap(), "stdout F -997"),
        [one] => {
            assert!(one.contains("oom_score_adj -997"), "{one}");
            assert_eq!(lines.last().unwrap(), &format!("stdout F {own}"));
        }
        more => panic!("{more:?}"),
    }
}
