//! What is on disk, and how it is read: three redb tables. Not writing: see
//! `writer`. Called by `embedded`, `history` and `writer`.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{ReadTransaction, TableDefinition};

use crate::error::StoreError;
use crate::event::{Entry, Event, EventKind};
use crate::store::{ListRequest, Listing};

/// Revision of creation, revision of the write, value.
pub(crate) type Row<'a> = (u64, u64, &'a [u8]);

/// Event kind, key, new value, entry before.
pub(crate) type HistoryRow<'a> = (u8, &'a str, &'a [u8], Option<Row<'a>>);

/// Key to what it holds now.
pub(crate) const ENTRIES: TableDefinition<'static, &str, Row<'static>> =
    TableDefinition::new("entries");
/// (revision, number in the transaction) to the event.
pub(crate) const HISTORY: TableDefinition<'static, (u64, u32), HistoryRow<'static>> =
    TableDefinition::new("history");
/// [`REVISION`], [`COMPACTED`], [`FORMAT`].
pub(crate) const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");
/// [`IDENTITY`].
pub(crate) const TEXTS: TableDefinition<'static, &str, &str> = TableDefinition::new("texts");

/// The newest revision.
pub(crate) const REVISION: &str = "revision";
/// History up to and including this revision is forgotten.
pub(crate) const COMPACTED: &str = "compacted";
/// Layout of these tables.
pub(crate) const FORMAT: &str = "format";
pub(crate) const FORMAT_NOW: u64 = 1;
/// Identity of the store's contents.
pub(crate) const IDENTITY: &str = "identity";

/// Kinds of events as they are written. Never renumbered.
pub(crate) const PUT: u8 = 1;
pub(crate) const DELETE: u8 = 2;

/// What a reader runs into; `embedded` adds the path.
#[derive(Debug)]
pub(crate) enum ReadError {
    Database(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

pub(crate) fn entry(key: &str, row: Row<'_>) -> Entry {
    let (created, revision, value) = row;
    Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        created,
        revision,
    }
}

fn event(revision: u64, row: HistoryRow<'_>) -> Event {
    let (kind, key, value, previous) = row;
    Event {
        kind: if kind == DELETE {
            EventKind::Delete
        } else {
            EventKind::Put
        },
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        revision,
        previous: previous.map(|row| entry(key, row)),
    }
}

/// The newest revision and the compacted one.
pub(crate) fn revisions(txn: &ReadTransaction) -> Result<(u64, u64), ReadError> {
    let numbers = txn.open_table(NUMBERS)?;
    let number = |name| -> Result<u64, ReadError> {
        Ok(numbers.get(name)?.map(|n| n.value()).unwrap_or_default())
    };
    Ok((number(REVISION)?, number(COMPACTED)?))
}

pub(crate) fn get(txn: &ReadTransaction, key: &str) -> Result<Option<Entry>, ReadError> {
    let entries = txn.open_table(ENTRIES)?;
    Ok(entries.get(key)?.map(|row| entry(key, row.value())))
}

/// One page; see [`ListRequest`].
pub(crate) fn list(txn: &ReadTransaction, request: &ListRequest) -> Result<Listing, ReadError> {
    let (current, compacted) = revisions(txn)?;
    let revision = request.revision.unwrap_or(current);
    within(revision, current, compacted)?;
    let undo = if revision < current {
        undo(txn, &request.prefix, revision)?
    } else {
        BTreeMap::new()
    };

    let mut page = Page {
        entries: Vec::new(),
        limit: request.limit,
        more: false,
    };
    let start = match &request.after {
        Some(after) if *after > request.prefix => after.as_str(),
        Some(_) | None => request.prefix.as_str(),
    };
    let skip = |key: &str| request.after.as_deref().is_some_and(|after| key <= after);
    let mut undone = undo.range(start.to_owned()..).peekable();
    for item in txn.open_table(ENTRIES)?.range(start..)? {
        let (key, row) = item?;
        let key = key.value();
        if !key.starts_with(&request.prefix) || page.more {
            break;
        }
        // Keys that are gone now, and stand before this one.
        while let Some((_, was)) = undone.next_if(|(undone, _)| undone.as_str() < key) {
            page.push(was.clone().filter(|entry| !skip(&entry.key)));
        }
        let was = match undone.next_if(|(undone, _)| undone.as_str() == key) {
            Some((_, was)) => was.clone(),
            None => Some(entry(key, row.value())),
        };
        page.push(was.filter(|entry| !skip(&entry.key)));
    }
    for (_, was) in undone {
        page.push(was.clone().filter(|entry| !skip(&entry.key)));
    }
    let next = page
        .entries
        .last()
        .filter(|_| page.more)
        .map(|entry| entry.key.clone());
    Ok(Listing {
        entries: page.entries,
        revision,
        next,
    })
}

struct Page {
    entries: Vec<Entry>,
    limit: usize,
    more: bool,
}

impl Page {
    fn push(&mut self, entry: Option<Entry>) {
        let Some(entry) = entry else { return };
        if self.limit > 0 && self.entries.len() == self.limit {
            self.more = true;
        } else {
            self.entries.push(entry);
        }
    }
}

/// Whether all that came after the revision is still there.
pub(crate) fn reachable(txn: &ReadTransaction, revision: u64) -> Result<(), ReadError> {
    let (current, compacted) = revisions(txn)?;
    within(revision, current, compacted)
}

fn within(asked: u64, current: u64, compacted: u64) -> Result<(), ReadError> {
    if asked > current {
        return Err(ReadError::Store(StoreError::Future { asked, current }));
    }
    if asked < compacted {
        return Err(ReadError::Store(StoreError::Compacted {
            asked,
            oldest: compacted,
        }));
    }
    Ok(())
}

/// What the keys that changed after `revision` held at `revision`.
fn undo(
    txn: &ReadTransaction,
    prefix: &str,
    revision: u64,
) -> Result<BTreeMap<String, Option<Entry>>, ReadError> {
    let mut undo = BTreeMap::new();
    for item in txn.open_table(HISTORY)?.range((revision + 1, 0)..)? {
        let (_, row) = item?;
        let (_, key, _, previous) = row.value();
        if key.starts_with(prefix) && !undo.contains_key(key) {
            undo.insert(key.to_owned(), previous.map(|row| entry(key, row)));
        }
    }
    Ok(undo)
}

/// Events of the prefix above `after`: at most about `limit` (transactions are
/// not torn), and the revision up to which they are complete.
pub(crate) fn events(
    txn: &ReadTransaction,
    prefix: &str,
    after: u64,
    limit: usize,
) -> Result<(Vec<Event>, u64), ReadError> {
    let (current, compacted) = revisions(txn)?;
    within(after, current, compacted)?;
    let mut found: Vec<Event> = Vec::new();
    for item in txn.open_table(HISTORY)?.range((after + 1, 0)..)? {
        let (at, row) = item?;
        let (revision, _) = at.value();
        let full = found.len() >= limit;
        if full && found.last().is_some_and(|last| last.revision < revision) {
            return Ok((found, revision - 1));
        }
        if row.value().1.starts_with(prefix) {
            found.push(event(revision, row.value()));
        }
    }
    Ok((found, current))
}
