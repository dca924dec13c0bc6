//! From a manifest to a running container with what it was promised.

use crate::fixture::{delete_pod, web, web_and_client};
use crate::scene::Scene;
use crate::{limits, objects};
use std::collections::BTreeSet;
use tests_harness::{Process, wait_until};

pub(crate) fn images_come_from_a_registry(scene: &mut Scene<'_>) {
    scene.say("From Debian's busybox-static and our small static server, pushed by skopeo.");
    for reference in scene.cluster.images().to_vec() {
        let image = format!("docker://{reference}");
        let mut skopeo = scene.cluster.wire().command("skopeo");
        skopeo.args(["inspect", "--tls-verify=false", "--format"]);
        skopeo.args(["{{.Name}} {{.Digest}}", &image]);
        let out = scene.narrator.run(&mut skopeo);
        scene.check(
            &format!("{reference} is in the registry"),
            out.code == 0,
            out.stderr,
        );
    }
}

pub(crate) fn manifests_as_people_write_them(scene: &mut Scene<'_>) {
    for file in ["web", "busybox", "busybox-loop", "ubuntu", "settings"] {
        let out = scene.apply(file);
        scene.check(
            &format!("{file}.yaml is accepted"),
            out.contains("created"),
            out,
        );
    }
    scene.say(
        "The client is applied after the Service, whose variables it finds in its environment.",
    );
    objects::cluster_ip(scene.cluster, "web");
    scene.apply("client");
    scene.foil(&["rollout", "status", "deployment/web"]);
    for name in ["busybox", "busybox-loop", "ubuntu", "settings", "client"] {
        let pod = objects::ready(scene.cluster, name);
        assert_eq!((pod.phase.as_str(), pod.restarts), ("Running", 0), "{name}");
    }
    let uids =
        |pods: &[objects::Pod]| -> Vec<String> { pods.iter().map(|pod| pod.uid.clone()).collect() };
    let before = objects::ready_count(scene.cluster, "web", 3);
    scene.check(
        "the Deployment has 3 ready replicas",
        before.len() == 3,
        format!("{before:?}"),
    );
    let again = scene.apply("web");
    let after = objects::pods_of(scene.cluster, "web");
    scene.check(
        "a second apply changes nothing",
        !again.is_empty()
            && again.lines().all(|line| line.ends_with("unchanged"))
            && uids(&after) == uids(&before),
        format!("{again}\n{after:?}"),
    );
    let wide = scene.foil(&["get", "pods", "-o", "wide"]);
    for word in [
        "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "1/1", "Running",
    ] {
        assert!(wide.contains(word), "{word} in\n{wide}");
    }
    let nodes = scene.foil(&["get", "nodes", "-o", "wide"]);
    let ready = nodes.lines().filter(|line| line.contains(" Ready "));
    scene.check("both nodes are Ready", ready.count() == 2, &nodes);
}

pub(crate) fn pods_run_on_both_nodes_with_addresses(scene: &mut Scene<'_>) {
    let pods = web(scene);
    scene.foil(&["get", "pods", "-l", "app=web", "-o", "wide"]);
    let nodes: BTreeSet<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    scene.check(
        "pods run on both nodes",
        nodes == BTreeSet::from(["n1", "n2"]),
        format!("{nodes:?}"),
    );
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.ip.as_str()).collect();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for pod in &pods {
        assert_eq!(pod.phase, "Running");
        let node = scene.cluster.get("nodes", &pod.node).expect("its node");
        let block = node["spec"]["podCIDR"].as_str().unwrap_or_default();
        let network = block.trim_end_matches("0/24");
        let inside = !network.is_empty() && pod.ip.starts_with(network);
        let address = scene.cluster.foil(&[
            "exec", &pod.name, "--", "ip", "-4", "-o", "addr", "show", "eth0",
        ]);
        let address = address.success();
        scene.check(
            &format!("{} has {} of {}'s {block}", pod.name, pod.ip, pod.node),
            inside && address.contains(&format!("{}/32", pod.ip)),
            address,
        );
    }
}

pub(crate) fn config_and_secrets_are_environment_and_files(scene: &mut Scene<'_>) {
    scene.apply("settings");
    objects::ready(scene.cluster, "settings");
    wait_until("the last line of the pod's log", || {
        let logs = scene.cluster.foil(&["logs", "settings"]).success();
        if logs.contains("password") {
            Ok(())
        } else {
            Err(logs)
        }
    });
    let logs = scene.foil(&["logs", "settings"]);
    for line in [
        "greeting: hello from a ConfigMap",
        "user: admin, node: n",
        "level: debug",
        "listen = 8080",
        "workers = 2",
    ] {
        scene.check(&format!("the log has {line:?}"), logs.contains(line), &logs);
    }
    let password = scene.foil(&["exec", "settings", "--", "cat", "/etc/credentials/password"]);
    scene.check(
        "the Secret is a file",
        password == "correct horse battery staple",
        password,
    );
    let mode = scene.cluster.foil(&[
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
    let script = "echo x > /etc/settings/app.conf";
    let write = scene.foil_may_fail(&["exec", "settings", "--", "sh", "-c", script]);
    scene.check(
        "the volume of a ConfigMap cannot be written to",
        write.code != 0,
        write.code,
    );
}

pub(crate) fn service_variables_are_in_the_environment(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let address = target.trim_end_matches(":80");
    let env = scene.foil(&["exec", "client", "--", "env"]);
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
        scene.check(
            &format!("the client's environment has {line}"),
            env.lines().any(|one| one == line),
            &env,
        );
    }
}

pub(crate) fn limits_are_in_the_cgroup(scene: &mut Scene<'_>) {
    scene.apply("settings");
    let pod = objects::ready(scene.cluster, "settings");
    let limits = limits::of(scene.cluster, &pod);
    scene.say(format!("cgroup {}", limits.path.display()));
    scene.check(
        "memory limit 32Mi and cpu limit 100m are in the cgroup",
        (limits.memory, limits.cpu_millis) == (Some(32 << 20), Some(100)),
        format!("{limits:?}"),
    );
    let described = scene.foil(&["describe", "pod", "settings"]);
    for word in ["Limits", "32Mi", "100m", "Pulled", "Created", "Started"] {
        scene.check(
            &format!("describe says {word}"),
            described.contains(word),
            &described,
        );
    }
}

pub(crate) fn logs_are_followed_and_kept(scene: &mut Scene<'_>) {
    scene.apply("busybox-loop");
    objects::ready(scene.cluster, "busybox-loop");
    scene.say("foil logs -f follows until it is interrupted:");
    let log = scene.cluster.root().join(tests_harness::unique_name());
    let mut follow = scene.cluster.foil_command(&["logs", "-f", "busybox-loop"]);
    scene.narrator.command("foil logs -f busybox-loop");
    let process = Process::spawn("foil logs", &mut follow, &log);
    let lines = || process.log().lines().count();
    let first = wait_until("a line", || match lines() {
        0 => Err("none".to_owned()),
        count => Ok(count),
    });
    let seen = wait_until("a further line", || match process.log() {
        text if text.lines().count() > first => Ok(text),
        text => Err(text),
    });
    scene.narrator.output(&seen);
    scene.check(
        "a line came while we followed",
        seen.lines().all(|line| line == "."),
        &seen,
    );
    let tail = scene.foil(&["logs", "busybox-loop", "--tail", "1"]);
    scene.check("--tail 1 is one line", tail == ".\n", &tail);
}

pub(crate) fn exec_gives_streams_and_exit_code(scene: &mut Scene<'_>) {
    scene.apply("ubuntu");
    objects::ready(scene.cluster, "ubuntu");
    let host = scene.foil(&["exec", "ubuntu", "--", "hostname"]);
    scene.check(
        "a pod's host name is its own",
        host.trim() == "ubuntu",
        &host,
    );
    let script = "echo out; echo err >&2; exit 7";
    let out = scene.foil_may_fail(&["exec", "ubuntu", "--", "sh", "-c", script]);
    scene.check(
        "exec gives both streams and the exit code",
        (out.code, out.stdout.as_str()) == (7, "out\n") && out.stderr.contains("err"),
        format!("{out:?}"),
    );
    let exec = ["exec", "-i", "ubuntu", "--", "wc", "-c"];
    let out = scene.cluster.foil_with_input(&exec, "twelve bytes");
    assert_eq!(out.success().trim(), "12");
    let out = scene.foil_may_fail(&["exec", "ubuntu", "--", "no-such-program"]);
    scene.check(
        "a program that is not there is named",
        out.code != 0 && out.stderr.contains("no-such-program"),
        format!("{out:?}"),
    );
    delete_pod(scene, "ubuntu");
}
