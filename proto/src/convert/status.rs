//! What nodes report, as Kubernetes' status and events (JSON). Not whether it is
//! written: `control-server` compares with what is there.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::v1;
use crate::v1::container_state::State;

/// RFC 3339 in whole seconds; null for 0.
fn time(ms: i64) -> Value {
    match Timestamp::from_second(ms.div_euclid(1000)) {
        Ok(time) if ms > 0 => json!(time.to_string()),
        Ok(_) | Err(_) => Value::Null,
    }
}

/// Without what is empty: null, "", and empty lists and objects.
fn compact(fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        return fields;
    };
    let full = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    Value::Object(
        fields
            .into_iter()
            .filter(|(_, value)| full(value))
            .collect(),
    )
}

fn condition(c: &v1::Condition) -> Value {
    compact(json!({
        "type": c.r#type,
        "status": c.status,
        "reason": c.reason,
        "message": c.message,
        "lastTransitionTime": time(c.last_transition_ms),
    }))
}

/// Conditions of a Pod that the control plane sets. Those of its readiness gates are
/// others' too.
const POD_CONDITIONS: [&str; 2] = ["PodScheduled", "DisruptionTarget"];
/// Conditions of a Node that the control plane sets.
const NODE_CONDITIONS: [&str; 1] = ["Ready"];

/// The node's conditions, and before them those of `others` types that it does not
/// report. The rest of the old ones is dropped: they would add up without end.
fn conditions(reported: &[v1::Condition], old: Option<&Value>, others: &[&str]) -> Value {
    let old = old
        .and_then(|old| old.get("conditions"))
        .and_then(Value::as_array);
    let kept = others
        .iter()
        .filter(|kind| !reported.iter().any(|c| c.r#type == **kind))
        .filter_map(|kind| {
            let mut old = old.into_iter().flatten();
            old.find(|there| there.get("type").and_then(Value::as_str) == Some(*kind))
        });
    let all: Vec<Value> = kept
        .cloned()
        .chain(reported.iter().map(condition))
        .collect();
    json!(all)
}

/// `status` of a Pod. `pod` is the object before: conditions that are not the
/// node's (PodScheduled, DisruptionTarget, readiness gates) are kept from it.
pub fn pod_status(status: &v1::PodStatus, pod: &Value) -> Value {
    let gates = pod
        .pointer("/spec/readinessGates")
        .and_then(Value::as_array);
    let gates = gates.into_iter().flatten();
    let gates = gates.filter_map(|gate| gate.get("conditionType")?.as_str());
    let mut others = POD_CONDITIONS.to_vec();
    for gate in gates {
        if !others.contains(&gate) {
            others.push(gate);
        }
    }
    let ips = |ips: &[String]| json!(ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>());
    let host: Vec<String> = Some(status.host_ip.clone())
        .filter(|ip| !ip.is_empty())
        .into_iter()
        .collect();
    compact(json!({
        "phase": status.phase,
        "conditions": conditions(&status.conditions, pod.get("status"), &others),
        "message": status.message,
        "reason": status.reason,
        "hostIP": status.host_ip,
        "hostIPs": ips(&host),
        "podIP": status.pod_ips.first(),
        "podIPs": ips(&status.pod_ips),
        "startTime": time(status.start_time_ms),
        "initContainerStatuses": containers(&status.init_containers),
        "containerStatuses": containers(&status.containers),
        "qosClass": status.qos_class,
    }))
}

fn containers(list: &[v1::ContainerStatus]) -> Value {
    json!(list.iter().map(container).collect::<Vec<_>>())
}

/// The fields that Kubernetes demands are there, also when empty.
fn container(c: &v1::ContainerStatus) -> Value {
    let mut fields = json!({
        "name": c.name,
        "state": c.state.as_ref().map(state).unwrap_or_else(|| json!({})),
        "lastState": c.last_state.as_ref().map(state).unwrap_or_else(|| json!({})),
        "ready": c.ready,
        "restartCount": c.restart_count,
        "image": c.image,
        "imageID": c.image_id,
        "started": c.started,
    });
    if !c.container_id.is_empty() {
        fields["containerID"] = json!(c.container_id);
    }
    fields
}

fn state(state: &v1::ContainerState) -> Value {
    match &state.state {
        None => json!({}),
        Some(State::Waiting(w)) => {
            json!({"waiting": compact(json!({"reason": w.reason, "message": w.message}))})
        }
        Some(State::Running(r)) => {
            json!({"running": compact(json!({"startedAt": time(r.started_ms)}))})
        }
        Some(State::Terminated(t)) => {
            let mut fields = compact(json!({
                "reason": t.reason,
                "message": t.message,
                "startedAt": time(t.started_ms),
                "finishedAt": time(t.finished_ms),
                "containerID": t.container_id,
            }));
            fields["exitCode"] = json!(t.exit_code);
            if t.signal != 0 {
                fields["signal"] = json!(t.signal);
            }
            json!({"terminated": fields})
        }
    }
}

/// The node's conditions. An agent that starts does not know since when they hold:
/// where the status is the same as before, so is the time of its transition.
fn node_conditions(reported: &[v1::Condition], old: Option<&Value>) -> Value {
    let mut all = conditions(reported, old, &NODE_CONDITIONS);
    let before = old.and_then(|old| old.get("conditions")?.as_array());
    for condition in all.as_array_mut().into_iter().flatten() {
        let same = before.into_iter().flatten().find(|there| {
            ["type", "status"]
                .iter()
                .all(|key| there.get(key) == condition.get(key))
        });
        if let Some(time) = same.and_then(|there| there.get("lastTransitionTime")) {
            condition["lastTransitionTime"] = time.clone();
        }
    }
    all
}

/// `status` of a Node. `version` is the agent's; `old` the `status` before.
pub fn node_status(status: &v1::NodeStatus, version: &str, old: Option<&Value>) -> Value {
    let mut addresses: Vec<Value> = status
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    if !status.hostname.is_empty() {
        addresses.push(json!({"type": "Hostname", "address": status.hostname}));
    }
    let resources = |cpu_millis: u64, memory_bytes: u64| {
        let cpu = match cpu_millis % 1000 {
            0 => (cpu_millis / 1000).to_string(),
            _part => format!("{cpu_millis}m"),
        };
        json!({
            "cpu": cpu,
            "memory": format!("{}Ki", memory_bytes / 1024),
            "pods": status.max_pods.to_string(),
        })
    };
    let capacity = resources(status.cpu_millis, status.memory_bytes);
    let allocatable = resources(
        status.allocatable_cpu_millis.unwrap_or(status.cpu_millis),
        status
            .allocatable_memory_bytes
            .unwrap_or(status.memory_bytes),
    );
    let mut fields = old.and_then(Value::as_object).cloned().unwrap_or_default();
    fields.extend(object(json!({
        "addresses": addresses,
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": node_conditions(&status.conditions, old),
        "nodeInfo": {
            "machineID": status.machine_id,
            "systemUUID": status.machine_id,
            "bootID": status.boot_id,
            "kernelVersion": status.kernel_version,
            "osImage": status.os_image,
            "operatingSystem": "linux",
            "architecture": status.architecture,
            "containerRuntimeVersion": format!("hydrofoil://{version}"),
            "kubeletVersion": version,
            "kubeProxyVersion": version,
        },
    })));
    Value::Object(fields)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

/// An Event object, but for uid and creationTimestamp. Its name has the time in
/// it, as Kubernetes' events do. `host`: the node that reports.
pub fn event(event: &v1::NodeEvent, host: &str) -> Value {
    let namespace = if event.namespace.is_empty() {
        "default"
    } else {
        event.namespace.as_str()
    };
    let time = time(event.time_ms);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{}.{:x}", event.name, event.time_ms.max(0)),
            "namespace": namespace,
        },
        "involvedObject": compact(json!({
            "apiVersion": "v1",
            "kind": event.kind,
            "namespace": event.namespace,
            "name": event.name,
            "uid": event.uid,
            "fieldPath": event.field_path,
        })),
        "reason": event.reason,
        "message": event.message,
        "type": event.r#type,
        "source": {"component": "foil-agent", "host": host},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "reportingComponent": "foil-agent",
        "reportingInstance": host,
    })
}
