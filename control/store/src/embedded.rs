//! The store on redb: one file, no server, crash-safe. Opening, reading, and the
//! door to the writer's thread. Called by `control-server`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use futures::FutureExt;
use futures::future::BoxFuture;
use redb::{Database, StorageBackend};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StoreError;
use crate::history::Follower;
use crate::shared::{Open, Shared, of_database, of_io};
use crate::store::{Found, ListRequest, Listing, Store};
use crate::table;
use crate::tail::Tail;
use crate::txn::Txn;
use crate::watch::Watch;
use crate::writer::{self, Answer, Job};

/// Writes that may wait for the writer before callers have to wait themselves.
const QUEUE: usize = 4096;
/// Mode of the file.
const PRIVATE: u32 = 0o600;

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
            let file = private_file(&path)?;
            Database::builder()
                .set_cache_size(options.cache_bytes)
                .create_file(file)
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

/// Opens the file, or makes it, so that only its owner may read it: it holds secrets, and
/// its folder may be one that others may look into.
fn private_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(path)?;
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o777 & !PRIVATE != 0 {
        tracing::warn!(path = %path.display(), "other users could read the store: its mode is 0600 now");
        permissions.set_mode(PRIVATE);
        file.set_permissions(permissions)?;
    }
    Ok(file)
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
