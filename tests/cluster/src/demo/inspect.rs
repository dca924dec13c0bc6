//! Step 3: what runs, as the operator sees it, and whether the limits are real.
//!
//! Called by `demo::run`.

use super::Show;
use crate::{limits, objects};
use std::collections::BTreeSet;
use tests_harness::{Cluster, Process, wait_until};

/// Step 3.
pub fn run(show: &mut Show, cluster: &Cluster) {
    show.step(3, "looking at it");
    let pods = show.foil(cluster, &["get", "pods", "-o", "wide"]);
    let nodes: BTreeSet<String> = objects::pods(cluster)
        .into_iter()
        .map(|pod| pod.node)
        .collect();
    show.check("pods run on both nodes", nodes.len() == 2, &pods);
    let addressed = objects::pods(cluster)
        .iter()
        .all(|pod| pod.ip.starts_with("10.244."));
    show.check("each has an address of its own", addressed, &pods);
    show.foil(cluster, &["get", "services"]);
    let described = show.foil(cluster, &["describe", "pod", "settings"]);
    for word in ["Started", "Pulled", "Limits", "32Mi"] {
        show.check(
            &format!("describe says {word}"),
            described.contains(word),
            &described,
        );
    }
    logs(show, cluster);
    environment(show, cluster);
    let limits = limits::of(cluster, &objects::ready(cluster, "settings"));
    show.say(format!("cgroup {}", limits.path.display()));
    show.check(
        "memory limit 32Mi is in the cgroup",
        limits.memory == Some(32 << 20),
        format!("{limits:?}"),
    );
    show.check(
        "cpu limit 100m is in the cgroup",
        limits.cpu_millis == Some(100),
        format!("{limits:?}"),
    );
}

fn logs(show: &mut Show, cluster: &Cluster) {
    let out = show.foil(cluster, &["logs", "settings"]);
    for line in [
        "greeting: hello from a ConfigMap",
        "user: admin, node: n",
        "listen = 8080",
    ] {
        show.check(&format!("logs have {line:?}"), out.contains(line), &out);
    }
    show.say("foil logs -f follows until it is interrupted:");
    let log = cluster.root().join("logs-follow");
    let mut follow = cluster.foil_command(&["logs", "-f", "busybox-loop"]);
    println!("$ foil logs -f busybox-loop");
    let process = Process::spawn("foil logs", &mut follow, &log);
    let lines = || process.log().lines().count();
    let first = wait_until("lines of busybox-loop", || match lines() {
        0 => Err("none".to_owned()),
        count => Ok(count),
    });
    let seen = wait_until("a further line of busybox-loop", || match process.log() {
        text if text.lines().count() > first => Ok(text),
        text => Err(text),
    });
    show.print(&seen);
    show.check(
        "a line came while we followed",
        seen.lines().all(|line| line == "."),
        &seen,
    );
}

fn environment(show: &mut Show, cluster: &Cluster) {
    let address = objects::cluster_ip(cluster, "web");
    let env = show.foil(cluster, &["exec", "client", "--", "env"]);
    for line in [
        format!("WEB_SERVICE_HOST={address}"),
        "WEB_SERVICE_PORT=80".to_owned(),
        format!("WEB_PORT=tcp://{address}:80"),
        format!("WEB_PORT_80_TCP_ADDR={address}"),
    ] {
        show.check(
            &format!("the client's environment has {line}"),
            env.lines().any(|one| one == line),
            &env,
        );
    }
    let files = show.foil(
        cluster,
        &["exec", "settings", "--", "cat", "/etc/credentials/password"],
    );
    show.check(
        "the Secret is a file",
        files.trim() == "correct horse battery staple",
        files,
    );
    let id = show.foil(
        cluster,
        &["exec", "ubuntu", "--", "sh", "-c", "hostname; exit 0"],
    );
    show.check("a pod's host name is its own", id.trim() == "ubuntu", id);
    let mut command = cluster.foil_command(&["exec", "ubuntu", "--", "sh", "-c", "exit 7"]);
    let out = show.run(&mut command);
    show.check("exec gives the exit code", out.code == 7, out.code);
}
