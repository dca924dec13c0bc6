//! From a manifest to a running container with what it was promised.

use super::{apply, delete_pod, web, web_and_client};
use crate::{limits, objects};
use std::collections::BTreeSet;
use tests_harness::{Cluster, Process, wait_until};

pub(super) fn pods_run_on_both_nodes_with_addresses(cluster: &mut Cluster) {
    let pods = web(cluster);
    let nodes: BTreeSet<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(nodes, BTreeSet::from(["n1", "n2"]));
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.ip.as_str()).collect();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for pod in &pods {
        assert_eq!(pod.phase, "Running");
        let block =
            cluster.get("nodes", "", &pod.node).expect("its node")["spec"]["podCIDR"].clone();
        let block = block.as_str().unwrap_or_default();
        let network = block.trim_end_matches("0/24");
        assert!(
            !network.is_empty() && pod.ip.starts_with(network),
            "{} in {block}",
            pod.ip
        );
        let address = cluster.foil(&[
            "exec", &pod.name, "--", "ip", "-4", "-o", "addr", "show", "eth0",
        ]);
        let address = address.success();
        assert!(address.contains(&format!("{}/32", pod.ip)), "{address}");
    }
}

pub(super) fn pods_as_found_in_the_wild_run(cluster: &mut Cluster) {
    let names = ["busybox", "busybox-loop", "ubuntu"];
    for name in names {
        apply(cluster, name);
    }
    for name in names {
        let pod = objects::ready(cluster, name);
        assert_eq!((pod.phase.as_str(), pod.restarts), ("Running", 0), "{name}");
    }
    let wide = cluster.foil(&["get", "pods", "-o", "wide"]).success();
    for word in [
        "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "1/1", "Running",
    ] {
        assert!(wide.contains(word), "{word} in\n{wide}");
    }
    delete_pod(cluster, "busybox");
    delete_pod(cluster, "ubuntu");
}

pub(super) fn config_and_secrets_are_environment_and_files(cluster: &mut Cluster) {
    apply(cluster, "settings");
    objects::ready(cluster, "settings");
    let logs = wait_until("the pod's own words", || {
        let logs = cluster.foil(&["logs", "settings"]).success();
        if logs.contains("workers = 2") {
            Ok(logs)
        } else {
            Err(logs)
        }
    });
    assert!(logs.contains("greeting: hello from a ConfigMap"), "{logs}");
    assert!(logs.contains("user: admin, node: n"), "{logs}");
    assert!(logs.contains("level: debug"), "{logs}");
    let password = cluster.foil(&["exec", "settings", "--", "cat", "/etc/credentials/password"]);
    assert_eq!(password.success(), "correct horse battery staple");
    let mode = cluster.foil(&[
        "exec",
        "settings",
        "--",
        "stat",
        "-L",
        "-c",
        "%a",
        "/etc/credentials/password",
    ]);
    assert_eq!(mode.success().trim(), "400");
    let write = cluster.foil(&[
        "exec",
        "settings",
        "--",
        "sh",
        "-c",
        "echo x > /etc/settings/app.conf",
    ]);
    assert_ne!(write.code, 0, "a read-only volume was written to");
}

pub(super) fn service_variables_are_in_the_environment(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let address = target.trim_end_matches(":80");
    let env = cluster.foil(&["exec", "client", "--", "env"]).success();
    for line in [
        format!("WEB_SERVICE_HOST={address}"),
        "WEB_SERVICE_PORT=80".to_owned(),
        "WEB_SERVICE_PORT_HTTP=80".to_owned(),
        format!("WEB_PORT=tcp://{address}:80"),
        format!("WEB_PORT_80_TCP=tcp://{address}:80"),
        "WEB_PORT_80_TCP_PROTO=tcp".to_owned(),
        "WEB_PORT_80_TCP_PORT=80".to_owned(),
        format!("WEB_PORT_80_TCP_ADDR={address}"),
    ] {
        assert!(env.lines().any(|one| one == line), "{line} in\n{env}");
    }
}

pub(super) fn limits_are_in_the_cgroup(cluster: &mut Cluster) {
    apply(cluster, "settings");
    let limits = limits::of(cluster, &objects::ready(cluster, "settings"));
    assert_eq!(
        (limits.memory, limits.cpu_millis),
        (Some(32 << 20), Some(100)),
        "{limits:?}"
    );
    let described = cluster.foil(&["describe", "pod", "settings"]).success();
    for word in ["Limits", "32Mi", "100m", "Pulled", "Created", "Started"] {
        assert!(described.contains(word), "{word} in\n{described}");
    }
}

pub(super) fn logs_are_followed_and_kept(cluster: &mut Cluster) {
    apply(cluster, "busybox-loop");
    objects::ready(cluster, "busybox-loop");
    let log = cluster.root().join("follow");
    let mut follow = cluster.foil_command(&["logs", "-f", "busybox-loop"]);
    let process = Process::spawn("foil logs", &mut follow, &log);
    let lines = || process.log().lines().count();
    let first = wait_until("a line", || match lines() {
        0 => Err("none".to_owned()),
        count => Ok(count),
    });
    wait_until("a further line", || {
        if lines() > first {
            Ok(())
        } else {
            Err(process.log())
        }
    });
    assert!(
        process.log().lines().all(|line| line == "."),
        "{}",
        process.log()
    );
    let tail = cluster
        .foil(&["logs", "busybox-loop", "--tail", "1"])
        .success();
    assert_eq!(tail, ".\n");
}

pub(super) fn exec_gives_streams_and_exit_code(cluster: &mut Cluster) {
    web_and_client(cluster);
    let script = "echo out; echo err >&2; exit 7";
    let out = cluster.foil(&["exec", "client", "--", "sh", "-c", script]);
    assert_eq!((out.code, out.stdout.as_str()), (7, "out\n"));
    assert!(out.stderr.contains("err"), "{}", out.stderr);
    let out = cluster.foil_with_input(&["exec", "-i", "client", "--", "wc", "-c"], "twelve bytes");
    assert_eq!(out.success().trim(), "12");
    let out = cluster.foil(&["exec", "client", "--", "no-such-program"]);
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("no-such-program"), "{}", out.stderr);
}

pub(super) fn applying_again_changes_nothing(cluster: &mut Cluster) {
    let before = web(cluster);
    let out = cluster
        .foil(&["apply", "-f", "tests/manifests/web.yaml"])
        .success();
    assert!(
        !out.is_empty() && out.lines().all(|line| line.ends_with("unchanged")),
        "{out}"
    );
    let names = |pods: &[objects::Pod]| pods.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>();
    assert_eq!(names(&objects::pods_of(cluster, "web")), names(&before));
}
