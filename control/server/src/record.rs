//! Events: what controllers and nodes have to tell about objects, stored as
//! Event objects. The same said again counts up the one that is there.
//!
//! Bounded: what is too much is dropped and counted, see `correlate.rs`. Old events
//! are removed by control-plan's `gc.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use control_api::meta;
use control_plan::{Notice, Severity};
use futures::future::join_all;
use jiff::Timestamp;
use proto::v1;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::correlate::Correlator;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::said::Said;
use crate::stored::known;
use crate::writing::{CONTROLLERS, Change, Writing};

/// Events that may wait to be written.
const QUEUE: usize = 4096;
/// Events written together.
const BATCH: usize = 128;

/// Takes what is to be told.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<(Said, Timestamp)>,
    dropped: Arc<AtomicU64>,
    correlator: Arc<Mutex<Correlator>>,
    /// Time of the last event, microseconds since the epoch.
    last: Arc<AtomicI64>,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(objects: Arc<Objects>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        tokio::spawn(write_all(objects, receiver, dropped.clone()));
        Self {
            queue,
            dropped,
            correlator: Arc::default(),
            last: Arc::default(),
        }
    }

    /// Tells what a plan had to say.
    pub fn record(&self, notices: Vec<Notice>) {
        for notice in notices {
            let key = &notice.about;
            let kind = control_api::kinds()
                .iter()
                .find(|k| k.kind == key.kind && k.group == key.group);
            let said = Said {
                api_version: kind.map(|k| k.api_version()).unwrap_or_default(),
                kind: key.kind.clone(),
                namespace: key.name.namespace.clone(),
                name: key.name.name.clone(),
                uid: notice.uid,
                field_path: String::new(),
                severity: notice.severity.as_str().to_owned(),
                reason: notice.reason.to_owned(),
                message: notice.message,
                component: notice.component.to_owned(),
                host: String::new(),
                combined: false,
            };
            self.push(said, self.time());
        }
    }

    /// Tells what a node had to say. An event may have waited on the node: it counts for
    /// the time that the node names, which `time` has put in order.
    pub fn record_node(&self, node: &str, event: v1::NodeEvent, time: Timestamp) {
        let warning = event.r#type == Severity::Warning.as_str();
        let severity = if warning {
            Severity::Warning
        } else {
            Severity::Normal
        };
        let said = Said {
            api_version: "v1".to_owned(),
            kind: event.kind,
            namespace: event.namespace,
            name: event.name,
            uid: event.uid,
            field_path: event.field_path,
            severity: severity.as_str().to_owned(),
            reason: event.reason,
            message: event.message,
            component: "foil-agent".to_owned(),
            host: node.to_owned(),
            combined: false,
        };
        self.push(said, time);
    }

    fn time(&self) -> Timestamp {
        let now = Timestamp::now();
        let before = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(later(last, now))
            });
        let before = before.unwrap_or_else(|last| last);
        Timestamp::from_microsecond(later(before, now)).unwrap_or(now)
    }

    fn push(&self, mut said: Said, time: Timestamp) {
        let admitted = {
            let mut correlator = self
                .correlator
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            correlator.admit(&mut said, Instant::now())
        };
        if !admitted {
            tracing::debug!(
                kind = said.kind,
                name = said.name,
                reason = said.reason,
                "an event is one too many about its object"
            );
            return;
        }
        if self.queue.try_send((said, time)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Now in microseconds, and later than the time before: events are written side by side, so
/// their order is that of their times only.
pub(crate) fn later(last: i64, now: Timestamp) -> i64 {
    now.as_microsecond().max(last.saturating_add(1))
}

/// When a stored event was told last.
fn observed(event: &Value) -> Option<Timestamp> {
    let series = event.pointer("/series/lastObservedTime");
    series.or(event.get("eventTime"))?.as_str()?.parse().ok()
}

/// As Kubernetes' MicroTime.
fn micro_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

async fn write_all(
    objects: Arc<Objects>,
    mut queue: mpsc::Receiver<(Said, Timestamp)>,
    dropped: Arc<AtomicU64>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        // By name: what is combined differs in its message.
        let mut counted: HashMap<String, (Said, i32, Timestamp)> = HashMap::new();
        for (said, time) in batch.drain(..) {
            let known = counted.remove(&said.event_name());
            let (count, last) = known.map_or((0, time), |(_, count, last)| (count, last));
            let last = last.max(time);
            counted.insert(said.event_name(), (said, count + 1, last));
        }
        let writes = counted
            .values()
            .map(|(said, count, last)| write(&objects, said, *count, *last));
        for result in join_all(writes).await {
            match result {
                // The namespace is being deleted, and its events with it.
                Ok(()) | Err(Refusal::NotFound { .. } | Refusal::Forbidden(_)) => {}
                Err(refusal) => tracing::warn!("an event was not stored: {refusal}"),
            }
        }
        let shed = dropped.swap(0, Ordering::Relaxed);
        if shed > 0 {
            tracing::warn!(shed, "events were dropped: more than can be stored");
        }
    }
}

async fn write(objects: &Objects, said: &Said, count: i32, last: Timestamp) -> Result<(), Refusal> {
    let kind = known("", "v1", "Event")?;
    let namespace = if said.namespace.is_empty() {
        "default"
    } else {
        &said.namespace
    };
    let name = said.event_name();
    let writing = Writing::system(CONTROLLERS);
    let again = objects
        .change(kind, namespace, &name, &writing, |old| {
            let mut next = old.value.clone();
            let before = next.get("count").and_then(Value::as_i64).unwrap_or(1);
            let count = before + i64::from(count);
            next["count"] = json!(count);
            // What waited on a node may be older than what is known.
            let last = last.max(observed(&old.value).unwrap_or(last));
            next["lastTimestamp"] = json!(meta::time_text(last));
            next["series"] = json!({"count": count, "lastObservedTime": micro_text(last)});
            next["message"] = json!(said.message);
            Ok(Change::To(next))
        })
        .await;
    match again {
        Err(Refusal::NotFound { .. }) => {}
        Ok(_) => return Ok(()),
        Err(refusal) => return Err(refusal),
    }
    let time = meta::time_text(last);
    let mut about = json!({
        "apiVersion": said.api_version, "kind": said.kind, "name": said.name, "uid": said.uid,
    });
    if !said.namespace.is_empty() {
        about["namespace"] = json!(said.namespace);
    }
    if !said.field_path.is_empty() {
        about["fieldPath"] = json!(said.field_path);
    }
    let mut source = json!({"component": said.component});
    if !said.host.is_empty() {
        source["host"] = json!(said.host);
    }
    let mut event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about,
        "type": said.severity, "reason": said.reason, "message": said.message,
        "source": source, "reportingComponent": said.component, "reportingInstance": said.host,
        "firstTimestamp": time, "lastTimestamp": time, "eventTime": micro_text(last), "count": count,
    });
    if count > 1 {
        event["series"] = json!({"count": count, "lastObservedTime": micro_text(last)});
    }
    match objects.create(kind, Change::To(event), &[], &writing).await {
        // The event exists already.
        Ok(_) | Err(Refusal::AlreadyExists { .. }) => Ok(()),
        Err(refusal) => Err(refusal),
    }
}
