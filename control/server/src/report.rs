//! What nodes report, into the store: themselves, their pods' statuses, and
//! pods that are gone.
//!
//! Pod reports are coalesced by pod, so a burst is written together and a slow
//! store costs no more memory than there are pods. A node speaks for its own
//! pods only, and not of their addresses. Called by `session.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_api::{condition, meta};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use proto::v1;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::budget::Budget;
use crate::delete::DeleteOptions;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored::{known, typed};
use crate::writing::{AGENT, Change, Writing};

/// Reports written at once.
const TOGETHER: usize = 64;

/// The last word about a pod.
enum Report {
    Status(Box<v1::PodStatus>),
    Gone(v1::PodGone),
}

/// One node's reports that are not written yet.
pub struct Reports {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    notify: Notify,
}

#[derive(Default)]
struct Waiting {
    reports: HashMap<String, Report>,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.notify.notify_one();
    }
}

impl Reports {
    /// Starts the writer; it ends, with all written, when this is dropped.
    pub fn start(objects: Arc<Objects>, node: String, budget: Arc<Budget>) -> Self {
        let queue = Arc::new(Queue::default());
        tokio::spawn(write_all(objects, node, budget, queue.clone()));
        Self { queue }
    }

    /// Status of a pod that the node has: there are no more of them than pods.
    /// `host_ip` is what the control plane knows, not what the node said.
    pub fn status(&self, status: v1::PodStatus) {
        self.push(status.uid.clone(), Report::Status(Box::new(status)));
    }

    /// A pod is gone from the node. Nothing about it comes after this.
    pub fn gone(&self, gone: v1::PodGone) {
        self.push(gone.uid.clone(), Report::Gone(gone));
    }

    fn push(&self, uid: String, report: Report) {
        self.queue.lock().reports.insert(uid, report);
        self.queue.notify.notify_one();
    }
}

async fn write_all(objects: Arc<Objects>, node: String, budget: Arc<Budget>, queue: Arc<Queue>) {
    loop {
        queue.notify.notified().await;
        let (reports, ended) = {
            let mut waiting = queue.lock();
            (std::mem::take(&mut waiting.reports), waiting.ended)
        };
        let (objects, node, budget) = (&objects, &node, &budget);
        let writes = reports.into_values().map(|report| async move {
            budget.take().await;
            let done = match &report {
                Report::Status(status) => write_status(objects, node, status).await,
                Report::Gone(gone) => write_gone(objects, node, gone).await,
            };
            match done {
                // Removed by force meanwhile: the node will hear of it.
                Ok(()) | Err(Refusal::NotFound { .. }) => {}
                Err(refusal) => tracing::warn!(node, "a pod's report was not stored: {refusal}"),
            }
        });
        futures::stream::iter(writes)
            .buffer_unordered(TOGETHER)
            .collect::<()>()
            .await;
        if ended {
            return;
        }
    }
}

/// True when the object is the pod that this node speaks of.
fn is_mine(pod: &Value, uid: &str, node: &str) -> bool {
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str);
    meta::uid(pod) == uid && bound == Some(node)
}

async fn write_status(
    objects: &Objects,
    node: &str,
    status: &v1::PodStatus,
) -> Result<(), Refusal> {
    let kind = known("", "v1", "Pod")?;
    let writing = Writing::system(AGENT);
    objects
        .change(kind, &status.namespace, &status.name, &writing, |old| {
            pod_with(&old.value, status, node)
        })
        .await?;
    Ok(())
}

/// The pod with the status that the node reports. An error when it cannot be read
/// back: a control plane that starts on such an object refuses to run.
fn pod_with(old: &Value, status: &v1::PodStatus, node: &str) -> Result<Change, Refusal> {
    if !is_mine(old, &status.uid, node) {
        return Ok(Change::Nothing);
    }
    let phase = old.pointer("/status/phase").and_then(Value::as_str);
    // A pod that has come to its end holds no address any more: it cannot
    // run again, whatever its node says.
    if matches!(phase, Some("Succeeded" | "Failed")) && phase != Some(&status.phase) {
        return Ok(Change::Nothing);
    }
    let mut said = status.clone();
    known_containers(&mut said, old);
    said.pod_ips = addresses(old, &said.host_ip);
    let mut next = old.clone();
    next["status"] = proto::convert::status::pod_status(&said, old);
    typed::<Pod>(&next)?;
    Ok(Change::To(next))
}

/// Leaves out containers that the pod does not have.
fn known_containers(status: &mut v1::PodStatus, pod: &Value) {
    let known = |list: &str, name: &str| {
        let all = pod.pointer(list).and_then(Value::as_array);
        let mut names = all
            .into_iter()
            .flatten()
            .filter_map(|c| c.get("name")?.as_str());
        names.any(|n| n == name)
    };
    let (main, init) = ("/spec/containers", "/spec/initContainers");
    status.containers.retain(|c| known(main, &c.name));
    status.init_containers.retain(|c| known(init, &c.name));
}

/// The addresses of a pod: those that it was given when it was bound, or that of
/// its node. What the node says of them does not count.
fn addresses(pod: &Value, host_ip: &str) -> Vec<String> {
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Some(host_ip.to_owned())
            .filter(|ip| !ip.is_empty())
            .into_iter()
            .collect();
    }
    let given = pod.pointer("/status/podIPs").and_then(Value::as_array);
    let given = given.into_iter().flatten();
    given
        .filter_map(|ip| ip.get("ip")?.as_str())
        .map(str::to_owned)
        .collect()
}

/// Completes a pod's deletion: takes it out of the store, unless a finalizer
/// still holds it.
async fn write_gone(objects: &Objects, node: &str, gone: &v1::PodGone) -> Result<(), Refusal> {
    let kind = known("", "v1", "Pod")?;
    let pod = objects.get(kind, &gone.namespace, &gone.name).await?;
    if !is_mine(&pod.value, &gone.uid, node) || !meta::is_terminating(&pod.value) {
        return Ok(());
    }
    let options = DeleteOptions {
        grace_seconds: Some(0),
        uid: gone.uid.clone(),
        ..DeleteOptions::default()
    };
    objects
        .delete(kind, &gone.namespace, &gone.name, &options)
        .await?;
    Ok(())
}

/// Writes what a node says of itself, if it differs from what is known. `NotFound`:
/// the Node was deleted.
pub async fn register(
    objects: &Objects,
    node: &str,
    status: &v1::NodeStatus,
    version: &str,
) -> Result<(), Refusal> {
    let kind = known("", "v1", "Node")?;
    let now = Timestamp::now();
    let change = |old: &crate::stored::Stored| {
        let mut next = old.value.clone();
        next["status"] =
            proto::convert::status::node_status(status, version, old.value.get("status"));
        label(&mut next, node, status);
        ready(&mut next, status, now);
        // As with pods: what cannot be read back is not stored.
        typed::<Node>(&next)?;
        Ok(Change::To(next))
    };
    let writing = Writing::system(AGENT);
    objects.change(kind, "", node, &writing, change).await?;
    Ok(())
}

/// The labels that each node has, and that follow what it says.
fn label(node: &mut Value, name: &str, status: &v1::NodeStatus) {
    let labels = &mut node["metadata"]["labels"];
    labels["kubernetes.io/hostname"] = json!(name);
    labels["kubernetes.io/os"] = json!("linux");
    labels["kubernetes.io/arch"] = json!(architecture(&status.architecture));
}

/// Kubernetes calls the machines by Go's names.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A node that is connected is ready, unless it says otherwise itself.
fn ready(node: &mut Value, status: &v1::NodeStatus, now: Timestamp) {
    if status.conditions.iter().any(|c| c.r#type == "Ready") {
        return;
    }
    let said = condition::Condition {
        kind: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: "AgentReady".to_owned(),
        message: "The agent is connected.".to_owned(),
    };
    condition::set(node, &said, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]},
        })
    }

    #[test]
    fn what_cannot_be_read_back_is_not_stored() {
        for (restarts, good) in [(i32::MAX.unsigned_abs(), true), (1 << 31, false)] {
            let status = v1::PodStatus {
                uid: "u".to_owned(),
                phase: "Running".to_owned(),
                containers: vec![v1::ContainerStatus {
                    name: "c".to_owned(),
                    restart_count: restarts,
                    ..Default::default()
                }],
                ..Default::default()
            };
            let got = pod_with(&pod(), &status, "n1");
            assert_eq!(got.is_ok(), good, "{restarts}: {got:?}");
        }
    }
}
