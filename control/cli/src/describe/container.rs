//! Containers: image, command, state, limits, probes, environment, mounts.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerState, ContainerStatus, EnvVar,
};

use super::probe;
use super::text::{Text, time};
use crate::printer::NONE;

/// Those of a template: they have no status.
pub(super) fn of_template(containers: &[Container]) -> Text {
    let mut text = Text::default();
    containers
        .iter()
        .for_each(|container| one(&mut text, container, None));
    text
}

/// Those of a pod, each with its status.
pub(super) fn of_pod(text: &mut Text, containers: &[Container], statuses: &[ContainerStatus]) {
    for container in containers {
        one(
            text,
            container,
            statuses.iter().find(|status| status.name == container.name),
        );
    }
}

fn one(text: &mut Text, container: &Container, status: Option<&ContainerStatus>) {
    text.section(1, &container.name);
    if let Some(status) = status {
        text.pair(
            2,
            "Container ID",
            status.container_id.as_deref().unwrap_or_default(),
        );
    }
    text.pair(2, "Image", container.image.as_deref().unwrap_or_default());
    if let Some(status) = status {
        text.pair(2, "Image ID", &status.image_id);
    }
    ports(text, ("Port", "Ports"), container, |port| {
        port.container_port
    });
    ports(text, ("Host Port", "Host Ports"), container, |port| {
        port.host_port.unwrap_or_default()
    });
    for (name, words) in [("Command", &container.command), ("Args", &container.args)] {
        if let Some(words) = words {
            text.section(2, name);
            words
                .iter()
                .flat_map(|word| word.lines())
                .for_each(|line| text.line(3, line));
        }
    }
    if let Some(status) = status {
        state(text, "State", status.state.as_ref());
        if status
            .last_state
            .as_ref()
            .is_some_and(|last| *last != ContainerState::default())
        {
            state(text, "Last State", status.last_state.as_ref());
        }
        text.pair(2, "Ready", if status.ready { "True" } else { "False" });
        text.pair(2, "Restart Count", status.restart_count.to_string());
    }
    let resources = container.resources.clone().unwrap_or_default();
    for (name, amounts) in [
        ("Limits", resources.limits),
        ("Requests", resources.requests),
    ] {
        if let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) {
            text.section(2, name);
            amounts
                .iter()
                .for_each(|(resource, amount)| text.pair(3, resource, &amount.0));
        }
    }
    for (name, found) in [
        ("Liveness", &container.liveness_probe),
        ("Readiness", &container.readiness_probe),
        ("Startup", &container.startup_probe),
    ] {
        if let Some(found) = found {
            text.pair(2, name, probe::line(found));
        }
    }
    environment(text, container);
    let mounts: Vec<String> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let access = if mount.read_only == Some(true) {
                "ro"
            } else {
                "rw"
            };
            let sub = mount
                .sub_path
                .as_ref()
                .map(|path| format!(",path=\"{path}\""))
                .unwrap_or_default();
            format!("{} from {} ({access}{sub})", mount.mount_path, mount.name)
        })
        .collect();
    if mounts.is_empty() {
        text.pair(2, "Mounts", NONE);
    } else {
        text.section(2, "Mounts");
        mounts.iter().for_each(|mount| text.line(3, mount));
    }
}

/// One number of each port, as kubectl has it; 0: none. The name depends on how many there are.
fn ports(
    text: &mut Text,
    (one, several): (&str, &str),
    container: &Container,
    number: impl Fn(&ContainerPort) -> i32,
) {
    let ports = container.ports.iter().flatten();
    let ports: Vec<String> = ports
        .map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            format!("{}/{protocol}", number(port))
        })
        .collect();
    match ports.as_slice() {
        [] => text.pair(2, one, NONE),
        [port] => text.pair(2, one, port),
        [_, _, ..] => text.pair(2, several, ports.join(", ")),
    }
}

fn state(text: &mut Text, name: &str, state: Option<&ContainerState>) {
    let state = state.cloned().unwrap_or_default();
    if let Some(running) = state.running {
        text.pair(2, name, "Running");
        text.pair(3, "Started", time(running.started_at.as_ref()));
    } else if let Some(ended) = state.terminated {
        text.pair(2, name, "Terminated");
        if let Some(reason) = &ended.reason {
            text.pair(3, "Reason", reason);
        }
        if let Some(message) = &ended.message {
            text.pair(3, "Message", message);
        }
        text.pair(3, "Exit Code", ended.exit_code.to_string());
        if let Some(signal) = ended.signal.filter(|signal| *signal > 0) {
            text.pair(3, "Signal", signal.to_string());
        }
        text.pair(3, "Started", time(ended.started_at.as_ref()));
        text.pair(3, "Finished", time(ended.finished_at.as_ref()));
    } else {
        text.pair(2, name, "Waiting");
        let waiting = state.waiting.unwrap_or_default();
        if let Some(reason) = waiting.reason {
            text.pair(3, "Reason", reason);
        }
        if let Some(message) = waiting.message {
            text.pair(3, "Message", message);
        }
    }
}

fn environment(text: &mut Text, container: &Container) {
    let from: Vec<String> = container
        .env_from
        .iter()
        .flatten()
        .filter_map(|source| {
            let map = source
                .config_map_ref
                .as_ref()
                .map(|map| format!("{}  ConfigMap", map.name));
            map.or_else(|| {
                source
                    .secret_ref
                    .as_ref()
                    .map(|secret| format!("{}  Secret", secret.name))
            })
        })
        .collect();
    if !from.is_empty() {
        text.section(2, "Environment Variables from");
        from.iter().for_each(|line| text.line(3, line));
    }
    let variables = container.env.as_deref().unwrap_or_default();
    if variables.is_empty() {
        return text.pair(2, "Environment", NONE);
    }
    text.section(2, "Environment");
    for variable in variables {
        text.pair(3, &variable.name, value_of(variable));
    }
}

/// The literal, or where the value comes from; a Secret's value is not known here at all.
fn value_of(variable: &EnvVar) -> String {
    let Some(from) = &variable.value_from else {
        return variable
            .value
            .clone()
            .unwrap_or_default()
            .replace('\n', " ");
    };
    if let Some(key) = &from.config_map_key_ref {
        return format!(
            "<set to the key '{}' of config map '{}'>",
            key.key, key.name
        );
    }
    if let Some(key) = &from.secret_key_ref {
        return format!("<set to the key '{}' in secret '{}'>", key.key, key.name);
    }
    if let Some(field) = &from.field_ref {
        return format!(
            "({}:{})",
            field.api_version.as_deref().unwrap_or("v1"),
            field.field_path
        );
    }
    from.resource_field_ref
        .as_ref()
        .map_or_else(String::new, |field| format!("({})", field.resource))
}
