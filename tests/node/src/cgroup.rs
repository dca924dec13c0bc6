//! Groups of pods and containers: limits are in the kernel, kills are seen, nothing stays.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

use agent_sys::cgroup::{Groups, Version};
use proto::v1::change::Change;
use proto::v1::{ShimCreate, ShimResources};
use tests_harness::wait_until;

use crate::node::{self, Node, ready};
use crate::pod::{Pod, privileged};

fn limited(create: ShimCreate, memory_limit: i64) -> ShimCreate {
    ShimCreate {
        resources: Some(ShimResources {
            cpu_shares: 204,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit,
            pids_limit: 20,
            oom_group: true,
            ..ShimResources::default()
        }),
        ..create
    }
}

#[test]
fn what_no_manifest_asks_for_is_limited_too() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let spec = node::pod("plain", 5, "exec sleep 1000");
    node.control.push(vec![Change::Pod(spec)]);
    node.control.status("plain", ready);
    let version = Groups::open("/foil").unwrap().version();
    let file = |controller: &str, group: &str, file: &str| {
        let hierarchy = match version {
            Version::V1 => controller,
            Version::V2 => "",
        };
        let path = format!("/sys/fs/cgroup/{hierarchy}/{}{group}/{file}", node.name);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        text.trim().to_owned()
    };
    assert_eq!(file("pids", "/pod-plain", "pids.max"), "4096");
    let memory = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    let limit: u64 = file("memory", "", memory)
        .parse()
        .expect("a limit of all pods");
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .unwrap();
    let total: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    let reserved = total * 1024 - limit;
    // 256Mi in whole pages.
    assert_eq!(reserved.div_ceil(4096) * 4096, 256 << 20);
    if version == Version::V2 {
        assert_eq!(file("", "/pod-plain/main_0", "memory.oom.group"), "1");
    }
}

#[test]
fn a_containers_limits_are_in_its_group() {
    let mut pod = Pod::new();
    let create = limited(pod.message("web", &["sleep", "1000"]), 64 << 20);
    pod.run(create);
    let values = match pod.groups.version() {
        Version::V1 => [
            ("cpu", "cpu.shares", "204"),
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.cfs_period_us", "100000"),
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.memsw.limit_in_bytes", "67108864"),
            ("pids", "pids.max", "20"),
        ]
        .to_vec(),
        Version::V2 => [
            ("", "cpu.weight", "29"),
            ("", "cpu.max", "50000 100000"),
            ("", "memory.max", "67108864"),
            ("", "memory.swap.max", "0"),
            ("", "memory.oom.group", "1"),
            ("", "pids.max", "20"),
        ]
        .to_vec(),
    };
    for (controller, file, expected) in values {
        // Swap is not accounted on every kernel.
        let optional = ["memory.memsw.limit_in_bytes", "memory.swap.max"].contains(&file);
        let group = pod.group("web");
        if optional && !Path::new(&format!("/sys/fs/cgroup/{controller}{group}/{file}")).exists() {
            continue;
        }
        assert_eq!(pod.group_file(controller, "web", file), expected, "{file}");
    }
}

#[test]
fn a_container_sees_its_own_limits_and_cannot_change_them() {
    let mut pod = Pod::new();
    let script = match pod.groups.version() {
        Version::V1 => {
            "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes; cat pids/pids.max; \
             echo 9 > pids/pids.max; mkdir pids/x; mkdir x; ls | grep -c systemd"
        }
        Version::V2 => {
            "cd /sys/fs/cgroup; cat memory.max; cat pids.max; \
             echo 9 > pids.max; mkdir x; mkdir x; echo 0"
        }
    };
    for uid in [0, 1000] {
        let create = limited(
            pod.message(&format!("as-{uid}"), &["sh", "-c", script]),
            64 << 20,
        );
        let (_, lines) = pod.finish(ShimCreate { uid, ..create });
        let out: Vec<_> = lines
            .iter()
            .filter_map(|l| l.strip_prefix("stdout F "))
            .collect();
        assert_eq!(out, ["67108864", "20", "0"], "{lines:?}");
        let refused = lines
            .iter()
            .filter(|l| l.ends_with("Read-only file system"))
            .count();
        assert_eq!(refused, 3, "{lines:?}");
    }
}

#[test]
fn what_a_privileged_container_makes_below_its_group_goes_with_it() {
    let mut pod = Pod::new();
    let group = pod.group("web");
    let top = if pod.groups.version() == Version::V1 {
        "/sys/fs/cgroup/pids"
    } else {
        "/sys/fs/cgroup"
    };
    let below = format!("{top}{group}/inner/most");
    let script =
        format!("mkdir -p {below}; sleep 1000 & echo $! > {below}/cgroup.procs; exec sleep 1000");
    let create = pod.message_for("web", &["sh", "-c", &script], privileged);
    let id = pod.run(create);
    let procs = format!("{below}/cgroup.procs");
    wait_until(
        "a process in the inner group",
        || match fs::read_to_string(&procs) {
            Ok(text) if !text.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    pod.delete(&id).unwrap();
    assert!(!Path::new(&format!("{top}{group}")).exists());
}

#[test]
fn a_machine_without_version_2_beside_version_1() {
    // In a mount namespace of a thread of its own.
    let machine = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).unwrap();
        if umount("/sys/fs/cgroup/unified").is_err() {
            // This machine is of another kind, and the other tests are of that.
            return;
        }
        let mut pod = Pod::new();
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; mkdir /sys/fs/cgroup/pids/x; exec sleep 1000";
        let create = limited(pod.message("web", &["sh", "-c", script]), 64 << 20);
        let id = pod.run(create);
        assert_eq!(pod.group_file("pids", "web", "pids.max"), "20");
        assert_eq!(pod.exec(&id, &["true"]).unwrap().0, 0);
        crate::pod::logged(&pod.log_path("web"), "Read-only file system");
        pod.kill(&id, libc::SIGKILL, false).unwrap();
        pod.exited(&id);
        pod.delete(&id).unwrap();
        let lines = crate::pod::log_lines(&pod.log_path("web"));
        assert!(lines.contains(&"stdout F 67108864".to_owned()), "{lines:?}");
        let group = pod.group("web");
        assert!(!Path::new(&format!("/sys/fs/cgroup/memory{group}")).exists());
    });
    machine.join().unwrap();
}

#[test]
fn a_container_is_in_our_group_of_version_2_too() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sleep", "1000"]);
    pod.run(create);
    let pid = pod.list().0[0].pid;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = pod.group("web");
    let is_there = |line: &str| line == format!("0::{group}");
    // Only where version 2 is mounted at all.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(
        groups.lines().any(is_there),
        table.contains(" - cgroup2 "),
        "{groups}"
    );
}

#[test]
fn too_much_memory_is_an_oom_kill() {
    let mut pod = Pod::new();
    let hungry = "tail -c 200000000 /dev/zero";
    let create = limited(
        pod.message("direct", &["sh", "-c", &format!("exec {hungry}")]),
        16 << 20,
    );
    let (end, _) = pod.finish(create);
    assert_eq!(
        (end.exit_code, end.signal, end.oom_killed),
        (137, libc::SIGKILL, true)
    );
    // The child is killed, and its parent fails because of that; on version 2 the parent
    // is killed with it.
    let create = limited(
        pod.message("child", &["sh", "-c", &format!("{hungry}; exit 4")]),
        16 << 20,
    );
    let (end, _) = pod.finish(create);
    let expected = match pod.groups.version() {
        Version::V1 => 4,
        Version::V2 => 137,
    };
    assert_eq!((end.exit_code, end.oom_killed), (expected, true));
    // One that was killed otherwise was not killed for that.
    let create = limited(
        pod.message("other", &["sh", "-c", "kill -9 $$; sleep 1; exit 1"]),
        16 << 20,
    );
    assert!(!pod.finish(create).0.oom_killed);
}

#[test]
fn processes_are_limited() {
    let mut pod = Pod::new();
    let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done";
    let create = limited(pod.message("web", &["sh", "-c", script]), 64 << 20);
    let (_, lines) = pod.finish(create);
    assert!(lines.iter().any(|l| l.contains("can't fork")), "{lines:?}");
}

#[test]
fn a_memory_limit_that_is_too_small_to_start_is_an_error() {
    let mut pod = Pod::new();
    let create = limited(pod.message("web", &["sleep", "1000"]), 4096);
    let id = create.id.clone();
    match pod.create(create) {
        Err(_) => assert_eq!(pod.list().0, [], "nothing half made"),
        // Some kernels charge so little before execve that it only dies later.
        Ok(_) => match pod.start(&id) {
            Ok(()) | Err(_) => assert_ne!(pod.exited(&id).exit_code, 0),
        },
    }
    let create = pod.message("good", &["true"]);
    assert_eq!(pod.finish(create).0.exit_code, 0);
}

#[test]
fn a_pods_group_is_made_set_and_listed() {
    let pod = Pod::new();
    let limits = ShimResources {
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit: 128 << 20,
        pids_limit: 50,
        ..ShimResources::default()
    };
    pod.groups.create(&pod.uid, &limits).unwrap();
    let group = pod.groups.pod_path(&pod.uid).unwrap().to_string();
    let read = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).unwrap();
    match pod.groups.version() {
        Version::V1 => {
            assert_eq!(
                read(&format!("memory{group}/memory.limit_in_bytes")),
                "134217728\n"
            );
            assert_eq!(read(&format!("cpu{group}/cpu.cfs_quota_us")), "20000\n");
            assert_eq!(read(&format!("pids{group}/pids.max")), "50\n");
            pod.groups
                .create(&pod.uid, &ShimResources::default())
                .unwrap();
            assert_eq!(read(&format!("cpu{group}/cpu.cfs_quota_us")), "-1\n");
            assert_eq!(read(&format!("pids{group}/pids.max")), "max\n");
        }
        Version::V2 => {
            assert_eq!(read(&format!("{group}/memory.max")), "134217728\n");
            assert_eq!(read(&format!("{group}/cpu.max")), "20000 100000\n");
        }
    }
    assert_eq!(pod.groups.list().unwrap(), std::slice::from_ref(&pod.uid));
}

#[test]
fn what_a_dead_shim_leaves_is_killed_and_removed() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sh", "-c", "sleep 1000 & exec sleep 1000"]);
    let id = pod.run(create);
    let pid = pod.list().0[0].pid;
    let watch = pod.wait(pod.client().watch()).unwrap();
    let shim = agent_sys::process::Pidfd::open(pod.shim_pid).unwrap();
    shim.signal(libc::SIGKILL).unwrap();
    let mut watch = watch;
    pod.wait(async {
        while let Ok(Some(state)) = watch.next().await {
            assert_eq!(state.id, id);
        }
    });
    assert!(
        Path::new(&format!("/proc/{pid}")).exists(),
        "the container outlives its shim"
    );
    assert!(pod.groups.kill(&pod.uid).unwrap() >= 1);
    pod.groups.remove(&pod.uid).unwrap();
    assert_eq!(pod.groups.list().unwrap(), Vec::<String>::new());
}

#[test]
fn nothing_of_a_pod_is_alive_once_it_was_killed() {
    let mut pod = Pod::new();
    // It forks while it is killed.
    let script = "i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; wait";
    let create = pod.message("web", &["sh", "-c", script]);
    pod.run(create);
    let processes = || pod.group_file("pids", "web", "cgroup.procs");
    wait_until("some processes", || match processes().lines().count() {
        0..20 => Err(processes()),
        _ => Ok(()),
    });
    assert!(pod.groups.kill(&pod.uid).unwrap() >= 20);
    assert_eq!(processes(), "");
}
