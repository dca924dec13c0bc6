//! The PodSpec, wherever it stands: defaults and rules of its own fields. Not
//! those of containers (`container`) and volumes (`volume`). Called by the kinds
//! that have one.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodDNSConfig, PodSecurityContext, PodSpec, Volume};

use crate::invalid::{Causes, Field, Warning};
use crate::{container, hostport, meta, name, resources, security, sysctl, taint, volume};

pub(crate) fn set_defaults(spec: &mut PodSpec) {
    spec.restart_policy
        .get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy
        .get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.scheduler_name
        .get_or_insert_with(|| "default-scheduler".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context
        .get_or_insert_with(PodSecurityContext::default);
    // The two names of one field follow each other.
    match (&spec.service_account_name, &spec.service_account) {
        (Some(name), _) => spec.service_account = Some(name.clone()),
        (None, Some(name)) => spec.service_account_name = Some(name.clone()),
        (None, None) => {}
    }
    for container in spec.init_containers.iter_mut().flatten() {
        container::set_defaults(container);
    }
    for container in &mut spec.containers {
        container::set_defaults(container);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        volume::set_defaults(volume);
    }
    for quantity in spec
        .overhead
        .iter_mut()
        .flatten()
        .map(|(_, quantity)| quantity)
    {
        crate::quantity::canonicalise(quantity);
    }
}

/// What is filled in for a pod, and not yet for its template.
pub(crate) fn set_pod_defaults(spec: &mut PodSpec) {
    spec.enable_service_links.get_or_insert(true);
    hostport::set_defaults(spec);
    for c in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        if let Some(r) = &mut c.resources {
            resources::set_requests(r);
        }
    }
}

pub(crate) fn validate(spec: &PodSpec, at: &Field, causes: &mut Causes) {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let names = validate_volumes(volumes, &at.child("volumes"), causes);
    if spec.containers.is_empty() {
        causes.required(&at.child("containers"), "");
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    validate_containers(
        &spec.containers,
        false,
        &names,
        spec,
        &at.child("containers"),
        causes,
    );
    validate_containers(
        init,
        true,
        &names,
        spec,
        &at.child("initContainers"),
        causes,
    );
    let taken: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (i, c) in init.iter().enumerate() {
        if !c.name.is_empty() && taken.contains(&c.name.as_str()) {
            causes.duplicate(&at.child("initContainers").index(i).child("name"), &c.name);
        }
    }

    let policies = ["Always", "Never", "OnFailure"];
    one_of(
        &spec.restart_policy,
        &policies,
        &at.child("restartPolicy"),
        causes,
    );
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(&spec.dns_policy, &policies, &at.child("dnsPolicy"), causes);
    validate_dns(spec, &at.child("dnsConfig"), causes);

    if spec
        .termination_grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        let at = at.child("terminationGracePeriodSeconds");
        let seconds = spec.termination_grace_period_seconds.unwrap_or_default();
        causes.invalid(&at, seconds, "must be greater than or equal to 0");
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let at = at.child("activeDeadlineSeconds");
        causes.invalid(&at, seconds, "must be between 1 and 2147483647, inclusive");
    }
    if let Some(hostname) = spec.hostname.as_deref().filter(|text| !text.is_empty())
        && let Err(detail) = name::label(hostname)
    {
        causes.invalid(&at.child("hostname"), hostname, detail);
    }
    if let Some(subdomain) = spec.subdomain.as_deref().filter(|text| !text.is_empty())
        && let Err(detail) = name::label(subdomain)
    {
        causes.invalid(&at.child("subdomain"), subdomain, detail);
    }
    if let Some(node) = spec.node_name.as_deref().filter(|text| !text.is_empty())
        && let Err(detail) = name::subdomain(node)
    {
        causes.invalid(&at.child("nodeName"), node, detail);
    }
    meta::validate_labels(
        spec.node_selector.as_ref(),
        &at.child("nodeSelector"),
        causes,
    );
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = at.child("hostAliases").index(i);
        if let Err(detail) = name::ip(&alias.ip) {
            causes.invalid(&at.child("ip"), &alias.ip, detail);
        }
        for (j, hostname) in alias.hostnames.iter().flatten().enumerate() {
            if let Err(detail) = name::subdomain(hostname) {
                causes.invalid(&at.child("hostnames").index(j), hostname, detail);
            }
        }
    }
    for (i, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if secret.name.is_empty() {
            causes.required(&at.child("imagePullSecrets").index(i).child("name"), "");
        }
    }
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        if let Err(detail) = name::qualified(&gate.condition_type) {
            let at = at.child("readinessGates").index(i).child("conditionType");
            causes.invalid(&at, &gate.condition_type, detail);
        }
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taint::validate_tolerations(tolerations, &at.child("tolerations"), causes);
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let at = at.child("shareProcessNamespace");
        causes.invalid(
            &at,
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if let Some(context) = &spec.security_context {
        security::validate_pod(context, &at.child("securityContext"), causes);
    }
    hostport::validate(spec, at, causes);
    sysctl::validate(spec, at, causes);
}

fn one_of(value: &Option<String>, known: &[&str], at: &Field, causes: &mut Causes) {
    let value = value.as_deref().unwrap_or_default();
    if value.is_empty() {
        causes.required(at, "");
    } else if !known.contains(&value) {
        causes.unsupported(at, value, known);
    }
}

fn validate_volumes<'a>(
    volumes: &'a [Volume],
    at: &Field,
    causes: &mut Causes,
) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (i, v) in volumes.iter().enumerate() {
        let at = at.index(i);
        if v.name.is_empty() {
            causes.required(&at.child("name"), "");
        } else if let Err(detail) = name::label(&v.name) {
            causes.invalid(&at.child("name"), &v.name, detail);
        } else if !names.insert(v.name.as_str()) {
            causes.duplicate(&at.child("name"), &v.name);
        }
        volume::validate(v, &at, causes);
    }
    names
}

fn validate_containers(
    containers: &[Container],
    init: bool,
    volumes: &BTreeSet<&str>,
    spec: &PodSpec,
    at: &Field,
    causes: &mut Causes,
) {
    let mut names = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        let at = at.index(i);
        if c.name.is_empty() {
            causes.required(&at.child("name"), "");
        } else if let Err(detail) = name::label(&c.name) {
            causes.invalid(&at.child("name"), &c.name, detail);
        } else if !names.insert(c.name.as_str()) {
            causes.duplicate(&at.child("name"), &c.name);
        }
        container::validate(c, init, volumes, &at, causes);
        if spec.host_network == Some(true) {
            for (j, port) in c.ports.iter().flatten().enumerate() {
                let protocol = port.protocol.clone().unwrap_or_default();
                if !ports.insert((port.container_port, protocol)) {
                    let at = at.child("ports").index(j).child("containerPort");
                    causes.duplicate(&at, port.container_port);
                }
            }
        }
    }
}

fn validate_dns(spec: &PodSpec, at: &Field, causes: &mut Causes) {
    let none = PodDNSConfig::default();
    let config = spec.dns_config.as_ref().unwrap_or(&none);
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.required(&at.child("nameservers"), detail);
    }
    if servers.len() > 3 {
        causes.invalid(
            &at.child("nameservers"),
            servers,
            "must not have more than 3 nameservers",
        );
    }
    for (i, server) in servers.iter().enumerate() {
        if let Err(detail) = name::ip(server) {
            causes.invalid(&at.child("nameservers").index(i), server, detail);
        }
    }
    for (i, search) in config.searches.iter().flatten().enumerate() {
        let bare = search.strip_suffix('.').unwrap_or(search);
        if search != "." && name::subdomain(&bare.replace('_', "-")).is_err() {
            let detail = "must be a valid DNS search path";
            causes.invalid(&at.child("searches").index(i), search, detail);
        }
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            causes.required(
                &at.child("options").index(i).child("name"),
                "must not be empty",
            );
        }
    }
}

pub(crate) fn warnings(spec: &PodSpec, at: &Field, warnings: &mut Vec<Warning>) {
    let all = [
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
        ("containers", spec.containers.as_slice()),
    ];
    for (list, containers) in all {
        for (i, c) in containers.iter().enumerate() {
            container::warnings(c, &at.child(list).index(i), warnings);
        }
    }
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        volume::warnings(v, &at.child("volumes").index(i), warnings);
    }
}

/// The quality of service that the requests and limits add up to.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    resources::qos_class(
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|c| &c.resources),
    )
}
