//! The variables that a container has of its own: envFrom, then env, resolved to plain
//! values but for references among them. Not those of services, nor of the image: the agent
//! adds both when it makes the container. Called by `container`.

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource};

use super::budget::Budget;
use super::field;
use super::input::PodInput;
use crate::v1;

/// All variables, in order; or the first thing that is missing, or too much.
pub fn resolve(
    input: &PodInput<'_>,
    container: &Container,
    budget: &Budget,
) -> Result<Vec<v1::EnvVar>, String> {
    // Not even looked up for the containers after the one that exceeded it.
    budget.take(0)?;
    let mut own = Vec::new();
    for source in container.env_from.iter().flatten() {
        env_from(input, source, &mut own, budget)?;
    }
    for env in container.env.iter().flatten() {
        let text = env.value.as_deref().unwrap_or_default();
        let (value, expand) = match &env.value_from {
            Some(from) if text.is_empty() => (value_from(input, container, from)?, false),
            Some(_) | None => (Some(text.to_owned()), text.contains('$')),
        };
        if let Some(value) = value {
            budget.take(value.len())?;
            own.push(v1::EnvVar {
                name: env.name.clone(),
                value,
                expand,
            });
        }
    }
    Ok(own)
}

/// `None`: an optional reference to nothing; the variable is not set.
fn value_from(
    input: &PodInput<'_>,
    container: &Container,
    from: &EnvVarSource,
) -> Result<Option<String>, String> {
    let namespace = input.namespace();
    if let Some(reference) = &from.field_ref {
        let path = &reference.field_path;
        let value = field::pod_field(input, path);
        return value
            .map(Some)
            .ok_or_else(|| format!("unsupported fieldPath: {path}"));
    }
    if let Some(reference) = &from.resource_field_ref {
        let named = reference
            .container_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let of = named.map_or(Some(container), |name| input.container(name));
        let Some(of) = of else {
            return Err(format!("container {} not found", named.unwrap_or_default()));
        };
        let value = field::resource_field(input, of, reference);
        let resource = &reference.resource;
        return value
            .map(Some)
            .ok_or_else(|| format!("unsupported container resource: {resource}"));
    }
    if let Some(reference) = &from.config_map_key_ref {
        let (name, key) = (&reference.name, &reference.key);
        let optional = reference.optional == Some(true);
        let Some(map) = (input.config_map)(name) else {
            return missing(optional, || format!("configmap {name:?} not found"));
        };
        let value = map.data.as_ref().and_then(|data| data.get(key)).cloned();
        return match value {
            Some(value) => Ok(Some(value)),
            None => missing(optional, || {
                format!("couldn't find key {key} in ConfigMap {namespace}/{name}")
            }),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let (name, key) = (&reference.name, &reference.key);
        let optional = reference.optional == Some(true);
        let Some(secret) = (input.secret)(name) else {
            return missing(optional, || format!("secret {name:?} not found"));
        };
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing(optional, || {
                format!("couldn't find key {key} in Secret {namespace}/{name}")
            }),
        };
    }
    Ok(Some(String::new()))
}

fn missing<T>(optional: bool, message: impl FnOnce() -> String) -> Result<Option<T>, String> {
    if optional { Ok(None) } else { Err(message()) }
}

fn env_from(
    input: &PodInput<'_>,
    source: &EnvFromSource,
    own: &mut Vec<v1::EnvVar>,
    budget: &Budget,
) -> Result<(), String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut set = |key: &str, value: String| {
        budget.take(prefix.len() + value.len())?;
        own.push(v1::EnvVar {
            name: format!("{prefix}{key}"),
            value,
            expand: false,
        });
        Ok(())
    };
    if let Some(reference) = &source.config_map_ref {
        let name = &reference.name;
        return match (input.config_map)(name) {
            Some(map) => {
                let mut data = map.data.unwrap_or_default().into_iter();
                data.try_for_each(|(key, value)| set(&key, value))
            }
            None if reference.optional == Some(true) => Ok(()),
            None => Err(format!("configmap {name:?} not found")),
        };
    }
    if let Some(reference) = &source.secret_ref {
        let name = &reference.name;
        return match (input.secret)(name) {
            Some(secret) => {
                let mut data = secret.data.unwrap_or_default().into_iter();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                data.try_for_each(|(key, value)| set(&key, text(&value.0)))
            }
            None if reference.optional == Some(true) => Ok(()),
            None => Err(format!("secret {name:?} not found")),
        };
    }
    Ok(())
}
