//! What the control plane pushed: taken in, checked once, kept on disk.
//!
//! A part of the node, which alone owns the desired state. A snapshot takes effect
//! as a whole, with its last part; each part of a delta at once. Only the last part
//! of either names a revision and is acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_plan::time::Monotonic;
use agent_plan::world::Desired;
use agent_sys::journal::Changes;
use proto::Message as _;
use proto::bucket::{self, Digests, Replacing};
use proto::v1;
use proto::v1::change::Change;

use crate::event::Event;
use crate::pushed_change::{Unfit, take, undecoded};
use crate::pushed_file::{self, Kept, NotSaved, Work};
use crate::startup::Sys;
use crate::touched::{self, Touched};

/// Of this agent.
pub(crate) const VERSION: &str = env!("HYDROFOIL_VERSION");
/// Delay of a write after a change, so that many changes are one write. Milliseconds.
const SAVE_MS: i64 = 200;
/// After a failed write, milliseconds.
const RETRY_MS: i64 = 5_000;

/// What came of an update.
#[derive(Debug)]
pub(crate) struct Step {
    /// What has to be planned.
    pub(crate) touched: Touched,
    /// At its end: its revision, and what of it cannot be put in force. `None`: more parts
    /// of the step follow.
    pub(crate) end: Option<v1::Ack>,
    /// Pods that are to stop and were refused: there is nothing of them, unless they were
    /// taken before.
    pub(crate) gone: Vec<v1::PodGone>,
}

/// A snapshot, part by part.
#[derive(Debug, Default)]
struct Snapshot {
    desired: Desired,
    refused: BTreeSet<String>,
}

/// What was pushed last, and how much of it is on disk.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The state that is in force.
    pub(crate) desired: Desired,
    kept: Kept,
    snapshot: Option<Snapshot>,
    /// The step under way replaces buckets.
    replacing: Option<Replacing>,
    unfit: Unfit,
    /// Services whose last message was refused: what is in force is older, and changes of it
    /// cannot be applied. They are asked for again with the next stream.
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
    pub(crate) fn new(desired: Desired, kept: Kept, journal: pushed_file::Shared) -> Pushed {
        Pushed {
            desired,
            kept,
            snapshot: None,
            replacing: None,
            unfit: Unfit::default(),
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
        self.replacing = None;
        self.unfit = Unfit::default();
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
        let mut head = self.kept.head.clone();
        if !self.refused.is_empty() {
            // By digests, then.
            (head.revision, head.source) = (0, 0);
        }
        head
    }

    /// Says what the node has.
    pub(crate) fn greet(&self, hello: &mut v1::Hello) {
        let resume = self.resume();
        hello.cluster_id = resume.cluster_id;
        hello.revision = resume.revision;
        hello.source = resume.source;
        hello.buckets = bucket::COUNT;
        hello.digests = self.kept.digests.list();
    }

    /// What is in the bucket is not what the control plane said it is.
    fn forget(&mut self, bucket: u32) {
        self.kept.digests.forget(bucket);
        self.save_digest(v1::BucketDigest {
            bucket,
            digest: Vec::new(),
        });
    }

    fn save_digest(&mut self, digest: v1::BucketDigest) {
        let (key, value) = pushed_file::digest(&digest);
        self.unsaved.insert(key, Some(value));
    }

    /// What is to be written; it counts as written until [`Pushed::saved`] says otherwise.
    fn work(&mut self) -> Work {
        let mut changes = std::mem::take(&mut self.unsaved);
        if std::mem::take(&mut self.rewrite) || pushed_file::wants_rewrite(&self.journal) {
            let digests = self.kept.digests.list();
            let all = pushed_file::entries(&self.desired, &self.resume(), &digests);
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
            self.snapshot = Some(Snapshot::default());
            self.replacing = None;
            self.unfit = Unfit::default();
        }
        if !update.replaced.is_empty() {
            let replacing = Replacing::new(update.replaced);
            replacing.buckets().for_each(|bucket| self.forget(bucket));
            self.replacing = Some(replacing);
        }
        let decoded = |bytes| match v1::Change::decode(bytes) {
            // `None`: of a newer control plane.
            Ok(change) => change.change,
            Err(error) => {
                self.unfit.failures.push(undecoded(&error));
                None
            }
        };
        let changes: Vec<Change> = update.changes.into_iter().filter_map(decoded).collect();
        let mut touched = Touched::default();
        if let Some(mut fresh) = self.snapshot.take() {
            for change in changes {
                let Snapshot { desired, refused } = &mut fresh;
                take(desired, refused, &mut self.unfit, change);
            }
            if !update.snapshot_end {
                self.snapshot = Some(fresh);
                return None;
            }
            fresh.desired.complete = true;
            self.refused = fresh.refused;
            self.replace(fresh.desired, &mut touched);
            self.kept.digests = unknown(&self.desired);
            self.unsaved.clear();
            self.rewrite = true;
        } else {
            for change in changes {
                self.change(change, &mut touched);
            }
            if update.revision != 0
                && let Some(replacing) = self.replacing.take()
            {
                let Desired {
                    services,
                    routes,
                    pods,
                    ..
                } = &self.desired;
                for change in replacing.removals(services.keys(), routes.keys(), pods.keys()) {
                    self.change(change, &mut touched);
                }
            }
        }
        if update.revision == 0 {
            // Were the stream to break now, the step would come again.
            return Some(Step {
                touched,
                end: None,
                gone: std::mem::take(&mut self.unfit.gone),
            });
        }
        self.save_at.get_or_insert(now + SAVE_MS);
        self.kept.head = v1::NodeRecord {
            cluster_id: update.cluster_id,
            revision: update.revision,
            source: update.source,
            agent_version: VERSION.into(),
        };
        for digest in update.digests {
            self.save_digest(digest.clone());
            self.kept.digests.note(digest);
        }
        let refused = self.refused.iter().map(|name| bucket::of_service(name));
        for bucket in refused.collect::<BTreeSet<_>>() {
            self.forget(bucket);
        }
        let Unfit { failures, gone } = std::mem::take(&mut self.unfit);
        for failure in &failures {
            tracing::error!(
                kind = failure.kind,
                key = failure.key,
                "{}",
                failure.message
            );
        }
        let revision = self.kept.head.revision;
        Some(Step {
            touched,
            end: Some(v1::Ack { revision, failures }),
            gone,
        })
    }

    /// Takes in a change of what is in force.
    fn change(&mut self, change: Change, touched: &mut Touched) {
        touched.add(&change, &self.desired);
        if let Some(replacing) = &mut self.replacing {
            replacing.note(&change);
        }
        if let Some(bucket) = bucket::of(&change) {
            self.forget(bucket);
        }
        let kept = pushed_file::kept(&change, &self.desired.services);
        let (desired, refused) = (&mut self.desired, &mut self.refused);
        if take(desired, refused, &mut self.unfit, change) {
            self.unsaved.extend(kept);
        }
    }

    /// Puts a whole new state in force.
    fn replace(&mut self, fresh: Desired, touched: &mut Touched) {
        let before = std::mem::replace(&mut self.desired, fresh);
        let gone = before.services.values().map(|s| (s.id, None));
        touched.services.extend(gone);
        touched.services.extend(touched::services(&self.desired));
        touched.pods.extend(before.pods.into_keys());
        touched.pods.extend(self.desired.pods.keys().cloned());
        touched.network = true;
        touched.all = true;
    }
}

/// Digests of a state of which nothing was said.
fn unknown(desired: &Desired) -> Digests {
    let services = desired.services.keys().map(|name| bucket::of_service(name));
    let routes = desired.routes.keys().map(|node| bucket::of_route(node));
    let pods = desired.pods.keys().map(|uid| bucket::of_pod(uid));
    let mut digests = Digests::default();
    let all: BTreeSet<u32> = services.chain(routes).chain(pods).collect();
    all.into_iter().for_each(|bucket| digests.forget(bucket));
    digests
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agent_sys::state::Layout;

    use super::*;
    use crate::pushed_change::restore;

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
        let kept = Kept {
            head,
            ..Kept::default()
        };
        let pushed = Pushed::new(Desired::default(), kept, journal);
        (pushed, layout, folder)
    }

    /// The state on the disk, and its revision.
    fn on_disk(layout: &Layout) -> (Desired, u64) {
        let (_, found) = pushed_file::open(layout).unwrap();
        let found = found.unwrap();
        let mut desired = Desired::default();
        for change in found.changes {
            // Of a pod the uid alone is there, which is no whole spec.
            restore(&mut desired, change);
        }
        (desired, found.kept.head.revision)
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
        assert_eq!(pushed.kept.head.revision, 7);
        let step = pushed.update(part(9, vec![service("b")]), now).unwrap();
        let ack = step.end.unwrap();
        assert_eq!((ack.revision, pushed.kept.head.revision), (9, 9));
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
        let end = |pushed: &mut Pushed, update| {
            let ack = pushed.update(update, now).unwrap().end.unwrap();
            let mut hello = v1::Hello::default();
            pushed.greet(&mut hello);
            let web = bucket::of_service("default/web");
            let digest = hello.digests.into_iter().find(|d| d.bucket == web);
            let known = !digest.unwrap().digest.is_empty();
            (hello.revision, known, ack.failures.len())
        };
        // The control plane has taken it for granted that the node takes it.
        let delta = |revision, change| v1::Update {
            digests: vec![v1::BucketDigest {
                bucket: bucket::of_service("default/web"),
                digest: vec![1],
            }],
            ..delta(revision, change)
        };
        let web = backed(3);
        let change = || Change::ServiceChange(swapped(&web, 1));
        assert_eq!(end(&mut pushed, delta(1, change())), (0, false, 1));
        let whole = |service: &v1::Service| Change::Service(service.clone());
        assert_eq!(end(&mut pushed, delta(2, whole(&web))), (2, true, 0));
        let bad = v1::Service {
            id: 0,
            cluster_ips: vec!["10.96.0.1".into()],
            ..web.clone()
        };
        assert_eq!(end(&mut pushed, delta(3, whole(&bad))), (0, false, 1));
        // What is in force is not what the change is about.
        assert_eq!(end(&mut pushed, delta(4, change())), (0, false, 1));
        assert_eq!(pushed.desired.services["default/web"], web);
        save(&mut pushed);
        assert_eq!(on_disk(&layout).1, 0, "it is asked for");
        assert_eq!(end(&mut pushed, delta(5, whole(&web))), (5, true, 0));
        assert_eq!(end(&mut pushed, delta(6, change())), (6, true, 0));
        let mut beyond = swapped(&web, 1);
        beyond.ports[0].index = 1;
        let beyond = Change::ServiceChange(beyond);
        assert_eq!(end(&mut pushed, delta(7, beyond)), (0, false, 1));
    }

    fn digest(bucket: u32, digest: u8) -> v1::BucketDigest {
        let digest = vec![digest];
        v1::BucketDigest { bucket, digest }
    }

    /// What is said in the next hello, and after a restart of the agent.
    #[test]
    fn digests_are_those_of_what_is_in_force_also_on_the_disk() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let of = |n: usize| bucket::of_service(&format!("default/service-{n}"));
        let snapshot = v1::Update {
            snapshot_begin: true,
            snapshot_end: true,
            source: 5,
            digests: vec![digest(of(1), 1), digest(of(2), 2)],
            ..delta(1, named(1, 1))
        };
        pushed.update(snapshot, now);
        let said = |pushed: &Pushed| {
            let mut hello = v1::Hello::default();
            pushed.greet(&mut hello);
            let digests = hello.digests.into_iter();
            let digests = digests.map(|d| (d.bucket, d.digest));
            (hello.source, digests.collect::<BTreeMap<_, _>>())
        };
        let agree = |pushed: &mut Pushed, expected: [(u32, Vec<u8>); 2]| {
            let expected = (5, expected.into());
            assert_eq!(said(pushed), expected);
            save(pushed);
            let kept = pushed_file::open(&layout).unwrap().1.unwrap().kept;
            let journal = pushed.journal.clone();
            assert_eq!(
                said(&Pushed::new(Desired::default(), kept, journal)),
                expected
            );
        };
        agree(&mut pushed, [(of(1), vec![1]), (of(2), vec![2])]);
        // A part of a step, whose end does not come.
        pushed.update(delta(0, named(2, 7)), now);
        pushed.disconnected();
        agree(&mut pushed, [(of(1), vec![1]), (of(2), vec![])]);
        let end = v1::Update {
            source: 5,
            digests: vec![digest(of(2), 3)],
            ..delta(2, named(2, 8))
        };
        pushed.update(end, now);
        agree(&mut pushed, [(of(1), vec![1]), (of(2), vec![3])]);
        let mut kept = std::mem::take(&mut pushed.kept);
        kept.forget_pods();
        assert_eq!(kept.head.source, 0);
        let digests = kept.digests.list();
        assert_eq!(digests.len(), 66);
        kept.forget_all();
        assert!(kept.digests.list().iter().all(|d| d.digest.is_empty()));
    }

    /// What was not sent again of a bucket that is replaced is removed with the last part.
    #[test]
    fn a_bucket_is_replaced_when_all_of_it_was_sent() {
        let (mut pushed, layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let of = |n: &usize| bucket::of_service(&format!("default/service-{n}"));
        let of_seven = of(&7);
        let same: Vec<usize> = (0..3000).filter(|n| of(n) == of_seven).collect();
        let [one, two, three, ..] = same[..] else {
            panic!("{same:?}")
        };
        let other = (0..).find(|n| of(n) != of_seven).unwrap();
        let pod = v1::PodSpec {
            uid: "u".into(),
            namespace: "d".into(),
            name: "n".into(),
            ..v1::PodSpec::default()
        };
        let all = [one, two, three, other].map(|n| named(n, u32::try_from(n).unwrap()));
        let snapshot = v1::Update {
            snapshot_begin: true,
            snapshot_end: true,
            changes: encoded([all.to_vec(), vec![Change::Pod(pod)]].concat()),
            ..delta(1, named(one, 1))
        };
        pushed.update(snapshot, now);
        let begin = || v1::Update {
            replaced: vec![of_seven, bucket::of_pod("u")],
            ..delta(0, named(one, 1))
        };
        pushed.update(begin(), now).unwrap();
        assert_eq!(pushed.desired.services.len(), 4);
        // Its end does not come, and another step has no such end.
        pushed.disconnected();
        pushed.update(delta(2, named(other, 4)), now).unwrap();
        assert_eq!(
            (pushed.desired.services.len(), pushed.desired.pods.len()),
            (4, 1)
        );
        pushed.update(begin(), now).unwrap();
        let step = pushed.update(delta(3, named(three, 3)), now).unwrap();
        let left = [one, three, other].map(|n| format!("default/service-{n}"));
        assert!(pushed.desired.services.keys().eq(&BTreeSet::from(left)));
        assert!(pushed.desired.pods.is_empty());
        let two_id = u32::try_from(two).unwrap();
        assert_eq!(step.touched.services[&two_id], None);
        assert!(step.touched.pods.contains("u"));
        save(&mut pushed);
        assert_eq!(on_disk(&layout).0.services, pushed.desired.services);
    }

    #[test]
    fn a_pod_that_is_refused_is_gone_when_it_is_to_stop() {
        let (mut pushed, _layout, _folder) = pushed(0);
        let now = crate::clock::monotonic();
        let mut pod = v1::PodSpec {
            uid: "u".into(),
            namespace: "d".into(),
            name: "n".into(),
            ..v1::PodSpec::default()
        };
        let good = pod.clone();
        // No agent mounts there.
        pod.containers = vec![v1::ContainerSpec {
            name: "c".into(),
            mounts: vec![v1::VolumeMount {
                mount_path: "relative".into(),
                ..v1::VolumeMount::default()
            }],
            ..v1::ContainerSpec::default()
        }];
        let mut take = |pod: &v1::PodSpec| {
            let step = pushed
                .update(delta(1, Change::Pod(pod.clone())), now)
                .unwrap();
            let uids = step.gone.into_iter().map(|gone| gone.uid);
            let stop = pushed.desired.pods.get("u").map(|p| p.stop_grace_seconds);
            (uids.collect::<Vec<_>>(), stop)
        };
        assert_eq!(take(&pod), (vec![], None));
        pod.stop_grace_seconds = Some(30);
        assert_eq!(take(&pod), (vec!["u".to_owned()], None));
        // One that runs ends as any other.
        assert_eq!(take(&good), (vec![], Some(None)));
        assert_eq!(take(&pod), (vec![], Some(Some(30))));
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
