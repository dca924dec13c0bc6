//! The main job on real input, in seven steps, as `cargo xtask demo` shows it: the cluster
//! tier's own cases, narrated, all in one namespace of one cluster.
//!
//! Called by `bin/demo.rs`.

use crate::case::Case;
use crate::scene::{Narrator, Scene};
use crate::{case, teardown};
use tests_harness::Cluster;

/// Steps 1 to 6: heading, and names of cases.
const STEPS: [(&str, &[&str]); 6] = [
    (
        "real images, in a real registry",
        &["deploy::images_come_from_a_registry"],
    ),
    (
        "manifests as people write them",
        &[
            "deploy::manifests_as_people_write_them",
            "refuse::a_mistake_is_refused_by_its_field",
        ],
    ),
    (
        "looking at it",
        &[
            "deploy::pods_run_on_both_nodes_with_addresses",
            "deploy::limits_are_in_the_cgroup",
            "deploy::logs_are_followed_and_kept",
            "deploy::service_variables_are_in_the_environment",
            "deploy::config_and_secrets_are_environment_and_files",
            "deploy::exec_gives_streams_and_exit_code",
        ],
    ),
    (
        "calls through the ClusterIP, and the same counts in the maps",
        &[
            "service::cluster_ip_reaches_every_backend_and_counts_it",
            "service::cluster_ip_answers_the_nodes_themselves",
            "service::maps_are_read_by_bpftool_and_foil",
        ],
    ),
    (
        "change under load",
        &[
            "change::killed_container_is_restarted_with_back_off",
            "change::deleted_pod_leaves_the_maps_and_connections_end",
            "change::scaling_and_rolling_fail_no_request",
        ],
    ),
    (
        "kill -9 of the agents, then of the control plane, under load",
        &[
            "crash::killed_agents_lose_nothing_and_adopt",
            "crash::killed_control_plane_has_every_object",
        ],
    ),
];

/// What the cases left: manifests of `tests/manifests`.
const MANIFESTS: [&str; 5] = ["client", "settings", "busybox-loop", "busybox", "web"];

/// Runs all steps. A failed check is a panic; the cluster's guard cleans up.
pub fn run() {
    let mut narrator = Narrator::printing();
    narrator
        .say("Two nodes and a control plane, each in a network namespace of its own, on a bridge.");
    let mut cluster = Cluster::start(2);
    narrator.say(format!(
        "Everything is named {} and lives in {}.",
        cluster.name(),
        cluster.root().display()
    ));
    cluster.push_images();
    for (at, (title, cases)) in STEPS.into_iter().enumerate() {
        narrator.step(at + 1, title);
        for name in cases {
            let mut scene = Scene {
                cluster: &mut cluster,
                narrator: &mut narrator,
            };
            (named(name).run)(&mut scene);
        }
    }
    remove(&mut narrator, cluster);
    narrator.end();
}

/// # Panics
/// If there is no such case: [`STEPS`] is wrong.
fn named(name: &str) -> &'static Case {
    let found = case::CASES.iter().find(|case| case.name == name);
    found.unwrap_or_else(|| panic!("no case {name}"))
}

/// Step 7.
fn remove(narrator: &mut Narrator, mut cluster: Cluster) {
    narrator.step(7, "delete everything; nothing is left");
    narrator.say("sleep and sh ignore SIGTERM: a short grace period instead of 30 s.");
    let files = MANIFESTS.map(|name| format!("tests/manifests/{name}.yaml"));
    let mut args = vec!["delete", "--grace-period", "2"];
    for file in &files {
        args.extend(["-f", file]);
    }
    let mut scene = Scene {
        cluster: &mut cluster,
        narrator,
    };
    scene.foil(&args);
    scene.foil(&["get", "pods,deployments,services,configmaps,secrets"]);
    teardown::run(narrator, cluster);
}
