//! What every store must do, as functions over the trait: each implementation's
//! test file runs [`all`] on an empty store of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_store::{
    Condition, Entry, Event, EventKind, ListRequest, Listing, Store, StoreError, Txn, Watch,
};

/// The whole suite. `make` gives an empty store each time.
pub(crate) async fn all<S: Store>(make: impl Fn() -> Arc<S>) {
    reads_what_was_written(&*make()).await;
    compares_before_it_swaps(&*make()).await;
    transactions_are_whole(&*make()).await;
    refuses_malformed_transactions(&*make()).await;
    lists_in_pages(&*make()).await;
    pages_are_of_one_revision(&*make()).await;
    watches_from_a_revision(&*make()).await;
    watches_one_prefix(&*make()).await;
    watchers_wait(make()).await;
    compaction_forgets_history(&*make()).await;
    writers_race(make()).await;
}

async fn put(store: &impl Store, key: &str, value: &str) -> u64 {
    store
        .put(key.to_owned(), value.to_owned().into(), Condition::Any)
        .await
        .unwrap()
}

fn pairs(listing: &Listing) -> Vec<(String, String)> {
    let text = |entry: &Entry| String::from_utf8(entry.value.to_vec()).unwrap();
    listing
        .entries
        .iter()
        .map(|entry| (entry.key.clone(), text(entry)))
        .collect()
}

fn owned(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

async fn next(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(watch.next().await.unwrap());
    }
    events
}

async fn reads_what_was_written(store: &impl Store) {
    let start = store.revision().await.unwrap();
    assert_eq!(store.get("a").await.unwrap().entry, None);
    let first = put(store, "a", "1").await;
    assert_eq!(first, start + 1, "a write is one revision");
    let second = put(store, "a", "2").await;
    let found = store.get("a").await.unwrap();
    let entry = found.entry.unwrap();
    assert_eq!(
        (entry.created, entry.revision, &entry.value[..]),
        (first, second, &b"2"[..])
    );
    assert_eq!(found.revision, second);
    assert_eq!(
        store.delete("a".to_owned(), Condition::Any).await.unwrap(),
        second + 1
    );
    assert_eq!(store.get("a").await.unwrap().entry, None);
    let again = put(store, "a", "3").await;
    assert_eq!(store.get("a").await.unwrap().entry.unwrap().created, again);
    assert_eq!(store.revision().await.unwrap(), again);
    assert_eq!(store.id(), store.id());
    assert!(!store.id().is_empty());
}

async fn compares_before_it_swaps(store: &impl Store) {
    let first = put(store, "a", "1").await;
    let rows = [
        ("a", Condition::Absent, false),
        ("a", Condition::Revision(first + 7), false),
        ("b", Condition::Revision(first), false),
        ("b", Condition::Absent, true),
        ("a", Condition::Revision(first), true),
        ("a", Condition::Revision(first), false),
        ("a", Condition::Any, true),
    ];
    for (key, condition, expected) in rows {
        let before = store.revision().await.unwrap();
        let verdict = store.put(key.to_owned(), "x".into(), condition).await;
        assert_eq!(
            verdict.is_ok(),
            expected,
            "{key} {condition:?}: {verdict:?}"
        );
        if let Err(StoreError::Conflict { key: named, .. }) = &verdict {
            assert_eq!(named, key);
            assert_eq!(
                store.revision().await.unwrap(),
                before,
                "a conflict writes nothing"
            );
        }
    }
    let stale = store
        .delete("a".to_owned(), Condition::Revision(first))
        .await;
    assert!(
        matches!(
            stale,
            Err(StoreError::Conflict {
                actual: Some(_),
                ..
            })
        ),
        "{stale:?}"
    );
    let now = store.get("a").await.unwrap().entry.unwrap().revision;
    store
        .delete("a".to_owned(), Condition::Revision(now))
        .await
        .unwrap();
    let gone = store.delete("a".to_owned(), Condition::Revision(now)).await;
    assert!(
        matches!(gone, Err(StoreError::Conflict { actual: None, .. })),
        "{gone:?}"
    );
}

async fn transactions_are_whole(store: &impl Store) {
    let first = put(store, "a", "1").await;
    let mut watch = store.watch(String::new(), first).await.unwrap();
    let txn = Txn::default()
        .put("c", "3", Condition::Absent)
        .put("b", "2", Condition::Absent)
        .delete("a", Condition::Revision(first));
    let revision = store.txn(txn).await.unwrap();
    assert_eq!(revision, first + 1, "one revision for all");
    let events = next(&mut watch, 3).await;
    let seen: Vec<(&str, EventKind, u64)> = events
        .iter()
        .map(|e| (e.key.as_str(), e.kind, e.revision))
        .collect();
    let expected = [
        ("a", EventKind::Delete, revision),
        ("b", EventKind::Put, revision),
        ("c", EventKind::Put, revision),
    ];
    assert_eq!(seen, expected, "in key order");
    assert_eq!(events[0].previous.as_ref().unwrap().value, "1");

    let mut batches = store.watch(String::new(), first).await.unwrap();
    assert_eq!(
        batches.next_batch().await.unwrap(),
        events,
        "a transaction is not torn"
    );

    let torn = Txn::default()
        .put("d", "4", Condition::Absent)
        .check("b", Condition::Revision(first));
    assert!(matches!(store.txn(torn).await, Err(StoreError::Conflict { key, .. }) if key == "b"));
    assert_eq!(store.get("d").await.unwrap().entry, None);
    let checked = Txn::default()
        .check("b", Condition::Revision(revision))
        .check("z", Condition::Absent);
    assert_eq!(
        store.txn(checked).await.unwrap(),
        revision,
        "checks alone write nothing"
    );
}

async fn refuses_malformed_transactions(store: &impl Store) {
    let twice = Txn::default()
        .put("a", "1", Condition::Any)
        .delete("a", Condition::Any);
    for txn in [Txn::default(), twice] {
        let verdict = store.txn(txn.clone()).await;
        assert!(
            matches!(verdict, Err(StoreError::Malformed { .. })),
            "{txn:?}: {verdict:?}"
        );
    }
}

async fn lists_in_pages(store: &impl Store) {
    for key in ["p/c", "p/a", "q/x", "p/b", "o", "p", "p0", "p/a/1"] {
        put(store, key, "v").await;
    }
    for limit in [0, 1, 2, 3, 4, 5] {
        let mut request = ListRequest {
            limit,
            ..ListRequest::all("p/")
        };
        let mut keys = Vec::new();
        let revision = loop {
            let page = store.list(request.clone()).await.unwrap();
            assert!(limit == 0 || page.entries.len() <= limit);
            keys.extend(page.entries.iter().map(|entry| entry.key.clone()));
            request.revision = Some(page.revision);
            request.after = page.next;
            if request.after.is_none() {
                break page.revision;
            }
        };
        assert_eq!(keys, ["p/a", "p/a/1", "p/b", "p/c"], "pages of {limit}");
        assert_eq!(revision, store.revision().await.unwrap());
    }
    assert_eq!(
        store.list(ListRequest::all("zz")).await.unwrap().entries,
        []
    );
    assert_eq!(
        store
            .list(ListRequest::all(""))
            .await
            .unwrap()
            .entries
            .len(),
        8
    );
}

async fn pages_are_of_one_revision(store: &impl Store) {
    for key in ["a", "b", "c", "e"] {
        put(store, key, "old").await;
    }
    let mut request = ListRequest {
        limit: 1,
        ..ListRequest::all("")
    };
    let first = store.list(request.clone()).await.unwrap();
    put(store, "b", "new").await;
    put(store, "d", "new").await;
    put(store, "b", "newer").await;
    store.delete("c".to_owned(), Condition::Any).await.unwrap();
    store.delete("e".to_owned(), Condition::Any).await.unwrap();
    request.revision = Some(first.revision);
    request.after = first.next.clone();
    request.limit = 2;
    let second = store.list(request.clone()).await.unwrap();
    assert_eq!(pairs(&second), owned(&[("b", "old"), ("c", "old")]));
    request.after = second.next;
    let third = store.list(request).await.unwrap();
    assert_eq!(
        pairs(&third),
        owned(&[("e", "old")]),
        "what was deleted since, behind all keys"
    );
    assert_eq!((third.next, third.revision), (None, first.revision));
    let now = store.list(ListRequest::all("")).await.unwrap();
    assert_eq!(
        pairs(&now),
        owned(&[("a", "old"), ("b", "newer"), ("d", "new")])
    );
    let future = ListRequest {
        revision: Some(now.revision + 1),
        ..ListRequest::all("")
    };
    assert!(matches!(
        store.list(future).await,
        Err(StoreError::Future { .. })
    ));
}

async fn watches_from_a_revision(store: &impl Store) {
    let one = put(store, "a", "1").await;
    let two = put(store, "a", "2").await;
    let three = store.delete("a".to_owned(), Condition::Any).await.unwrap();
    let mut watch = store.watch("a".to_owned(), one).await.unwrap();
    let events = next(&mut watch, 2).await;
    assert_eq!((events[0].revision, &events[0].value[..]), (two, &b"2"[..]));
    assert_eq!(
        events[0].previous.as_ref().map(|entry| entry.revision),
        Some(one)
    );
    assert_eq!(
        (events[1].revision, events[1].kind),
        (three, EventKind::Delete)
    );
    assert_eq!(
        events[1].previous.as_ref().map(|entry| entry.revision),
        Some(two)
    );
    let four = put(store, "a", "4").await;
    let event = watch.next().await.unwrap();
    assert_eq!((event.revision, event.previous), (four, None));
    let future = store.watch("a".to_owned(), four + 1).await;
    assert!(matches!(future.err(), Some(StoreError::Future { .. })));
}

async fn watches_one_prefix(store: &impl Store) {
    let mut watch = store.watch("p/".to_owned(), 0).await.unwrap();
    for (key, value) in [
        ("o", "0"),
        ("p/a", "1"),
        ("q", "2"),
        ("p", "3"),
        ("p/b", "4"),
    ] {
        put(store, key, value).await;
    }
    let keys: Vec<String> = next(&mut watch, 2)
        .await
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert_eq!(keys, ["p/a", "p/b"]);
}

async fn watchers_wait<S: Store>(store: Arc<S>) {
    let mut watch = store.watch(String::new(), 0).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    let revision = put(&*store, "a", "1").await;
    assert_eq!(waiting.await.unwrap().unwrap().revision, revision);
}

async fn compaction_forgets_history(store: &impl Store) {
    for value in ["1", "2", "3"] {
        put(store, "a", value).await;
    }
    let three = store.revision().await.unwrap();
    store.compact(three - 1).await.unwrap();
    let old = store.watch("a".to_owned(), three - 2).await;
    assert!(matches!(old.err(), Some(StoreError::Compacted { oldest, .. }) if oldest == three - 1));
    let page = ListRequest {
        revision: Some(three - 2),
        ..ListRequest::all("")
    };
    assert!(matches!(
        store.list(page).await,
        Err(StoreError::Compacted { .. })
    ));
    let mut watch = store.watch("a".to_owned(), three - 1).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, three);
    assert_eq!(
        &store.get("a").await.unwrap().entry.unwrap().value[..],
        b"3"
    );
    store.compact(three - 2).await.unwrap();
    assert!(matches!(
        store.compact(three + 1).await,
        Err(StoreError::Future { .. })
    ));
}

/// Many tasks add one each to a counter by compare-and-swap, and a watcher sees
/// every revision once, in order.
async fn writers_race<S: Store>(store: Arc<S>) {
    const TASKS: usize = 16;
    const EACH: usize = 20;
    put(&*store, "n", "0").await;
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("n".to_owned(), start).await.unwrap();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            for _ in 0..EACH {
                loop {
                    let entry = store.get("n").await.unwrap().entry.unwrap();
                    let number: usize = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let next = (number + 1).to_string().into();
                    let txn = Txn::default()
                        .put(
                            "n",
                            bytes::Bytes::clone(&next),
                            Condition::Revision(entry.revision),
                        )
                        .put(format!("t/{task}"), next, Condition::Any);
                    match store.txn(txn).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let events = next(&mut watch, TASKS * EACH).await;
    let seen: Vec<u64> = events.iter().map(|event| event.revision).collect();
    let expected: Vec<u64> = (1..=TASKS * EACH)
        .map(|n| start + u64::try_from(n).unwrap())
        .collect();
    assert_eq!(seen, expected);
    let last = &events.last().unwrap().value;
    assert_eq!(&last[..], (TASKS * EACH).to_string().as_bytes());
    let tasks = store.list(ListRequest::all("t/")).await.unwrap();
    let by_key: BTreeMap<_, _> = pairs(&tasks).into_iter().collect();
    assert_eq!(by_key.len(), TASKS);
}
