//! Reading pods and services through `foil`, as a test needs them.
//!
//! Only what the command line shows: nothing here looks into the store or the agents.
//! Called by the cases.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tests_harness::cluster::condition;
use tests_harness::{Cluster, wait_until};

/// The part of a pod that tests speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub ip: String,
    pub phase: String,
    pub ready: bool,
    pub deleting: bool,
    /// Of all containers.
    pub restarts: u64,
    /// `foil://ID` of each container.
    pub containers: Vec<String>,
    /// Reasons of waiting or terminated states, now and before.
    pub reasons: BTreeSet<String>,
}

impl Pod {
    fn read(object: &Value) -> Self {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let statuses = object["status"]["containerStatuses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut reasons = BTreeSet::new();
        for status in &statuses {
            for pointer in [
                "/state/waiting/reason",
                "/state/terminated/reason",
                "/lastState/terminated/reason",
            ] {
                if let Some(reason) = status.pointer(pointer).and_then(Value::as_str) {
                    reasons.insert(reason.to_owned());
                }
            }
        }
        Self {
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            node: text("/spec/nodeName"),
            ip: text("/status/podIP"),
            phase: text("/status/phase"),
            ready: condition(object, "Ready"),
            deleting: object["metadata"]
                .get("deletionTimestamp")
                .is_some_and(|at| !at.is_null()),
            restarts: statuses
                .iter()
                .filter_map(|status| status["restartCount"].as_u64())
                .sum(),
            containers: statuses
                .iter()
                .filter_map(|status| status["containerID"].as_str().map(str::to_owned))
                .collect(),
            reasons,
        }
    }
}

/// Pods of the namespace in use.
pub fn pods(cluster: &Cluster) -> Vec<Pod> {
    cluster.list("pods").iter().map(Pod::read).collect()
}

/// Pods with `app=LABEL`, those that are being deleted included; sorted by name.
pub fn pods_of(cluster: &Cluster, app: &str) -> Vec<Pod> {
    let objects = cluster.list("pods");
    let labelled = objects
        .iter()
        .filter(|object| object["metadata"]["labels"]["app"] == app);
    let mut pods: Vec<Pod> = labelled.map(Pod::read).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    pods
}

/// One pod by name.
pub fn pod(cluster: &Cluster, name: &str) -> Option<Pod> {
    cluster.get("pods", name).as_ref().map(Pod::read)
}

/// Waits until the pod is Ready and gives it.
///
/// # Panics
/// If it never is; the message has its events.
pub fn ready(cluster: &Cluster, name: &str) -> Pod {
    wait_until(&format!("pod {name} Ready"), || match pod(cluster, name) {
        Some(pod) if pod.ready && !pod.deleting => Ok(pod),
        other => Err(format!("{other:?}\n{}", events(cluster, name))),
    })
}

/// Waits until exactly `count` pods with `app=LABEL` exist and all are Ready.
///
/// # Panics
/// If that never is so.
pub fn ready_count(cluster: &Cluster, app: &str, count: usize) -> Vec<Pod> {
    wait_until(&format!("{count} pods of {app} Ready"), || {
        let pods = pods_of(cluster, app);
        let good = pods.iter().all(|pod| pod.ready && !pod.deleting);
        if good && pods.len() == count {
            Ok(pods)
        } else {
            Err(format!("{pods:?}"))
        }
    })
}

/// Waits until no pod of that name is there.
///
/// # Panics
/// If it stays.
pub fn gone(cluster: &Cluster, name: &str) {
    wait_until(&format!("pod {name} gone"), || match pod(cluster, name) {
        None => Ok(()),
        Some(pod) => Err(format!("{pod:?}")),
    });
}

/// Waits until a container of the pod shows one of the reasons; gives the pod.
///
/// # Panics
/// If it never does; the message has the pod and its events.
pub fn with_reason(cluster: &Cluster, name: &str, reasons: &[&str]) -> Pod {
    wait_until(&format!("pod {name} with {reasons:?}"), || {
        match pod(cluster, name) {
            Some(pod) if reasons.iter().any(|reason| pod.reasons.contains(*reason)) => Ok(pod),
            other => Err(format!("{other:?}\n{}", events(cluster, name))),
        }
    })
}

/// `reason: message` of each event about an object of that name.
pub fn events(cluster: &Cluster, name: &str) -> String {
    let mut lines = String::new();
    for event in cluster.list("events") {
        if event["involvedObject"]["name"] == name {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            lines.push_str(&format!(
                "{} {}: {}\n",
                text("type"),
                text("reason"),
                text("message")
            ));
        }
    }
    lines
}

/// The virtual address of a service.
///
/// # Panics
/// If there is none.
pub fn cluster_ip(cluster: &Cluster, service: &str) -> String {
    wait_until(&format!("address of service {service}"), || {
        let object = cluster.get("services", service);
        let object = object.ok_or_else(|| "no such service".to_owned())?;
        let ip = object["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if ip.is_empty() {
            Err(object.to_string())
        } else {
            Ok(ip)
        }
    })
}

/// Waits until all pods of a Deployment are those of its present template.
///
/// # Panics
/// If it does not come to that.
pub fn rolled_out(cluster: &Cluster, name: &str) {
    wait_until(&format!("rollout of {name}"), || {
        let object = cluster.get("deployments", name);
        let object = object.ok_or_else(|| "no such deployment".to_owned())?;
        let (status, wanted) = (&object["status"], &object["spec"]["replicas"]);
        let counts = ["replicas", "updatedReplicas", "availableReplicas"];
        if status["observedGeneration"] == object["metadata"]["generation"]
            && counts.iter().all(|count| status[*count] == *wanted)
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

/// Waits until each node's maps hold exactly these addresses as backends of the service.
///
/// # Panics
/// If a node's do not come to that.
pub fn backends_are(cluster: &Cluster, service: &str, pods: &[Pod]) {
    let wanted: BTreeSet<&str> = pods.iter().map(|pod| pod.ip.as_str()).collect();
    for index in 0..cluster.nodes().len() {
        wait_until(
            &format!("backends of {service} on {}", cluster.nodes()[index].name),
            || {
                let text = bpf(cluster, index, &["backend", "list", "-o", "json"]);
                let seen = backend_addresses(cluster, &text, service)?;
                let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
                if seen == wanted {
                    Ok(())
                } else {
                    Err(format!("{seen:?}, wanted {wanted:?}"))
                }
            },
        );
    }
}

/// `foil bpf ...` on one node's maps.
///
/// # Panics
/// If it fails.
pub fn bpf(cluster: &Cluster, node: usize, args: &[&str]) -> String {
    let pins = cluster.nodes()[node].pins.display().to_string();
    let mut all = vec!["bpf", "--bpffs", pins.as_str()];
    all.extend(args);
    cluster.foil(&all).success()
}

/// Addresses in `foil bpf backend list -o json` that belong to the service.
fn backend_addresses(cluster: &Cluster, json: &str, service: &str) -> Result<Vec<String>, String> {
    let rows: Value = serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    Ok(rows
        .iter()
        .filter(|row| is_of_service(cluster, row, service))
        .filter_map(|row| row["address"].as_str().map(str::to_owned))
        .collect())
}

/// True if the row's service, `NAMESPACE/NAME:PORT`, is this one of the namespace in use.
pub fn is_of_service(cluster: &Cluster, row: &Value, service: &str) -> bool {
    let name = row["service"].as_str().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    name == format!("{}/{service}", cluster.namespace())
}

/// uid of each object in the namespace in use, and of each node.
pub(crate) fn uids(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut uids = BTreeMap::new();
    for kind in [
        "deployments",
        "replicasets",
        "pods",
        "services",
        "endpointslices",
        "configmaps",
        "secrets",
        "nodes",
    ] {
        for object in cluster.list(kind) {
            let text = |key: &str| {
                object["metadata"][key]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            uids.insert(format!("{kind}/{}", text("name")), text("uid"));
        }
    }
    uids
}

/// Position of a node by name.
///
/// # Panics
/// If there is none of that name.
pub fn node_index(cluster: &Cluster, name: &str) -> usize {
    let position = cluster.nodes().iter().position(|node| node.name == name);
    position.unwrap_or_else(|| panic!("no node {name:?}"))
}

/// Container ids and restart counts by pod.
pub(crate) fn running(cluster: &Cluster) -> BTreeMap<String, (Vec<String>, u64)> {
    let pods = pods(cluster).into_iter();
    pods.map(|pod| (pod.name, (pod.containers, pod.restarts)))
        .collect()
}
