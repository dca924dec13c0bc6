//! The cases: what a user does, and what must come of it.
//!
//! A case makes what it needs in the namespace in use and leaves agents and control plane
//! running; it depends on no other and on no order. `suite.rs` runs all, each in a
//! namespace of its own; `demo.rs` runs some, in one namespace.

mod change;
mod crash;
mod deploy;
mod dns;
mod outside;
mod refuse;
mod service;

use crate::scene::Scene;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub run: fn(&mut Scene<'_>),
}

macro_rules! cases {
    ($($module:ident::$name:ident,)*) => {
        &[$(Case { name: concat!(stringify!($module), "::", stringify!($name)), run: $module::$name },)*]
    };
}

/// In no order that would matter.
pub const CASES: &[Case] = cases![
    deploy::images_come_from_a_registry,
    deploy::manifests_as_people_write_them,
    deploy::pods_run_on_both_nodes_with_addresses,
    deploy::config_and_secrets_are_environment_and_files,
    deploy::service_variables_are_in_the_environment,
    deploy::limits_are_in_the_cgroup,
    deploy::logs_are_followed_and_kept,
    deploy::exec_gives_streams_and_exit_code,
    service::pods_reach_each_other_directly,
    service::cluster_ip_reaches_every_backend_and_counts_it,
    service::cluster_ip_answers_the_nodes_themselves,
    service::service_without_backends_refuses_at_once,
    service::traffic_stays_on_its_node_where_that_is_asked_for,
    service::the_control_plane_is_a_service,
    service::maps_are_read_by_bpftool_and_foil,
    outside::clients_outside_reach_every_backend,
    outside::host_ports_lead_to_their_pod,
    dns::services_and_pods_have_names,
    dns::pods_ask_whom_their_policy_names,
    dns::other_names_are_forwarded_and_kept,
    dns::answers_without_control_plane_and_over_agent_restarts,
    change::killed_container_is_restarted_with_back_off,
    change::deleted_pod_leaves_the_maps_and_connections_end,
    change::scaling_and_rolling_fail_no_request,
    refuse::a_mistake_is_refused_by_its_field,
    refuse::bad_manifests_by_file_document_and_field,
    refuse::missing_image_is_told_and_tried_again,
    refuse::wrong_digest_is_never_run,
    refuse::missing_command_is_told,
    refuse::failing_container_is_backed_off,
    refuse::too_small_a_limit_is_an_oom_kill,
    refuse::wrong_token_is_refused_and_logged_on_both_sides,
    refuse::wrong_ca_hash_is_not_trusted,
    crash::killed_agents_lose_nothing_and_adopt,
    crash::agent_killed_again_and_again_under_load,
    crash::agent_starts_without_a_control_plane,
    crash::killed_control_plane_has_every_object,
];
