//! What nodes report, into the store: themselves, their pods' statuses, and
//! pods that are gone.
//!
//! Pod reports are coalesced by pod, so a burst is written together and a slow
//! store costs no more memory than there are pods. A node speaks for its own
//! pods only, and not of their addresses. Called by `session.rs` and `run.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::{condition, meta};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use proto::v1;
use serde_json::{Value, json};

use crate::budget::Budget;
use crate::delete::DeleteOptions;
use crate::hub::{Hub, Reported};
use crate::join;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored::{known, typed};
use crate::writing::{AGENT, Change, Writing};

/// Reports written at once.
const TOGETHER: usize = 64;
/// Before reports are written again that the store did not take; each time twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The last word about a pod.
pub enum Report {
    /// Status of a pod that the node has: there are no more of them than pods.
    /// `host_ip` is what the control plane knows, not what the node said.
    Status(Box<v1::PodStatus>),
    /// A pod is gone from the node. Nothing about it comes after this.
    Gone(v1::PodGone),
}

impl Report {
    fn uid(&self) -> &str {
        match self {
            Report::Status(status) => &status.uid,
            Report::Gone(gone) => &gone.uid,
        }
    }
}

/// Reports by uid of the pod.
type Waiting = HashMap<String, Report>;

/// What nodes reported and is not written yet. Each node has one writer for
/// all its sessions, so that no report overtakes another of its pod.
pub struct Reports {
    objects: Arc<Objects>,
    /// Of the nodes whose writers are at work.
    nodes: Mutex<HashMap<String, Waiting>>,
}

impl Reports {
    /// Nothing reported yet.
    pub fn new(objects: Arc<Objects>) -> Self {
        let nodes = Mutex::default();
        Self { objects, nodes }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report of a node, in place of one of the same pod that waits. It is
    /// written when `budget`, the node's, allows.
    pub fn push(self: &Arc<Self>, node: &str, report: Report, budget: Arc<Budget>) {
        let uid = report.uid().to_owned();
        let mut nodes = self.lock();
        if let Some(waiting) = nodes.get_mut(node) {
            waiting.insert(uid, report);
            return;
        }
        nodes.insert(node.to_owned(), HashMap::from([(uid, report)]));
        tokio::spawn(self.clone().write_all(node.to_owned(), budget));
    }

    /// What waits of a node; `None`, and the writer is to end: nothing.
    fn next(&self, node: &str) -> Option<Waiting> {
        let mut nodes = self.lock();
        let waiting = nodes.get_mut(node).map(std::mem::take);
        let waiting = waiting.filter(|waiting| !waiting.is_empty());
        if waiting.is_none() {
            nodes.remove(node);
        }
        waiting
    }

    async fn write_all(self: Arc<Self>, node: String, budget: Arc<Budget>) {
        let mut pause = PAUSE;
        while let Some(waiting) = self.next(&node) {
            let writes = waiting.into_values().map(|report| {
                let (objects, node, budget) = (&self.objects, &node, &budget);
                async move {
                    budget.take().await;
                    write(objects, node, report).await
                }
            });
            let left: Vec<(Report, Refusal)> = futures::stream::iter(writes)
                .buffer_unordered(TOGETHER)
                .filter_map(std::future::ready)
                .collect()
                .await;
            let Some((_, error)) = left.first() else {
                pause = PAUSE;
                continue;
            };
            let count = left.len();
            tracing::warn!(node, count, %error, "reports of pods are written again later");
            self.put_back(&node, left.into_iter().map(|(report, _)| report));
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// These were not written: the node says them once in a session. What it said of the
    /// same pods meanwhile is newer.
    fn put_back(&self, node: &str, left: impl Iterator<Item = Report>) {
        let mut nodes = self.lock();
        let waiting = nodes.entry(node.to_owned()).or_default();
        for report in left {
            waiting.entry(report.uid().to_owned()).or_insert(report);
        }
    }
}

/// Gives the report back if it may be written later, and why it was not now.
async fn write(objects: &Objects, node: &str, report: Report) -> Option<(Report, Refusal)> {
    let done = match &report {
        Report::Status(status) => write_status(objects, node, status).await,
        Report::Gone(gone) => write_gone(objects, node, gone).await,
    };
    match done {
        // Removed by force meanwhile: the node will hear of it.
        Ok(()) | Err(Refusal::NotFound { .. }) => None,
        Err(refusal) if refusal.is_temporary() => Some((report, refusal)),
        Err(refusal) => {
            tracing::warn!(node, "a pod's report was not stored: {refusal}");
            None
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
    // Its node said that it is gone, and a finalizer holds it: an agent that starts again
    // takes it for a new one until it hears that it is to stop.
    if meta::is_terminating(old) && grace(old) == Some(0) {
        return Ok(Change::Nothing);
    }
    // A pod that has come to its end holds no address any more: it cannot
    // run again, even if its node says so.
    if final_phase(old).is_some_and(|phase| phase != status.phase) {
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

/// The phase of a pod that has come to its end.
fn final_phase(pod: &Value) -> Option<&str> {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    phase.filter(|phase| ["Succeeded", "Failed"].contains(phase))
}

/// How long a pod that is being deleted has to end, in seconds.
fn grace(pod: &Value) -> Option<i64> {
    pod.pointer("/metadata/deletionGracePeriodSeconds")?
        .as_i64()
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
    if !is_mine(&pod.value, &gone.uid, node) {
        return Ok(());
    }
    if !meta::is_terminating(&pod.value) {
        return write_failed(objects, node, gone).await;
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

/// Ends a pod that its node was told to stop and that is not being deleted: the store is an
/// older one than that which told so.
async fn write_failed(objects: &Objects, node: &str, gone: &v1::PodGone) -> Result<(), Refusal> {
    let kind = known("", "v1", "Pod")?;
    let writing = Writing::system(AGENT);
    let change = |old: &crate::stored::Stored| {
        let is_over = final_phase(&old.value).is_some() || meta::is_terminating(&old.value);
        if is_over || !is_mine(&old.value, &gone.uid, node) {
            return Ok(Change::Nothing);
        }
        let mut next = old.value.clone();
        next["status"]["phase"] = json!("Failed");
        // Another pod may get its address; and without one it is taken off its node, which
        // would else begin it again once its agent has forgotten that it is gone.
        if let Some(status) = next["status"].as_object_mut() {
            status.remove("podIP");
            status.remove("podIPs");
        }
        next["status"]["reason"] = json!("Stopped");
        next["status"]["message"] = json!(
            "The node stopped the pod, as it was asked by a control plane whose store had a later state."
        );
        let said = condition::Condition {
            kind: "Ready".to_owned(),
            status: "False".to_owned(),
            reason: "PodFailed".to_owned(),
            message: String::new(),
        };
        condition::set(&mut next, &said, Timestamp::now());
        typed::<Pod>(&next)?;
        Ok(Change::To(next))
    };
    objects
        .change(kind, &gone.namespace, &gone.name, &writing, change)
        .await?;
    Ok(())
}

/// Writes what a node said of itself last, if it differs from what is known: of two
/// writers at once neither brings back what was said before. Nothing is written onto the
/// Node of another machine, which took the name over. `NotFound`: the Node was deleted.
/// True: the node counted as lost, and its pods were written as not ready, which it does not
/// know: it is to tell of all of them again.
pub async fn register(objects: &Objects, hub: &Hub, node: &str) -> Result<bool, Refusal> {
    let kind = known("", "v1", "Node")?;
    let now = Timestamp::now();
    let was_lost = AtomicBool::new(false);
    let change = |old: &crate::stored::Stored| {
        let Some((Reported { status, version }, key)) = hub.reported(node) else {
            return Ok(Change::Nothing);
        };
        if join::annotated(&old.value) != Some(key.as_str()) {
            return Ok(Change::Nothing);
        }
        let mut next = old.value.clone();
        next["status"] =
            proto::convert::status::node_status(&status, &version, old.value.get("status"));
        label(&mut next, node, &status);
        ready(&mut next, &status, now);
        // As with pods: what cannot be read back is not stored.
        typed::<Node>(&next)?;
        let ready = condition::get(&old.value, "Ready").and_then(|c| c["status"].as_str());
        was_lost.store(ready == Some("Unknown"), Ordering::Relaxed);
        Ok(Change::To(next))
    };
    let writing = Writing::system(AGENT);
    objects.change(kind, "", node, &writing, change).await?;
    Ok(was_lost.into_inner())
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
    use control_store::{Embedded, Found, ListRequest, Listing, Store, StoreError, Txn, Watch};
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use std::sync::atomic::AtomicUsize;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]},
        })
    }

    fn opened(folder: &tempfile::TempDir) -> Embedded {
        let options = control_store::Options {
            history: 1000,
            cache_bytes: 1 << 20,
        };
        Embedded::open(&folder.path().join("store"), options).unwrap()
    }

    async fn objects(store: Arc<dyn Store>) -> Arc<Objects> {
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        let objects = Objects::new(store, config.settings());
        objects.make_builtin().await.unwrap();
        Arc::new(objects)
    }

    /// Makes a pod of this name; its uid.
    async fn make(objects: &Objects, mut pod: Value, name: &str) -> String {
        meta::set_name(&mut pod, name);
        let kind = known("", "v1", "Pod").unwrap();
        let writing = Writing::system(AGENT);
        let made = objects.create(kind, Change::To(pod), &[], &writing).await;
        meta::uid(&made.unwrap().0.value).to_owned()
    }

    /// A disk that is full this many times more.
    struct Full {
        store: Embedded,
        times: AtomicUsize,
    }

    impl Store for Full {
        fn id(&self) -> String {
            self.store.id()
        }

        fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
            self.store.revision()
        }

        fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Found, StoreError>> {
            self.store.get(key)
        }

        fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listing, StoreError>> {
            self.store.list(request)
        }

        fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<u64, StoreError>> {
            let less = |times: usize| times.checked_sub(1);
            let once = self
                .times
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            if once.is_ok() {
                let path = "/d".to_owned();
                return std::future::ready(Err(StoreError::DiskFull { path })).boxed();
            }
            self.store.txn(txn)
        }

        fn watch(&self, prefix: String, after: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
            self.store.watch(prefix, after)
        }

        fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
            self.store.compact(revision)
        }
    }

    /// A node tells each report once, however its store is.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_store_did_not_take_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Full {
            store: opened(&folder),
            times: 0.into(),
        });
        let objects = objects(store.clone()).await;
        let kind = known("", "v1", "Pod").unwrap();
        let mut uids = Vec::new();
        for name in ["deleted", "kept"] {
            let mut pod = pod();
            pod["status"] = json!({"podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}]});
            uids.push(make(&objects, pod, name).await);
        }
        let grace = DeleteOptions {
            grace_seconds: Some(30),
            ..DeleteOptions::default()
        };
        let deleted = objects.delete(kind, "default", "deleted", &grace).await;
        deleted.unwrap();
        let reports = Arc::new(Reports::new(objects.clone()));
        let budget = Arc::new(Budget::new(tokio::time::Instant::now()));
        store.times.store(3, Ordering::SeqCst);
        for (name, uid) in ["deleted", "kept"].into_iter().zip(uids) {
            let (namespace, name) = ("default".to_owned(), name.to_owned());
            let gone = v1::PodGone {
                uid,
                namespace,
                name,
            };
            reports.push("n1", Report::Gone(gone), budget.clone());
        }
        while !reports.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(store.times.load(Ordering::SeqCst), 0);
        let deleted = objects.get(kind, "default", "deleted").await;
        assert!(matches!(deleted, Err(Refusal::NotFound { .. })));
        // Told to stop by a control plane whose store had it deleted.
        let kept = objects.get(kind, "default", "kept").await.unwrap();
        assert_eq!(kept.value["status"]["phase"], "Failed");
        assert_eq!(kept.value["status"].get("podIPs"), None);
    }

    #[test]
    fn what_a_finalizer_holds_keeps_its_last_status() {
        let mut pod = pod();
        let status = v1::PodStatus {
            uid: "u".to_owned(),
            phase: "Pending".to_owned(),
            ..Default::default()
        };
        for (grace, taken) in [(None, true), (Some(30), true), (Some(0), false)] {
            if let Some(grace) = grace {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            let change = pod_with(&pod, &status, "n1").unwrap();
            assert_eq!(matches!(change, Change::To(_)), taken, "{grace:?}");
        }
    }

    /// A session ends with reports that wait, and the next one of the node says
    /// something newer of the same pods.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_older_report_does_not_overtake_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(Arc::new(opened(&folder))).await;
        let kind = known("", "v1", "Pod").unwrap();
        let names: Vec<String> = (0..120).map(|n| format!("p{n}")).collect();
        let mut uids = Vec::new();
        for name in &names {
            uids.push(make(&objects, pod(), name).await);
        }
        let reports = Arc::new(Reports::new(objects.clone()));
        let budget = Arc::new(Budget::new(tokio::time::Instant::now()));
        let say = |message: &str| {
            for (name, uid) in names.iter().zip(&uids) {
                let status = v1::PodStatus {
                    uid: uid.clone(),
                    namespace: "default".to_owned(),
                    name: name.clone(),
                    phase: "Running".to_owned(),
                    message: message.to_owned(),
                    ..v1::PodStatus::default()
                };
                reports.push("n1", Report::Status(Box::new(status)), budget.clone());
            }
        };
        say("old");
        // The writer has the old ones: what comes now does not take their place.
        while reports.lock().get("n1").is_some_and(|all| !all.is_empty()) {
            tokio::task::yield_now().await;
        }
        say("new");
        while !reports.lock().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        for name in &names {
            let pod = objects.get(kind, "default", name).await.unwrap();
            assert_eq!(pod.value["status"]["message"], "new", "{name}");
        }
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
