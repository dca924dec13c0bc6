//! What the control plane pushed: taken in, checked once, kept on disk.
//!
//! Part of the loop. A snapshot takes effect as a whole, when its last part is
//! there; a delta at once.

use std::sync::Arc;

use agent_plan::world::Desired;
use proto::v1;
use proto::v1::change::Change;

use crate::check;
use crate::event::Event;
use crate::node::Node;
use crate::record;
use crate::sandbox::blocking;
use crate::startup::Sys;

/// Written so long after a change, so that many changes are one write. Milliseconds.
const SAVE_MS: i64 = 200;
/// After a failed write, milliseconds.
const RETRY_MS: i64 = 5_000;

/// What was pushed last, and how much of it is on disk.
#[derive(Debug)]
pub(crate) struct Pushed {
    cluster_id: String,
    revision: u64,
    snapshot: Option<Desired>,
    failures: Vec<v1::Failure>,
    save_at: Option<i64>,
    saving: bool,
}

impl Pushed {
    /// As it was found on disk.
    pub(crate) fn new(cluster_id: String, revision: u64) -> Pushed {
        let (snapshot, failures) = (None, Vec::new());
        Pushed {
            cluster_id,
            revision,
            snapshot,
            failures,
            save_at: None,
            saving: false,
        }
    }

    /// The stream broke: half a snapshot is none.
    pub(crate) fn disconnected(&mut self) {
        self.snapshot = None;
        self.failures.clear();
    }

    /// When it is to be written. Milliseconds since the epoch.
    pub(crate) fn due(&self) -> Option<i64> {
        if self.saving { None } else { self.save_at }
    }

    /// Writes it on a thread for that.
    pub(crate) fn save_if_due(&mut self, desired: &Desired, sys: &Arc<Sys>, now: i64) {
        if self.due().is_none_or(|at| now < at) {
            return;
        }
        self.save_at = None;
        self.saving = true;
        let bytes = record::node(desired, &self.cluster_id, self.revision);
        let sys = sys.clone();
        tokio::spawn(async move {
            let result = blocking(&sys, move |sys| record::write_node(&sys.layout, &bytes)).await;
            sys.tell(Event::Saved(result)).await;
        });
    }

    /// Writes it, at the agent's end.
    pub(crate) fn save_now(&mut self, desired: &Desired, sys: &Sys) {
        if self.save_at.take().is_none() || !desired.complete {
            return;
        }
        let bytes = record::node(desired, &self.cluster_id, self.revision);
        if let Err(error) = record::write_node(&sys.layout, &bytes) {
            tracing::error!(error, "what was last pushed is not on disk");
        }
    }

    /// It was written, or not.
    pub(crate) fn saved(&mut self, result: Result<(), String>, now: i64) {
        self.saving = false;
        if let Err(error) = result {
            tracing::error!(error, "what was last pushed is not on disk; trying again");
            self.save_at.get_or_insert(now + RETRY_MS);
        }
    }
}

/// Takes a change into a state; what is malformed stays out of it.
fn put(desired: &mut Desired, change: Change) -> Result<(), v1::Failure> {
    let failure = |kind: &str, key: String, message: String| v1::Failure {
        kind: kind.into(),
        key,
        message,
    };
    match change {
        Change::Config(config) => desired.config = config,
        Change::Pod(spec) => {
            check::pod(&spec).map_err(|e| failure("Pod", spec.uid.clone(), e))?;
            desired.pods.insert(spec.uid.clone(), Arc::new(spec));
        }
        Change::PodRemoved(uid) => {
            desired.pods.remove(&uid);
        }
        Change::Service(service) => {
            let name = format!("{}/{}", service.namespace, service.name);
            check::service(&service).map_err(|e| failure("Service", name.clone(), e))?;
            desired.services.insert(name, service);
        }
        Change::ServiceRemoved(name) => {
            desired.services.remove(&name);
        }
        Change::Route(route) => {
            desired.routes.insert(route.node.clone(), route);
        }
        Change::RouteRemoved(node) => {
            desired.routes.remove(&node);
        }
    }
    Ok(())
}

impl Node {
    /// One step of what the node shall be.
    pub(crate) fn update(&mut self, update: v1::Update) {
        if update.snapshot_begin {
            self.pushed.snapshot = Some(Desired::default());
            self.pushed.failures.clear();
        }
        let changes = update.changes.into_iter().filter_map(|c| c.change);
        if let Some(mut fresh) = self.pushed.snapshot.take() {
            for change in changes {
                self.pushed.failures.extend(put(&mut fresh, change).err());
            }
            if !update.snapshot_end {
                self.pushed.snapshot = Some(fresh);
                return;
            }
            fresh.complete = true;
            self.replace(fresh);
        } else {
            for change in changes {
                self.mark(&change);
                let failure = put(&mut self.desired, change).err();
                self.pushed.failures.extend(failure);
            }
        }
        self.release();
        self.pushed.cluster_id = update.cluster_id;
        self.pushed.revision = update.revision;
        self.pushed
            .save_at
            .get_or_insert(agent_sys::clock::unix_ms() + SAVE_MS);
        let fresh = std::mem::take(&mut self.pushed.failures);
        for failure in &fresh {
            tracing::error!(
                kind = failure.kind,
                key = failure.key,
                "{}",
                failure.message
            );
        }
        // What an earlier step could not put in force and has not been told yet.
        let mut failures = self
            .unacknowledged
            .take()
            .map(|a| a.failures)
            .unwrap_or_default();
        failures.extend(fresh);
        self.unacknowledged = Some(v1::Ack {
            revision: update.revision,
            failures,
        });
        let (cluster_id, revision) = (self.pushed.cluster_id.clone(), self.pushed.revision);
        self.hello.send_modify(|hello| {
            hello.cluster_id = cluster_id;
            hello.revision = revision;
        });
    }

    /// Marks what a delta touches.
    fn mark(&mut self, change: &Change) {
        match change {
            Change::Config(_) | Change::Route(_) | Change::RouteRemoved(_) => self.network = true,
            Change::Pod(spec) => {
                self.pods.insert(spec.uid.clone());
            }
            Change::PodRemoved(uid) => {
                self.pods.insert(uid.clone());
            }
            Change::Service(service) => {
                let name = format!("{}/{}", service.namespace, service.name);
                // Deleted and made again under the same name: another id.
                if let Some(before) = self.desired.services.get(&name)
                    && before.id != service.id
                {
                    self.services.insert(before.id, None);
                }
                self.services.insert(service.id, Some(name));
            }
            Change::ServiceRemoved(name) => {
                if let Some(before) = self.desired.services.get(name) {
                    self.services.insert(before.id, None);
                }
            }
        }
    }

    /// A whole new state.
    fn replace(&mut self, fresh: Desired) {
        let before = std::mem::replace(&mut self.desired, fresh);
        self.pods.extend(before.pods.into_keys());
        self.pods.extend(self.desired.pods.keys().cloned());
        self.pods.extend(self.observed.pods.keys().cloned());
        self.pods.extend(self.observed.gone.iter().cloned());
        self.services
            .extend(before.services.values().map(|s| (s.id, None)));
        self.services.extend(
            self.desired
                .services
                .iter()
                .map(|(name, s)| (s.id, Some(name.clone()))),
        );
        self.network = true;
        self.sweep = true;
    }
}
