//! Containers: defaults and rules. Not their probes, hooks, resources and
//! security contexts, which have files of their own. Called by `podspec`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvFromSource, EnvVar, VolumeMount};

use crate::invalid::{Causes, Field, Warning};
use crate::{fieldref, lifecycle, name, probe, resources, security};

/// Where a container's last words are read from.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Longest name of an image, bytes: more than the distribution specification allows for
/// repository, tag and digest together. Agents send it back in each status.
const IMAGE: usize = 1024;

/// What `fieldRef` in an environment may name.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub(crate) fn set_defaults(c: &mut Container) {
    let image = c.image.as_deref().unwrap_or_default();
    let policy = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    c.image_pull_policy.get_or_insert_with(|| policy.to_owned());
    c.termination_message_path
        .get_or_insert_with(|| TERMINATION_LOG.to_owned());
    c.termination_message_policy
        .get_or_insert_with(|| "File".to_owned());
    for port in c.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    for env in c.env.iter_mut().flatten() {
        if let Some(field) = env
            .value_from
            .as_mut()
            .and_then(|from| from.field_ref.as_mut())
        {
            field.api_version.get_or_insert_with(|| "v1".to_owned());
        }
    }
    resources::set_defaults(c.resources.get_or_insert_default());
    for probe in [
        &mut c.liveness_probe,
        &mut c.readiness_probe,
        &mut c.startup_probe,
    ]
    .into_iter()
    .flatten()
    {
        probe::set_defaults(probe);
    }
    if let Some(hooks) = &mut c.lifecycle {
        lifecycle::set_defaults(hooks);
    }
}

/// No tag, or the tag `latest`, and no digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

pub(crate) fn validate(
    c: &Container,
    init: bool,
    volumes: &BTreeSet<&str>,
    at: &Field,
    causes: &mut Causes,
) {
    let image = c.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        causes.required(&at.child("image"), "");
    } else if image.trim() != image {
        causes.invalid(
            &at.child("image"),
            image,
            "must not have leading or trailing whitespace",
        );
    } else if image.len() > IMAGE {
        let detail = format!("Too long: may not be more than {IMAGE} bytes");
        causes.push(&at.child("image"), detail);
    }
    let policy = c.image_pull_policy.as_deref().unwrap_or_default();
    let known = ["Always", "IfNotPresent", "Never"];
    if !known.contains(&policy) {
        causes.unsupported(&at.child("imagePullPolicy"), policy, &known);
    }
    let policy = c.termination_message_policy.as_deref().unwrap_or_default();
    let known = ["FallbackToLogsOnError", "File"];
    if !known.contains(&policy) {
        causes.unsupported(&at.child("terminationMessagePolicy"), policy, &known);
    }
    validate_ports(
        c.ports.as_deref().unwrap_or_default(),
        &at.child("ports"),
        causes,
    );
    for (i, env) in c.env.iter().flatten().enumerate() {
        validate_env(env, &at.child("env").index(i), causes);
    }
    for (i, source) in c.env_from.iter().flatten().enumerate() {
        validate_env_from(source, &at.child("envFrom").index(i), causes);
    }
    let mounts = c.volume_mounts.as_deref().unwrap_or_default();
    validate_mounts(mounts, volumes, &at.child("volumeMounts"), causes);
    if let Some(r) = &c.resources {
        resources::validate(r, &at.child("resources"), causes);
    }
    if let Some(context) = &c.security_context {
        security::validate_container(context, &at.child("securityContext"), causes);
    }
    let sidecar = c.restart_policy.as_deref() == Some("Always");
    match c.restart_policy.as_deref() {
        None | Some("") => {}
        Some(policy) if !init => {
            let _ = policy;
            let detail = "may not be set for non-init containers";
            causes.forbidden(&at.child("restartPolicy"), detail);
        }
        Some("Always") => {}
        Some(policy) => causes.unsupported(&at.child("restartPolicy"), policy, &["Always"]),
    }
    let probes = [
        ("livenessProbe", &c.liveness_probe),
        ("readinessProbe", &c.readiness_probe),
        ("startupProbe", &c.startup_probe),
    ];
    for (field, p) in probes {
        let Some(p) = p else { continue };
        if init && !sidecar {
            let detail = "may not be set for init containers without restartPolicy=Always";
            causes.forbidden(&at.child(field), detail);
        }
        probe::validate(p, field == "readinessProbe", c, &at.child(field), causes);
    }
    if let Some(hooks) = &c.lifecycle {
        if init && !sidecar {
            let detail = "may not be set for init containers without restartPolicy=Always";
            causes.forbidden(&at.child("lifecycle"), detail);
        }
        lifecycle::validate(hooks, c, &at.child("lifecycle"), causes);
    }
}

fn validate_ports(ports: &[ContainerPort], at: &Field, causes: &mut Causes) {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = at.index(i);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            if let Err(detail) = name::port_name(name) {
                causes.invalid(&at.child("name"), name, detail);
            } else if !names.insert(name) {
                causes.duplicate(&at.child("name"), name);
            }
        }
        if port.container_port == 0 {
            causes.required(&at.child("containerPort"), "");
        } else if let Err(detail) = name::port(port.container_port) {
            causes.invalid(&at.child("containerPort"), port.container_port, detail);
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let known = ["SCTP", "TCP", "UDP"];
        if !known.contains(&protocol) {
            causes.unsupported(&at.child("protocol"), protocol, &known);
        }
    }
}

fn validate_env(env: &EnvVar, at: &Field, causes: &mut Causes) {
    if env.name.is_empty() {
        causes.required(&at.child("name"), "");
    } else if let Err(detail) = name::env_name(&env.name) {
        causes.invalid(&at.child("name"), &env.name, detail);
    }
    let Some(from) = &env.value_from else { return };
    let at = at.child("valueFrom");
    if env.value.as_deref().is_some_and(|value| !value.is_empty()) {
        causes.invalid(&at, "", "may not be specified when `value` is not empty");
    }
    let mut sources = 0;
    if let Some(field) = &from.field_ref {
        sources += 1;
        fieldref::validate(field, ENV_FIELDS, &at.child("fieldRef"), causes);
    }
    if let Some(resource) = &from.resource_field_ref {
        sources += 1;
        resources::validate_field_ref(resource, false, &at.child("resourceFieldRef"), causes);
    }
    let config = from
        .config_map_key_ref
        .as_ref()
        .map(|r| ("configMapKeyRef", &r.name, &r.key));
    let secret = from
        .secret_key_ref
        .as_ref()
        .map(|r| ("secretKeyRef", &r.name, &r.key));
    for (field, name, key) in config.into_iter().chain(secret) {
        sources += 1;
        let at = at.child(field);
        if name.is_empty() {
            causes.required(&at.child("name"), "");
        }
        if key.is_empty() {
            causes.required(&at.child("key"), "");
        } else if let Err(detail) = name::config_key(key) {
            causes.invalid(&at.child("key"), key, detail);
        }
    }
    match sources {
        0 => causes.invalid(&at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"),
        1 => {}
        _several => causes.invalid(&at, "", "may not have more than one field specified at a time"),
    }
}

fn validate_env_from(source: &EnvFromSource, at: &Field, causes: &mut Causes) {
    if let Some(prefix) = source.prefix.as_deref()
        && let Err(detail) = name::env_name(prefix)
    {
        causes.invalid(&at.child("prefix"), prefix, detail);
    }
    let config = source
        .config_map_ref
        .as_ref()
        .map(|r| ("configMapRef", &r.name));
    let secret = source.secret_ref.as_ref().map(|r| ("secretRef", &r.name));
    match (config, secret) {
        (None, None) => {
            causes.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`");
        }
        (Some(_), Some(_)) => {
            causes.invalid(
                at,
                "",
                "may not have more than one field specified at a time",
            );
        }
        (Some((field, name)), None) | (None, Some((field, name))) => {
            if name.is_empty() {
                causes.required(&at.child(field).child("name"), "");
            }
        }
    }
}

fn validate_mounts(
    mounts: &[VolumeMount],
    volumes: &BTreeSet<&str>,
    at: &Field,
    causes: &mut Causes,
) {
    let mut paths = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let at = at.index(i);
        if mount.name.is_empty() {
            causes.required(&at.child("name"), "");
        } else if !volumes.contains(mount.name.as_str()) {
            causes.not_found(&at.child("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            causes.required(&at.child("mountPath"), "");
        } else if !paths.insert(mount.mount_path.as_str()) {
            causes.invalid(&at.child("mountPath"), &mount.mount_path, "must be unique");
        }
        let sub = [
            ("subPath", &mount.sub_path),
            ("subPathExpr", &mount.sub_path_expr),
        ];
        for (field, path) in sub {
            let path = path.as_deref().unwrap_or_default();
            if path.starts_with('/') {
                causes.invalid(&at.child(field), path, "must be a relative path");
            }
            if path.split('/').any(|step| step == "..") {
                causes.invalid(&at.child(field), path, "must not contain '..'");
            }
        }
        if mount.sub_path.is_some() && mount.sub_path_expr.is_some() {
            causes.invalid(
                &at.child("subPathExpr"),
                "",
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        let known = ["Bidirectional", "HostToContainer", "None"];
        if let Some(mode) = mount
            .mount_propagation
            .as_deref()
            .filter(|m| !known.contains(m))
        {
            causes.unsupported(&at.child("mountPropagation"), mode, &known);
        }
    }
}

pub(crate) fn warnings(c: &Container, at: &Field, warnings: &mut Vec<Warning>) {
    let mut seen = BTreeSet::new();
    for (i, env) in c.env.iter().flatten().enumerate() {
        if !seen.insert(env.name.as_str()) {
            warnings.push(Warning {
                field: at.child("env").index(i).to_string(),
                message: format!(
                    "hides previous definition of {:?}, which may be dropped when using apply",
                    env.name
                ),
            });
        }
    }
}
