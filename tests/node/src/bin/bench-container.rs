//! Times of a container's whole life: made, started, ended, removed.
//!
//! Prints one JSON object a line: `container.floor` (namespaces and an exec, nothing
//! else), `container.shim` (through a running foil-shim), `container.crun` and
//! `container.runc` (their command lines, where installed), each with and without the
//! seccomp filter, all on the same root file system and spec. The runs are interleaved,
//! so that a change of the machine's speed falls on all. `cargo xtask bench` calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use agent_sys::shim::Watch;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use proto::v1::ShimCreate;
use proto::v1::shim_container::State;
use serde_json::{Value, json};
use tests_node::pod::Pod;

/// The shim's own table, so that the others get the same filter.
#[path = "../../../../agent/shim/src/profile.rs"]
#[expect(dead_code, reason = "what is not of the profile but of the compiler")]
mod profile;

const ROUNDS: usize = 50;

/// Runs before the first one that counts.
const WARM_UP: usize = 3;

struct Case {
    id: &'static str,
    seccomp: bool,
    run: Box<dyn FnMut(&mut Pod)>,
    samples: Vec<Duration>,
}

fn main() {
    let mut pod = Pod::new();
    // After the pod's namespaces are pinned, so that they are there too.
    let elsewhere = Rc::new(Elsewhere::new());
    let mut cases = vec![case("container.floor", false, Box::new(floor))];
    for seccomp in [true, false] {
        let watch = pod.wait(pod.client().watch()).expect("watch");
        let mut watch = Some(watch);
        let run = move |pod: &mut Pod| {
            watch = watch.take().map(|watch| through_shim(pod, seccomp, watch));
        };
        cases.push(case("container.shim", seccomp, Box::new(run)));
        for (id, program) in [("container.crun", "crun"), ("container.runc", "runc")] {
            let Some(program) = installed(program) else {
                eprintln!("{program} is not installed: no {id}");
                continue;
            };
            let bundle = bundle(&mut pod, id, seccomp);
            let elsewhere = Rc::clone(&elsewhere);
            let run = move |pod: &mut Pod| through_cli(pod, &elsewhere, &program, &bundle);
            cases.push(case(id, seccomp, Box::new(run)));
        }
    }
    for round in 0..WARM_UP + ROUNDS {
        for case in &mut cases {
            let start = Instant::now();
            (case.run)(&mut pod);
            let took = start.elapsed();
            if round >= WARM_UP {
                case.samples.push(took);
            }
        }
    }
    for case in cases {
        println!("{}", line(case));
    }
}

/// Runs commands where version 2 is not mounted beside version 1: crun refuses such
/// machines. A thread with a mount namespace of its own.
struct Elsewhere {
    commands: Sender<Command>,
    results: Receiver<bool>,
}

impl Elsewhere {
    fn new() -> Self {
        let (commands, todo) = channel::<Command>();
        let (done, results) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).expect("mount namespace");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            match umount("/sys/fs/cgroup/unified") {
                // Not such a machine.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(e) => panic!("unmount cgroup2 here: {e}"),
            }
            for mut command in todo {
                let worked = command.status().is_ok_and(|s| s.success());
                done.send(worked).expect("somebody waits");
            }
        });
        Self { commands, results }
    }

    fn run(&self, command: Command) {
        self.commands.send(command).expect("thread");
        assert!(self.results.recv().expect("thread"), "the runtime failed");
    }
}

fn case(id: &'static str, seccomp: bool, run: Box<dyn FnMut(&mut Pod)>) -> Case {
    Case {
        id,
        seccomp,
        run,
        samples: Vec::new(),
    }
}

fn line(case: Case) -> Value {
    let mut sorted: Vec<f64> = case.samples.iter().map(|s| s.as_secs_f64() * 1e3).collect();
    let samples = sorted.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |part: usize| sorted[(sorted.len() - 1) * part / 100];
    json!({
        "id": case.id, "unit": "ms", "n": sorted.len(), "seccomp": case.seccomp,
        "min": at(0), "median": at(50), "p99": at(99), "samples": samples,
    })
}

/// What no runtime can do without: the namespaces, a process in them, its end.
fn floor(pod: &mut Pod) {
    let program = pod.rootfs().join("bin/true");
    let run = move || {
        let namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        unshare(namespaces).expect("namespaces");
        assert!(Command::new(program).status().expect("true").success());
    };
    thread::spawn(run).join().expect("floor");
}

fn through_shim(pod: &mut Pod, seccomp: bool, mut watch: Watch) -> Watch {
    // A name for each case: the watch of one sees the other's containers as well.
    let name = if seccomp { "filtered" } else { "open" };
    let create = ShimCreate {
        seccomp,
        ..pod.message(name, &["/bin/true"])
    };
    let id = pod.run(create);
    pod.wait(async {
        loop {
            let state = watch.next().await.expect("event").expect("a living shim");
            if state.id == id && state.state() == State::Exited {
                assert_eq!(state.exit_code, 0);
                return;
            }
        }
    });
    pod.delete(&id).expect("delete");
    watch
}

fn through_cli(pod: &mut Pod, elsewhere: &Elsewhere, program: &Path, bundle: &Path) {
    let mut command = Command::new(program);
    command
        .arg("--root")
        .arg(pod.folder().join("cli"))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("bench-{}", std::process::id()))
        .stdin(Stdio::null());
    elsewhere.run(command);
}

fn installed(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}

/// The spec that the shim makes for the same container, for the others to run.
fn bundle(pod: &mut Pod, id: &str, seccomp: bool) -> PathBuf {
    let create = pod.message("spec", &["/bin/true"]);
    let (name, capabilities) = (create.id.clone(), create.capabilities.clone());
    let bundles = pod.layout.shim(&pod.uid).join("state");
    let ours = bundles.join(format!("{name}.bundle/config.json"));
    pod.create(create).expect("create");
    let text = fs::read(ours).expect("the shim's spec");
    pod.delete(&name).expect("delete");
    let mut spec: Value = serde_json::from_slice(&text).expect("the shim's spec");
    // The shim's executor narrows these; the others have no such step.
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(capabilities);
    }
    spec["linux"]["cgroupsPath"] = json!(pod.group(id));
    if seccomp {
        spec["linux"]["seccomp"] = filter(&capabilities);
    }
    let bundle = pod.folder().join(format!("{id}-{seccomp}"));
    fs::create_dir_all(&bundle).expect("bundle");
    fs::write(bundle.join("config.json"), spec.to_string()).expect("bundle");
    bundle
}

/// The profile in the form of the OCI runtime spec.
fn filter(capabilities: &[String]) -> Value {
    let allowed = |name: &str| capabilities.iter().any(|c| c == name);
    let mut names: Vec<&str> = profile::ALWAYS.to_vec();
    for (capability, more) in profile::WITH_CAPABILITY {
        if allowed(capability) {
            names.extend_from_slice(more);
        }
    }
    let condition = |name: &str, op: &str, value: u64, second: u64| {
        json!({
            "names": [name], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "op": op, "value": value, "valueTwo": second}],
        })
    };
    let mut rules = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        condition("socket", "SCMP_CMP_NE", profile::REFUSED_SOCKET_FAMILY, 0),
        condition("clone", "SCMP_CMP_MASKED_EQ", profile::NAMESPACE_FLAGS, 0),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ];
    for value in profile::PERSONALITIES {
        rules.push(condition("personality", "SCMP_CMP_EQ", value, 0));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}
