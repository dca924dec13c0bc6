//! The controllers at work: one task that follows the store, keeps the world
//! and the nodes' views up to date, plans what became due, and has it written.
//!
//! Driven by events alone. Writes run beside the loop (`carry.rs`); a task whose
//! writes are under way is not planned again before the world shows them
//! (`agenda.rs`), so nothing is done twice. Nothing is kept that the store could
//! not bring back.

mod lost;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use control_plan::claim::ClaimKey;
use control_plan::{Key, Notice, Object, Task, World, Write, plan};
use control_store::{Event, EventKind, ListRequest, Store, StoreError, Watch};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::agenda::Agenda;
use crate::carry::{Denied, Done, carry_out};
use crate::drain::Drain;
use crate::health::{Hearing, LOOK};
use crate::hub::Hub;
use crate::join;
use crate::load::{self, Record, Unreadable};
use crate::objects::Objects;
use crate::record::Recorder;
use crate::refusal::Refusal;
use crate::stored;
use crate::view::{ClusterFacts, Touched, Views};

/// Events taken in before planning, at most.
const BATCH: usize = 4096;
/// Entries of one page of the first load.
const PAGE: usize = 1000;

/// Kind of the objects whose deletion ends a session.
const NODE: &str = "Node";
/// To the machine of a Node that is deleted.
const DELETED: &str = "its Node object was deleted";

/// The controllers cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// Reading from it failed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The store was written by a newer version, or is damaged.
    #[error(
        "this version cannot read all objects: {0}. Run the version that wrote them; or set \
         skip_unreadable_objects = true, which leaves them as they are and goes on without them"
    )]
    Unreadable(Unreadable),
}

/// What the controllers were configured with, besides the world's settings.
pub struct Options {
    /// Facts of the cluster that nodes get.
    pub facts: ClusterFacts,
    /// A node without a heartbeat for this long is lost.
    pub lost_after: Duration,
    /// Go on without objects that cannot be read.
    pub skip_unreadable: bool,
}

/// What the loop needs.
pub struct Controllers {
    objects: Arc<Objects>,
    hub: Arc<Hub>,
    recorder: Recorder,
    world: World,
    views: Views,
    drain: Drain,
    /// What the hub is to be told of.
    touched: Touched,
    revision: u64,
    agenda: Agenda,
    hearing: Hearing,
    done_in: mpsc::Receiver<Done>,
    done_out: mpsc::Sender<Done>,
}

impl Controllers {
    /// Loads everything from the store, and fills the hub.
    pub async fn load(
        objects: Arc<Objects>,
        recorder: Recorder,
        mut world: World,
        options: Options,
    ) -> Result<(Self, Arc<Hub>), RunError> {
        let store = objects.store().clone();
        let (done_out, done_in) = mpsc::channel(1024);
        let hub = Arc::new(Hub::new(store.id(), 0));
        let (now, wall) = (Instant::now(), Timestamp::now());
        world.hear(wall);
        let mut controllers = Self {
            objects,
            hub: hub.clone(),
            recorder,
            world,
            views: Views::new(options.facts),
            drain: Drain::default(),
            touched: Touched::default(),
            revision: 0,
            agenda: Agenda::default(),
            hearing: Hearing::new(options.lost_after, now, wall),
            done_in,
            done_out,
        };
        let unreadable = controllers.read_all(store.as_ref()).await?;
        if !unreadable.is_empty() {
            if !options.skip_unreadable {
                return Err(RunError::Unreadable(unreadable));
            }
            tracing::warn!("objects that cannot be read are left as they are: {unreadable}");
        }
        controllers.hub.restart(controllers.revision);
        controllers.show();
        Ok((controllers, hub))
    }

    /// All that the store has, as of the last event.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Takes in all that the store has, and takes out what it has no more. The
    /// hub has none of it yet: see [`Self::show`].
    async fn read_all(&mut self, store: &dyn Store) -> Result<Unreadable, RunError> {
        let mut unreadable = Unreadable::default();
        let mut there = BTreeSet::new();
        let mut claimed = BTreeSet::new();
        let mut request = ListRequest {
            limit: PAGE,
            ..ListRequest::all("")
        };
        loop {
            let page = store.list(request.clone()).await?;
            self.revision = page.revision;
            for entry in &page.entries {
                match load::parse_key(&entry.key) {
                    Record::Claim(claim) => {
                        claimed.insert(claim.clone());
                        self.put_claim(claim, Some(stored::read_claim(entry)));
                    }
                    Record::Object(kind, name) => {
                        there.insert(load::world_key(kind, name));
                    }
                    Record::Unknown(key) => {
                        there.insert(key);
                    }
                }
                if let Err(reason) = self.put(&entry.key, &entry.value, entry.revision) {
                    unreadable.add(&entry.key, reason);
                }
            }
            let Some(next) = page.next else { break };
            request = ListRequest {
                after: Some(next),
                revision: Some(page.revision),
                ..request
            };
        }
        let hidden: Vec<Key> = self.world.unreadable().cloned().collect();
        for key in self.world.keys().into_iter().chain(hidden) {
            if !there.contains(&key) {
                if let Some(Object::Node(_)) = self.world.get(&key) {
                    // Whose name it was last is not known.
                    self.hub.dismiss(&key.name.name, None, DELETED);
                }
                self.take_out(&key);
            }
        }
        let claims = self.world.claims().iter().map(|(key, _)| key);
        let gone = claims.filter(|key| !claimed.contains(*key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.put_claim(key, None);
        }
        for node in self.world.nodes.keys().cloned().collect::<Vec<_>>() {
            self.world.make_due(Task::Node(node));
        }
        for key in self.world.others.keys().cloned().collect::<Vec<_>>() {
            self.world.make_due(Task::Collect(key));
        }
        Ok(unreadable)
    }

    /// Watches the store from where the world is. When it is so far behind
    /// that the store has dropped the history in between, reads everything again.
    async fn follow(&mut self) -> Result<Watch, RunError> {
        let store = self.objects.store().clone();
        loop {
            match store.watch(String::new(), self.revision).await {
                Err(StoreError::Compacted { asked, oldest }) => {
                    tracing::warn!(asked, oldest, "fell behind the store: reading all of it");
                }
                watch => return Ok(watch?),
            }
            match self.read_all(store.as_ref()).await {
                // Between its pages, even.
                Err(RunError::Store(StoreError::Compacted { .. })) => {}
                Err(error) => return Err(error),
                Ok(unreadable) if unreadable.is_empty() => {}
                Ok(unreadable) => tracing::error!("objects cannot be read: {unreadable}"),
            }
        }
    }

    /// Follows the store until it fails.
    pub async fn run(mut self) -> Result<(), RunError> {
        let mut watch = self.follow().await?;
        self.settle();
        self.dispatch();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = [self.agenda.next(), self.drain.next_deadline()];
            let wake = wake.into_iter().flatten().min();
            let sleep = tokio::time::sleep_until(
                wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)),
            );
            tokio::select! {
                events = watch.next_batch() => match self.take_ready(events, &mut watch) {
                    Err(StoreError::Compacted { .. }) => watch = self.follow().await?,
                    taken => taken?,
                },
                Some(done) = self.done_in.recv() => self.finished(done),
                () = self.hub.moved.notified() => {}
                _ = look.tick() => self.look_at_nodes(),
                () = sleep => {}
            }
            while let Ok(done) = self.done_in.try_recv() {
                self.finished(done);
            }
            self.settle();
            self.dispatch();
        }
    }

    /// Takes in the events, and what else is there already; whole transactions.
    fn take_ready(
        &mut self,
        first: Result<Vec<Event>, StoreError>,
        watch: &mut Watch,
    ) -> Result<(), StoreError> {
        let mut taken = 0;
        let mut next = Some(first);
        while let Some(events) = next {
            let events = events?;
            taken += events.len();
            events.into_iter().for_each(|event| self.take(event));
            if taken >= BATCH {
                break;
            }
            next = watch.next_batch().now_or_never();
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        self.revision = self.revision.max(event.revision);
        let record = load::parse_key(&event.key);
        match (record, event.kind) {
            (Record::Claim(key), EventKind::Put) => {
                let owner = String::from_utf8_lossy(&event.value).into_owned();
                let revision = event.revision;
                self.put_claim(key, Some(control_plan::Claim { owner, revision }));
            }
            (Record::Claim(key), EventKind::Delete) => self.put_claim(key, None),
            (Record::Object(..) | Record::Unknown(_), EventKind::Put) => {
                if let Err(reason) = self.put(&event.key, &event.value, event.revision) {
                    let (key, revision) = (&event.key, event.revision);
                    tracing::error!(key, revision, "an object cannot be read: {reason}");
                }
            }
            (Record::Object(kind, name), EventKind::Delete) => {
                self.take_out(&load::world_key(kind, name));
            }
            (Record::Unknown(key), EventKind::Delete) => self.take_out(&key),
        }
    }

    fn put_claim(&mut self, key: ClaimKey, claim: Option<control_plan::Claim>) {
        self.objects.note_claim(key.clone(), claim.clone());
        self.world.put_claim(key, claim);
    }

    fn take_out(&mut self, key: &Key) {
        if let Some(old) = self.world.get(key) {
            self.views.touch(&mut self.touched, &old);
            self.drain.gone(&old);
            if let Object::Node(node) = old {
                let machine = join::key(&node);
                self.hub.dismiss(&key.name.name, machine, DELETED);
            }
        } else if key.kind == NODE && key.group.is_empty() {
            // It could not be read: whose name it was is not known.
            self.hub.dismiss(&key.name.name, None, DELETED);
        }
        self.world.remove(key);
    }

    /// Takes in an object. An error says why it cannot be read; claims are left
    /// to [`Self::put_claim`].
    fn put(&mut self, key: &str, bytes: &[u8], revision: u64) -> Result<(), String> {
        let (kind, name) = match load::parse_key(key) {
            Record::Object(kind, name) => (kind, name),
            Record::Claim(_) => return Ok(()),
            Record::Unknown(key) => {
                self.world.mark_unreadable(key, load::uid(bytes));
                return Err("its kind is not known".to_owned());
            }
        };
        let key = load::world_key(kind, name);
        match load::object(kind, bytes, revision) {
            Ok(object) => {
                let old = self.world.get(&key);
                if let (Some(Object::Node(old)), Object::Node(new)) = (&old, &object) {
                    self.replaced(old, new);
                }
                self.views
                    .touch_change(&mut self.touched, old.as_ref(), &object);
                self.drain.seen(&object, Instant::now());
                self.world.put(object);
                Ok(())
            }
            Err(error) => {
                self.world.mark_unreadable(key, load::uid(bytes));
                Err(error.to_string())
            }
        }
    }

    /// Ends the session of the machine that a Node was before, if it is another now.
    fn replaced(&self, old: &Node, new: &Node) {
        let name = new.metadata.name.as_deref().unwrap_or_default();
        let (before, now) = (join::key(old), join::key(new));
        if old.metadata.uid != new.metadata.uid {
            // Its deletion was not seen: see `follow`.
            self.hub.dismiss(name, None, DELETED);
        } else if before.is_some() && before != now {
            self.hub.dismiss(name, before, "the Node has another key");
        }
    }

    /// Brings the hub up to what the world is now.
    fn show(&mut self) {
        self.hub.set_revision(self.revision);
        let touched = std::mem::take(&mut self.touched);
        self.views.push(touched, &self.world, &self.hub);
        let notices = std::mem::take(&mut self.views.notices);
        self.recorder.record(notices);
        self.hub.complete();
    }

    /// Brings hub and drain up to what the world is now. Who is to stop is told
    /// after the revision is complete: that is no change of the store.
    fn settle(&mut self) {
        self.show();
        for (name, uid) in self.drain.released(&self.world, &self.hub, Instant::now()) {
            self.views.stopping.insert(uid);
            Views::touch_pod(&mut self.touched, &name);
        }
        self.show();
    }

    fn finished(&mut self, done: Done) {
        for (pod, uid) in &done.unbound {
            self.world.binding_failed(&pod.name, uid, Timestamp::now());
        }
        if done.failed && done.task == Task::Schedule {
            self.world.bindings_conflicted();
        }
        if let Task::ReplicaSet(set) = &done.task {
            if let Some(Denied { deletes, message }) = &done.refused {
                let told = self.world.replicas_refused(set, *deletes, message);
                self.recorder.record(told.into_iter().collect());
            } else if !done.failed {
                self.world.replicas_written(set);
            }
        }
        if done.failed {
            self.agenda.failed(done.task, done.revision, Instant::now());
        } else {
            self.agenda.succeeded(done.task, done.revision);
        }
    }

    /// Plans all tasks that are due and not busy.
    fn dispatch(&mut self) {
        let due = self.world.take_due();
        for task in self.agenda.ready(due, self.revision, Instant::now()) {
            self.start(task);
        }
    }

    fn start(&mut self, task: Task) {
        let now = Timestamp::now();
        let outcome = plan(&self.world, &task, now);
        self.world.note(&outcome, now);
        if let Some(at) = outcome.again_at {
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            // A moment more, so that the time has come for sure.
            let when = Instant::now() + wait + Duration::from_millis(1);
            self.agenda.at(when, task.clone());
        }
        if outcome.writes.is_empty() {
            self.agenda.idle(&task);
            self.recorder.record(outcome.notices);
            return;
        }
        self.write(task, outcome.writes, outcome.notices);
    }

    fn write(&mut self, task: Task, writes: Vec<Write>, notices: Vec<Notice>) {
        self.agenda.begin(task.clone());
        let (objects, done, recorder) = (
            self.objects.clone(),
            self.done_out.clone(),
            self.recorder.clone(),
        );
        tokio::spawn(async move {
            let finished = carry_out(&objects, task, writes, notices, &recorder).await;
            if done.send(finished).await.is_err() {
                tracing::debug!("the controllers ended before their writes");
            }
        });
    }
}
