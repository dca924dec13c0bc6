//! What of pods lies on the disk: no environment and no secret; and what is left there
//! of pods that nothing else is known of goes.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use proto::v1;
use proto::v1::change::Change;
use proto::v1::open::What;
use tests_harness::wait_until;

use crate::node::{Node, pod, ready, started_ms};
use crate::reboot::ends_for_its_run;

const SECRET: &str = "hunter2-6f1ab2";

/// Files below a folder that hold the secret, and do not lie on a tmpfs of their own.
fn holding(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let device = fs::metadata(folder).expect("a folder").dev();
    while let Some(next) = folders.pop() {
        // Files come and go while the agent works.
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir() && metadata.dev() == device {
                folders.push(path);
            } else if metadata.is_file()
                && let Ok(bytes) = fs::read(&path)
                && bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes())
            {
                found.push(path);
            }
        }
    }
    found
}

fn secretive(uid: &str, last: u8) -> v1::PodSpec {
    let mut spec = pod(uid, last, "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    spec.containers[0].env = vec![v1::EnvVar {
        name: "PASSWORD".into(),
        value: SECRET.into(),
        expand: false,
    }];
    spec.containers[0].args = vec![format!("--password={SECRET}")];
    spec.containers[0].mounts = vec![v1::VolumeMount {
        volume: "secret".into(),
        mount_path: "/secret".into(),
        ..Default::default()
    }];
    spec.pull_secrets = vec![v1::PullSecret {
        registry: "registry.example".into(),
        username: "user".into(),
        password: SECRET.into(),
    }];
    spec.volumes = vec![v1::Volume {
        name: "secret".into(),
        source: Some(v1::volume::Source::Files(v1::volume::Files {
            files: vec![v1::File {
                path: "key".into(),
                data: SECRET.into(),
                mode: 0o400,
            }],
            tmpfs: true,
            ..Default::default()
        })),
    }];
    spec
}

#[test]
fn no_secret_is_on_the_disk_and_an_agent_that_restarts_has_them_all_the_same() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    node.control
        .push(vec![Change::Pod(secretive("hidden", 60))]);
    let before = node.control.status("hidden", ready);
    let see = |node: &Node, id: &str| {
        let exec = v1::OpenExec {
            pod_uid: "hidden".into(),
            command: vec![
                "sh".into(),
                "-c".into(),
                "echo $PASSWORD; cat /secret/key".into(),
            ],
            ..Default::default()
        };
        let seen = node.control.open(id, What::Exec(exec));
        assert_eq!(seen.exit_code, Some(0), "{seen:?}");
        String::from_utf8_lossy(&seen.output).into_owned()
    };
    assert_eq!(see(&node, "see"), format!("{SECRET}\n{SECRET}"));
    let disk = node.folder.join("lib");
    let record = disk.join("pods/hidden/record");
    wait_until("a record on the disk", || {
        if record.exists() {
            Ok(())
        } else {
            Err("none".into())
        }
    });
    node.saved(2);
    assert_eq!(holding(&disk), Vec::<PathBuf>::new());
    // They are known where they have to be: else this test would find nothing anywhere.
    let memory = holding(&node.folder.join("run"));
    let is_there = |part: &str| memory.iter().any(|path| path.ends_with(part));
    assert!(is_there("pods/hidden"), "{memory:?}");
    assert!(is_there("config.json"), "{memory:?}");

    node.kill();
    node.start();
    node.control.hello(2);
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    let after = node.control.status("hidden", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(see(&node, "again"), format!("{SECRET}\n{SECRET}"));
    node.control.push(vec![Change::PodRemoved("hidden".into())]);
    wait_until("nothing of it in memory", || {
        let left = holding(&node.folder.join("run"));
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    assert_eq!(holding(&disk), Vec::<PathBuf>::new());
}

#[test]
fn no_secret_reaches_the_disk_below_a_run_folder_that_is_unmounted() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    node.control.push(vec![Change::Pod(secretive("first", 62))]);
    let before = node.control.status("first", ready);
    let run = node.folder.join("run");
    umount2(&run, MntFlags::MNT_DETACH).expect("unmount");
    node.control
        .push(vec![Change::Pod(secretive("second", 63))]);
    ends_for_its_run(&mut node);
    assert_eq!(holding(&node.folder), Vec::<PathBuf>::new());
    // No operator has to empty it first.
    node.start();
    node.control.status("second", ready);
    let anew = |s: &v1::PodStatus| ready(s) && started_ms(s) > started_ms(&before);
    node.control.status("first", anew);
    assert_eq!(holding(&node.folder), Vec::<PathBuf>::new());
    let options = agent_sys::mounts::at(&run).expect("mounts");
    let options = options.expect("a mount").options;
    assert!(
        options.split(',').any(|option| option == "noswap"),
        "{options}"
    );
}

#[test]
fn what_is_left_of_an_unknown_pod_goes_with_its_volumes_and_logs() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("stray", 61, "echo said; sleep 1000");
    spec.volumes = vec![v1::Volume {
        name: "data".into(),
        source: Some(v1::volume::Source::EmptyDir(Default::default())),
    }];
    node.control.push(vec![Change::Pod(spec)]);
    node.control.status("stray", ready);
    node.saved(2);
    node.kill();
    // Its records are lost, and the control plane has forgotten it.
    let lib = node.folder.join("lib");
    fs::remove_file(node.folder.join("run/pods/stray")).expect("the record");
    drop(fs::remove_file(lib.join("pods/stray/record")));
    node.control.push(vec![Change::PodRemoved("stray".into())]);
    assert!(lib.join("pods/stray/volumes/data").exists());
    node.start();
    wait_until("nothing to be left", || {
        let of = |folder: PathBuf| {
            let list = fs::read_dir(folder).expect("a folder");
            let paths = list.map(|e| e.expect("an entry").path());
            paths.collect::<Vec<_>>()
        };
        let run = node.folder.join("run");
        let left = [
            of(lib.join("pods")),
            of(lib.join("logs")),
            of(run.join("pods")),
            of(run.join("shim")),
            of(run.join("ns")),
        ]
        .concat();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    // A name that is not of a pod's logs is not ours, and leads to no other folder.
    node.kill();
    let (odd, gone) = (lib.join("logs/a_.."), lib.join("logs/default_gone_gone"));
    fs::create_dir(&odd).expect("a folder");
    fs::create_dir(&gone).expect("a folder");
    node.start();
    wait_until("the logs of an unknown pod to go", || match gone.exists() {
        false => Ok(()),
        true => Err("there".into()),
    });
    assert!(odd.exists() && node.folder.join("run/lock").exists());
}
