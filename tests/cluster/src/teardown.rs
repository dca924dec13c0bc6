//! The end of a cluster: deleted objects leave no trace, first while the agents run, then
//! without them. Called by the demo and by the test program after the last case.

use crate::objects;
use crate::scene::Narrator;
use tests_harness::{Cluster, leftovers, wait_until};

/// Waits until no pod is left, tears the cluster down, and checks that nothing stayed.
///
/// # Panics
/// With what stayed.
pub fn run(narrator: &mut Narrator, mut cluster: Cluster) {
    wait_until("no pod is left", || match cluster.list_all("pods") {
        pods if pods.is_empty() => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
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
        narrator.check(
            &format!("{name}: no shim, veth, mount, endpoint or backend of a pod"),
            true,
            "",
        );
    }
    narrator.say("Now the agents and the control plane end, and each node is cleaned.");
    let (said, left) = cluster.tear_down();
    for out in said {
        narrator.command(&out.command);
        narrator.output(&out.stdout);
        narrator.output(&out.stderr);
        narrator.check("foil-agent cleanup succeeds", out.code == 0, out.code);
    }
    narrator.check(
        "no process, mount, cgroup, pin or link is left",
        left.is_empty(),
        left.join("\n"),
    );
    let name = cluster.name().to_owned();
    let root = cluster.root().to_owned();
    drop(cluster);
    let left = leftovers::of(&name);
    narrator.check(
        "no network namespace is left either",
        left.is_empty(),
        left.join("\n"),
    );
    narrator.check("and no file", !root.exists(), root.display());
}

/// What pods leave while they run: to be gone although the agent still runs.
fn traces(cluster: &Cluster, index: usize) -> Vec<String> {
    let node = &cluster.nodes()[index];
    let mut found = Vec::new();
    let prefix = format!("{}/{}", cluster.root().display(), node.name);
    // The agent's own, for as long as it runs.
    let run = format!("mount {prefix}/run");
    for line in leftovers::of(cluster.name()) {
        let shim = line.contains("foil-shim") && line.contains(&prefix);
        let mount = line.starts_with("mount ") && line.contains(&prefix) && line != run;
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
