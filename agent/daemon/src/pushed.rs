//! What the control plane pushed: taken in, checked once, kept on disk.
//!
//! A part of the node, which alone owns the desired state. A snapshot takes effect
//! as a whole, with its last part; each part of a delta at once. Only the last part
//! of either names a revision and is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_plan::time::Monotonic;
use agent_plan::world::Desired;
use agent_sys::journal::Changes;
use proto::service_change;
use proto::v1;
use proto::v1::change::Change;
use proto::{DecodeError, Message as _};

use crate::check;
use crate::event::Event;
use crate::pushed_file::{self, NotSaved, Work};
use crate::startup::Sys;

/// Of this agent.
pub(crate) const VERSION: &str = env!("HYDROFOIL_VERSION");
/// Delay of a write after a change, so that many changes are one write. Milliseconds.
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
    /// Services by name, "namespace/name", those without an id as well.
    pub(crate) names: BTreeSet<String>,
    /// Facts of the cluster.
    pub(crate) config: bool,
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
    /// From where the node asks on with its next stream.
    pub(crate) resume: v1::NodeRecord,
    /// Its revision, and what of it cannot be put in force.
    pub(crate) ack: v1::Ack,
}

/// What was pushed last, and how much of it is on disk.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The state that is in force.
    pub(crate) desired: Desired,
    head: v1::NodeRecord,
    snapshot: Option<Desired>,
    failures: Vec<v1::Failure>,
    /// Services whose last message was refused: what is in force is older, and changes of it
    /// cannot be applied. All is asked for again with the next stream.
    refused: BTreeSet<String>,
    journal: pushed_file::Shared,
    /// What of it is not on the disk.
    unsaved: Changes,
    /// None of it is: it was replaced as a whole.
    rewrite: bool,
    save_at: Option<Monotonic>,
    saving: bool,
}

impl Pushed {
    /// As it was found on disk.
    pub(crate) fn new(
        desired: Desired,
        head: v1::NodeRecord,
        journal: pushed_file::Shared,
    ) -> Pushed {
        let (snapshot, failures) = (None, Vec::new());
        Pushed {
            desired,
            head,
            snapshot,
            failures,
            refused: BTreeSet::new(),
            journal,
            unsaved: Changes::new(),
            rewrite: false,
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
        let (work, journal, sys) = (self.work(), self.journal.clone(), sys.clone());
        tokio::spawn(async move {
            let written = sys.blocking(move |_sys| Ok(pushed_file::write(&journal, work)));
            let result = written.await.unwrap_or_else(|error| {
                let changes = None;
                Err(NotSaved { error, changes })
            });
            sys.tell(Event::Saved(result)).await;
        });
    }

    /// Writes it, at the agent's end.
    pub(crate) fn save_now(&mut self) {
        if self.save_at.take().is_none() || !self.desired.complete {
            return;
        }
        // A write that is under way may fail, and the loop is no longer there to hear it.
        self.rewrite |= self.saving;
        let work = self.work();
        if let Err(NotSaved { error, .. }) = pushed_file::write(&self.journal, work) {
            tracing::error!(error, "cannot write the last pushed state");
        }
    }

    /// From where the node asks on.
    fn resume(&self) -> v1::NodeRecord {
        let mut head = self.head.clone();
        if !self.refused.is_empty() {
            head.revision = 0;
        }
        head
    }

    /// What is to be written; it counts as written until [`Pushed::saved`] says otherwise.
    fn work(&mut self) -> Work {
        let mut changes = std::mem::take(&mut self.unsaved);
        if std::mem::take(&mut self.rewrite) || pushed_file::wants_rewrite(&self.journal) {
            let all = pushed_file::entries(&self.desired, &self.resume());
            return Work::Rewrite(all);
        }
        let (key, head) = pushed_file::head(&self.resume());
        changes.insert(key, Some(head));
        Work::Append(changes)
    }

    /// It was written, or not.
    pub(crate) fn saved(&mut self, result: Result<(), NotSaved>, now: Monotonic) {
        self.saving = false;
        if let Err(NotSaved { error, changes }) = result {
            tracing::error!(error, "cannot write the last pushed state; retrying");
            match changes {
                // Newer values of the same keys win.
                Some(mut older) => {
                    older.append(&mut self.unsaved);
                    self.unsaved = older;
                }
                None => self.rewrite = true,
            }
            self.save_at.get_or_insert(now + RETRY_MS);
        }
    }

    /// Takes in a step, or a part of it. `None`: a part of a snapshot, and more of it
    /// follows.
    pub(crate) fn update(&mut self, update: v1::Update, now: Monotonic) -> Option<Step> {
        if update.snapshot_begin {
            self.snapshot = Some(Desired::default());
            self.failures.clear();
            self.refused.clear();
        }
        let decoded = |bytes| match v1::Change::decode(bytes) {
            // `None`: of a newer control plane.
            Ok(change) => change.change,
            Err(error) => {
                self.failures.push(undecoded(&error));
                None
            }
        };
        let changes: Vec<Change> = update.changes.into_iter().filter_map(decoded).collect();
        let mut touched = Touched::default();
        if let Some(mut fresh) = self.snapshot.take() {
            for change in changes {
                self.put(&mut fresh, change);
            }
            if !update.snapshot_end {
                self.snapshot = Some(fresh);
                return None;
            }
            fresh.complete = true;
            self.replace(fresh, &mut touched);
            self.unsaved.clear();
            self.rewrite = true;
        } else {
            for change in changes {
                self.touch(&change, &mut touched);
                let kept = pushed_file::kept(&change, &self.desired.services);
                let mut desired = std::mem::take(&mut self.desired);
                if self.put(&mut desired, change) {
                    self.unsaved.extend(kept);
                }
                self.desired = desired;
            }
        }
        if update.revision == 0 {
            // Were the stream to break now, the step would come again.
            return Some(Step { touched, end: None });
        }
        self.save_at.get_or_insert(now + SAVE_MS);
        self.head = v1::NodeRecord {
            cluster_id: update.cluster_id,
            revision: update.revision,
            digest: update.digest,
            agent_version: VERSION.into(),
        };
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
            resume: self.resume(),
            ack: v1::Ack {
                revision: self.head.revision,
                failures,
            },
        };
        Some(Step {
            touched,
            end: Some(end),
        })
    }

    /// Takes a change into a state. False: it is refused, and stays out of it.
    fn put(&mut self, desired: &mut Desired, change: Change) -> bool {
        let mut of = None;
        if let Change::Service(service) = &change {
            let name = pushed_file::name(&service.namespace, &service.name);
            self.refused.remove(&name);
            of = Some(name);
        } else if let Change::ServiceChange(change) = &change {
            of = Some(pushed_file::name(&change.namespace, &change.name));
        } else if let Change::ServiceRemoved(name) = &change {
            self.refused.remove(name);
        }
        let before = of.as_ref().filter(|name| self.refused.contains(*name));
        let result = match before {
            Some(name) => {
                let message = "the message before it was refused".to_owned();
                Err(failure("Service", name.clone(), message))
            }
            None => put(desired, change),
        };
        let Err(failure) = result else {
            return true;
        };
        self.failures.push(failure);
        self.refused.extend(of);
        false
    }

    /// Adds what a delta touches; before it is taken in.
    fn touch(&self, change: &Change, touched: &mut Touched) {
        match change {
            Change::Config(config) => {
                if config.zone != self.desired.config.zone {
                    let all = self.desired.services.iter();
                    let zoned = all.filter(|(_, service)| has_hints(service));
                    let zoned = zoned.map(|(name, service)| (service.id, Some(name.clone())));
                    touched.services.extend(zoned);
                }
                touched.network = true;
                touched.config = true;
            }
            Change::Route(_) | Change::RouteRemoved(_) => touched.network = true,
            Change::Pod(spec) => {
                touched.pods.insert(spec.uid.clone());
            }
            Change::PodRemoved(uid) => {
                touched.pods.insert(uid.clone());
            }
            Change::Service(service) => {
                let name = pushed_file::name(&service.namespace, &service.name);
                touched.names.insert(name.clone());
                // Deleted and made again under the same name: another id.
                if let Some(before) = self.desired.services.get(&name)
                    && before.id != service.id
                {
                    touched.services.insert(before.id, None);
                }
                touched.services.insert(service.id, Some(name));
            }
            Change::ServiceChange(change) => {
                let name = pushed_file::name(&change.namespace, &change.name);
                touched.names.insert(name.clone());
                if let Some(service) = self.desired.services.get(&name) {
                    touched.services.insert(service.id, Some(name));
                }
            }
            Change::ServiceRemoved(name) => {
                touched.names.insert(name.clone());
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

/// True when the backends that a node uses may depend on its zone.
fn has_hints(service: &v1::Service) -> bool {
    let mut backends = service.ports.iter().flat_map(|port| &port.backends);
    backends.any(|backend| !backend.for_zones.is_empty())
}

fn undecoded(error: &DecodeError) -> v1::Failure {
    v1::Failure {
        kind: "Change".into(),
        key: String::new(),
        message: format!("a change does not parse: {error}"),
    }
}

/// All services of a state: id and name.
pub(crate) fn services(desired: &Desired) -> impl Iterator<Item = (u32, Option<String>)> {
    let named = desired.services.iter();
    named.map(|(name, service)| (service.id, Some(name.clone())))
}

/// Records what was kept on the disk.
pub(crate) fn restore(desired: &mut Desired, change: Change) {
    if let Err(v1::Failure { kind, key, message }) = put(desired, change) {
        tracing::error!(kind, key, "{message}");
    }
}

fn failure(kind: &str, key: String, message: String) -> v1::Failure {
    v1::Failure {
        kind: kind.into(),
        key,
        message,
    }
}

/// Takes a change into a state; what is malformed stays out of it.
fn put(desired: &mut Desired, change: Change) -> Result<(), v1::Failure> {
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
            let name = pushed_file::name(&service.namespace, &service.name);
            check::service(&service).map_err(|e| failure("Service", name.clone(), e))?;
            desired.services.insert(name, service);
        }
        Change::ServiceChange(change) => {
            let name = pushed_file::name(&change.namespace, &change.name);
            let refused = |e: String| failure("Service", name.clone(), e);
            let Some(service) = desired.services.get(&name) else {
                return Err(refused(
                    "a change of a service that was not sent".to_owned(),
                ));
            };
            let mut changed = service.clone();
            let applied = service_change::apply(&mut changed, change);
            applied.map_err(|error| refused(error.to_string()))?;
            check::service(&changed).map_err(refused)?;
            desired.services.insert(name, changed);
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
    use agent_sys::state::Layout;

    use super::*;

    fn service(name: &str) -> Change {
        Change::Service(v1::Service {
            namespace: "d".into(),
            name: name.into(),
            id: 1,
            ..v1::Service::default()
        })
    }

    fn encoded(changes: Vec<Change>) -> Vec<proto::Bytes> {
        let change = |change| v1::Change {
            change: Some(change),
        };
        let changes = changes.into_iter().map(change);
        changes
            .map(|change| change.encode_to_vec().into())
            .collect()
    }

    /// What was pushed, and the folder that its journal is in.
    fn pushed(revision: u64) -> (Pushed, Layout, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("lib"), folder.path().join("run"));
        layout.create().unwrap();
        let (journal, kept) = pushed_file::open(&layout).unwrap();
        assert!(kept.is_none());
        let head = v1::NodeRecord {
            cluster_id: "c".into(),
            revision,
            ..v1::NodeRecord::default()
        };
        let pushed = Pushed::new(Desired::default(), head, journal);
        (pushed, layout, folder)
    }

    /// The state on the disk, and its revision.
    fn on_disk(layout: &Layout) -> (Desired, u64) {
        let (_, kept) = pushed_file::open(layout).unwrap();
        let kept = kept.unwrap();
        let mut desired = Desired::default();
        for change in kept.changes {
            // Of a pod the uid alone is there, which is no whole spec.
            drop(put(&mut desired, change));
        }
        (desired, kept.head.revision)
    }

    fn save(pushed: &mut Pushed) {
        let work = pushed.work();
        pushed_file::write(&pushed.journal, work).unwrap();
    }

    fn named(n: usize, id: u32) -> Change {
        let service = v1::Service {
            namespace: "default".into(),
            name: format!("service-{n}"),
            id,
            ..v1::Service::default()
        };
        Change::Service(service)
    }

    #[test]
    fn a_change_costs_what_it_is_large() {
        const SERVICES: usize = 10_000;
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let secret = v1::PodSpec {
            uid: "u".into(),
            namespace: "default".into(),
            name: "n".into(),
            hostname: "opensesame".into(),
            ..v1::PodSpec::default()
        };
        let mut changes: Vec<_> = (0..SERVICES).map(|n| named(n, 1)).collect();
        changes.push(Change::Pod(secret));
        let update = |revision, changes| v1::Update {
            cluster_id: "c".into(),
            revision,
            changes: encoded(changes),
            ..v1::Update::default()
        };
        let snapshot = v1::Update {
            snapshot_begin: true,
            snapshot_end: true,
            ..update(1, changes)
        };
        pushed.update(snapshot, now).unwrap();
        save(&mut pushed);
        let file = layout.state("pushed");
        let size = || std::fs::metadata(&file).unwrap().len();
        let before = size();
        let part = update(0, vec![named(7, 2)]);
        pushed.update(part, now).unwrap();
        let removed = Change::ServiceRemoved("default/service-8".into());
        pushed.update(update(2, vec![removed]), now).unwrap();
        save(&mut pushed);
        assert!(size() - before < 300, "{before} {}", size());
        let (desired, revision) = on_disk(&layout);
        assert_eq!((desired.services.len(), revision), (SERVICES - 1, 2));
        assert_eq!(desired.services, pushed.desired.services);
        assert_eq!(desired.services["default/service-7"].id, 2);
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        assert!(holds(b"pod/u") && !holds(b"opensesame"));
    }

    #[test]
    fn what_was_not_written_is_written_with_the_next_change() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let update = |revision, n, id| v1::Update {
            cluster_id: "c".into(),
            revision,
            changes: encoded(vec![named(n, id)]),
            ..v1::Update::default()
        };
        pushed.update(update(1, 0, 1), now).unwrap();
        save(&mut pushed);
        pushed.update(update(2, 1, 1), now).unwrap();
        pushed.update(update(3, 2, 1), now).unwrap();
        let Work::Append(changes) = pushed.work() else {
            panic!("a small file is not rewritten");
        };
        // Meanwhile one of them changes again.
        pushed.update(update(4, 2, 5), now).unwrap();
        let refused = NotSaved {
            error: "disk full".into(),
            changes: Some(changes),
        };
        pushed.saved(Err(refused), now);
        assert!(pushed.due().is_some());
        save(&mut pushed);
        let (desired, revision) = on_disk(&layout);
        assert_eq!(revision, 4);
        assert_eq!(desired.services, pushed.desired.services);
    }

    #[test]
    fn only_the_last_part_of_a_step_names_its_revision() {
        let (mut pushed, _layout, _folder) = pushed(7);
        let now = crate::clock::monotonic();
        let bad = Change::Pod(v1::PodSpec::default());
        let part = |revision, changes| v1::Update {
            cluster_id: "c".into(),
            revision,
            changes: encoded(changes),
            ..v1::Update::default()
        };
        let step = pushed
            .update(part(0, vec![service("a"), bad]), now)
            .unwrap();
        assert!(step.end.is_none() && !step.touched.services.is_empty());
        // Were the stream to break here, the node would ask from 7 on.
        assert_eq!(pushed.head.revision, 7);
        let step = pushed.update(part(9, vec![service("b")]), now).unwrap();
        let ack = step.end.unwrap().ack;
        assert_eq!((ack.revision, pushed.head.revision), (9, 9));
        assert_eq!(ack.failures.len(), 1, "of all parts: {:?}", ack.failures);
        assert_eq!(pushed.desired.services.len(), 2);
    }

    #[test]
    fn the_last_write_does_not_pass_over_a_write_that_is_under_way() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let update = |revision, n| v1::Update {
            cluster_id: "c".into(),
            revision,
            changes: encoded(vec![named(n, 1)]),
            ..v1::Update::default()
        };
        pushed.desired.complete = true;
        pushed.update(update(1, 0), now).unwrap();
        save(&mut pushed);
        pushed.update(update(2, 1), now).unwrap();
        // The disk refuses it, and the loop ends before it hears so.
        pushed.saving = true;
        drop(pushed.work());
        pushed.update(update(3, 2), now).unwrap();
        pushed.save_now();
        let (desired, revision) = on_disk(&layout);
        assert_eq!(revision, 3);
        assert_eq!(desired.services, pushed.desired.services);
    }

    /// A service of one port with so many backends.
    fn backed(count: u32) -> v1::Service {
        let backend = |n: u32| v1::Backend {
            address: std::net::Ipv4Addr::from(0x0af4_0000 + n).to_string(),
            port: 8080,
            pod_name: format!("default/web-{n}"),
            ..v1::Backend::default()
        };
        v1::Service {
            namespace: "default".into(),
            name: "web".into(),
            id: 1,
            ports: vec![v1::ServicePort {
                backends: (0..count).map(backend).collect(),
                ..v1::ServicePort::default()
            }],
            ..v1::Service::default()
        }
    }

    fn delta(revision: u64, change: Change) -> v1::Update {
        v1::Update {
            cluster_id: "c".into(),
            revision,
            changes: encoded(vec![change]),
            ..v1::Update::default()
        }
    }

    /// The backend at this position is removed, and another one added.
    fn swapped(service: &v1::Service, at: usize) -> v1::ServiceChange {
        use proto::service_change::Entry as _;
        let old = &service.ports[0].backends[at];
        let mut new = old.clone();
        new.port = 9090;
        v1::ServiceChange {
            namespace: "default".into(),
            name: "web".into(),
            generation: 5,
            ports: vec![v1::PortChange {
                index: 0,
                backends: vec![new],
                removed: vec![old.to_key()],
            }],
            ..v1::ServiceChange::default()
        }
    }

    #[test]
    fn a_backend_that_changes_is_written_without_its_service() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let mut web = backed(1000);
        web.endpoints = vec![v1::NamedEndpoint {
            address: "10.0.0.1".into(),
            hostname: "db-0".into(),
            ..v1::NamedEndpoint::default()
        }];
        pushed.update(delta(1, Change::Service(web.clone())), now);
        save(&mut pushed);
        let size = || std::fs::metadata(layout.state("pushed")).unwrap().len();
        let before = size();
        let change = swapped(&web, 500);
        let step = pushed.update(delta(2, Change::ServiceChange(change)), now);
        let touched = step.unwrap().touched;
        assert_eq!(touched.services[&1].as_deref(), Some("default/web"));
        assert!(touched.names.contains("default/web"));
        save(&mut pushed);
        assert!(size() - before < 500, "{before} {}", size());
        let (desired, revision) = on_disk(&layout);
        let there = &desired.services["default/web"];
        assert_eq!((there.generation, revision), (5, 2));
        assert_eq!(there.ports[0].backends[500].port, 9090);
        assert_eq!(desired.services, pushed.desired.services);
        // Whole again, and shorter: nothing of the longer one is left.
        pushed.update(delta(3, Change::Service(backed(3))), now);
        save(&mut pushed);
        assert_eq!(on_disk(&layout).0.services["default/web"], backed(3));
        let removed = Change::ServiceRemoved("default/web".into());
        pushed.update(delta(4, removed), now);
        save(&mut pushed);
        let (_, kept) = pushed_file::open(&layout).unwrap();
        let mut left = kept.unwrap().changes.into_iter();
        assert!(left.all(|change| matches!(change, Change::Config(_))));
    }

    #[test]
    fn a_change_of_a_service_that_was_refused_or_not_sent_is_refused() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let end = |step: Option<Step>| {
            let end = step.unwrap().end.unwrap();
            (end.resume.revision, end.ack.failures.len())
        };
        let web = backed(3);
        let change = || Change::ServiceChange(swapped(&web, 1));
        assert_eq!(end(pushed.update(delta(1, change()), now)), (0, 1));
        let whole = |service: &v1::Service| Change::Service(service.clone());
        assert_eq!(end(pushed.update(delta(2, whole(&web)), now)), (2, 0));
        let bad = v1::Service {
            id: 0,
            cluster_ips: vec!["10.96.0.1".into()],
            ..web.clone()
        };
        assert_eq!(end(pushed.update(delta(3, whole(&bad)), now)), (0, 1));
        // What is in force is not what the change is about.
        assert_eq!(end(pushed.update(delta(4, change()), now)), (0, 1));
        assert_eq!(pushed.desired.services["default/web"], web);
        save(&mut pushed);
        assert_eq!(on_disk(&layout).1, 0, "all of it is asked for");
        assert_eq!(end(pushed.update(delta(5, whole(&web)), now)), (5, 0));
        assert_eq!(end(pushed.update(delta(6, change()), now)), (6, 0));
        let mut beyond = swapped(&web, 1);
        beyond.ports[0].index = 1;
        let beyond = Change::ServiceChange(beyond);
        assert_eq!(end(pushed.update(delta(7, beyond), now)), (0, 1));
    }

    #[test]
    fn whole_services_of_an_earlier_agent_are_used_and_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("lib"), folder.path().join("run"));
        layout.create().unwrap();
        let head = v1::NodeRecord {
            cluster_id: "c".into(),
            revision: 9,
            ..v1::NodeRecord::default()
        };
        let web = v1::Change {
            change: Some(Change::Service(backed(3))),
        };
        let entries = [
            (String::new(), head.encode_to_vec()),
            ("service/default/web".into(), web.encode_to_vec()),
        ];
        let file = layout.state("pushed");
        let (mut journal, _) = agent_sys::journal::Journal::open(&file).unwrap();
        journal.rewrite(entries.into()).unwrap();
        let (desired, revision) = on_disk(&layout);
        assert_eq!(desired.services["default/web"], backed(3));
        assert_eq!(revision, 0);
    }
}
