//! One container: command, environment, resources, mounts, probes, all resolved but for
//! references to variables, which the agent expands when it makes the container.
//! What cannot be resolved is in `config_error`. Called by `pod`.

use control_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements, SecurityContext, VolumeMount};

use super::budget::Budget;
use super::input::PodInput;
use super::{env, probe};
use crate::v1;

/// A container of the pod.
pub fn container(input: &PodInput<'_>, c: &Container, budget: &Budget) -> v1::ContainerSpec {
    let mut errors: Vec<String> = Vec::new();
    let variables = env::resolve(input, c, budget).unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    let mut keep = |result: Result<Option<v1::Probe>, String>| {
        result.unwrap_or_else(|error| {
            errors.push(error);
            None
        })
    };
    let probe_of = |p: &Option<_>| p.as_ref().map(|p| probe::probe(p, c)).transpose();
    let liveness = keep(probe_of(&c.liveness_probe));
    let readiness = keep(probe_of(&c.readiness_probe));
    let startup = keep(probe_of(&c.startup_probe));
    let hooks = c.lifecycle.as_ref();
    let mut hook = |h: Option<&_>| {
        h.and_then(|h| match probe::hook(h, c) {
            Ok(handler) => Some(handler),
            Err(error) => {
                errors.push(error);
                None
            }
        })
    };
    let post_start = hook(hooks.and_then(|hooks| hooks.post_start.as_ref()));
    let pre_stop = hook(hooks.and_then(|hooks| hooks.pre_stop.as_ref()));
    v1::ContainerSpec {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        image_pull_policy: c.image_pull_policy.clone().unwrap_or_default(),
        command: c.command.clone().unwrap_or_default(),
        args: c.args.clone().unwrap_or_default(),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        resources: Some(resources(c.resources.as_ref())),
        mounts: c.volume_mounts.iter().flatten().map(mount).collect(),
        ports: c.ports.iter().flatten().map(port).collect(),
        security: Some(security(c.security_context.as_ref())),
        liveness,
        readiness,
        startup,
        post_start,
        pre_stop,
        stdin: c.stdin.unwrap_or_default(),
        stdin_once: c.stdin_once.unwrap_or_default(),
        tty: c.tty.unwrap_or_default(),
        termination_message_path: c.termination_message_path.clone().unwrap_or_default(),
        termination_message_policy: c.termination_message_policy.clone().unwrap_or_default(),
        restart_policy: c.restart_policy.clone().unwrap_or_default(),
        config_error: errors.join("; "),
        env: variables,
    }
}

fn port(port: &k8s_openapi::api::core::v1::ContainerPort) -> v1::ContainerPort {
    v1::ContainerPort {
        name: port.name.clone().unwrap_or_default(),
        container_port: u32::try_from(port.container_port).unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_default(),
        host_port: port
            .host_port
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or_default(),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    }
}

fn mount(mount: &VolumeMount) -> v1::VolumeMount {
    v1::VolumeMount {
        volume: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        sub_path: mount.sub_path.clone().unwrap_or_default(),
        sub_path_expr: mount.sub_path_expr.clone().unwrap_or_default(),
        read_only: mount.read_only.unwrap_or_default(),
        propagation: mount
            .mount_propagation
            .clone()
            .unwrap_or_else(|| "None".to_owned()),
    }
}

fn resources(r: Option<&ResourceRequirements>) -> v1::Resources {
    let find = |list: Option<&std::collections::BTreeMap<String, _>>, name: &str| {
        list.and_then(|list| list.get(name))
            .and_then(Quantity::of)
            .unwrap_or_default()
    };
    let requests = r.and_then(|r| r.requests.as_ref());
    let limits = r.and_then(|r| r.limits.as_ref());
    v1::Resources {
        cpu_request_millis: find(requests, "cpu").millis(),
        cpu_limit_millis: find(limits, "cpu").millis(),
        memory_request_bytes: find(requests, "memory").units(),
        memory_limit_bytes: find(limits, "memory").units(),
    }
}

fn security(context: Option<&SecurityContext>) -> v1::ContainerSecurity {
    let Some(context) = context else {
        return v1::ContainerSecurity::default();
    };
    let capabilities = context.capabilities.clone().unwrap_or_default();
    v1::ContainerSecurity {
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        run_as_non_root: context.run_as_non_root,
        privileged: context.privileged.unwrap_or_default(),
        read_only_root_filesystem: context.read_only_root_filesystem.unwrap_or_default(),
        allow_privilege_escalation: context.allow_privilege_escalation,
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        seccomp: context
            .seccomp_profile
            .as_ref()
            .map(|p| p.type_.clone())
            .unwrap_or_default(),
    }
}
