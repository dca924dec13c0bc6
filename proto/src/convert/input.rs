//! What a pod's message is made of: the pod, the objects that it names, its node
//! and its cluster. Not the message: see `pod`.

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};

use crate::v1;

/// The node that the pod runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    /// Best first; the first is the pod's `status.hostIP`.
    pub addresses: Vec<String>,
    /// What pods may use: the value of a limit that is not set.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// All that a pod's message is made of.
pub struct PodInput<'a> {
    /// As stored: defaulted and validated.
    pub pod: &'a Pod,
    /// Of the pod's namespace, by name.
    pub config_map: &'a dyn Fn(&str) -> Option<ConfigMap>,
    /// Of the pod's namespace, by name.
    pub secret: &'a dyn Fn(&str) -> Option<Secret>,
    pub node: &'a NodeFacts,
    pub cluster: &'a v1::ClusterConfig,
    /// Allocated addresses; with hostNetwork the node's are used.
    pub ips: Vec<String>,
    pub identity: u32,
    pub generation: u64,
    /// Present: stop the pod, and kill it after so many seconds.
    pub stop_grace_seconds: Option<i64>,
}

impl PodInput<'_> {
    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// A container or init container of the pod.
    pub(crate) fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        let mut all = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten());
        all.find(|container| container.name == name)
    }

    pub(crate) fn pod_ips(&self) -> &[String] {
        let host = self
            .pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_network == Some(true));
        if host {
            &self.node.addresses
        } else {
            &self.ips
        }
    }
}
