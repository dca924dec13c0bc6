//! Volumes and container roots: what a container's root may do to them, and what the node's
//! root does below them meanwhile.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use agent_sys::volume;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::v1;
use proto::v1::ShimMount;
use proto::v1::change::Change;
use proto::v1::open::What;
use proto::v1::volume::{Files, Source};
use tests_harness::wait_until;

use crate::node::{self, Node, ready};
use crate::pod::Pod;

fn file(path: &str, data: String) -> v1::File {
    v1::File {
        path: path.into(),
        data: data.into_bytes(),
        mode: 0o644,
    }
}

fn files(files: Vec<v1::File>, tmpfs: bool) -> v1::Volume {
    v1::Volume {
        name: "v".into(),
        source: Some(Source::Files(Files {
            files,
            tmpfs,
            error: String::new(),
        })),
    }
}

/// A folder of the node that no container has, and what it was like.
struct Outside {
    folder: PathBuf,
    before: Vec<String>,
}

impl Outside {
    fn new(pod: &Pod) -> Self {
        let folder = pod.folder().join("outside");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("kept"), "untouched").unwrap();
        let only_root = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&folder, only_root).unwrap();
        fs::set_permissions(folder.join("kept"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = look(&folder);
        Self { folder, before }
    }

    fn assert_untouched(&self, what: &str) {
        assert_eq!(look(&self.folder), self.before, "{what}");
        let kept = fs::read_to_string(self.folder.join("kept")).unwrap();
        assert_eq!(kept, "untouched", "{what}");
    }
}

/// Names, modes and owners of a folder and what is in it.
fn look(folder: &Path) -> Vec<String> {
    let one = |path: &Path| {
        let m = fs::symlink_metadata(path).unwrap();
        format!("{path:?} {:o} {}:{}", m.mode(), m.uid(), m.gid())
    };
    let entries = fs::read_dir(folder).unwrap();
    let mut found: Vec<String> = entries.map(|e| one(&e.unwrap().path())).collect();
    found.sort();
    found.push(one(folder));
    found
}

/// A container that has the volume writable, as one with CAP_SYS_ADMIN can have it.
fn run_with(pod: &mut Pod, volume: &Path, script: &str) -> String {
    let mut create = pod.message("hostile", &["sh", "-c", script]);
    create.mounts.push(ShimMount {
        source: volume.display().to_string(),
        destination: "/v".into(),
        r#type: "bind".into(),
        options: ["rbind", "rprivate", "rw"].map(str::to_owned).to_vec(),
    });
    pod.run(create)
}

/// Undoes the mounts before the pod's folder goes.
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(errors) = volume::remove_pod_dir(&self.0) {
            eprintln!("{errors:?}");
        }
    }
}

#[test]
fn an_update_is_not_led_elsewhere_by_what_a_container_left() {
    let mut pod = Pod::new();
    let outside = Outside::new(&pod);
    let elsewhere = outside.folder.display().to_string();
    let dir = pod.layout.pod(&pod.uid);
    let _made = Made(dir.clone());
    for tmpfs in [false, true] {
        let version = |n: usize| {
            let files_of = vec![file("a", format!("{n}")), file("d/e", format!("{n}"))];
            v1::Volume {
                name: format!("v-{tmpfs}"),
                ..files(files_of, tmpfs)
            }
        };
        let path = volume::make(&dir, &version(0), Some(7)).unwrap();
        let id = run_with(&mut pod, &path, "exec sleep 1000");
        let tricks = [
            "rm ..data; ln -s ELSEWHERE ..data".to_owned(),
            "rm ..data; mkdir -p ..data/x/y; ln -s ELSEWHERE ..data/z".to_owned(),
            "ln -s ELSEWHERE ..data_tmp".to_owned(),
            "mkdir -p ..data_tmp/x".to_owned(),
            "rm a d; ln -s ELSEWHERE/kept a; ln -s ELSEWHERE d".to_owned(),
            "rm a; mkfifo a; rm d; mkdir d; ln -s ELSEWHERE d/e".to_owned(),
            "v=$(readlink ..data); rm -r $v/d; ln -s ELSEWHERE $v/d".to_owned(),
            "v=$(readlink ..data); rm $v/a; mkfifo $v/a".to_owned(),
            "v=$(readlink ..data); rm -r $v; ln -s ELSEWHERE $v".to_owned(),
            "ln -s ELSEWHERE ..2020_01_01_00_00_00.1; ln -s ELSEWHERE other".to_owned(),
            "rm -rf ..data ..2*; ln -s ../../../outside ..data".to_owned(),
            "i=0; while [ $i -lt 100 ]; do mkdir -p x; cd x; i=$((i+1)); done".to_owned(),
        ];
        for (n, trick) in tricks.iter().enumerate() {
            let script = format!("cd /v && {{ {}; }}", trick.replace("ELSEWHERE", &elsewhere));
            let (code, output) = pod.exec(&id, &["sh", "-c", &script]).unwrap();
            assert_eq!(code, 0, "{trick}: {output}");
            // Not a change for the agent, and one.
            for n in [n, n + 1] {
                volume::make(&dir, &version(n), Some(7)).unwrap_or_else(|e| panic!("{trick}: {e}"));
                outside.assert_untouched(trick);
                for name in ["a", "d/e"] {
                    let text = fs::read_to_string(path.join(name)).unwrap();
                    assert_eq!(text, n.to_string(), "{trick}: {name}");
                }
                let count = fs::read_dir(&path).unwrap().count();
                assert_eq!(count, 4, "{trick}: nothing of the container's is left");
            }
        }
        pod.kill(&id, libc::SIGKILL, false).unwrap();
        pod.exited(&id);
        pod.delete(&id).unwrap();
    }
}

#[test]
fn an_update_is_not_led_elsewhere_while_it_is_made() {
    let mut pod = Pod::new();
    let outside = Outside::new(&pod);
    let dir = pod.layout.pod(&pod.uid);
    let _made = Made(dir.clone());
    // Many in one folder, so that there is time to put a link in its place.
    let version = |n: usize| {
        let names = 0..400;
        files(
            names
                .map(|i| file(&format!("d/{i}"), format!("{n}")))
                .collect(),
            true,
        )
    };
    let path = volume::make(&dir, &version(0), None).unwrap();
    let script = "cd /v; while :; do for v in ..2*; do \
                  if [ -d $v/d ] && [ ! -L $v/d ] && mv $v/d $v/moved; then ln -s ELSEWHERE $v/d; fi; \
                  done; done 2>/dev/null";
    let script = script.replace("ELSEWHERE", &outside.folder.display().to_string());
    let id = run_with(&mut pod, &path, &script);
    let mut refused = 0;
    for n in 1..=100 {
        // The container may spoil what it is about to get: that is told, and tried again.
        refused += u32::from(volume::make(&dir, &version(n), None).is_err());
        outside.assert_untouched(&format!("update {n}"));
    }
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    volume::make(&dir, &version(0), None).unwrap();
    assert_eq!(fs::read_to_string(path.join("d/399")).unwrap(), "0");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "{refused} refused");
}

#[test]
fn what_the_node_writes_is_read_only_and_devices_open_nothing() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = node::pod("rooms", 5, "exec sleep 1000");
    let text = |data: &str| vec![file("key", data.into())];
    let empty = v1::Volume {
        name: "empty".into(),
        source: Some(Source::EmptyDir(v1::volume::EmptyDir::default())),
    };
    spec.volumes = vec![files(text("one"), false), empty];
    let mount = |volume: &str, path: &str| v1::VolumeMount {
        volume: volume.into(),
        mount_path: path.into(),
        ..Default::default()
    };
    // Nothing in the manifest says read-only.
    spec.containers[0].mounts = vec![mount("v", "/config"), mount("empty", "/empty")];
    node.control.push(vec![Change::Pod(spec.clone())]);
    node.control.status("rooms", ready);
    let exec = |key: &str, script: &str| {
        let open = What::Exec(v1::OpenExec {
            pod_uid: "rooms".into(),
            container: "main".into(),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..Default::default()
        });
        let done = node.control.open(key, open);
        String::from_utf8_lossy(&done.output).into_owned()
    };
    let output = exec(
        "writes",
        // One stream, as nothing orders the ends of two.
        "exec 2>&1; echo x > /config/key; ln -s / /config/x; rm /config/..data; \
         for at in / /empty/; do mknod ${at}null c 1 3 && cat ${at}null; done; \
         echo x > /empty/file && cat /config/key /dev/null",
    );
    let count = |text: &str| output.matches(text).count();
    assert_eq!(count("Read-only file system"), 3, "{output}");
    assert_eq!(count("Permission denied"), 2, "{output}");
    assert!(output.ends_with("one"), "{output}");

    // The node itself goes on to write it; a key that was used is used again.
    assert_eq!(exec("reads", "cat /config/key"), "one");
    spec.generation += 1;
    spec.volumes[0] = files(text("two"), false);
    node.control.push(vec![Change::Pod(spec)]);
    tests_harness::wait_until("the update", || match exec("reads", "cat /config/key") {
        text if text == "two" => Ok(()),
        text => Err(text),
    });
}

/// A file system whose server does not answer, as NFS of a server that is gone.
struct Unanswered {
    /// The server's end: while it is open, the kernel waits for answers.
    server: Option<File>,
    at: PathBuf,
}

impl Unanswered {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse");
        let server = server.unwrap();
        let fd = server.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("foil"), &at, Some("fuse"), flags, Some(&*options)).unwrap();
        Self {
            server: Some(server),
            at,
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // Ends what waits.
        drop(self.server.take());
        umount2(&self.at, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_host_path_that_does_not_answer_holds_up_no_other_pod() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let dead = Unanswered::mount(node.folder.join("dead"));
    let alive = node.folder.join("alive");
    fs::create_dir(&alive).unwrap();
    let with = |uid: &str, last, path: &Path, sub_path: &str| {
        let mut spec = node::pod(uid, last, "exec sleep 1000");
        spec.volumes = vec![v1::Volume {
            name: "host".into(),
            source: Some(Source::HostPath(v1::volume::HostPath {
                path: path.display().to_string(),
                r#type: "Directory".into(),
            })),
        }];
        spec.containers[0].mounts = vec![v1::VolumeMount {
            volume: "host".into(),
            mount_path: "/host".into(),
            sub_path: sub_path.into(),
            ..Default::default()
        }];
        Change::Pod(spec)
    };
    // More than the agent has threads for blocking calls; several paths, and one.
    let several = (0..20).map(|n| (format!("dead-{n}"), dead.at.join(n.to_string())));
    let one = (20..40).map(|n| (format!("dead-{n}"), dead.at.clone()));
    let pods = several.chain(one).enumerate();
    let pods = pods.map(|(n, (uid, path))| with(&uid, 50 + n as u8, &path, ""));
    node.control.push(pods.collect());
    for uid in ["dead-0", "dead-39"] {
        wait_until("the event", || match node.control.reasons(uid) {
            reasons if reasons.contains(&"FailedMount".to_owned()) => Ok(()),
            reasons => Err(format!("{reasons:?}")),
        });
    }
    node.control.push(vec![with("alive", 5, &alive, "sub")]);
    node.control.status("alive", ready);
    assert!(alive.join("sub").is_dir());
    let tasks = format!("/proc/{}/task", node.agent.as_ref().unwrap().pid());
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    // Of 21 paths, each tried again and again: as many as one file system may hold.
    wait_until("16 threads", || {
        let names = fs::read_dir(&tasks)
            .unwrap()
            .map(|task| name(task.unwrap()));
        match names
            .filter(|name| matches!(name.as_deref(), Ok("host-path\n")))
            .count()
        {
            16 => Ok(()),
            waiting => Err(waiting.to_string()),
        }
    });
}
