//! The real agent against a control plane of a few lines: a pod's whole life, the
//! agent's death in the middle of it, and what cannot be had.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use proto::v1;
use proto::v1::change::Change;
use proto::v1::container_state::State;
use proto::v1::open::What;
use tests_harness::{process, wait_until};

use crate::control::TOKEN;
use crate::node::{Node, ended, pod, ready, started_ms, stopped, waits};

#[test]
fn a_pod_lives_through_the_death_of_its_agent() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let spec = pod(
        "life",
        5,
        "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done",
    );
    node.control.push(vec![Change::Pod(spec.clone())]);
    let before = node.control.status("life", ready);
    assert_eq!(before.pod_ips, ["10.244.1.5"]);

    // From the node, over the veth and the programs.
    let mut ping = node.netns.command("/bin/busybox");
    let ping = process::run(ping.args(["ping", "-c1", "-W5", "10.244.1.5"]));
    assert_eq!(ping.code, 0, "{}{}", ping.stdout, ping.stderr);
    let logs = node.control.open(
        "logs",
        What::Logs(v1::OpenLogs {
            pod_uid: "life".into(),
            ..Default::default()
        }),
    );
    assert_eq!(String::from_utf8_lossy(&logs.output), "begun\n");
    let exec = node.control.open(
        "exec",
        What::Exec(v1::OpenExec {
            pod_uid: "life".into(),
            container: "main".into(),
            command: vec!["sh".into(), "-c".into(), "hostname; exit 7".into()],
            ..Default::default()
        }),
    );
    assert_eq!(
        (String::from_utf8_lossy(&exec.output).trim(), exec.exit_code),
        ("life", Some(7))
    );

    node.saved(2);
    node.kill();
    node.start();
    let hello = node.control.hello(2);
    assert_eq!((hello.cluster_id.as_str(), hello.revision), ("test", 2));
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    let after = node.control.status("life", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);

    // The control plane goes away and comes back: nothing is lost in between.
    node.control.hang_up();
    node.control.hello(3);

    node.control.push(vec![stopped(spec, 30)]);
    node.control.gone("life");
    node.control.push(vec![Change::PodRemoved("life".into())]);
    let links = node.netns.ip(&["-o", "link"]);
    assert!(!links.contains(&agent_link("life")), "{links}");
}

#[test]
fn a_certificate_is_renewed_before_it_ends_and_no_pod_notices() {
    let mut node = Node::new();
    node.control.certificates_end_after(Duration::from_secs(6));
    node.start();
    node.push_config();
    let spec = pod("renewed", 5, "while :; do sleep 0.1; done");
    node.control.push(vec![Change::Pod(spec)]);
    let before = node.control.status("renewed", ready);
    // Each is asked for with the one before, and opens a stream of its own.
    node.control.hello(4);
    assert!(node.control.renewals() >= 3);
    // What is on disk is good as well: the token is not asked for again.
    node.kill();
    node.configure("not a token", &node.control.ca_hash);
    let count = node.control.hellos();
    node.start();
    node.control.hello(count + 1);
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    let after = node.control.status("renewed", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);
}

/// Its Node object was deleted, and an operator put another token into the configuration.
#[test]
fn a_refused_certificate_is_replaced_with_the_token_and_no_pod_notices() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let spec = pod("stays", 5, "while :; do sleep 0.1; done");
    node.control.push(vec![Change::Pod(spec)]);
    let before = node.control.status("stays", ready);
    node.kill();
    node.configure("not a token", &node.control.ca_hash);
    let count = node.control.hellos();
    node.start();
    node.control.hello(count + 1);
    let count = node.control.hellos();
    // The token is refused as well: it goes on asking, and its pods run.
    node.control.refuse_certificates();
    wait_until("the agent to say so", || {
        let log = fs::read_to_string(node.log()).unwrap();
        if log.contains("and the join token is: ") {
            Ok(())
        } else {
            Err(log)
        }
    });
    node.kill();
    node.configure(TOKEN, &node.control.ca_hash);
    node.start();
    node.control.hello(count + 1);
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    let after = node.control.status("stays", ready);
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);
}

/// The host's end of a pod's link, by the first ten digits of the uid's hash.
pub(crate) fn agent_link(uid: &str) -> String {
    use sha2::{Digest, Sha256};
    format!("foil{}", &hex::encode(Sha256::digest(uid))[..10])
}

#[test]
fn what_cannot_run_says_why_in_kubernetes_words() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let crash = pod("crash", 6, "exit 3");
    let mut image = pod("image", 7, "true");
    image.containers[0].image = "nothing-of-that-name".into();
    let mut command = pod("command", 8, "");
    command.containers[0].command = vec!["/no/such/program".into()];
    let mut config = pod("config", 9, "true");
    config.containers[0].config_error = "configmap \"x\" not found".into();
    let mut once = pod("once", 10, "echo last words > /dev/termination-log; exit 4");
    once.restart_policy = "Never".into();
    let bad = pod("../etc", 11, "true");
    let mut stopped = bad.clone();
    stopped.stop_grace_seconds = Some(30);
    let limited = |uid, last, command, bytes| {
        let mut spec = pod(uid, last, command);
        spec.restart_policy = "Never".into();
        spec.containers[0].resources = Some(v1::Resources {
            memory_limit_bytes: bytes,
            memory_request_bytes: bytes,
            ..Default::default()
        });
        spec
    };
    let tiny = limited("tiny", 12, "true", 32 << 10);
    let hungry = limited("hungry", 13, "tail /dev/zero", 16 << 20);
    let pods = [crash, image, command, config, once, bad, tiny, hungry];
    let revision = node
        .control
        .push(pods.into_iter().map(Change::Pod).collect());
    node.control.acknowledged(revision);
    assert_eq!(node.control.failures()[0].key, "../etc");
    // There is nothing of it: an ordinary deletion comes to its end.
    node.control.push(vec![Change::Pod(stopped)]);
    node.control.gone("../etc");

    let status = node
        .control
        .status("crash", |s| waits(s, "CrashLoopBackOff"));
    let last = status.containers[0]
        .last_state
        .as_ref()
        .and_then(|s| s.state.as_ref());
    assert!(
        matches!(last, Some(State::Terminated(t)) if t.exit_code == 3),
        "{last:?}"
    );
    node.control
        .status("crash", |s| s.containers[0].restart_count >= 3);
    node.control.status("image", |s| waits(s, "ErrImagePull"));
    node.control
        .status("image", |s| waits(s, "ImagePullBackOff"));
    let status = node
        .control
        .status("command", |s| s.containers[0].restart_count >= 1);
    assert_eq!(ended(&status).reason, "StartError");
    node.control
        .status("config", |s| waits(s, "CreateContainerConfigError"));
    let status = node.control.status("once", |s| s.phase == "Failed");
    let last = ended(&status);
    assert_eq!((last.exit_code, last.reason.as_str()), (4, "Error"));
    assert_eq!(last.message.trim(), "last words");
    for uid in ["tiny", "hungry"] {
        let status = node.control.status(uid, |s| s.phase == "Failed");
        assert_eq!(ended(&status).reason, "OOMKilled", "{status:#?}");
    }
    assert!(
        node.control
            .reasons("crash")
            .contains(&"BackOff".to_owned())
    );
    for uid in [
        "crash", "image", "command", "config", "once", "tiny", "hungry",
    ] {
        node.control.push(vec![Change::PodRemoved(uid.into())]);
    }
    wait_until("the end of all pods", || {
        let left = fs::read_dir(node.folder.join("lib/pods"))
            .expect("pods")
            .count();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} left"))
        }
    });
}

#[test]
fn a_wrong_token_or_ca_is_refused_with_one_line() {
    let mut node = Node::new();
    let other = format!("sha256:{}", "0".repeat(64));
    for (token, hash, word) in [
        ("wrong", node.control.ca_hash.clone(), "refused"),
        (TOKEN, other, "is not that of ca_hash"),
    ] {
        node.configure(token, &hash);
        node.start();
        let mut agent = node.agent.take().expect("started");
        assert_ne!(agent.wait(), 0);
        let log = process::tail(&node.log(), 5);
        assert!(log.contains(word), "{log}");
    }
}

fn probe(handler: v1::handler::Handler) -> v1::Probe {
    v1::Probe {
        handler: Some(v1::Handler {
            handler: Some(handler),
        }),
        period_seconds: 1,
        timeout_seconds: 5,
        success_threshold: 1,
        failure_threshold: 1,
        ..Default::default()
    }
}

#[test]
fn probes_gate_readiness_and_end_what_does_not_live() {
    use v1::handler::{Exec, Handler, HttpGet};
    let mut node = Node::new();
    node.start();
    node.push_config();
    let serve = "mkdir -p /www; echo ok > /www/ready; touch /alive; httpd -f -p 8080 -h /www";
    let mut spec = pod("probed", 14, serve);
    spec.containers[0].readiness = Some(probe(Handler::HttpGet(HttpGet {
        port: 8080,
        path: "/ready".into(),
        ..Default::default()
    })));
    let mut lives = probe(Handler::Exec(Exec {
        command: vec!["test".into(), "-e".into(), "/alive".into()],
    }));
    // busybox's httpd is deaf to SIGTERM as the first process.
    lives.termination_grace_period_seconds = Some(1);
    spec.containers[0].liveness = Some(lives);
    node.control.push(vec![Change::Pod(spec)]);
    node.control.status("probed", ready);
    let run = |id: &str, command: &str| {
        let exec = v1::OpenExec {
            pod_uid: "probed".into(),
            command: vec!["sh".into(), "-c".into(), command.into()],
            ..Default::default()
        };
        let done = node.control.open(id, What::Exec(exec));
        assert_eq!(done.exit_code, Some(0), "{done:?}");
    };
    run("hide", "mv /www/ready /www/away");
    node.control.status("probed", |s| !ready(s));
    run("show", "mv /www/away /www/ready");
    let before = node.control.status("probed", ready);
    assert_eq!(before.containers[0].restart_count, 0);
    run("die", "rm /alive");
    let after = node
        .control
        .status("probed", |s| s.containers[0].restart_count == 1 && ready(s));
    assert!(started_ms(&after) > started_ms(&before));
    let reasons = node.control.reasons("probed");
    assert!(reasons.contains(&"Unhealthy".to_owned()), "{reasons:?}");
}

#[test]
fn a_pod_on_the_nodes_network_sees_it_and_leaves_its_name_alone() {
    let name = || fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    let before = name();
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("host", 40, "sleep 1000");
    spec.host_network = true;
    spec.ips.clear();
    spec.hostname.clear();
    node.control.push(vec![Change::Pod(spec)]);
    let status = node.control.status("host", ready);
    assert_eq!(status.pod_ips, ["172.31.0.11"]);
    let exec = v1::OpenExec {
        pod_uid: "host".into(),
        command: vec!["cat".into(), "/proc/net/dev".into()],
        ..Default::default()
    };
    let seen = node.control.open("dev", What::Exec(exec));
    let seen = String::from_utf8_lossy(&seen.output).into_owned();
    assert!(seen.contains("foil0") && seen.contains("wire"), "{seen}");
    assert_eq!(name(), before);
}

#[test]
fn init_containers_volumes_and_a_sidecar() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("parts", 41, "cat /data/made /etc/conf/key; sleep 1000");
    let mount = |volume: &str, path: &str| v1::VolumeMount {
        volume: volume.into(),
        mount_path: path.into(),
        ..Default::default()
    };
    spec.volumes = vec![
        v1::Volume {
            name: "data".into(),
            source: Some(v1::volume::Source::EmptyDir(Default::default())),
        },
        v1::Volume {
            name: "conf".into(),
            source: Some(v1::volume::Source::Files(v1::volume::Files {
                files: vec![v1::File {
                    path: "key".into(),
                    data: b"value\n".to_vec(),
                    mode: 0o644,
                }],
                ..Default::default()
            })),
        },
    ];
    let mut init = pod("x", 0, "echo made > /data/made; ls /dev/shm/beside")
        .containers
        .remove(0);
    init.name = "init".into();
    init.mounts = vec![mount("data", "/data")];
    // Shared memory is the pod's: the init container sees what the sidecar wrote.
    let beside = "touch /dev/shm/beside; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let mut sidecar = pod("x", 0, beside).containers.remove(0);
    sidecar.name = "beside".into();
    sidecar.restart_policy = "Always".into();
    sidecar.startup = Some(probe(v1::handler::Handler::Exec(v1::handler::Exec {
        command: vec!["test".into(), "-e".into(), "/dev/shm/beside".into()],
    })));
    spec.init_containers = vec![sidecar, init];
    spec.containers[0].mounts = vec![mount("data", "/data"), mount("conf", "/etc/conf")];
    node.control.push(vec![Change::Pod(spec.clone())]);
    let status = node.control.status("parts", ready);
    assert_eq!(status.init_containers.len(), 2);
    assert!(status.init_containers[0].started);
    let logs = |id: &str| {
        let request = v1::OpenLogs {
            pod_uid: "parts".into(),
            container: "main".into(),
            ..Default::default()
        };
        String::from_utf8_lossy(&node.control.open(id, What::Logs(request)).output).into_owned()
    };
    let mut asked = 0;
    wait_until("the log", || {
        asked += 1;
        match logs(&format!("parts-{asked}")).as_str() {
            "made\nvalue\n" => Ok(()),
            seen => Err(seen.to_owned()),
        }
    });
}

#[test]
fn only_the_logs_of_two_instances_are_kept() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let spec = pod("again", 42, "echo said; exit 3");
    node.control.push(vec![Change::Pod(spec)]);
    node.control
        .status("again", |s| s.containers[0].restart_count >= 4);
    let folder = node.folder.join("lib/logs/default_again_again/main");
    wait_until("old logs to go", || {
        let entries = fs::read_dir(&folder).expect("logs");
        let mut names: Vec<_> = entries
            .map(|e| e.expect("an entry").file_name().into_string())
            .map(|name| name.expect("a name"))
            .collect();
        names.sort();
        if names.len() <= 2 && !names.contains(&"0.log".to_owned()) {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
    let previous = v1::OpenLogs {
        pod_uid: "again".into(),
        previous: true,
        ..Default::default()
    };
    let logs = node.control.open("previous", What::Logs(previous));
    assert_eq!(String::from_utf8_lossy(&logs.output), "said\n");
}

/// A registry that does not answer holds nothing once the pod is deleted.
#[test]
fn the_pull_of_a_deleted_pod_is_cancelled() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let silent = node.netns.enter(|| TcpListener::bind("127.0.0.1:0"));
    let silent = silent.expect("a port");
    silent.set_nonblocking(true).expect("a socket");
    let mut spec = pod("pulls", 5, "true");
    let address = silent.local_addr().expect("an address");
    spec.containers[0].image = format!("{address}/app:1");
    node.control.push(vec![Change::Pod(spec.clone())]);
    let mut asked = wait_until("a request to the registry", || {
        silent.accept().map_err(|error| error.to_string())
    })
    .0;
    asked.set_nonblocking(true).expect("a socket");
    node.control.push(vec![stopped(spec, 1)]);
    wait_until("the end of the request", || {
        match asked.read(&mut [0; 4096]) {
            Ok(0) => Ok(()),
            Ok(count) => Err(format!("{count} bytes of it")),
            Err(error) => Err(error.to_string()),
        }
    });
    node.control.gone("pulls");
}
