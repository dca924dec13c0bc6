//! The controllers at work: one task that follows the store, keeps the world
//! and the nodes' views up to date, plans what became due, and has it written.
//!
//! Driven by events alone. Writes run beside the loop; a task whose writes are
//! under way is not planned again before the world shows them, so nothing is
//! done twice. Nothing is kept that the store could not bring back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_plan::claim::ClaimKey;
use control_plan::{Key, Notice, Object, Task, World, Write, plan};
use control_store::{Event, EventKind, ListRequest, Store, StoreError, Watch};
use futures::FutureExt as _;
use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::drain::Drain;
use crate::hub::Hub;
use crate::load;
use crate::objects::Objects;
use crate::record::Recorder;
use crate::refusal::Refusal;
use crate::stored;
use crate::view::{ClusterFacts, Touched, Views};
use crate::write;

/// Events taken in before planning, at most.
const BATCH: usize = 4096;
/// Entries of one page of the first load.
const PAGE: usize = 1000;
/// After a write that failed for another reason than a conflict.
const RETRY: Duration = Duration::from_secs(1);

/// How often silent nodes are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The controllers cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// Reading from it failed.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// A task whose writes are under way.
enum Busy {
    /// Being written.
    Writing,
    /// Written; the world shows it from this revision on.
    Until(u64),
}

/// A task's writes are done, or failed.
struct Done {
    task: Task,
    /// Revision from which they show.
    revision: u64,
    /// When to plan it again although nothing changed.
    retry: Option<Duration>,
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
    busy: BTreeMap<Task, Busy>,
    /// Due, but busy.
    held: BTreeSet<Task>,
    /// When to plan which task although nothing changes; one time for each.
    later: BTreeSet<(Instant, Task)>,
    timers: BTreeMap<Task, Instant>,
    started: Instant,
    lost_after: Duration,
    done_in: mpsc::Receiver<Done>,
    done_out: mpsc::Sender<Done>,
}

impl Controllers {
    /// Loads everything from the store, and fills the hub.
    pub async fn load(
        objects: Arc<Objects>,
        recorder: Recorder,
        world: World,
        facts: ClusterFacts,
        lost_after: Duration,
    ) -> Result<(Self, Arc<Hub>), RunError> {
        let store = objects.store().clone();
        let (done_out, done_in) = mpsc::channel(1024);
        let hub = Arc::new(Hub::new(store.id(), 0));
        let mut controllers = Self {
            objects,
            hub: hub.clone(),
            recorder,
            world,
            views: Views::new(facts),
            drain: Drain::default(),
            touched: Touched::default(),
            revision: 0,
            busy: BTreeMap::new(),
            held: BTreeSet::new(),
            later: BTreeSet::new(),
            timers: BTreeMap::new(),
            started: Instant::now(),
            lost_after,
            done_in,
            done_out,
        };
        controllers.read_all(store.as_ref()).await?;
        controllers.hub.restart(controllers.revision);
        controllers.show();
        Ok((controllers, hub))
    }

    /// Takes in all that the store has, and takes out what it has no more. The
    /// hub has none of it yet: see [`Self::show`].
    async fn read_all(&mut self, store: &dyn Store) -> Result<(), RunError> {
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
                if let Some(claim) = ClaimKey::parse(&entry.key) {
                    claimed.insert(claim.clone());
                    self.put_claim(claim, Some(stored::read_claim(entry)));
                } else {
                    let key = load::parse_key(&entry.key);
                    there.extend(key.map(|(kind, name)| load::world_key(kind, name)));
                    self.put(&entry.key, &entry.value, entry.revision);
                }
            }
            let Some(next) = page.next else { break };
            request = ListRequest {
                after: Some(next),
                revision: Some(page.revision),
                ..request
            };
        }
        for key in self.world.keys() {
            if !there.contains(&key) {
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
        Ok(())
    }

    /// Watches the store from where the world is. Whoever is so far behind that
    /// the store has forgotten what came in between reads everything again.
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
                read => read?,
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
            let wake = [
                self.later.first().map(|(when, _)| *when),
                self.drain.next_deadline(),
            ];
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
                _ = look.tick() => self.look_for_lost_nodes(),
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
        if let Some(key) = ClaimKey::parse(&event.key) {
            let claim = match event.kind {
                EventKind::Put => Some(control_plan::Claim {
                    owner: String::from_utf8_lossy(&event.value).into_owned(),
                    revision: event.revision,
                }),
                EventKind::Delete => None,
            };
            self.put_claim(key, claim);
            return;
        }
        match event.kind {
            EventKind::Put => self.put(&event.key, &event.value, event.revision),
            EventKind::Delete => {
                if let Some((kind, name)) = load::parse_key(&event.key) {
                    self.take_out(&load::world_key(kind, name));
                }
            }
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
        }
        self.world.remove(key);
    }

    fn put(&mut self, key: &str, bytes: &[u8], revision: u64) {
        let Some((kind, name)) = load::parse_key(key) else {
            return;
        };
        match load::object(kind, bytes, revision) {
            Ok(object) => {
                let key = load::world_key(kind, name);
                let old = self.world.get(&key);
                self.views
                    .touch_change(&mut self.touched, old.as_ref(), &object);
                self.drain.seen(&object, Instant::now());
                self.world.put(object);
            }
            // It was admitted once; a newer version must have written it.
            Err(error) => tracing::error!(key, revision, "an object does not parse: {error}"),
        }
    }

    /// Brings the hub up to what the world is now.
    fn show(&mut self) {
        self.hub.set_revision(self.revision);
        let touched = std::mem::take(&mut self.touched);
        self.views.push(touched, &self.world, &self.hub);
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
        if let Some(after) = done.retry {
            self.at(Instant::now() + after, done.task.clone());
        }
        self.busy.insert(done.task, Busy::Until(done.revision));
    }

    fn at(&mut self, when: Instant, task: Task) {
        if let Some(known) = self.timers.get(&task).copied() {
            if known <= when {
                // It is planned then, and says again when it wants to be.
                return;
            }
            self.later.remove(&(known, task.clone()));
        }
        self.timers.insert(task.clone(), when);
        self.later.insert((when, task));
    }

    /// Plans what is due and free, until nothing is.
    fn dispatch(&mut self) {
        let now = Instant::now();
        while let Some((_, task)) = self.later.first().filter(|(when, _)| *when <= now).cloned() {
            self.later.pop_first();
            self.timers.remove(&task);
            self.world.make_due(task);
        }
        let shown = self.revision;
        self.busy
            .retain(|_, busy| !matches!(busy, Busy::Until(revision) if *revision <= shown));
        let mut due = std::mem::take(&mut self.held);
        due.extend(self.world.take_due());
        for task in due {
            if self.busy.contains_key(&task) {
                self.held.insert(task);
            } else {
                self.start(task);
            }
        }
    }

    fn start(&mut self, task: Task) {
        let now = Timestamp::now();
        let outcome = plan(&self.world, &task, now);
        self.world.note(&outcome, now);
        if let Some(at) = outcome.again_at {
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            // A moment more, so that the time has come for sure.
            self.at(
                Instant::now() + wait + Duration::from_millis(1),
                task.clone(),
            );
        }
        if outcome.writes.is_empty() {
            self.recorder.record(outcome.notices);
            return;
        }
        self.write(task, outcome.writes, outcome.notices);
    }

    /// Says of nodes that nothing was heard of for too long that they are lost.
    /// After a start, each has the whole time again to come back.
    fn look_for_lost_nodes(&mut self) {
        let mut lost = Vec::new();
        for (name, node) in &self.world.nodes {
            let heard = self
                .hub
                .last_heard(name)
                .unwrap_or(self.started)
                .max(self.started);
            if heard.elapsed() < self.lost_after
                || self.busy.contains_key(&Task::Node(name.clone()))
            {
                continue;
            }
            if let Some(node) = control_plan::node::unheard(node, Timestamp::now()) {
                lost.push((name.clone(), node));
            }
        }
        for (name, node) in lost {
            tracing::warn!(
                node = name,
                "nothing heard of it for {:?}: it is lost",
                self.lost_after
            );
            let object = Object::Node(Arc::new(node));
            let write = Write::Put {
                object,
                claims: Vec::new(),
            };
            self.write(Task::Node(name), vec![write], Vec::new());
        }
    }

    fn write(&mut self, task: Task, writes: Vec<Write>, notices: Vec<Notice>) {
        self.busy.insert(task.clone(), Busy::Writing);
        let (objects, done, recorder) = (
            self.objects.clone(),
            self.done_out.clone(),
            self.recorder.clone(),
        );
        tokio::spawn(async move {
            let finished = carry_out(&objects, &task, writes, notices, &recorder).await;
            if done.send(finished).await.is_err() {
                tracing::debug!("the controllers ended before their writes");
            }
        });
    }
}

async fn carry_out(
    objects: &Objects,
    task: &Task,
    writes: Vec<Write>,
    notices: Vec<Notice>,
    recorder: &Recorder,
) -> Done {
    let results = join_all(writes.iter().map(|w| write::apply(objects, w))).await;
    let mut done = Done {
        task: task.clone(),
        revision: 0,
        retry: None,
    };
    let mut failed = false;
    for result in results {
        match result {
            Ok(revision) => done.revision = done.revision.max(revision),
            Err(refusal) if refusal.is_conflict() => {
                tracing::debug!(?task, "{refusal}");
                failed = true;
            }
            Err(refusal) => {
                tracing::warn!(?task, "a controller's write failed: {refusal}");
                done.retry = Some(RETRY);
            }
        }
    }
    if failed {
        // The world is behind what is there: plan again when it has caught up.
        match objects.store().revision().await {
            Ok(revision) => done.revision = done.revision.max(revision),
            Err(error) => tracing::warn!("the store failed: {error}"),
        }
        done.retry = done.retry.or(Some(Duration::from_millis(5)));
    } else if done.retry.is_none() {
        recorder.record(notices);
    }
    done
}
