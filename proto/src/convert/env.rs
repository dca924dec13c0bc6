//! The environment of a container: services, then envFrom, then env, resolved to
//! plain values in the order and with the precedence of Kubernetes. Not the
//! image's own environment. Called by `container`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EnvVarSource, Service};

use super::budget::Budget;
use super::field;
use super::input::PodInput;
use crate::v1;

/// Name of the service of the control plane.
const MASTER: &str = "kubernetes";

/// All variables, each once; or the first thing that is missing, or too much.
pub fn resolve(
    input: &PodInput<'_>,
    container: &Container,
    budget: &Budget,
) -> Result<Vec<v1::EnvVar>, String> {
    // Not even looked up for the containers after the one that exceeded it.
    budget.take(0)?;
    let services = service_links(input);
    let mut own = Variables::default();
    for source in container.env_from.iter().flatten() {
        env_from(input, source, &mut own, budget)?;
    }
    for env in container.env.iter().flatten() {
        if let Some(value) = value_of(input, container, env, &own, &services, budget)? {
            own.keep(&env.name, value, budget);
        }
    }
    let mut all = own.list.clone();
    for service in services.list {
        if own.get(&service.name).is_none() {
            budget.take(service.value.len())?;
            all.push(service);
        }
    }
    Ok(all)
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Variables {
    list: Vec<v1::EnvVar>,
    index: BTreeMap<String, usize>,
}

impl Variables {
    /// The value that it replaces.
    fn set(&mut self, name: &str, value: String) -> Option<String> {
        match self.index.get(name).and_then(|at| self.list.get_mut(*at)) {
            Some(there) => Some(std::mem::replace(&mut there.value, value)),
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push(v1::EnvVar {
                    name: name.to_owned(),
                    value,
                });
                None
            }
        }
    }
    /// A value that was taken from the budget; one that it replaces is given back.
    fn keep(&mut self, name: &str, value: String, budget: &Budget) {
        let replaced = self.set(name, value);
        budget.give_back(replaced.map_or(0, |value| value.len()));
    }
    fn get(&self, name: &str) -> Option<&str> {
        self.index
            .get(name)
            .and_then(|at| self.list.get(*at))
            .map(|env| env.value.as_str())
    }
}

fn value_of(
    input: &PodInput<'_>,
    container: &Container,
    env: &EnvVar,
    own: &Variables,
    services: &Variables,
    budget: &Budget,
) -> Result<Option<String>, String> {
    let plain = env.value.as_deref().unwrap_or_default();
    let lookup = |name: &str| {
        own.get(name)
            .or_else(|| services.get(name))
            .map(str::to_owned)
    };
    match (&env.value_from, plain) {
        (Some(from), "") => {
            let value = value_from(input, container, from)?;
            budget.take(value.as_ref().map_or(0, String::len))?;
            Ok(value)
        }
        (Some(_) | None, text) => budget.expand(text, &lookup).map(Some),
    }
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
    own: &mut Variables,
    budget: &Budget,
) -> Result<(), String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut set = |key: &str, value: String| {
        budget.take(prefix.len() + value.len())?;
        own.keep(&format!("{prefix}{key}"), value, budget);
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

/// The variables that name the services of the pod's namespace, and the control plane's.
fn service_links(input: &PodInput<'_>) -> Variables {
    let mut links = Variables::default();
    let spec = input.pod.spec.as_ref();
    let declined = spec.is_some_and(|spec| spec.enable_service_links == Some(false));
    let own = if declined {
        Vec::new()
    } else {
        (input.services)()
    };
    // Pods always find the control plane; a service of that name in their own namespace
    // comes before it, as in Kubernetes.
    let shadowed = own
        .iter()
        .any(|s| s.metadata.name.as_deref() == Some(MASTER));
    let master = (input.master)().filter(|_| !shadowed);
    for service in own.into_iter().chain(master) {
        for (name, value) in links_of(service) {
            links.set(&name, value);
        }
    }
    links
}

/// `{SVC}_SERVICE_HOST`, `{SVC}_SERVICE_PORT`, and the docker-link forms; nothing
/// for services without an address.
fn links_of(service: &Service) -> Vec<(String, String)> {
    let shout = |name: &str| name.to_uppercase().replace('-', "_");
    let name = shout(service.metadata.name.as_deref().unwrap_or_default());
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else {
        return Vec::new();
    };
    if ip.is_empty() || ip == control_api::service::HEADLESS {
        return Vec::new();
    }
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let mut links = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let variable = format!("{name}_SERVICE_PORT_{}", shout(port_name));
            links.push((variable, port.port.to_string()));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let number = port.port;
        let url = format!("{}://{host}:{number}", protocol.to_lowercase());
        if i == 0 {
            links.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        links.push((prefix.clone(), url));
        links.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        links.push((format!("{prefix}_PORT"), number.to_string()));
        links.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    links
}
