//! Pods whose spec changes while they run or begin, and sidecars that never start.

use agent_sys::image::{ImageStore, Reference};
use proto::v1;
use proto::v1::change::Change;
use proto::v1::container_state::State;
use proto::v1::open::What;
use tests_harness::{image, wait_until};
use tokio::runtime::Runtime;

use crate::node::{Node, pod, ready};

const LIVES: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A second name for busybox.
fn import(node: &Node, name: &str) {
    let layout = image::busybox_layout(&node.folder.join("again"));
    let store = ImageStore::open(&node.folder.join("lib/images")).expect("image store");
    let reference = Reference::parse(name).expect("reference");
    Runtime::new()
        .expect("runtime")
        .block_on(store.import(&layout, Some(&reference)))
        .expect("import");
}

#[test]
fn an_image_that_changes_restarts_its_container_and_no_other() {
    let mut node = Node::new();
    import(&node, "other");
    node.start();
    node.push_config();
    for (last, policy) in [(80, "Always"), (81, "Never")] {
        let uid = format!("changed-{last}");
        let mut spec = pod(&uid, last, LIVES);
        spec.restart_policy = policy.into();
        let mut beside = spec.containers[0].clone();
        beside.name = "beside".into();
        spec.containers.push(beside);
        node.control.push(vec![Change::Pod(spec.clone())]);
        let before = node.control.status(&uid, ready);
        spec.generation += 1;
        spec.containers[0].image = "other".into();
        node.control.push(vec![Change::Pod(spec)]);
        let after = node.control.status(&uid, |s| {
            ready(s) && s.containers[0].image == "other" && s.containers[0].restart_count == 1
        });
        assert_eq!(after.containers[1].state, before.containers[1].state);
        let last = after.containers[0].last_state.clone();
        let Some(State::Terminated(last)) = last.and_then(|s| s.state) else {
            panic!("{after:#?}");
        };
        assert_eq!(last.exit_code, 0, "it was asked to end");
    }
}

#[test]
fn a_config_map_that_changes_while_a_pod_begins_is_not_lost() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("conf", 82, LIVES);
    let data = |n: u64| {
        let files = v1::volume::Files {
            files: vec![v1::File {
                path: "key".into(),
                data: n.to_string().into_bytes(),
                mode: 0o644,
            }],
            ..Default::default()
        };
        vec![v1::Volume {
            name: "conf".into(),
            source: Some(v1::volume::Source::Files(files)),
        }]
    };
    spec.containers[0].mounts = vec![v1::VolumeMount {
        volume: "conf".into(),
        mount_path: "/conf".into(),
        ..Default::default()
    }];
    // One change after the other: some come while the files of one before are written.
    for n in 1..=200 {
        spec.generation = n;
        spec.volumes = data(n);
        node.control.push(vec![Change::Pod(spec.clone())]);
    }
    node.control.status("conf", ready);
    let mut asked = 0;
    wait_until("the last change", || {
        asked += 1;
        let exec = v1::OpenExec {
            pod_uid: "conf".into(),
            command: vec!["cat".into(), "/conf/key".into()],
            ..Default::default()
        };
        let seen = node
            .control
            .open(&format!("conf-{asked}"), What::Exec(exec));
        match String::from_utf8_lossy(&seen.output).as_ref() {
            "200" => Ok(()),
            seen => Err(seen.to_owned()),
        }
    });
}

#[test]
fn a_sidecar_that_never_starts_holds_the_pod_back() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("held", 83, LIVES);
    let mut sidecar = pod("x", 0, "").containers.remove(0);
    sidecar.name = "side".into();
    sidecar.restart_policy = "Always".into();
    sidecar.command = vec!["/no/such/program".into()];
    spec.init_containers = vec![sidecar];
    node.control.push(vec![Change::Pod(spec)]);
    let status = node
        .control
        .status("held", |s| s.init_containers[0].restart_count >= 3);
    let main = status.containers[0].state.clone().and_then(|s| s.state);
    let Some(State::Waiting(main)) = main else {
        panic!("{status:#?}");
    };
    assert_eq!(main.reason, "PodInitializing");
}
