//! A node that starts anew: its state folder in other namespaces, under another boot.

use std::fs;
use std::path::Path;

use agent_sys::cgroup::Groups;
use agent_sys::image::rootfs;
use agent_sys::shim;
use agent_sys::state::Layout;
use agent_sys::tmpfs;
use proto::Message as _;
use proto::v1;
use proto::v1::change::Change;
use proto::v1::open::What;
use tests_harness::wait_until;

use crate::node::{Node, pod, ready, started_ms, stopped};

/// Gives the pod the volume `name`, and its mount at `/name`.
fn empty_dir(spec: &mut v1::PodSpec, name: &str, source: v1::volume::EmptyDir) -> v1::VolumeMount {
    spec.volumes = vec![v1::Volume {
        name: name.into(),
        source: Some(v1::volume::Source::EmptyDir(source)),
    }];
    v1::VolumeMount {
        volume: name.into(),
        mount_path: format!("/{name}"),
        ..Default::default()
    }
}

/// Whether all containers of a pod are in its record on the disk.
fn recorded(node: &Node, uid: &str) -> Result<(), String> {
    let layout = Layout::new(node.folder.join("lib"), node.folder.join("run"));
    let bytes = fs::read(layout.pod(uid).join("record")).map_err(|e| e.to_string())?;
    let record = v1::PodRecord::decode(&bytes[..]).map_err(|e| e.to_string())?;
    let mut containers = record.containers.iter();
    if containers.all(|c| c.running.is_some() || c.ended.is_some()) {
        Ok(())
    } else {
        Err(format!("{record:?}"))
    }
}

/// The machine of a node loses power, and what was on its disk comes up in another set
/// of namespaces. The boot id of this machine stays, so that of the records is changed.
fn reboot(mut before: Node, uids: &[&str]) -> Node {
    let lib = before.folder.join("lib");
    let layout = Layout::new(&lib, before.folder.join("run"));
    for uid in uids {
        wait_until("a record of what runs, on disk", || recorded(&before, uid));
    }
    before.kill();
    let groups = Groups::open(&format!("/{}", before.name)).expect("cgroups");
    for uid in uids {
        shim::kill(&layout, uid).expect("the end of a shim");
        groups.kill(uid).expect("the end of its containers");
        let path = layout.pod(uid).join("record");
        let bytes = fs::read(&path).expect("a record");
        let mut record = v1::PodRecord::decode(&bytes[..]).expect("a pod's record");
        assert!(!record.boot_id.is_empty());
        record.boot_id = "another boot".into();
        fs::write(&path, record.encode_to_vec()).expect("a record");
    }
    rootfs::unmount_below(&lib).expect("no mounts");
    let after = Node::new();
    let new = after.folder.join("lib");
    fs::remove_dir_all(&new).expect("remove an empty state folder");
    fs::rename(&lib, &new).expect("move the state folder");
    // It is for another control plane.
    fs::remove_dir_all(new.join("pki")).expect("the certificate");
    after
}

/// What lies under `run` goes while the node is up: its tmpfs is unmounted, or it is
/// emptied by hand.
fn lose_run(node: &Node) {
    let run = node.folder.join("run");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    // The tmpfs is listed before the pins in it, and shims that run have files open there.
    for path in below.rev().filter(|path| Path::new(path).starts_with(&run)) {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    }
    fs::remove_dir_all(&run).expect("remove what is in memory");
}

/// The agent ends by itself, and says what to do.
pub(crate) fn ends_for_its_run(node: &mut Node) {
    let mut agent = node.agent.take().expect("an agent that runs");
    assert_eq!(agent.wait(), 1);
    let said = agent.tail(5);
    let words = [
        "was unmounted or removed while it was in use",
        "start foil-agent again",
    ];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn a_pod_whose_run_folder_is_lost_begins_anew_and_nothing_of_it_runs_twice() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("bereft", 62, "echo $$ > /seen/main; exec sleep 1000");
    let mount = empty_dir(&mut spec, "seen", v1::volume::EmptyDir::default());
    let mut init = pod("x", 0, "echo begun >> /seen/init").containers.remove(0);
    init.name = "first".into();
    init.mounts = vec![mount.clone()];
    spec.init_containers = vec![init];
    spec.containers[0].mounts = vec![mount];
    let mut once = pod("over", 63, "exit 0");
    once.restart_policy = "Never".into();
    node.control
        .push([spec.clone(), once].map(Change::Pod).to_vec());
    let before = node.control.status("bereft", ready);
    node.control.status("over", |s| s.phase == "Succeeded");
    let group = format!("/{}", node.name);
    let groups = Groups::open(&group).expect("cgroups");
    wait_until("a record of what runs, on disk", || {
        recorded(&node, "bereft")
    });

    node.kill();
    lose_run(&node);
    node.start();
    let anew = |s: &v1::PodStatus| ready(s) && started_ms(s) > started_ms(&before);
    let status = node.control.status("bereft", anew);
    assert_eq!(status.init_containers[0].restart_count, 1, "{status:#?}");
    assert_eq!(status.containers[0].restart_count, 1, "{status:#?}");
    let exec = v1::OpenExec {
        pod_uid: "bereft".into(),
        command: vec!["cat".into(), "/seen/init".into()],
        ..Default::default()
    };
    let seen = node.control.open("cat", What::Exec(exec));
    assert_eq!(String::from_utf8_lossy(&seen.output), "begun\nbegun\n");
    let reasons = node.control.reasons("bereft");
    assert!(
        reasons.contains(&"SandboxChanged".to_owned()),
        "{reasons:?}"
    );
    // One shim, one container, and what has ended is as it was.
    let layout = Layout::new(node.folder.join("lib"), node.folder.join("run"));
    assert_eq!(shim::kill(&layout, "bereft").expect("its shim"), 1);
    groups.kill("bereft").expect("what it left");
    node.control.status("over", |s| s.phase == "Succeeded");
    let reasons = node.control.reasons("over");
    assert!(
        !reasons.contains(&"SandboxChanged".to_owned()),
        "{reasons:?}"
    );
}

#[test]
fn an_agent_whose_run_folder_is_lost_ends_and_the_next_one_begins_its_pods_anew() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let command = "while [ ! -e /seen/go ]; do sleep 0.1; done; rm /seen/go";
    let mut spec = pod("robbed", 64, command);
    let mount = empty_dir(&mut spec, "seen", v1::volume::EmptyDir::default());
    let mut init = pod("x", 0, "true").containers.remove(0);
    init.name = "first".into();
    spec.init_containers = vec![init];
    spec.containers[0].mounts = vec![mount];
    node.control.push(vec![Change::Pod(spec.clone())]);
    let before = node.control.status("robbed", ready);
    lose_run(&node);
    // Its container ends, and the next one cannot join what is not there.
    let layout = Layout::new(node.folder.join("lib"), node.folder.join("run"));
    fs::write(layout.volume("robbed", "seen").join("go"), "").expect("a file");
    ends_for_its_run(&mut node);
    node.start();
    let anew = |s: &v1::PodStatus| ready(s) && started_ms(s) > started_ms(&before);
    let status = node.control.status("robbed", anew);
    assert_eq!(status.init_containers[0].restart_count, 1, "{status:#?}");
    let reasons = node.control.reasons("robbed");
    assert!(
        reasons.contains(&"SandboxChanged".to_owned()),
        "{reasons:?}"
    );
    node.control.push(vec![stopped(spec, 1)]);
    node.control.gone("robbed");
    assert_eq!(shim::kill(&layout, "robbed").expect("no shim"), 0);
}

fn files_of(node: &Node, folder: &str) -> Vec<String> {
    let list = fs::read_dir(node.folder.join(folder));
    let entries = list.into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn after_a_reboot_init_containers_run_again_and_old_things_are_collected() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("filled", 60, "cat /cache/made; sleep 1000");
    let memory = v1::volume::EmptyDir {
        memory: true,
        size_limit_bytes: 1 << 20,
    };
    let mount = empty_dir(&mut spec, "cache", memory);
    let mut init = pod("x", 0, "echo made > /cache/made").containers.remove(0);
    init.name = "fill".into();
    init.mounts = vec![mount.clone()];
    spec.init_containers = vec![init];
    spec.containers[0].mounts = vec![mount];
    let mut once = pod("once", 61, "sleep 1000");
    once.restart_policy = "Never".into();
    let pods = [spec, once].map(Change::Pod).to_vec();
    node.control.push(pods.clone());
    node.control.status("filled", ready);
    node.control.status("once", ready);

    let mut node = reboot(node, &["filled", "once"]);
    // Left by a pod whose record was lost.
    let run = node.folder.join("run");
    fs::create_dir(&run).expect("a folder");
    tmpfs::keep_in_memory(&run).expect("a tmpfs");
    for folder in ["lib/pods/stray/volumes/data", "run/shim/stray/state"] {
        fs::create_dir_all(node.folder.join(folder)).expect("a folder");
    }
    node.push_config();
    node.control.push(pods);
    node.start();
    let status = node.control.status("filled", ready);
    assert_eq!(status.init_containers[0].restart_count, 1, "{status:#?}");
    assert_eq!(status.containers[0].restart_count, 1, "{status:#?}");
    let exec = v1::OpenExec {
        pod_uid: "filled".into(),
        command: vec!["cat".into(), "/cache/made".into()],
        ..Default::default()
    };
    let seen = node.control.open("cat", What::Exec(exec));
    assert_eq!(String::from_utf8_lossy(&seen.output), "made\n");
    // What was not to be run twice is not.
    let status = node.control.status("once", |s| s.phase == "Failed");
    assert_eq!(status.containers[0].restart_count, 0);
    wait_until("old things to be collected", || {
        let bundles = files_of(&node, "lib/pods/filled/containers");
        let shims = files_of(&node, "run/shim");
        if bundles == ["filled_main_1"] && shims == ["filled"] {
            return Ok(());
        }
        Err(format!("{bundles:?} {shims:?}"))
    });
}
