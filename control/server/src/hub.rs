//! What each node is to have, and the sessions that bring it there.
//!
//! A session's mailbox holds keys, not messages: what changes several times
//! before a slow node takes it is sent once, as it is then; memory is bounded
//! by the number of things, and no session waits for another.
//! Filled by `run.rs`; read by `session.rs`. Decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::bucket;
use proto::v1::{self, node_down};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::mailbox::{Item, Mailbox, Rest, Step, Waiting};

use digest::{Buckets, Resume};
use message::{Content, Message, Pod, Route};
use service::Served;
use shared::Shared;

pub use addresses::{Rejected, Reported};

/// Removals that are remembered, for nodes that come back and want to know what
/// changed; who has been away for longer gets a snapshot.
const REMEMBERED: usize = 10_000;

/// What one node is to have for itself, and who brings it.
#[derive(Default)]
struct View {
    config: Option<Message>,
    pods: BTreeMap<Arc<str>, Pod>,
    /// Of the pods.
    buckets: Buckets,
    session: Option<Session>,
    heard: Option<Instant>,
    /// And the key of the machine that said it.
    reported: Option<(Reported, String)>,
    /// The newest revision that it acknowledged in any of its sessions.
    acked: u64,
    budget: Option<Arc<Budget>>,
}

struct Session {
    id: u64,
    /// Hash of the key of the machine that opened it.
    key: String,
    mailbox: Arc<Mailbox>,
    /// The newest revision that was named to the node.
    sent: u64,
    acked: u64,
}

/// All nodes' views.
pub struct Hub {
    cluster_id: String,
    inner: Mutex<Inner>,
    /// A node connected or left, or all have a revision that was waited for.
    pub moved: Notify,
}

struct Inner {
    revision: u64,
    /// Not all that is of this revision is here yet.
    filling: bool,
    /// The newest revision of which all was here.
    completed: u64,
    services: BTreeMap<Arc<str>, Served>,
    routes: BTreeMap<Arc<str>, Route>,
    /// Names this process to nodes.
    source: u64,
    /// Of services and routes.
    buckets: Buckets,
    /// Number of the last change of any message.
    changes: u64,
    shared: Shared,
    views: HashMap<String, View>,
    /// Which connected node has an address.
    addresses: HashMap<String, String>,
    /// (revision, node or all, what), oldest first.
    removed: VecDeque<(u64, Option<String>, Item)>,
    /// Changes after this revision are known completely.
    floor: u64,
    /// Revision of the start: no other process has named a later one.
    began: u64,
    sessions: u64,
    /// Who has something new since the revision before was complete.
    posted: Posted,
    /// A revision that is waited for, and how many sessions do not have it.
    awaited: Option<(u64, usize)>,
}

/// Nodes for which there is something new.
#[derive(Default)]
struct Posted {
    all: bool,
    nodes: BTreeSet<String>,
}

/// What a session sends next.
pub struct Collected {
    /// In this order.
    pub messages: Vec<v1::NodeDown>,
    /// What to do after them.
    pub next: Next,
}

/// What a session does when it has sent what was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Collect again: the step has more parts.
    More,
    /// Wait at the mailbox.
    Wait,
    /// End the stream.
    End,
}

/// What became of a hello.
pub struct Connected {
    /// Names the session towards the hub.
    pub id: u64,
    /// To wait at, and to collect for.
    pub mailbox: Arc<Mailbox>,
    /// False: only what changed since is sent.
    pub snapshot: bool,
    /// What the node may write, also in its next session.
    pub budget: Arc<Budget>,
}

impl Hub {
    /// An empty hub, of a store that is at this revision.
    pub fn new(cluster_id: String, revision: u64) -> Self {
        let inner = Inner {
            revision,
            filling: false,
            completed: 0,
            services: BTreeMap::new(),
            routes: BTreeMap::new(),
            // 0 stands for none.
            source: rand::random::<u64>().max(1),
            buckets: Buckets::default(),
            changes: 0,
            shared: Shared::default(),
            views: HashMap::new(),
            addresses: HashMap::new(),
            removed: VecDeque::new(),
            floor: revision,
            began: revision,
            sessions: 0,
            posted: Posted::default(),
            awaited: None,
        };
        Self {
            cluster_id,
            inner: Mutex::new(inner),
            moved: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identity of the store, as nodes see it.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// What follows is of this revision. Until [`Hub::complete`] nothing is sent:
    /// a message that names the revision means that all of it was sent.
    pub fn set_revision(&self, revision: u64) {
        let mut inner = self.lock();
        inner.revision = revision;
        inner.filling = true;
    }

    /// All that is of the revision is here.
    pub fn complete(&self) {
        let mut inner = self.lock();
        inner.filling = false;
        inner.completed = inner.revision;
        let posted = std::mem::take(&mut inner.posted);
        let end = inner.shared.end();
        if posted.all {
            for session in inner.views.values().filter_map(|v| v.session.as_ref()) {
                session.mailbox.wake_if_due(end);
            }
            return;
        }
        for node in posted.nodes {
            let view = inner.views.get(&node);
            if let Some(session) = view.and_then(|v| v.session.as_ref()) {
                session.mailbox.wake_if_due(end);
            }
        }
    }

    /// What is filled in from here on was all there at this revision: what
    /// changed before it is not known.
    pub fn restart(&self, revision: u64) {
        let mut inner = self.lock();
        inner.revision = revision;
        inner.floor = revision;
        inner.began = revision;
        inner.completed = 0;
    }

    /// The revision of what is here.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// A node, the machine with this key, opened a session and says this of itself. An older session of the same
    /// node gets a goodbye. Nothing changes if it is rejected.
    pub fn connect(
        &self,
        node: &str,
        key: &str,
        hello: &v1::Hello,
        reported: Reported,
    ) -> Result<Connected, Rejected> {
        let mut inner = self.lock();
        inner.take_addresses(node, &reported.status.addresses)?;
        inner.sessions += 1;
        let id = inner.sessions;
        let mailbox = Arc::new(Mailbox::default());
        let is_ours = hello.cluster_id == self.cluster_id;
        let resume = is_ours.then(|| inner.resume(node, hello)).flatten();
        let snapshot = resume.is_none();
        let acked = resume.as_ref().and_then(|r| r.named).unwrap_or_default();
        {
            let mut waiting = mailbox.lock();
            waiting.seen = inner.shared.end();
            waiting.takes_changes = hello.service_changes;
            waiting.takes_digests = hello.buckets == bucket::COUNT;
            waiting.snapshot = snapshot;
            if let Some(Resume {
                items,
                replaced,
                named,
            }) = resume
            {
                waiting.items = items;
                waiting.replaced = replaced;
                waiting.named = named;
            }
        }
        mailbox.wake();
        let view = inner.views.entry(node.to_owned()).or_default();
        view.heard = Some(Instant::now());
        view.reported = Some((reported, key.to_owned()));
        let budget = view.budget();
        let session = Session {
            id,
            key: key.to_owned(),
            mailbox: mailbox.clone(),
            sent: acked,
            acked,
        };
        if let Some(old) = view.session.replace(session) {
            old.mailbox.say_goodbye(Rejected::Replaced.to_string());
        }
        drop(inner);
        self.moved.notify_one();
        Ok(Connected {
            id,
            mailbox,
            snapshot,
            budget,
        })
    }

    /// Asks a node to open a stream for logs or exec. False: it is not connected.
    pub fn open(&self, node: &str, open: v1::Open) -> bool {
        let inner = self.lock();
        let Some(session) = inner.views.get(node).and_then(|v| v.session.as_ref()) else {
            return false;
        };
        session.mailbox.lock().opens.push_back(open);
        session.mailbox.wake();
        true
    }

    /// The next messages of a session: what was asked of the node, and one part of
    /// the step that is under way. A part is made when it is collected, so that a
    /// slow node costs the memory of one part.
    pub fn collect(&self, node: &str, mailbox: &Mailbox) -> Collected {
        let mut inner = self.lock();
        let had = inner.has_awaited(node);
        let mut waiting = mailbox.lock();
        if let Some(reason) = waiting.goodbye.take() {
            let goodbye = node_down::Down::Goodbye(v1::Goodbye { reason });
            return Collected {
                messages: vec![down(goodbye)],
                next: Next::End,
            };
        }
        let opens = std::mem::take(&mut waiting.opens);
        let opens = opens.into_iter().map(|o| down(node_down::Down::Open(o)));
        let mut messages: Vec<v1::NodeDown> = opens.collect();
        // A step that has begun goes on while the next revision is filled in.
        if waiting.step.is_none() && !inner.filling {
            inner.begin(&mut waiting);
        } else if waiting.step.is_none() && waiting.is_due(inner.shared.end()) {
            // Its wake-up is used up: it connected, or was slower than the next revision,
            // which may have nothing for it.
            inner.posted.nodes.insert(node.to_owned());
        }
        let mut part = None;
        if let Some(mut step) = waiting.step.take() {
            part = inner.part(node, &mut step);
            let named = part.as_ref().map_or(0, |part| part.revision);
            if let Some(session) = inner.session_of(node, mailbox) {
                session.sent = session.sent.max(named);
            }
            if step.over {
                waiting.named = Some(step.revision);
            } else {
                waiting.step = Some(step);
            }
        }
        let next = if waiting.step.is_some() {
            Next::More
        } else {
            Next::Wait
        };
        drop(waiting);
        self.look_at(inner, node, had);
        let update = part.map(|mut part| {
            part.cluster_id.clone_from(&self.cluster_id);
            down(node_down::Down::Update(part))
        });
        messages.extend(update);
        Collected { messages, next }
    }
}

fn down(down: node_down::Down) -> v1::NodeDown {
    v1::NodeDown { down: Some(down) }
}

impl View {
    fn budget(&mut self) -> Arc<Budget> {
        let full = || Arc::new(Budget::new(Instant::now()));
        self.budget.get_or_insert_with(full).clone()
    }

    fn post(&self, item: &Item) {
        if let Some(session) = &self.session {
            session.mailbox.post(item);
        }
    }
}

impl Inner {
    fn session_of(&mut self, node: &str, mailbox: &Mailbox) -> Option<&mut Session> {
        let session = self.views.get_mut(node)?.session.as_mut()?;
        std::ptr::eq(Arc::as_ptr(&session.mailbox), mailbox).then_some(session)
    }

    fn post_all(&mut self, item: Item) {
        self.posted.all = true;
        let there = self.services.len() + self.routes.len();
        self.shared.push(item, there);
    }

    /// Begins a node's next step, if there is something for it. Who is too far behind to
    /// know what changed gets all of it.
    fn begin(&self, waiting: &mut Waiting) {
        let items = std::mem::take(&mut waiting.items);
        let news = self.shared.since(waiting.seen);
        waiting.seen = self.shared.end();
        let snapshot = std::mem::take(&mut waiting.snapshot);
        let replaced = std::mem::take(&mut waiting.replaced);
        let changed = news.filter(|_| !snapshot).map(|mut news| {
            news.extend(items);
            news
        });
        let (rest, replaced) = match changed.filter(|items| !self.is_too_much(items)) {
            Some(items) if items.is_empty() && replaced.is_empty() => return,
            Some(items) => (Rest::Items(items), replaced),
            None => (Rest::All { sent: None }, Vec::new()),
        };
        waiting.step = Some(Step {
            revision: self.revision,
            since: waiting.named.filter(|_| waiting.takes_changes),
            changes: self.changes,
            takes_digests: waiting.takes_digests,
            replaced,
            touched: BTreeSet::new(),
            begun: false,
            over: false,
            rest,
        });
    }

    /// Numbers a change of a message.
    fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// A message for all nodes was `old`, and is `new`.
    fn note_shared(&mut self, bucket: u32, old: Content, new: Content) {
        let number = self.next_change();
        self.buckets.change(bucket, old, new, number);
    }

    /// The revision that a change counts for. Not all changes are the store's (a
    /// pod is told to stop when nodes have acknowledged): what comes after a
    /// revision was complete is news to a node that has all of it.
    fn stamp(&self) -> u64 {
        if self.revision > self.completed {
            self.revision
        } else {
            self.revision + 1
        }
    }

    fn remember(&mut self, node: Option<&str>, item: Item) {
        let stamp = self.stamp();
        self.removed
            .push_back((stamp, node.map(str::to_owned), item));
        while self.removed.len() > REMEMBERED {
            if let Some((revision, _, _)) = self.removed.pop_front() {
                self.floor = revision;
            }
        }
    }
}

mod addresses;
mod awaited;
mod digest;
mod hearing;
mod items;
mod message;
mod put;
mod service;
mod shared;
#[cfg(test)]
mod tests;
