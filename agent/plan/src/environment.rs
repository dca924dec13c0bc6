//! A container's variables: its own, and those that name services; and what refers to them
//! by `$(NAME)`: values, command, arguments, sub paths.
//!
//! Made when a container is made, and only then, as in kubelet (`makeEnvironmentVariables`):
//! a service that comes or goes changes the variables of no container that is there.
//! Called by `container.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proto::frame;
use proto::v1;

use crate::create::ConfigError;
use crate::expand::expand;

/// The service of the control plane.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// The most that all variables and words of a container have together, bytes: half of a
/// message to the shim. The kernel takes 6 MB for a new program.
const MOST: usize = frame::MAX / 2;

/// A container with the variables that it has if it is made now, each once, and without
/// references. `services`: those of the cluster, by "namespace/name".
///
/// # Errors
/// A sub path cannot be had, or it is too much.
pub fn resolve(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    services: &BTreeMap<String, v1::Service>,
) -> Result<v1::ContainerSpec, ConfigError> {
    let mut budget = Budget { left: MOST };
    let links = links(pod, services);
    let mut own = Variables::default();
    for variable in &container.env {
        let lookup = |name: &str| own.get(name).or_else(|| links.get(name));
        let value = if variable.expand {
            budget.expand(&variable.value, lookup)?
        } else {
            budget.take(variable.value.len())?;
            variable.value.clone()
        };
        own.set(&variable.name, value);
    }
    for link in links.list {
        if own.get(&link.name).is_none() {
            budget.take(link.name.len() + link.value.len())?;
            own.set(&link.name, link.value);
        }
    }
    let lookup = |name: &str| own.get(name);
    let mut expanded = |words: &[String]| -> Result<Vec<String>, ConfigError> {
        let words = words.iter();
        words.map(|word| budget.expand(word, lookup)).collect()
    };
    let command = expanded(&container.command)?;
    let args = expanded(&container.args)?;
    let mut mounts = container.mounts.clone();
    for mount in &mut mounts {
        mount.sub_path = sub_path(mount, lookup, &mut budget)?;
    }
    Ok(v1::ContainerSpec {
        command,
        args,
        mounts,
        env: own.list,
        ..container.clone()
    })
}

fn sub_path<'a>(
    mount: &v1::VolumeMount,
    lookup: impl Fn(&str) -> Option<&'a str>,
    budget: &mut Budget,
) -> Result<String, ConfigError> {
    let expression = &mount.sub_path_expr;
    let path = if expression.is_empty() {
        mount.sub_path.clone()
    } else {
        // An empty one counts as missing, as for the kubelet: it would name another folder,
        // or all of the volume.
        let missing = RefCell::new(BTreeSet::new());
        let path = budget.expand(expression, |name| {
            let value = lookup(name).filter(|value| !value.is_empty());
            if value.is_none() {
                missing.borrow_mut().insert(name.to_owned());
            }
            value
        })?;
        let missing = Vec::from_iter(missing.into_inner());
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let message = format!("missing value for {missing} in subPathExpr {expression:?}");
            return Err(ConfigError(message));
        }
        path
    };
    if path.starts_with('/') || path.split('/').any(|step| step == "..") {
        let message = format!("subPath {path:?} must be a relative path without '..'");
        return Err(ConfigError(message));
    }
    Ok(path)
}

/// What may still be made for one container. Values name others any number of times: what
/// is made is counted before it is made.
struct Budget {
    /// Bytes.
    left: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), ConfigError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(too_long)?;
        Ok(())
    }

    fn expand<'a>(
        &mut self,
        text: &str,
        lookup: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, ConfigError> {
        let expanded = expand(text, lookup, self.left).ok_or_else(too_long)?;
        self.take(expanded.len())?;
        Ok(expanded)
    }
}

fn too_long() -> ConfigError {
    ConfigError(format!(
        "the container is too long with its environment and arguments: at most {MOST} bytes are \
         allowed"
    ))
}

/// In the order in which they were first set.
#[derive(Default)]
struct Variables {
    list: Vec<v1::EnvVar>,
    index: BTreeMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name).and_then(|at| self.list.get_mut(*at)) {
            Some(there) => there.value = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push(v1::EnvVar {
                    name: name.to_owned(),
                    value,
                    expand: false,
                });
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let at = *self.index.get(name)?;
        self.list.get(at).map(|variable| variable.value.as_str())
    }
}

/// Variables of the services of the pod's namespace, if it wants them, and those of the
/// control plane's; kubelet's `getServiceEnvVarMap`.
fn links(pod: &v1::PodSpec, services: &BTreeMap<String, v1::Service>) -> Variables {
    let prefix = format!("{}/", pod.namespace);
    let all = services.range(prefix.clone()..);
    let here = all.take_while(|(key, _)| key.starts_with(&prefix));
    let here = here.filter(|_| pod.enable_service_links);
    let mut own: Vec<&v1::Service> = here
        .map(|(_, service)| service)
        .filter(|service| address(service).is_some())
        .collect();
    // One of that name in the pod's own namespace comes before it.
    if !own.iter().any(|service| service.name == MASTER.1) {
        own.extend(services.get(&format!("{}/{}", MASTER.0, MASTER.1)));
    }
    let mut links = Variables::default();
    for service in own {
        for (name, value) in links_of(service) {
            links.set(&name, value);
        }
    }
    links
}

/// The first of its cluster IPs. None of a headless service, nor of one that stands for
/// another name.
fn address(service: &v1::Service) -> Option<&str> {
    let first = service.cluster_ips.first().map(String::as_str);
    first.filter(|ip| !ip.is_empty())
}

/// `{SVC}_SERVICE_HOST`, `{SVC}_SERVICE_PORT`, and the forms of Docker's links; kubelet's
/// `envvars.FromServices`. Nothing for a service without an address.
fn links_of(service: &v1::Service) -> Vec<(String, String)> {
    let shout = |name: &str| name.to_uppercase().replace('-', "_");
    let name = shout(&service.name);
    let (Some(ip), Some(first)) = (address(service), service.ports.first()) else {
        return Vec::new();
    };
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let mut links = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        let variable = format!("{name}_SERVICE_PORT_{}", shout(&port.name));
        links.push((variable, port.port.to_string()));
    }
    for (i, port) in service.ports.iter().enumerate() {
        let protocol = match port.protocol.as_str() {
            "" => "tcp".to_owned(),
            named => named.to_lowercase(),
        };
        let number = port.port;
        let url = format!("{protocol}://{host}:{number}");
        if i == 0 {
            links.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        links.push((prefix.clone(), url));
        links.push((format!("{prefix}_PROTO"), protocol));
        links.push((format!("{prefix}_PORT"), number.to_string()));
        links.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    links
}

#[cfg(test)]
mod tests;
