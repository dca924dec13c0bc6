//! The open database: what reads, watches and the writer share. Not what they do
//! with it. Called by `embedded`, `history` and `writer`.

use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

use crate::error::StoreError;
use crate::event::Event;
use crate::table::{
    self, COMPACTED, ENTRIES, FORMAT, FORMAT_NOW, HISTORY, IDENTITY, NUMBERS, ReadError, TEXTS,
};
use crate::tail::Tail;

/// How the database is opened (again).
pub(crate) type Open = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// What reads, watches and the writer share.
pub(crate) struct Shared {
    pub(crate) path: String,
    /// `None`: closed, or lost to a failed disk until it opens again.
    pub(crate) database: RwLock<Option<Database>>,
    pub(crate) open: Open,
    pub(crate) tail: Tail,
    pub(crate) history: u64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.path)
    }
}

impl Shared {
    /// Tables and numbers of a new file; the check of an old one.
    pub(crate) fn prepare(&self) -> Result<(String, u64), StoreError> {
        let mut identity = String::new();
        let mut revision = 0;
        self.with(|database| {
            let txn = database.begin_write()?;
            {
                txn.open_table(ENTRIES)?;
                txn.open_table(HISTORY)?;
                let mut numbers = txn.open_table(NUMBERS)?;
                let mut texts = txn.open_table(TEXTS)?;
                let format = numbers.get(FORMAT)?.map(|n| n.value());
                match format {
                    None => {
                        numbers.insert(FORMAT, FORMAT_NOW)?;
                        numbers.insert(table::REVISION, 0)?;
                        numbers.insert(COMPACTED, 0)?;
                        texts.insert(IDENTITY, uuid::Uuid::new_v4().to_string().as_str())?;
                    }
                    Some(FORMAT_NOW) => {}
                    Some(other) => {
                        let reason =
                            format!("its format is {other}, this program knows {FORMAT_NOW}");
                        let path = self.path.clone();
                        return Err(ReadError::Store(StoreError::Corrupt { path, reason }));
                    }
                }
                identity = texts
                    .get(IDENTITY)?
                    .map(|t| t.value().to_owned())
                    .unwrap_or_default();
                revision = numbers
                    .get(table::REVISION)?
                    .map(|n| n.value())
                    .unwrap_or_default();
            }
            txn.commit()?;
            Ok(())
        })?;
        Ok((identity, revision))
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(StoreError::Closed);
        };
        work(database).map_err(|error| match error {
            ReadError::Store(error) => error,
            ReadError::Database(error) => of_database(&self.path, error),
        })
    }

    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        self.with(|database| work(&database.begin_read()?))
    }

    /// Runs one group of writes, and commits it if `work` says that there is
    /// something to commit. Called by the writer only. After a failure of the disk
    /// the database is opened anew: redb refuses all work on one that has failed.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), ReadError>,
    ) -> Result<T, StoreError> {
        self.revive()?;
        let outcome = self.with(|database| {
            let txn = database.begin_write()?;
            let (done, dirty) = work(&txn)?;
            if dirty {
                txn.commit()?;
            } else {
                txn.abort()?;
            }
            Ok(done)
        });
        if outcome.is_err() {
            self.close();
            if let Err(error) = self.revive() {
                tracing::error!(%error, "the store stays closed until its disk works again");
            }
        }
        outcome
    }

    /// Opens the database again if it was lost. Readers are not held up while it
    /// is there: a long list must not stand before the writer, nor the writer
    /// before short reads.
    fn revive(&self) -> Result<(), StoreError> {
        let open = |database: &Option<Database>| database.is_some();
        if open(&self.database.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            let opened = (self.open)().map_err(|error| of_database(&self.path, error.into()))?;
            *database = Some(opened);
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
    }

    pub(crate) fn events(
        &self,
        prefix: &str,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<Event>, u64), StoreError> {
        self.read(|txn| table::events(txn, prefix, after, limit))
    }

    /// Reads that may take long, off the event loop.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(self);
        let joined = tokio::task::spawn_blocking(move || work(&shared)).await;
        joined.unwrap_or(Err(StoreError::Closed))
    }
}

pub(crate) fn of_io(path: &str, error: &std::io::Error) -> StoreError {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let path = path.to_owned();
    if matches!(error.kind(), StorageFull | QuotaExceeded) {
        return StoreError::DiskFull { path };
    }
    StoreError::Io {
        path,
        reason: error.to_string(),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "redb's errors are many and open-ended"
)]
pub(crate) fn of_database(path: &str, error: redb::Error) -> StoreError {
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked {
            path: path.to_owned(),
        },
        redb::Error::Io(error) => of_io(path, &error),
        redb::Error::Corrupted(reason) => StoreError::Corrupt {
            path: path.to_owned(),
            reason,
        },
        redb::Error::DatabaseClosed => StoreError::Closed,
        other => StoreError::Io {
            path: path.to_owned(),
            reason: other.to_string(),
        },
    }
}
