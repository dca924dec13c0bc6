//! Objects for the row tests of the plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::{Value, json};

use crate::action::{Plan, Write};
use crate::pool::PortRange;
use crate::registry::Object;
use crate::settings::Settings;
use crate::world::World;

/// A fixed time.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// Small ranges.
pub(crate) fn settings() -> Settings {
    Settings {
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        node_prefix: 24,
        service_cidr: "10.96.0.0/24".parse().unwrap(),
        node_ports: PortRange {
            first: 30_000,
            last: 30_009,
        },
        load_balancer_pools: vec!["203.0.113.0/30".parse().unwrap()],
        eviction_seconds: 300,
        event_seconds: 3600,
        lost_seconds: 40,
        terminated_pods: 12_500,
    }
}

/// An empty world with namespace "default".
pub(crate) fn world() -> World {
    let mut world = World::new(settings());
    let namespace = json!({"metadata": {"name": "default", "uid": "ns", "resourceVersion": "1"}});
    world.put(Object::Namespace(Arc::new(typed(namespace))));
    world
}

/// From JSON to one of the API's types.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Metadata in namespace "default", with the name as the uid.
pub(crate) fn meta(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    json!({"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "labels": labels})
}

/// A ready node with 2 CPUs, 4 GiB, 10 pods and a range.
pub(crate) fn node(name: &str, number: u8) -> Node {
    typed(json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1",
            "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": format!("10.244.{number}.0/24"),
            "podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
}

/// A pod that asks for so much CPU, of this owner ("" for none).
pub(crate) fn pod(name: &str, cpu: &str, owner: &str) -> Pod {
    let mut pod: Pod = typed(json!({
        "metadata": meta(name, &[("app", "web")]),
        "spec": {"containers": [{"name": "main",
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": cpu}}}]},
    }));
    if !owner.is_empty() {
        pod.metadata.owner_references = Some(vec![typed(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner,
            "controller": true,
        }))]);
    }
    pod
}

/// The pod, bound and with an address; ready or not.
pub(crate) fn running(mut pod: Pod, node: &str, ip: &str, ready: bool) -> Pod {
    pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    let status = if ready { "True" } else { "False" };
    pod.status = Some(typed(json!({
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": status,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    })));
    pod
}

/// A service "web" for pods of app "web".
pub(crate) fn service(target: Value) -> Service {
    typed(json!({
        "metadata": meta("web", &[]),
        "spec": {"selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": target}]},
    }))
}

/// Puts it in.
pub(crate) fn put_pod(world: &mut World, pod: Pod) {
    world.put(Object::Pod(Arc::new(pod)));
}

/// Puts it in, with the claims of its ranges.
pub(crate) fn put_node(world: &mut World, node: Node) {
    for range in crate::object::pod_cidrs(&node) {
        let claim = crate::Claim {
            owner: node.metadata.name.clone().unwrap_or_default(),
            revision: 1,
        };
        world.put_claim(crate::ClaimKey::NodeRange(range), Some(claim));
    }
    world.put(Object::Node(Arc::new(node)));
}

/// A config map with more metadata.
pub(crate) fn map(name: &str, more: &Value) -> Object {
    let mut metadata = meta(name, &[]);
    for (key, value) in more.as_object().unwrap() {
        metadata[key] = value.clone();
    }
    Object::ConfigMap(Arc::new(typed(json!({"metadata": metadata}))))
}

/// "delete NAME", "remove NAME", "unhook NAME"
pub(crate) fn told(plan: &Plan) -> Vec<String> {
    let said = |w: &Write| match w {
        Write::Put { object, .. } => format!("put {}", object.key().name.name),
        Write::Claims(_) => "claims".to_owned(),
        Write::Delete { key, .. } => format!("delete {}", key.name.name),
        Write::Remove { key, .. } => format!("remove {}", key.name.name),
        Write::Unhook { key, .. } => format!("unhook {}", key.name.name),
    };
    plan.writes.iter().map(said).collect()
}
