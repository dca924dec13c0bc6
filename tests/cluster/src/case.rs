//! The cases: each of the demo's steps, finer, and what the demo does not show.
//!
//! All run on one cluster with two nodes, one after another; each makes what it needs by
//! idempotent fixtures, and deletes what would be in another's way.
//! Called by `suite.rs`, in the order of `CASES`.

mod change;
mod crash;
mod deploy;
mod refuse;
mod remove;
mod service;

use crate::objects::{self, Pod};
use tests_harness::{Cluster, image, registry};

/// One test.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&mut Cluster),
}

macro_rules! cases {
    ($($module:ident::$name:ident,)*) => {
        &[$(Case { name: concat!(stringify!($module), "::", stringify!($name)), run: $module::$name },)*]
    };
}

/// In the order in which they run; the last one takes the cluster down.
pub const CASES: &[Case] = cases![
    deploy::pods_run_on_both_nodes_with_addresses,
    deploy::pods_as_found_in_the_wild_run,
    deploy::config_and_secrets_are_environment_and_files,
    deploy::service_variables_are_in_the_environment,
    deploy::limits_are_in_the_cgroup,
    deploy::logs_are_followed_and_kept,
    deploy::exec_gives_streams_and_exit_code,
    deploy::applying_again_changes_nothing,
    service::pods_reach_each_other_directly,
    service::cluster_ip_reaches_every_backend_and_counts_it,
    service::cluster_ip_answers_the_nodes_themselves,
    service::service_without_backends_refuses_at_once,
    service::maps_are_read_by_bpftool_and_foil,
    change::killed_container_is_restarted_with_back_off,
    change::deleted_pod_leaves_the_maps_and_nobody_waits,
    change::scaling_and_rolling_fail_no_request,
    refuse::bad_manifests_by_file_document_and_field,
    refuse::missing_image_is_told_and_tried_again,
    refuse::wrong_digest_is_never_run,
    refuse::missing_command_is_told,
    refuse::failing_container_is_backed_off,
    refuse::too_small_a_limit_is_an_oom_kill,
    refuse::wrong_token_is_refused_and_logged_on_both_sides,
    refuse::wrong_ca_hash_is_not_trusted,
    crash::killed_agent_loses_nothing_and_adopts,
    crash::agent_killed_again_and_again_under_load,
    crash::agent_starts_without_a_control_plane,
    crash::killed_control_plane_has_every_object,
    remove::deleting_everything_leaves_nothing,
];

/// Two agents, and a third node without one; images in the registry.
pub(crate) fn start() -> Cluster {
    let cluster = Cluster::start_with_spare(2, 1);
    image::push_all(cluster.wire(), &registry::address(), cluster.root());
    cluster
}

/// [`start`], for the test program.
pub fn cluster() -> Cluster {
    start()
}

/// Applies a manifest of `tests/manifests`.
pub(crate) fn apply(cluster: &Cluster, file: &str) {
    cluster
        .foil(&["apply", "-f", &format!("tests/manifests/{file}.yaml")])
        .success();
}

/// Deletes what a manifest names, and waits until the pod of the same name is gone.
pub(crate) fn delete_pod(cluster: &Cluster, name: &str) {
    // Not the 30 s that a shell needs to be killed after it ignored SIGTERM.
    cluster
        .foil(&["delete", "pod", name, "--grace-period", "1"])
        .success();
    objects::gone(cluster, name);
}

/// Fixture: the Deployment and Service `web`, 3 ready replicas of the first image.
pub(crate) fn web(cluster: &Cluster) -> Vec<Pod> {
    apply(cluster, "web");
    let pods = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &pods);
    pods
}

/// Fixture: `web`, then the pod `client`, and the service's address and port.
pub(crate) fn web_and_client(cluster: &Cluster) -> (Vec<Pod>, String) {
    let pods = web(cluster);
    apply(cluster, "client");
    objects::ready(cluster, "client");
    (pods, format!("{}:80", objects::cluster_ip(cluster, "web")))
}
