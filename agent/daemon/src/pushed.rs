//! What the control plane pushed: taken in, checked once, kept on disk.
//!
//! A part of the node, which alone owns the desired state. A snapshot takes effect
//! as a whole, with its last part; each part of a delta at once. Only the last part
//! of either names a revision and is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_plan::time::Monotonic;
use agent_plan::world::Desired;
use proto::v1;
use proto::v1::change::Change;

use crate::check;
use crate::event::Event;
use crate::record;
use crate::startup::Sys;

/// Written so long after a change, so that many changes are one write. Milliseconds.
const SAVE_MS: i64 = 200;
/// After a failed write, milliseconds.
const RETRY_MS: i64 = 5_000;

/// What an update touches, and so has to be planned.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// uids.
    pub(crate) pods: BTreeSet<String>,
    /// Services by id: their name if they are wanted.
    pub(crate) services: BTreeMap<u32, Option<String>>,
    /// Links and routes.
    pub(crate) network: bool,
    /// It is a whole new state: what is not in it is wanted no more.
    pub(crate) all: bool,
}

/// What came of an update.
#[derive(Debug)]
pub(crate) struct Step {
    /// What has to be planned.
    pub(crate) touched: Touched,
    /// `None`: more parts of the step follow.
    pub(crate) end: Option<End>,
}

/// The end of a step.
#[derive(Debug)]
pub(crate) struct End {
    /// The cluster that it came from.
    pub(crate) cluster_id: String,
    /// Its revision, and what of it cannot be put in force.
    pub(crate) ack: v1::Ack,
}

/// What was pushed last, and how much of it is on disk.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The state that is in force.
    pub(crate) desired: Desired,
    cluster_id: String,
    revision: u64,
    snapshot: Option<Desired>,
    failures: Vec<v1::Failure>,
    save_at: Option<Monotonic>,
    saving: bool,
}

impl Pushed {
    /// As it was found on disk.
    pub(crate) fn new(desired: Desired, cluster_id: String, revision: u64) -> Pushed {
        let (snapshot, failures) = (None, Vec::new());
        Pushed {
            desired,
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

    /// When it is to be written.
    pub(crate) fn due(&self) -> Option<Monotonic> {
        if self.saving { None } else { self.save_at }
    }

    /// Writes it on a thread for that.
    pub(crate) fn save_if_due(&mut self, sys: &Arc<Sys>, now: Monotonic) {
        if self.due().is_none_or(|at| now < at) {
            return;
        }
        self.save_at = None;
        self.saving = true;
        let bytes = record::node(&self.desired, &self.cluster_id, self.revision);
        let sys = sys.clone();
        tokio::spawn(async move {
            let result = sys
                .blocking(move |sys| record::write_node(&sys.layout, &bytes))
                .await;
            sys.tell(Event::Saved(result)).await;
        });
    }

    /// Writes it, at the agent's end.
    pub(crate) fn save_now(&mut self, sys: &Sys) {
        if self.save_at.take().is_none() || !self.desired.complete {
            return;
        }
        let bytes = record::node(&self.desired, &self.cluster_id, self.revision);
        if let Err(error) = record::write_node(&sys.layout, &bytes) {
            tracing::error!(error, "what was last pushed is not on disk");
        }
    }

    /// It was written, or not.
    pub(crate) fn saved(&mut self, result: Result<(), String>, now: Monotonic) {
        self.saving = false;
        if let Err(error) = result {
            tracing::error!(error, "what was last pushed is not on disk; trying again");
            self.save_at.get_or_insert(now + RETRY_MS);
        }
    }

    /// Takes in a step, or a part of it. `None`: a part of a snapshot, and more of it
    /// follows.
    pub(crate) fn update(&mut self, update: v1::Update, now: Monotonic) -> Option<Step> {
        if update.snapshot_begin {
            self.snapshot = Some(Desired::default());
            self.failures.clear();
        }
        let changes = update.changes.into_iter().filter_map(|c| c.change);
        let mut touched = Touched::default();
        if let Some(mut fresh) = self.snapshot.take() {
            for change in changes {
                self.failures.extend(put(&mut fresh, change).err());
            }
            if !update.snapshot_end {
                self.snapshot = Some(fresh);
                return None;
            }
            fresh.complete = true;
            self.replace(fresh, &mut touched);
        } else {
            for change in changes {
                self.touch(&change, &mut touched);
                self.failures.extend(put(&mut self.desired, change).err());
            }
        }
        self.save_at.get_or_insert(now + SAVE_MS);
        if update.revision == 0 {
            // Were the stream to break now, the step would come again.
            return Some(Step { touched, end: None });
        }
        self.cluster_id = update.cluster_id;
        self.revision = update.revision;
        let failures = std::mem::take(&mut self.failures);
        for failure in &failures {
            tracing::error!(
                kind = failure.kind,
                key = failure.key,
                "{}",
                failure.message
            );
        }
        let end = End {
            cluster_id: self.cluster_id.clone(),
            ack: v1::Ack {
                revision: self.revision,
                failures,
            },
        };
        Some(Step {
            touched,
            end: Some(end),
        })
    }

    /// Adds what a delta touches; before it is taken in.
    fn touch(&self, change: &Change, touched: &mut Touched) {
        match change {
            Change::Config(_) | Change::Route(_) | Change::RouteRemoved(_) => {
                touched.network = true;
            }
            Change::Pod(spec) => {
                touched.pods.insert(spec.uid.clone());
            }
            Change::PodRemoved(uid) => {
                touched.pods.insert(uid.clone());
            }
            Change::Service(service) => {
                let name = format!("{}/{}", service.namespace, service.name);
                // Deleted and made again under the same name: another id.
                if let Some(before) = self.desired.services.get(&name)
                    && before.id != service.id
                {
                    touched.services.insert(before.id, None);
                }
                touched.services.insert(service.id, Some(name));
            }
            Change::ServiceRemoved(name) => {
                if let Some(before) = self.desired.services.get(name) {
                    touched.services.insert(before.id, None);
                }
            }
        }
    }

    /// Puts a whole new state in force.
    fn replace(&mut self, fresh: Desired, touched: &mut Touched) {
        let before = std::mem::replace(&mut self.desired, fresh);
        let gone = before.services.values().map(|s| (s.id, None));
        touched.services.extend(gone);
        touched.services.extend(services(&self.desired));
        touched.pods.extend(before.pods.into_keys());
        touched.pods.extend(self.desired.pods.keys().cloned());
        touched.network = true;
        touched.all = true;
    }
}

/// All services of a state: id and name.
pub(crate) fn services(desired: &Desired) -> impl Iterator<Item = (u32, Option<String>)> {
    let named = desired.services.iter();
    named.map(|(name, service)| (service.id, Some(name.clone())))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> v1::Change {
        v1::Change {
            change: Some(Change::Service(v1::Service {
                namespace: "d".into(),
                name: name.into(),
                id: 1,
                ..v1::Service::default()
            })),
        }
    }

    #[test]
    fn only_the_last_part_of_a_step_names_its_revision() {
        let desired = Desired::default();
        let mut pushed = Pushed::new(desired, "c".into(), 7);
        let now = crate::clock::monotonic();
        let bad = v1::Change {
            change: Some(Change::Pod(v1::PodSpec::default())),
        };
        let part = |revision, changes| v1::Update {
            cluster_id: "c".into(),
            revision,
            changes,
            ..v1::Update::default()
        };
        let step = pushed
            .update(part(0, vec![service("a"), bad]), now)
            .unwrap();
        assert!(step.end.is_none() && !step.touched.services.is_empty());
        // Were the stream to break here, the node would ask from 7 on.
        assert_eq!(pushed.revision, 7);
        let step = pushed.update(part(9, vec![service("b")]), now).unwrap();
        let ack = step.end.unwrap().ack;
        assert_eq!((ack.revision, pushed.revision), (9, 9));
        assert_eq!(ack.failures.len(), 1, "of all parts: {:?}", ack.failures);
        assert_eq!(pushed.desired.services.len(), 2);
    }
}
