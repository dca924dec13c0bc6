//! The store on redb: one file, no server, crash-safe. Opening, reading, and the
//! door to the writer's thread. Called by `control-server`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use futures::FutureExt;
use futures::future::BoxFuture;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, WriteTransaction,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::history::{Follower, Tail};
use crate::store::{Found, ListRequest, Listing, Store, StoreError, Txn};
use crate::table::{
    self, COMPACTED, ENTRIES, FORMAT, FORMAT_NOW, HISTORY, IDENTITY, NUMBERS, ReadError, TEXTS,
};
use crate::watch::Watch;
use crate::writer::{self, Answer, Done, Job};

/// Writes that may wait for the writer before callers have to wait themselves.
const QUEUE: usize = 4096;

/// How an embedded store behaves. No `Default`: `control-server`'s config has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Revisions kept for watchers and consistent pages.
    pub history: u64,
    /// Page cache, in bytes.
    pub cache_bytes: usize,
}

/// The embedded store. Dropping it closes the file, after the writes that wait.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    identity: String,
    jobs: Option<mpsc::Sender<Job>>,
    newest: watch::Receiver<u64>,
    writer: Option<JoinHandle<()>>,
}

/// How the database is opened (again).
type Open = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// What reads, watches and the writer share.
pub(crate) struct Shared {
    path: String,
    /// `None`: closed, or lost to a failed disk until it opens again.
    database: RwLock<Option<Database>>,
    open: Open,
    pub(crate) tail: Tail,
    pub(crate) history: u64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.path)
    }
}

impl Embedded {
    /// Opens the file, or makes it, with its folder. Errors: `Locked` if another
    /// process has it, `Corrupt` if it is not ours, `DiskFull`, `Io`.
    pub fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let text = path.display().to_string();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| of_io(&text, &error))?;
        }
        let path: PathBuf = path.to_owned();
        let open = move || {
            Database::builder()
                .set_cache_size(options.cache_bytes)
                .create(&path)
        };
        Self::start(text, Box::new(open), options)
    }

    /// The same on storage of another kind, named `path` in errors. `make` is
    /// called again when the storage has failed.
    pub fn open_on<B: StorageBackend>(
        path: &str,
        make: impl Fn() -> B + Send + Sync + 'static,
        options: Options,
    ) -> Result<Self, StoreError> {
        let open = move || {
            let mut builder = Database::builder();
            builder
                .set_cache_size(options.cache_bytes)
                .create_with_backend(make())
        };
        Self::start(path.to_owned(), Box::new(open), options)
    }

    fn start(path: String, open: Open, options: Options) -> Result<Self, StoreError> {
        let database = open().map_err(|error| of_database(&path, error.into()))?;
        let shared = Shared {
            path,
            database: RwLock::new(Some(database)),
            open,
            tail: Tail::default(),
            history: options.history.max(1),
        };
        let (identity, revision) = shared.prepare()?;
        let shared = Arc::new(Shared {
            tail: Tail::new(revision),
            ..shared
        });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (publish, newest) = watch::channel(revision);
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(&for_writer, queue, &publish))
            .map_err(|error| of_io(&shared.path, &error))?;
        Ok(Self {
            shared,
            identity,
            jobs: Some(jobs),
            newest,
            writer: Some(writer),
        })
    }

    async fn ask(&self, job: impl FnOnce(Answer) -> Job) -> Result<u64, StoreError> {
        let (answer, verdict) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        if jobs.send(job(answer)).await.is_err() {
            return Err(StoreError::Closed);
        }
        let gone = "the writer ended before it answered".to_owned();
        verdict
            .await
            .unwrap_or(Err(StoreError::Unknown { reason: gone }))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
        self.shared.close();
    }
}

impl Shared {
    /// Tables and numbers of a new file; the check of an old one.
    fn prepare(&self) -> Result<(String, u64), StoreError> {
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

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        self.with(|database| work(&database.begin_read()?))
    }

    /// Runs one group of writes and commits it. Called by the writer only. After
    /// a failure of the disk the database is opened anew: redb refuses all work
    /// on one that has failed.
    pub(crate) fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<Done, ReadError>,
    ) -> Result<Done, StoreError> {
        self.revive()?;
        let outcome = self.with(|database| {
            let txn = database.begin_write()?;
            let done = work(&txn)?;
            if done.dirty {
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

    fn close(&self) {
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
    ) -> Result<(Vec<crate::store::Event>, u64), StoreError> {
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

impl Store for Embedded {
    fn id(&self) -> String {
        self.identity.clone()
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        let newest = *self.newest.borrow();
        futures::future::ready(Ok(newest)).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Found, StoreError>> {
        async move {
            self.shared.read(|txn| {
                let entry = table::get(txn, key)?;
                let (revision, _) = table::revisions(txn)?;
                Ok(Found { entry, revision })
            })
        }
        .boxed()
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listing, StoreError>> {
        let work = move |shared: &Shared| shared.read(|txn| table::list(txn, &request));
        self.shared.blocking(work).boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.ask(move |answer| Job::Txn(txn, answer)).boxed()
    }

    fn watch(&self, prefix: String, after: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        async move {
            // What is not to be had is said at once, not at the first event.
            self.shared
                .blocking(move |shared| shared.read(|txn| table::reachable(txn, after)))
                .await?;
            let (shared, newest) = (Arc::clone(&self.shared), self.newest.clone());
            Ok(Watch::new(Box::new(Follower {
                shared,
                prefix,
                after,
                newest,
            })))
        }
        .boxed()
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.ask(move |answer| Job::Compact(revision, answer))
                .await
                .map(|_| ())
        }
        .boxed()
    }
}

fn of_io(path: &str, error: &std::io::Error) -> StoreError {
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
fn of_database(path: &str, error: redb::Error) -> StoreError {
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
