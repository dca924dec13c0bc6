//! The embedded store: the suite of all stores, and what is its own: the lock,
//! crashes, a full disk, history that is bounded.
#![cfg(test)]

mod suite;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control_store::{Condition, Embedded, ListRequest, Options, Store, StoreError, Txn};
use redb::StorageBackend;
use redb::backends::FileBackend;

const OPTIONS: Options = Options {
    history: 100_000,
    cache_bytes: 4 << 20,
};

fn open(path: &Path) -> Result<Embedded, StoreError> {
    Embedded::open(path, OPTIONS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let count = AtomicU64::new(0);
    let make = || {
        let name = format!("{}/store.redb", count.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(&folder.path().join(name)).unwrap())
    };
    suite::all(make).await;
}

/// The folder may be one that an operator made.
#[tokio::test]
async fn its_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(folder.path(), mode(0o755)).unwrap();
    let path = folder.path().join("store.redb");
    let is_private = || {
        let store = open(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(store);
    };
    is_private();
    // Of an earlier version.
    std::fs::set_permissions(&path, mode(0o644)).unwrap();
    is_private();
}

#[tokio::test]
async fn keeps_everything_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).unwrap();
    let id = store.id();
    let first = store
        .put("a".to_owned(), "1".into(), Condition::Absent)
        .await
        .unwrap();
    let second = store
        .put("b".to_owned(), "2".into(), Condition::Absent)
        .await
        .unwrap();
    drop(store);
    let store = open(&path).unwrap();
    assert_eq!(
        (store.id(), store.revision().await.unwrap()),
        (id.clone(), second)
    );
    let mut watch = store.watch(String::new(), first).await.unwrap();
    assert_eq!(
        watch.next().await.unwrap().key,
        "b",
        "history is on disk too"
    );
    let other = open(&folder.path().join("other.redb")).unwrap();
    assert_ne!(other.id(), id, "a new store is another one");
}

#[tokio::test]
async fn is_opened_by_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let first = open(&path).unwrap();
    let second = open(&path);
    let named = path.display().to_string();
    assert!(matches!(second.err(), Some(StoreError::Locked { path }) if path == named));
    drop(first);
    open(&path).unwrap();
}

#[tokio::test]
async fn refuses_a_file_that_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, vec![7_u8; 8192]).unwrap();
    let error = open(&path).err().unwrap().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[tokio::test]
async fn watchers_end_when_the_store_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store.redb")).unwrap();
    let mut watch = store.watch(String::new(), 0).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
}

/// A watcher that sleeps through more than the memory tail reads on from disk;
/// one that sleeps through more than the history is told so.
#[tokio::test]
async fn slow_watchers_cost_the_writer_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        history: 40,
        ..OPTIONS
    };
    let store = Embedded::open(&folder.path().join("store.redb"), options).unwrap();
    let mut late = store.watch(String::new(), 0).await.unwrap();
    let mut lost = store.watch(String::new(), 0).await.unwrap();
    // 300 transactions of 30 keys: more events than the tail in memory holds.
    let round = |n: usize| {
        (0..30).fold(Txn::default(), |txn, key| {
            txn.put(format!("k{key:02}"), n.to_string(), Condition::Any)
        })
    };
    for n in 0..20 {
        store.txn(round(n)).await.unwrap();
    }
    for n in 0..20 * 30 {
        let event = late.next().await.unwrap();
        assert_eq!(event.revision, n / 30 + 1);
    }
    for n in 20..320 {
        store.txn(round(n)).await.unwrap();
    }
    assert!(matches!(
        lost.next().await,
        Err(StoreError::Compacted { asked: 0, .. })
    ));
    assert!(
        matches!(lost.next().await, Err(StoreError::Closed)),
        "nothing after an error"
    );
    let oldest = match store.watch(String::new(), 0).await.err() {
        Some(StoreError::Compacted { oldest, .. }) => oldest,
        other => panic!("{other:?}"),
    };
    assert!(
        (270..=280).contains(&oldest),
        "40 revisions and a stride are kept, not {oldest}"
    );
    let mut watch = store.watch(String::new(), oldest).await.unwrap();
    for n in 0..(320 - oldest) * 30 {
        assert_eq!(watch.next().await.unwrap().revision, oldest + 1 + n / 30);
    }
}

/// Reads on from disk, where the tail in memory no longer reaches.
#[tokio::test]
async fn watchers_read_old_events_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store.redb")).unwrap();
    let mut watch = store.watch("k0".to_owned(), 0).await.unwrap();
    for n in 0..100 {
        let txn = (0..100).fold(Txn::default(), |txn, key| {
            txn.put(format!("k{key:02}"), n.to_string(), Condition::Any)
        });
        store.txn(txn).await.unwrap();
    }
    for n in 0..100 * 10 {
        let event = watch.next().await.unwrap();
        assert_eq!(
            (event.revision, event.key),
            (n / 10 + 1, format!("k{:02}", n % 10))
        );
    }
}

/// Large values fill the tail in memory, of 8 MiB, sooner; nothing is lost by that.
#[tokio::test]
async fn watchers_see_large_values_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store.redb")).unwrap();
    let mut watch = store.watch(String::new(), 0).await.unwrap();
    for n in 0..12_u8 {
        let value = vec![n; 1 << 20];
        store
            .put("k".to_owned(), value.into(), Condition::Any)
            .await
            .unwrap();
    }
    for n in 0..12_u8 {
        let event = watch.next().await.unwrap();
        assert_eq!(
            (event.revision, event.value.first()),
            (u64::from(n) + 1, Some(&n))
        );
    }
}

/// What a killed writer had acknowledged is there, whole, and nothing else is torn.
/// The writer is this same test in another process, told by [`CHILD`].
#[tokio::test]
async fn survives_kill_9_in_the_middle_of_writes() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how the test speaks to its own child"
    )]
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut acknowledged = 0;
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "survives_kill_9_in_the_middle_of_writes",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        // Another moment each round; the pipe holds what was acknowledged after it.
        while seen < 20 + round * 17 {
            let line = lines.next().unwrap().unwrap();
            if let Some(revision) = line.strip_prefix("ack ") {
                acknowledged = revision.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            let revision = line
                .strip_prefix("ack ")
                .and_then(|number| number.parse().ok());
            acknowledged = revision.unwrap_or(acknowledged);
        }
        check_pairs(&path, acknowledged).await;
    }
}

const CHILD: &str = "HYDROFOIL_TEST_STORE_CHILD";

/// Each transaction writes its number to two keys.
async fn write_until_killed(path: &Path) {
    let store = Arc::new(open(path).unwrap());
    let mut tasks = Vec::new();
    for lane in 0..4_u8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            for n in 0..u64::MAX {
                let value = format!("{n}{}", "x".repeat(usize::try_from(n % 3000).unwrap()));
                let txn = Txn::default()
                    .put(
                        format!("left/{lane}/{}", n % 50),
                        value.clone(),
                        Condition::Any,
                    )
                    .put(format!("right/{lane}/{}", n % 50), value, Condition::Any);
                let revision = store.txn(txn).await.unwrap();
                println!("ack {revision}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn check_pairs(path: &Path, acknowledged: u64) {
    let store = open(path).unwrap();
    let revision = store.revision().await.unwrap();
    assert!(
        revision >= acknowledged,
        "revision {revision} is below {acknowledged}, which was acknowledged"
    );
    let left = store.list(ListRequest::all("left/")).await.unwrap().entries;
    let right = store
        .list(ListRequest::all("right/"))
        .await
        .unwrap()
        .entries;
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(&right) {
        assert_eq!(left.key.replace("left", "right"), right.key);
        assert!(
            left.value == right.value && left.revision == right.revision,
            "{} is torn",
            left.key
        );
    }
    let mut watch = store.watch(String::new(), 0).await.unwrap();
    for n in 0..revision * 2 {
        assert_eq!(
            watch.next().await.unwrap().revision,
            n / 2 + 1,
            "history has no gap"
        );
    }
}

/// A file that may not grow beyond a limit, as on a full disk.
#[derive(Debug)]
struct Limited {
    file: FileBackend,
    limit: Arc<AtomicU64>,
}

impl Limited {
    fn check(&self, end: u64) -> std::io::Result<()> {
        if end > self.limit.load(Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl StorageBackend for Limited {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check(len)?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.file.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }
}

#[tokio::test]
async fn says_that_the_disk_is_full_and_goes_on_when_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let limit = Arc::new(AtomicU64::new(16 << 20));
    let shared = Arc::clone(&limit);
    let make = move || {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .unwrap();
        Limited {
            file: FileBackend::new(file).unwrap(),
            limit: Arc::clone(&shared),
        }
    };
    let store = Embedded::open_on("the test's disk", make, OPTIONS).unwrap();
    let value = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    let mut stored = 0;
    let error = loop {
        match store
            .put(format!("k{stored:03}"), value.clone(), Condition::Any)
            .await
        {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the limit is never reached");
    };
    assert!(
        matches!(&error, StoreError::DiskFull { path } if path == "the test's disk"),
        "{error}"
    );
    assert!(stored > 0);
    let kept = store.list(ListRequest::all("")).await.unwrap();
    assert_eq!(
        kept.entries.len(),
        stored,
        "what was acknowledged is still read"
    );

    limit.store(1 << 30, Ordering::SeqCst);
    store
        .put("later".to_owned(), value, Condition::Any)
        .await
        .unwrap();
    let kept = store.list(ListRequest::all("")).await.unwrap();
    assert_eq!(kept.entries.len(), stored + 1);
}
