//! The one writer: a thread that takes waiting transactions together and makes
//! them durable with one fsync (group commit). Not reading, not watching.
//! Started and fed by `embedded`.

use std::collections::BTreeSet;
use std::sync::Arc;

use redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StoreError;
use crate::event::{Entry, Event, EventKind};
use crate::shared::Shared;
use crate::table::{
    self, COMPACTED, DELETE, ENTRIES, HISTORY, NUMBERS, PUT, REVISION, ReadError, Row,
};
use crate::txn::{Change, Condition, Txn};

/// Transactions that may share one commit.
const GROUP: usize = 512;
/// Revisions that are forgotten at one time, about.
const STRIDE: u64 = 256;

pub(crate) type Answer = oneshot::Sender<Result<u64, StoreError>>;

/// What the writer is asked to do.
pub(crate) enum Job {
    Txn(Txn, Answer),
    /// Forget history up to and including the revision.
    Compact(u64, Answer),
}

/// Takes jobs until all senders are gone.
pub(crate) fn run(
    shared: &Arc<Shared>,
    mut jobs: mpsc::Receiver<Job>,
    newest: &watch::Sender<u64>,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        commit(shared, group, newest);
    }
}

fn commit(shared: &Arc<Shared>, group: Vec<Job>, newest: &watch::Sender<u64>) {
    let outcome = shared.write(|txn| Group::open(txn)?.apply(&group, shared.history));
    match outcome {
        Ok(done) => {
            if !done.events.is_empty() {
                shared.tail.publish(done.events, done.before, done.revision);
                newest.send_replace(done.revision);
            }
            for (job, verdict) in group.into_iter().zip(done.verdicts) {
                answer(job, verdict);
            }
        }
        Err(error) => {
            tracing::error!(%error, "a group of {} writes was not stored", group.len());
            for job in group {
                answer(job, Err(error.clone()));
            }
        }
    }
}

fn answer(job: Job, verdict: Result<u64, StoreError>) {
    let (Job::Txn(_, answer) | Job::Compact(_, answer)) = job;
    if answer.send(verdict).is_err() {
        tracing::debug!("the caller of a write went away before its answer");
    }
}

/// What a group of jobs came to.
struct Done {
    verdicts: Vec<Result<u64, StoreError>>,
    events: Vec<Event>,
    /// Revision before the group, and after it.
    before: u64,
    revision: u64,
}

struct Group<'t> {
    entries: Table<'t, &'static str, Row<'static>>,
    history: Table<'t, (u64, u32), table::HistoryRow<'static>>,
    numbers: Table<'t, &'static str, u64>,
    revision: u64,
    compacted: u64,
    events: Vec<Event>,
}

impl<'t> Group<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, ReadError> {
        let numbers = txn.open_table(NUMBERS)?;
        let number = |name| -> Result<u64, ReadError> {
            Ok(numbers.get(name)?.map(|n| n.value()).unwrap_or_default())
        };
        let (revision, compacted) = (number(REVISION)?, number(COMPACTED)?);
        let entries = txn.open_table(ENTRIES)?;
        let history = txn.open_table(HISTORY)?;
        Ok(Self {
            entries,
            history,
            numbers,
            revision,
            compacted,
            events: Vec::new(),
        })
    }

    /// Does all of it; whether there is something to commit.
    fn apply(mut self, group: &[Job], keep: u64) -> Result<(Done, bool), ReadError> {
        let before = (self.revision, self.compacted);
        let mut verdicts = Vec::with_capacity(group.len());
        for job in group {
            verdicts.push(match job {
                Job::Txn(txn, _) => self.txn(txn)?,
                Job::Compact(revision, _) => self.compact(*revision)?,
            });
        }
        // Trimmed in strides, so that not each commit pays for it, and none for long.
        if self.revision > self.compacted + keep + STRIDE.min(keep / 8) {
            self.forget(self.revision - keep)?;
        }
        let dirty = before != (self.revision, self.compacted);
        if dirty {
            self.numbers.insert(REVISION, self.revision)?;
            self.numbers.insert(COMPACTED, self.compacted)?;
        }
        let done = Done {
            verdicts,
            events: self.events,
            before: before.0,
            revision: self.revision,
        };
        Ok((done, dirty))
    }

    fn current(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        Ok(self
            .entries
            .get(key)?
            .map(|row| table::entry(key, row.value())))
    }

    /// The inner error is the caller's, the outer one the disk's.
    fn txn(&mut self, txn: &Txn) -> Result<Result<u64, StoreError>, ReadError> {
        let mut keys = BTreeSet::new();
        if txn.changes.is_empty() || !txn.changes.iter().all(|change| keys.insert(change.key())) {
            let reason = "each key once, and at least one".to_owned();
            return Ok(Err(StoreError::Malformed { reason }));
        }
        let mut changes: Vec<(&Change, Option<Entry>)> = Vec::with_capacity(txn.changes.len());
        for change in &txn.changes {
            let current = self.current(change.key())?;
            let actual = current.as_ref().map(|entry| entry.revision);
            let expected = change.condition();
            let holds = match expected {
                Condition::Any => true,
                Condition::Absent => actual.is_none(),
                Condition::Revision(revision) => actual == Some(revision),
            };
            if !holds {
                let key = change.key().to_owned();
                return Ok(Err(StoreError::Conflict {
                    key,
                    expected,
                    actual,
                }));
            }
            changes.push((change, current));
        }
        changes.sort_by(|(a, _), (b, _)| a.key().cmp(b.key()));
        let revision = self.revision + 1;
        let mut number = 0;
        for (change, previous) in changes {
            let event = match (change, previous) {
                (Change::Put { key, value, .. }, previous) => {
                    let created = previous.as_ref().map_or(revision, |entry| entry.created);
                    self.entries
                        .insert(key.as_str(), (created, revision, &value[..]))?;
                    let (key, value) = (key.clone(), value.clone());
                    Event {
                        kind: EventKind::Put,
                        key,
                        value,
                        revision,
                        previous,
                    }
                }
                (Change::Delete { key, .. }, Some(previous)) => {
                    self.entries.remove(key.as_str())?;
                    Event {
                        kind: EventKind::Delete,
                        key: key.clone(),
                        value: bytes::Bytes::new(),
                        revision,
                        previous: Some(previous),
                    }
                }
                (Change::Delete { .. }, None) | (Change::Check { .. }, _) => continue,
            };
            self.record(&event, number)?;
            number += 1;
            self.events.push(event);
        }
        if number > 0 {
            self.revision = revision;
        }
        Ok(Ok(self.revision))
    }

    fn record(&mut self, event: &Event, number: u32) -> Result<(), ReadError> {
        let kind = match event.kind {
            EventKind::Put => PUT,
            EventKind::Delete => DELETE,
        };
        let previous = event
            .previous
            .as_ref()
            .map(|e| (e.created, e.revision, &e.value[..]));
        let row = (kind, event.key.as_str(), &event.value[..], previous);
        self.history.insert((event.revision, number), row)?;
        Ok(())
    }

    fn compact(&mut self, revision: u64) -> Result<Result<u64, StoreError>, ReadError> {
        if revision > self.revision {
            let (asked, current) = (revision, self.revision);
            return Ok(Err(StoreError::Future { asked, current }));
        }
        if revision > self.compacted {
            self.forget(revision)?;
        }
        Ok(Ok(self.revision))
    }

    fn forget(&mut self, revision: u64) -> Result<(), ReadError> {
        self.history.retain_in(..(revision + 1, 0), |_, _| false)?;
        self.compacted = revision;
        Ok(())
    }
}
