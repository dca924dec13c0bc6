//! Step 7: everything deleted, and nothing left on the machine.
//!
//! Called by `demo::run`.

use super::Show;
use crate::objects;
use tests_harness::{Cluster, leftovers, wait_until};

/// Step 7.
pub fn run(show: &mut Show, mut cluster: Cluster) {
    show.step(7, "delete everything; nothing is left");
    show.say("sleep and sh do not listen to SIGTERM: a short grace period instead of 30 s.");
    let files = [
        "client",
        "settings",
        "ubuntu",
        "busybox-loop",
        "busybox",
        "web",
    ]
    .map(|name| format!("tests/manifests/{name}.yaml"));
    let mut args = vec!["delete", "--grace-period", "2"];
    for file in &files {
        args.extend(["-f", file]);
    }
    show.foil(&cluster, &args);
    wait_until("no pod is left", || match objects::pods(&cluster) {
        pods if pods.is_empty() => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    show.foil(
        &cluster,
        &[
            "get",
            "pods,deployments,replicasets,services,configmaps,secrets",
        ],
    );
    for index in 0..cluster.nodes().len() {
        let name = cluster.nodes()[index].name.clone();
        wait_until(&format!("no trace of a pod on {name}"), || {
            let traces = traces(&cluster, index);
            if traces.is_empty() {
                Ok(())
            } else {
                Err(traces.join("\n"))
            }
        });
        show.check(
            &format!("{name}: no shim, veth, mount, pod cgroup, endpoint or backend"),
            true,
            "",
        );
    }
    show.say("Now the agents and the control plane end, and each node is cleaned.");
    let (said, left) = cluster.tear_down();
    for out in said {
        println!("$ {}", out.command);
        show.print(&out.stdout);
        show.print(&out.stderr);
        show.check("foil-agent cleanup succeeds", out.code == 0, out.code);
    }
    show.check(
        "no process, mount, cgroup, pin or link is left",
        left.is_empty(),
        left.join("\n"),
    );
    let name = cluster.name().to_owned();
    let root = cluster.root().to_owned();
    drop(cluster);
    let left = leftovers::of(&name);
    show.check(
        "no network namespace is left either",
        left.is_empty(),
        left.join("\n"),
    );
    show.check("and no file", !root.exists(), root.display());
}

/// What pods leave while they run: to be gone although the agent still runs.
pub(crate) fn traces(cluster: &Cluster, index: usize) -> Vec<String> {
    let node = &cluster.nodes()[index];
    let mut found = Vec::new();
    let prefix = format!("{}/{}", cluster.root().display(), node.name);
    for line in leftovers::of(cluster.name()) {
        let shim = line.contains("foil-shim") && line.contains(&prefix);
        let mount = line.starts_with("mount ") && line.contains(&prefix);
        if shim || mount {
            found.push(line);
        }
    }
    let links = cluster.node_netns(index).ip(&["-brief", "link"]);
    let veths = links
        .lines()
        .filter(|line| line.starts_with("foil") && !line.starts_with("foil0"));
    found.extend(veths.map(str::to_owned));
    for what in ["endpoint", "backend"] {
        let rows = objects::bpf(cluster, index, &[what, "list", "-o", "json"]);
        let rows: serde_json::Value = serde_json::from_str(&rows).unwrap_or_default();
        let ours =
            |row: &&serde_json::Value| row["pod"].as_str().is_some_and(|pod| !pod.is_empty());
        found.extend(
            rows.as_array()
                .into_iter()
                .flatten()
                .filter(ours)
                .map(|row| row.to_string()),
        );
    }
    found
}
