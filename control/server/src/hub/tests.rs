//! The hub alone, without streams: what is collected, and when.

use bytes::Bytes;
use proto::Message as _;
use proto::bucket::Digests;
use proto::limits::PART_BYTES;
use proto::v1::change;

use super::*;

fn hello(cluster: &str, revision: u64) -> v1::Hello {
    let cluster_id = cluster.to_owned();
    v1::Hello {
        cluster_id,
        revision,
        buckets: bucket::COUNT,
        ..v1::Hello::default()
    }
}

fn change(bytes: &Bytes) -> change::Change {
    v1::Change::decode(bytes.clone()).unwrap().change.unwrap()
}

fn service(id: u32) -> v1::Service {
    v1::Service {
        name: "web".to_owned(),
        id,
        ..v1::Service::default()
    }
}

/// Of a node that has the revision of this hub, unless its hello says of which.
fn connect(hub: &Hub, node: &str, hello: &v1::Hello) -> Connected {
    let source = match hello.source {
        0 => hub.lock().source,
        source => source,
    };
    let hello = v1::Hello {
        source,
        ..hello.clone()
    };
    hub.connect(node, "k", &hello, Reported::default()).unwrap()
}

fn at(address: &str) -> Reported {
    let status = v1::NodeStatus {
        addresses: vec![address.to_owned()],
        ..v1::NodeStatus::default()
    };
    Reported {
        status,
        ..Reported::default()
    }
}

/// All messages that wait, and whether the stream ends with them.
fn collect(hub: &Hub, node: &str, mailbox: &Mailbox) -> (Vec<v1::NodeDown>, bool) {
    let mut messages = Vec::new();
    loop {
        let collected = hub.collect(node, mailbox);
        messages.extend(collected.messages);
        match collected.next {
            Next::More => {}
            Next::Wait => return (messages, false),
            Next::End => return (messages, true),
        }
    }
}

fn updates(hub: &Hub, node: &str, mailbox: &Mailbox) -> Vec<v1::Update> {
    hub.complete();
    let (down, _) = collect(hub, node, mailbox);
    let update = |d: v1::NodeDown| match d.down {
        Some(node_down::Down::Update(update)) => Some(update),
        Some(node_down::Down::Open(_) | node_down::Down::Goodbye(_)) | None => None,
    };
    down.into_iter().filter_map(update).collect()
}

#[test]
fn changes_are_coalesced_and_deltas_resume() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("other", 10));
    assert!(connected.snapshot);
    let got = updates(&hub, "n1", &connected.mailbox);
    assert!(got[0].snapshot_begin && got[0].snapshot_end, "{got:?}");

    // Three changes of one service are one message.
    for revision in 11..14 {
        hub.set_revision(revision);
        hub.put_service("d/web", Some(service(u32::try_from(revision).unwrap())));
    }
    let got = updates(&hub, "n1", &connected.mailbox);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].changes.len(), 1);
    assert_eq!(got[0].revision, 13);
    // The same again is no change.
    hub.set_revision(14);
    hub.put_service("d/web", Some(service(13)));
    assert!(updates(&hub, "n1", &connected.mailbox).is_empty());

    assert!(hub.disconnect("n1", connected.id));
    hub.set_revision(15);
    hub.put_service("d/web", None);
    hub.put_pod("n2", "u", Some(v1::PodSpec::default()));
    let again = connect(&hub, "n1", &hello("c", 13));
    assert!(!again.snapshot);
    let got = updates(&hub, "n1", &again.mailbox);
    assert_eq!(got.len(), 1);
    let removed = change::Change::ServiceRemoved("d/web".to_owned());
    assert_eq!(got[0].changes.len(), 1);
    assert_eq!(change(&got[0].changes[0]), removed);
    // From before this hub's time: everything, unless it says what it has.
    let older = v1::Hello {
        buckets: 0,
        ..hello("c", 9)
    };
    assert!(connect(&hub, "n1", &older).snapshot);
}

/// One that says neither a source nor buckets.
#[test]
fn an_agent_of_an_earlier_release_resumes_with_the_same_process() {
    let hub = Hub::new("c".to_owned(), 10);
    hub.restart(10);
    hub.put_config("n1", v1::ClusterConfig::default());
    let earlier = |revision| v1::Hello {
        buckets: 0,
        ..hello("c", revision)
    };
    let connect = |revision| {
        let hello = earlier(revision);
        hub.connect("n1", "k", &hello, Reported::default()).unwrap()
    };
    let first = connect(10);
    assert!(first.snapshot, "another process named it");
    hub.set_revision(12);
    hub.put_service("d/web", Some(service(1)));
    assert_eq!(updates(&hub, "n1", &first.mailbox)[0].revision, 12);
    // Sent is not received: it may still have the revision 12 of another process.
    let again = connect(12);
    assert!(again.snapshot);
    updates(&hub, "n1", &again.mailbox);
    hub.ack("n1", again.id, 12);
    hub.disconnect("n1", again.id);
    hub.set_revision(13);
    hub.put_service("d/web", Some(service(2)));
    let again = connect(12);
    assert!(!again.snapshot);
    let got = updates(&hub, "n1", &again.mailbox);
    // The service, and the config as always.
    assert_eq!((got[0].revision, got[0].changes.len()), (13, 2));
    assert!(connect(10).snapshot);
}

#[test]
fn a_newer_stream_takes_over_and_acks_count_for_it_only() {
    let hub = Hub::new("c".to_owned(), 1);
    let first = connect(&hub, "n1", &hello("", 0));
    let second = connect(&hub, "n1", &hello("", 0));
    let (down, over) = collect(&hub, "n1", &first.mailbox);
    assert!(over);
    assert!(matches!(down[0].down, Some(node_down::Down::Goodbye(_))));
    assert!(!hub.heard("n1", first.id));
    hub.set_revision(5);
    hub.put_service("d/a", Some(service(1)));
    hub.complete();
    collect(&hub, "n1", &second.mailbox);
    hub.ack("n1", first.id, 5);
    assert!(!hub.all_have(5));
    hub.ack("n1", second.id, 5);
    assert!(hub.all_have(5));
    hub.set_revision(6);
    hub.put_service("d/a", Some(service(2)));
    hub.complete();
    // Of a process before this one, which was ahead.
    hub.ack("n1", second.id, 100);
    assert!(!hub.all_have(6));
    assert!(!hub.disconnect("n1", first.id));
    assert!(hub.disconnect("n1", second.id));
    assert!(hub.all_have(6));
}

#[test]
fn a_revision_is_named_only_when_all_of_it_is_sent() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("c", 10));
    assert!(!connected.snapshot);
    hub.set_revision(11);
    hub.put_service("d/web", Some(service(1)));
    let (down, _) = collect(&hub, "n1", &connected.mailbox);
    assert!(down.is_empty(), "half of revision 11: {down:?}");
    hub.put_service("d/api", Some(service(2)));
    let got = updates(&hub, "n1", &connected.mailbox);
    assert_eq!((got.len(), got[0].revision), (1, 11));
    assert_eq!(got[0].changes.len(), 2);

    // Told beside the store, and lost with the stream: it comes again.
    hub.set_revision(11);
    hub.put_pod("n1", "u", Some(v1::PodSpec::default()));
    let again = connect(&hub, "n1", &hello("c", 11));
    let got = updates(&hub, "n1", &again.mailbox);
    assert_eq!((got.len(), got[0].changes.len()), (1, 1), "{got:?}");
    let change = change(&got[0].changes[0]);
    assert!(matches!(change, change::Change::Pod(_)), "{got:?}");
}

/// A service whose message has about so many bytes.
fn long(name: &str, bytes: usize) -> v1::Service {
    v1::Service {
        namespace: "d".to_owned(),
        name: name.to_owned(),
        cluster_ips: vec!["x".repeat(bytes)],
        ..v1::Service::default()
    }
}

#[test]
fn a_stream_that_breaks_within_a_step_gets_the_step_again() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("c", 10));
    hub.set_revision(11);
    for n in 0..600 {
        hub.put_service(&format!("d/{n}"), Some(long(&n.to_string(), 4096)));
    }
    let whole = updates(&hub, "n1", &connected.mailbox);
    assert!(whole.len() > 1);
    // What the node has when the stream breaks after any of the parts.
    for received in 0..=whole.len() {
        let named = whole[..received].iter().map(|u| u.revision).max();
        let revision = named.filter(|r| *r > 0).unwrap_or(10);
        let again = connect(&hub, "n1", &hello("c", revision));
        assert!(!again.snapshot);
        let rest = updates(&hub, "n1", &again.mailbox);
        let changes = |parts: &[v1::Update]| parts.iter().map(|u| u.changes.len()).sum::<usize>();
        let missing = 600 - changes(&whole[..received]);
        assert!(changes(&rest) >= missing, "after {received} parts");
    }
    assert_eq!(whole.last().unwrap().revision, 11);
}

#[test]
fn parts_are_cut_by_length() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("other", 0));
    hub.set_revision(11);
    let lengths = [PART_BYTES / 2, PART_BYTES / 2, 2 * PART_BYTES, 10, 10];
    for (n, length) in lengths.into_iter().enumerate() {
        hub.put_service(&format!("d/{n}"), Some(long("s", length)));
    }
    let parts = updates(&hub, "n1", &connected.mailbox);
    let counts: Vec<usize> = parts.iter().map(|u| u.changes.len()).collect();
    assert_eq!(counts, [1, 1, 1, 2]);
    let revisions: Vec<u64> = parts.iter().map(|u| u.revision).collect();
    assert_eq!(revisions, [0, 0, 0, 11]);
    let edges: Vec<(bool, bool)> = parts
        .iter()
        .map(|u| (u.snapshot_begin, u.snapshot_end))
        .collect();
    assert_eq!(edges[0], (true, false));
    assert_eq!(edges[1..3], [(false, false), (false, false)]);
    assert_eq!(edges[3], (false, true));
}

#[test]
fn a_step_goes_on_while_the_next_revision_is_filled_in() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("c", 10));
    hub.set_revision(11);
    for n in 0..3 {
        hub.put_service(&format!("d/{n}"), Some(long("s", PART_BYTES)));
    }
    hub.complete();
    let first = hub.collect("n1", &connected.mailbox);
    assert_eq!((first.messages.len(), first.next), (1, Next::More));
    hub.set_revision(12);
    // One that waits in this step, and one that was sent.
    hub.put_service("d/2", None);
    hub.put_service("d/0", Some(long("s", 1)));
    let (rest, _) = collect(&hub, "n1", &connected.mailbox);
    let named = |down: &v1::NodeDown| match &down.down {
        Some(node_down::Down::Update(update)) => update.revision,
        Some(node_down::Down::Open(_) | node_down::Down::Goodbye(_)) | None => 0,
    };
    assert_eq!(rest.iter().map(named).collect::<Vec<_>>(), [0, 11]);
    let next = updates(&hub, "n1", &connected.mailbox);
    assert_eq!(next.len(), 1);
    assert_eq!((next[0].revision, next[0].changes.len()), (12, 2));
}

#[tokio::test]
async fn a_revision_that_has_nothing_for_a_node_is_not_waited_for() {
    use futures::FutureExt as _;
    let hub = Hub::new("c".to_owned(), 10);
    let n1 = connect(&hub, "n1", &hello("c", 10));
    let n2 = connect(&hub, "n2", &hello("c", 10));
    hub.set_revision(11);
    hub.put_pod("n1", "u", Some(v1::PodSpec::default()));
    assert_eq!(updates(&hub, "n2", &n2.mailbox).len(), 0);
    // What came before does not count.
    assert!(hub.moved.notified().now_or_never().is_some());
    assert!(!hub.all_have(11));
    assert_eq!(updates(&hub, "n1", &n1.mailbox).len(), 1);
    assert!(!hub.all_have(11), "sent is not acknowledged");
    hub.ack("n1", n1.id, 10);
    assert!(hub.moved.notified().now_or_never().is_none());
    hub.ack("n1", n1.id, 11);
    assert!(hub.moved.notified().now_or_never().is_some());
    assert!(hub.all_have(11));
    // No task waits now: acknowledgements wake none.
    hub.ack("n1", n1.id, 12);
    assert!(hub.moved.notified().now_or_never().is_none());
}

/// A session that looks while a revision is filled in gets nothing then, and has used up its
/// wake-up. The revision's end wakes it, also if the revision has nothing for it.
#[tokio::test]
async fn who_looked_while_a_revision_was_filled_in_is_woken_at_its_end() {
    use futures::FutureExt as _;

    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("other", 10));
    let mailbox = &connected.mailbox;
    let pod = |uid: &str| v1::PodSpec {
        uid: uid.to_owned(),
        ..v1::PodSpec::default()
    };
    let is_woken = || mailbox.wait().now_or_never().is_some();
    let looks = || collect(&hub, "n1", mailbox).0.len();

    // Connected in the middle of revision 11, which is about another node.
    assert!(is_woken());
    hub.set_revision(11);
    hub.put_pod("n2", "b", Some(pod("b")));
    assert_eq!(looks(), 0);
    hub.complete();
    assert!(is_woken());
    assert!(looks() > 0);

    // Slower than the next revision.
    hub.set_revision(12);
    hub.put_pod("n1", "a", Some(pod("a")));
    hub.complete();
    hub.set_revision(13);
    assert!(is_woken());
    assert_eq!(looks(), 0);
    hub.put_pod("n2", "b", None);
    hub.complete();
    assert!(is_woken());
    assert_eq!(looks(), 1);
    assert!(!is_woken());
}

#[test]
fn an_address_is_that_of_one_connected_node() {
    let hub = Hub::new("c".to_owned(), 10);
    let join = |node: &str, address: &str| hub.connect(node, "k", &hello("", 0), at(address));
    let taken = |address: &str, other: &str| {
        Some(Rejected::Address {
            address: address.to_owned(),
            other: other.to_owned(),
        })
    };
    let n1 = join("n1", "192.0.2.1").unwrap();
    assert_eq!(join("n2", "192.0.2.1").err(), taken("192.0.2.1", "n1"));
    // That changed nothing: neither is n2 connected, nor is n1 less so.
    let nodes = ["n1".to_owned(), "n2".to_owned()];
    let heard = hub.last_heard(nodes.iter());
    assert!(heard[0].is_some() && heard[1].is_none() && hub.heard("n1", n1.id));
    let n2 = join("n2", "192.0.2.2").unwrap();
    let got = hub.report("n2", n2.id, at("192.0.2.1"));
    assert_eq!(got.err(), taken("192.0.2.1", "n1"));
    // What a node gives up, and what it has when it leaves, is free.
    hub.report("n1", n1.id, at("192.0.2.3")).unwrap();
    hub.report("n2", n2.id, at("192.0.2.1")).unwrap();
    let again = join("n1", "192.0.2.3").unwrap();
    assert_eq!(
        hub.report("n1", n1.id, at("192.0.2.9")).err(),
        Some(Rejected::Replaced)
    );
    assert!(hub.disconnect("n1", again.id));
    hub.report("n2", n2.id, at("192.0.2.3")).unwrap();
    hub.dismiss("n2", None, "deleted");
    join("n3", "192.0.2.3").unwrap();
}

#[test]
fn a_dismissal_ends_the_session_of_its_machine_and_leaves_nothing() {
    let hub = Hub::new("c".to_owned(), 10);
    hub.put_config("n1", v1::ClusterConfig::default());
    let session = connect(&hub, "n1", &hello("", 0));
    hub.dismiss("n1", Some("of the machine before"), "deleted");
    assert!(hub.heard("n1", session.id));
    assert!(!collect(&hub, "n1", &session.mailbox).1);
    hub.dismiss("n1", Some("k"), "deleted");
    assert!(!hub.heard("n1", session.id));
    assert!(collect(&hub, "n1", &session.mailbox).1);
    // Who waited to write meanwhile: in a session, and before one that is refused.
    let _budget = hub.budget("n1");
    assert!(hub.lock().views.is_empty());
    let refused = connect(&hub, "n1", &hello("", 0));
    assert!(hub.disconnect("n1", refused.id));
    assert!(hub.lock().views.is_empty());
}

#[test]
fn of_two_nodes_at_once_one_gets_the_address() {
    let hub = Hub::new("c".to_owned(), 10);
    for round in 0..200 {
        let start = std::sync::Barrier::new(2);
        let address = format!("192.0.2.{round}");
        let joined = std::thread::scope(|scope| {
            let tries = ["n1", "n2"].map(|node| {
                scope.spawn(|| {
                    start.wait();
                    hub.connect(node, "k", &hello("", 0), at(&address)).is_ok()
                })
            });
            let joined = tries.into_iter().map(|t| t.join().unwrap());
            joined.filter(|joined| *joined).count()
        });
        assert_eq!(joined, 1, "{round}");
    }
}

#[test]
fn who_is_too_far_behind_gets_a_snapshot() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = connect(&hub, "n1", &hello("c", 10));
    hub.set_revision(11);
    hub.put_service("d/stays", Some(service(1)));
    for n in 0..10_100 {
        let name = format!("d/{n}");
        hub.put_service(&name, Some(service(n)));
        hub.put_service(&name, None);
    }
    let got = updates(&hub, "n1", &connected.mailbox);
    let [all] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert!(all.snapshot_begin && all.snapshot_end && all.revision == 11);
    assert_eq!(all.changes.len(), 1);
    hub.set_revision(12);
    hub.put_service("d/stays", None);
    let got = updates(&hub, "n1", &connected.mailbox);
    assert!(!got[0].snapshot_begin && got[0].changes.len() == 1);
}

/// The config is made of the control plane's own settings too, which change without a revision.
#[test]
fn a_node_that_missed_nothing_gets_the_config_again() {
    let hub = Hub::new("c".to_owned(), 10);
    hub.restart(10);
    let config = v1::ClusterConfig {
        cluster_domain: "changed.example".to_owned(),
        ..v1::ClusterConfig::default()
    };
    hub.set_revision(10);
    hub.put_config("n1", config.clone());
    hub.put_service("d/web", Some(service(1)));
    hub.complete();
    let has_all = v1::Hello {
        source: 1,
        digests: vec![digest(&hub, "n1", bucket::of_service("d/web"))],
        ..hello("c", 4)
    };
    let connected = connect(&hub, "n1", &has_all);
    assert!(!connected.snapshot);
    let got = updates(&hub, "n1", &connected.mailbox);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].changes.len(), 1);
    assert_eq!(change(&got[0].changes[0]), change::Change::Config(config));
    assert_eq!(got[0].revision, 10);
}

/// What a node has that was told all of the bucket by this hub.
fn digest(hub: &Hub, node: &str, bucket: u32) -> v1::BucketDigest {
    let inner = hub.lock();
    let all = Step {
        revision: 0,
        since: None,
        changes: u64::MAX,
        takes_digests: true,
        replaced: Vec::new(),
        touched: BTreeSet::from([bucket]),
        begun: false,
        over: false,
        rest: Rest::Items(BTreeSet::new()),
    };
    inner.digests(node, &all).remove(0)
}

/// A process that begins with these services at this revision, and one pod for n1.
fn started(revision: u64, services: &[(u32, u32)], pod: &v1::PodSpec) -> Hub {
    let hub = Hub::new("c".to_owned(), 0);
    hub.restart(revision);
    hub.set_revision(revision);
    for (name, id) in services {
        let service = v1::Service {
            namespace: "d".to_owned(),
            name: name.to_string(),
            ..service(*id)
        };
        hub.put_service(&format!("d/{name}"), Some(service));
    }
    hub.put_pod("n1", &pod.uid, Some(pod.clone()));
    let route = v1::NodeRoute {
        node: "n1".to_owned(),
        ..v1::NodeRoute::default()
    };
    hub.put_route("n1", Some(route));
    hub.put_config("n1", v1::ClusterConfig::default());
    hub.complete();
    hub
}

/// The store has moved on, or the release is another one: what is not otherwise is not sent.
#[test]
fn who_comes_back_to_another_process_is_sent_what_differs() {
    let pod = v1::PodSpec {
        uid: "u".to_owned(),
        labels: (0..20).map(|n| (n.to_string(), String::new())).collect(),
        ..v1::PodSpec::default()
    };
    let all: Vec<(u32, u32)> = (0..1000).map(|n| (n, n)).collect();
    let before = started(10, &all, &pod);
    // What it is told beside the store is forgotten by a restart.
    let stopping = v1::PodSpec {
        stop_grace_seconds: Some(3),
        ..pod.clone()
    };
    before.put_pod("n1", "u", Some(stopping));
    let session = connect(&before, "n1", &hello("", 0));
    let mut has = Applied::default();
    for update in updates(&before, "n1", &session.mailbox) {
        has.take(update);
    }
    let otherwise = v1::PodSpec {
        hostname: "h".to_owned(),
        ..pod.clone()
    };
    let reversed: Vec<(u32, u32)> = all.iter().rev().copied().collect();
    let mut changed = all.clone();
    changed[7].1 = 1007;
    // The services of one of 256 buckets.
    let few = 12;
    for (after, most, what) in [
        (started(10, &all, &pod), 1, "nothing happened"),
        (started(99, &reversed, &pod), 1, "the store moved on"),
        (started(4, &all, &pod), 1, "the store is one of before"),
        (
            started(10, &all, &otherwise),
            2,
            "the pod is made otherwise",
        ),
        (started(99, &changed, &pod), few, "a service changed"),
        (started(99, &all[1..], &pod), few, "a service was removed"),
        (started(99, &all[..999], &otherwise), few + 1, "both"),
    ] {
        // Also when it has moved on since.
        for more in [0, 1] {
            let new = v1::Service {
                namespace: "d".to_owned(),
                name: format!("new{more}"),
                ..service(more)
            };
            after.set_revision(200 + u64::from(more));
            after.put_service(&format!("d/new{more}"), Some(new));
            after.complete();
            let most = most + (1 + usize::try_from(more).unwrap()) * few;
            let mut now = has.clone();
            let again = connect(&after, "n1", &now.hello());
            assert!(!again.snapshot, "{what}");
            let got = updates(&after, "n1", &again.mailbox);
            let count: usize = got.iter().map(|update| update.changes.len()).sum();
            let bytes: usize = got.iter().map(proto::Message::encoded_len).sum();
            assert!(got.len() == 1 && count <= most, "{what}: {count} changes");
            assert!(bytes < 200 + 80 * most, "{what}: {bytes} bytes");
            got.into_iter().for_each(|update| now.take(update));
            now.agrees(&after, "n1", what);
            // From now on it is known to this process.
            let again = connect(&after, "n1", &now.hello());
            let got = updates(&after, "n1", &again.mailbox);
            assert_eq!(got[0].changes.len(), 1, "{what}: the config");
        }
    }
    let after = started(10, &all, &pod);
    let older = v1::Hello {
        buckets: 0,
        ..has.hello()
    };
    assert!(connect(&after, "n1", &older).snapshot);
    let knows_nothing = v1::Hello {
        digests: (0..bucket::COUNT)
            .map(|bucket| v1::BucketDigest {
                bucket,
                digest: Vec::new(),
            })
            .collect(),
        ..has.hello()
    };
    assert!(connect(&after, "n1", &knows_nothing).snapshot);
}

/// What changed after a step began may be in it or not: the digest of its bucket is not
/// told before the next step.
#[test]
fn a_digest_is_that_of_what_was_sent() {
    let hub = Hub::new("c".to_owned(), 10);
    let mut has = Applied::default();
    let session = connect(&hub, "n1", &has.hello());
    hub.set_revision(11);
    for n in 0..3 {
        hub.put_service(&format!("d/{n}"), Some(long(&n.to_string(), PART_BYTES)));
    }
    hub.complete();
    let part = |has: &mut Applied| {
        for message in hub.collect("n1", &session.mailbox).messages {
            if let Some(node_down::Down::Update(update)) = message.down {
                has.take(update);
            }
        }
    };
    part(&mut has);
    hub.set_revision(12);
    hub.put_service("d/2", Some(long("2", 1)));
    part(&mut has);
    part(&mut has);
    assert_eq!(
        (has.revision, has.services["d/2"].cluster_ips[0].len()),
        (11, 1)
    );
    let said = |has: &Applied, name: &str| {
        let bucket = bucket::of_service(name);
        let digests = has.digests.list().into_iter();
        let mut digests = digests.filter(|d| d.bucket == bucket);
        digests.next().unwrap().digest
    };
    assert!(said(&has, "d/2").is_empty());
    assert_eq!(said(&has, "d/1").len(), 16);
    hub.complete();
    part(&mut has);
    assert_eq!(has.revision, 12);
    has.agrees(&hub, "n1", "after the next step");
}

/// Snapshots of many sessions at once hold the same bytes, and no keys.
#[test]
fn sessions_share_what_they_send() {
    let hub = Hub::new("c".to_owned(), 10);
    hub.set_revision(11);
    for n in 0..100 {
        hub.put_service(&format!("d/{n}"), Some(long(&n.to_string(), 4096)));
    }
    hub.complete();
    let mut all: Vec<Vec<*const u8>> = Vec::new();
    for node in ["n1", "n2"] {
        let session = connect(&hub, node, &hello("", 0));
        let first = hub.collect(node, &session.mailbox);
        assert_eq!(first.next, Next::More);
        let waiting = session.mailbox.lock();
        let rest = waiting.step.as_ref().map(|step| &step.rest);
        assert!(matches!(rest, Some(Rest::All { .. })));
        drop(waiting);
        let (more, _) = collect(&hub, node, &session.mailbox);
        let updates = first.messages.into_iter().chain(more);
        let changes = updates.flat_map(|message| match message.down {
            Some(node_down::Down::Update(update)) => update.changes,
            Some(node_down::Down::Open(_) | node_down::Down::Goodbye(_)) | None => Vec::new(),
        });
        all.push(changes.map(|bytes| bytes.as_ptr()).collect());
    }
    assert_eq!(all[0].len(), 100);
    assert_eq!(all[0], all[1]);
}

/// What is removed or comes while a snapshot is sent.
#[test]
fn a_snapshot_under_way_misses_nothing() {
    let hub = Hub::new("c".to_owned(), 10);
    hub.set_revision(11);
    for name in ["b", "d", "f"] {
        hub.put_service(name, Some(long(name, PART_BYTES)));
    }
    hub.complete();
    let session = connect(&hub, "n1", &hello("", 0));
    let mut has = BTreeSet::new();
    let mut take = |update: v1::Update| {
        if update.snapshot_begin {
            has.clear();
        }
        for bytes in &update.changes {
            let change = change(bytes);
            if let change::Change::Service(service) = change {
                has.insert(service.name);
            } else if let change::Change::ServiceRemoved(name) = change {
                has.remove(&name);
            } else {
                panic!("{change:?}");
            }
        }
    };
    let part = || {
        let messages = hub.collect("n1", &session.mailbox).messages;
        messages.into_iter().find_map(|message| match message.down {
            Some(node_down::Down::Update(update)) => Some(update),
            Some(node_down::Down::Open(_) | node_down::Down::Goodbye(_)) | None => None,
        })
    };
    take(part().unwrap());
    take(part().unwrap());
    hub.set_revision(12);
    // Before and after the place that it has come to.
    for name in ["b", "f"] {
        hub.put_service(name, None);
    }
    for name in ["a", "e"] {
        hub.put_service(name, Some(long(name, 10)));
    }
    hub.complete();
    while let Some(update) = part() {
        take(update);
    }
    assert_eq!(has, ["a", "d", "e"].map(str::to_owned).into());
}

/// More changes than a session keeps keys of.
#[test]
fn a_long_step_is_a_snapshot() {
    let hub = Hub::new("c".to_owned(), 10);
    let behind = connect(&hub, "n1", &hello("c", 10));
    hub.set_revision(11);
    for n in 0..5000 {
        hub.put_service(&format!("d/{n}"), Some(service(n)));
    }
    hub.complete();
    let again = connect(&hub, "n2", &hello("c", 10));
    assert!(again.snapshot);
    let got = updates(&hub, "n1", &behind.mailbox);
    assert!(got[0].snapshot_begin && got.last().unwrap().snapshot_end);
    let count: usize = got.iter().map(|update| update.changes.len()).sum();
    assert_eq!((count, got.last().unwrap().revision), (5000, 11));
    // Fewer, or few of many, are a delta.
    hub.set_revision(12);
    for n in 0..2000 {
        hub.put_service(&format!("d/{n}"), Some(service(n + 1)));
    }
    let got = updates(&hub, "n1", &behind.mailbox);
    assert!(!got[0].snapshot_begin);
}

/// A service of one port and of endpoints.
fn backed(generation_of: &[(u32, u32)], headless: bool) -> v1::Service {
    let address = |n: u32| std::net::Ipv4Addr::from(0x0af4_0000 + n).to_string();
    let mut service = service(1);
    for (n, port) in generation_of {
        let (address, port) = (address(*n), *port);
        if headless {
            let hostname = format!("db-{port}");
            service.endpoints.push(v1::NamedEndpoint {
                address,
                hostname,
                ports: Vec::new(),
            });
        }
    }
    service.endpoints.dedup();
    let backends = generation_of.iter().map(|(n, port)| v1::Backend {
        address: address(*n),
        port: 8080,
        node: format!("node-{port}"),
        pod: "6ff2a1f0-9f1c-4b0a-8d63-7f3f4a3d9b11".to_owned(),
        pod_name: format!("default/web-6d5f9c7b8-{n}"),
        state: v1::backend::State::Active.into(),
        ..v1::Backend::default()
    });
    service.ports.push(v1::ServicePort {
        backends: backends.collect(),
        ..v1::ServicePort::default()
    });
    service
}

fn takes_changes(revision: u64) -> v1::Hello {
    v1::Hello {
        service_changes: true,
        ..hello("c", revision)
    }
}

#[test]
fn an_endpoint_that_changes_is_sent_without_its_service() {
    let hub = Hub::new("c".to_owned(), 10);
    let all: Vec<(u32, u32)> = (0..1000).map(|n| (n, n % 7)).collect();
    let connected = connect(&hub, "n1", &takes_changes(10));
    let older = connect(&hub, "n2", &hello("c", 10));
    let bytes = |node: &str, mailbox: &Mailbox| {
        let got = updates(&hub, node, mailbox);
        let lengths = got.iter().map(proto::Message::encoded_len);
        (got.len(), lengths.sum::<usize>())
    };
    hub.set_revision(11);
    hub.put_service("d/web", Some(backed(&all, false)));
    let whole = bytes("n1", &connected.mailbox);
    assert_eq!(whole, bytes("n2", &older.mailbox));
    assert!(whole.1 > 90_000, "{whole:?}");

    for (revision, change) in [
        (12, backed(&all[1..], false)),
        (13, backed(&all[..], false)),
        (14, {
            let mut changed = all.clone();
            changed[500].1 = 99;
            backed(&changed, false)
        }),
    ] {
        hub.set_revision(revision);
        hub.put_service("d/web", Some(change));
        let (count, length) = bytes("n1", &connected.mailbox);
        assert!(count == 1 && length < 250, "{revision}: {length} bytes");
        let (_, length) = bytes("n2", &older.mailbox);
        assert!(length > 90_000, "an agent that takes whole services only");
    }
}

/// What an agent has that applies what it is sent.
#[derive(Clone, Default)]
struct Applied {
    services: BTreeMap<String, v1::Service>,
    routes: BTreeMap<String, v1::NodeRoute>,
    pods: BTreeMap<String, v1::PodSpec>,
    revision: u64,
    source: u64,
    digests: Digests,
    replacing: Option<Seen>,
}

/// Buckets that the step under way replaces, and what of them was there in its parts.
#[derive(Clone, Default)]
struct Seen {
    buckets: BTreeSet<u32>,
    services: BTreeSet<String>,
    routes: BTreeSet<String>,
    pods: BTreeSet<String>,
}

impl Applied {
    fn hello(&self) -> v1::Hello {
        v1::Hello {
            service_changes: true,
            source: self.source,
            digests: self.digests.list(),
            ..hello("c", self.revision)
        }
    }

    fn take(&mut self, update: v1::Update) {
        if update.snapshot_begin {
            *self = Self::default();
        }
        if !update.replaced.is_empty() {
            let buckets: BTreeSet<u32> = update.replaced.into_iter().collect();
            buckets.iter().for_each(|b| self.digests.forget(*b));
            self.replacing = Some(Seen {
                buckets,
                ..Seen::default()
            });
        }
        for bytes in update.changes {
            self.apply(change(&bytes));
        }
        if update.revision == 0 {
            return;
        }
        if let Some(seen) = self.replacing.take() {
            let kept = |bucket: u32| !seen.buckets.contains(&bucket);
            self.services
                .retain(|name, _| seen.services.contains(name) || kept(bucket::of_service(name)));
            self.routes
                .retain(|node, _| seen.routes.contains(node) || kept(bucket::of_route(node)));
            self.pods
                .retain(|uid, _| seen.pods.contains(uid) || kept(bucket::of_pod(uid)));
        }
        self.revision = update.revision;
        self.source = update.source;
        update
            .digests
            .into_iter()
            .for_each(|d| self.digests.note(d));
    }

    fn apply(&mut self, change: change::Change) {
        if let Some(bucket) = bucket::of(&change) {
            self.digests.forget(bucket);
        }
        let mut seen = Seen::default();
        match change {
            change::Change::Service(service) => {
                let name = format!("{}/{}", service.namespace, service.name);
                seen.services.insert(name.clone());
                self.services.insert(name, service);
            }
            change::Change::ServiceChange(changed) => {
                let name = format!("{}/{}", changed.namespace, changed.name);
                let service = self.services.get_mut(&name).unwrap();
                proto::service_change::apply(service, changed).unwrap();
            }
            change::Change::ServiceRemoved(name) => drop(self.services.remove(&name)),
            change::Change::Pod(pod) => {
                seen.pods.insert(pod.uid.clone());
                self.pods.insert(pod.uid.clone(), pod);
            }
            change::Change::PodRemoved(uid) => drop(self.pods.remove(&uid)),
            change::Change::Config(_) => {}
            change::Change::Route(route) => {
                seen.routes.insert(route.node.clone());
                self.routes.insert(route.node.clone(), route);
            }
            change::Change::RouteRemoved(node) => drop(self.routes.remove(&node)),
        }
        if let Some(replacing) = &mut self.replacing {
            replacing.services.append(&mut seen.services);
            replacing.routes.append(&mut seen.routes);
            replacing.pods.append(&mut seen.pods);
        }
    }

    /// It has what the node is to have; generations aside, which other processes have given,
    /// and what it was told to stop by another process.
    fn agrees(&self, hub: &Hub, node: &str, what: &str) {
        let inner = hub.lock();
        let view = inner.views.get(node);
        let services = inner.services.values().map(|served| &served.message);
        let routes = inner.routes.iter().filter(|(name, _)| ***name != *node);
        let routes = routes.map(|(_, route)| &route.message);
        let pods = view.into_iter().flat_map(|view| view.pods.values());
        let messages = services.chain(routes).chain(pods.map(|pod| &pod.message));
        let mut expected = Self::default();
        messages.for_each(|message| expected.apply(change(&message.bytes)));
        let mut mine = self.clone();
        for has in [&mut expected, &mut mine] {
            has.services.values_mut().for_each(|s| s.generation = 0);
            has.pods.values_mut().for_each(|p| p.generation = 0);
        }
        for (uid, pod) in &mut mine.pods {
            // A process that has just begun has not decided yet to stop it.
            let is_to_stop = |pod: &v1::PodSpec| pod.stop_grace_seconds.is_some();
            if expected.pods.get(uid).is_some_and(|pod| !is_to_stop(pod)) {
                pod.stop_grace_seconds = None;
            }
        }
        assert!(expected.services == mine.services, "{what}: services");
        assert_eq!(expected.routes, mine.routes, "{what}: routes");
        assert_eq!(expected.pods, mine.pods, "{what}: pods");
    }
}

fn way(node: &str, address: u8) -> v1::NodeRoute {
    v1::NodeRoute {
        node: node.to_owned(),
        node_ips: vec![format!("192.0.2.{address}")],
        ..v1::NodeRoute::default()
    }
}

/// Services, routes and pods change at random, and streams break at any part of a step: a
/// node that applied what it was sent has what it is to have.
#[test]
fn who_applies_what_is_sent_has_all_that_is_for_it() {
    use rand::seq::{IndexedMutRandom as _, IndexedRandom as _};
    use rand::{Rng as _, SeedableRng as _};

    let (mut changes, mut wholes) = (0, 0);
    let (mut resumed, mut snapshots, mut parts) = (0, 0, 0);
    for seed in 0..60 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut hub = Hub::new("c".to_owned(), 1);
        hub.complete();
        let mut revision = 1;
        let mut there: BTreeMap<String, v1::Service> = BTreeMap::new();
        let mut routes: BTreeMap<&str, u8> = BTreeMap::new();
        let mut pods: BTreeMap<(&str, &str), v1::PodSpec> = BTreeMap::new();
        let mut nodes: Vec<(String, Applied, Connected)> = Vec::new();
        for n in 0..3 {
            let node = format!("n{n}");
            let applied = Applied::default();
            let connected = connect(&hub, &node, &applied.hello());
            nodes.push((node, applied, connected));
        }
        let mut lists: BTreeMap<&str, Vec<(u32, u32)>> = BTreeMap::new();
        for _ in 0..60 {
            // Also several times within a revision.
            if random.random_bool(0.7) {
                hub.complete();
                revision += 1;
                hub.set_revision(revision);
            }
            let name = *["a", "b", "c", "e", "f"].choose(&mut random).unwrap();
            let key = format!("d/{name}");
            let list = lists.entry(name).or_default();
            let count = random.random_range(0..200);
            match random.random_range(0..10) {
                0 => {
                    there.remove(&key);
                    hub.put_service(&key, None);
                }
                kind => {
                    if kind == 1 {
                        *list = (0..count).map(|n| (n, 0)).collect();
                    } else if !list.is_empty() && random.random_bool(0.5) {
                        let at = random.random_range(0..list.len());
                        list.remove(at);
                    } else if !list.iter().any(|(n, _)| *n == count) {
                        let at = list.partition_point(|(n, _)| *n < count);
                        list.insert(at, (count, random.random_range(0..3)));
                    }
                    let mut service = backed(list, random.random_bool(0.5));
                    service.namespace = "d".to_owned();
                    service.name = name.to_owned();
                    service.external_name =
                        ["", "x"][usize::from(random.random_bool(0.05))].to_owned();
                    there.insert(key.clone(), service.clone());
                    hub.put_service(&key, Some(service));
                }
            }
            // Also of nodes that are not connected, and of each to itself.
            let of = *["n0", "n1", "n2", "n3"].choose(&mut random).unwrap();
            match random.random_range(0..8) {
                0 => {
                    routes.remove(of);
                    hub.put_route(of, None);
                }
                1 | 2 => {
                    let address = random.random();
                    routes.insert(of, address);
                    hub.put_route(of, Some(way(of, address)));
                }
                kind => {
                    let uid = *["u", "v", "w"].choose(&mut random).unwrap();
                    let pod = v1::PodSpec {
                        uid: uid.to_owned(),
                        hostname: random.random_range(0..3).to_string(),
                        stop_grace_seconds: random.random_bool(0.3).then_some(3),
                        // So that steps have several parts.
                        readiness_gates: vec!["x".repeat(PART_BYTES / 2); kind / 6],
                        ..v1::PodSpec::default()
                    };
                    if kind == 3 {
                        pods.remove(&(of, uid));
                        hub.put_pod(of, uid, None);
                    } else {
                        pods.insert((of, uid), pod.clone());
                        hub.put_pod(of, uid, Some(pod));
                    }
                }
            }
            if random.random_bool(0.5) {
                hub.complete();
            }
            let (node, applied, connected) = nodes.choose_mut(&mut random).unwrap();
            for _ in 0..random.random_range(0..4) {
                let collected = hub.collect(node, &connected.mailbox);
                for message in collected.messages {
                    let Some(node_down::Down::Update(update)) = message.down else {
                        panic!("{message:?}");
                    };
                    parts += usize::from(update.revision == 0 && applied.replacing.is_some());
                    for change in &update.changes {
                        let is_whole = matches!(self::change(change), change::Change::Service(_));
                        *if is_whole { &mut wholes } else { &mut changes } += 1;
                    }
                    applied.take(update);
                }
            }
            if random.random_bool(0.2) {
                applied.replacing = None;
                if random.random_bool(0.5) {
                    // The agent's records of its pods were older.
                    let pods = applied.pods.values_mut();
                    pods.for_each(|pod| pod.stop_grace_seconds = None);
                }
                *connected = connect(&hub, node, &applied.hello());
            }
            if random.random_bool(0.05) {
                // Another process, which may make other messages of the same.
                hub = Hub::new("c".to_owned(), 0);
                hub.restart(revision);
                hub.set_revision(revision);
                for (name, service) in &there {
                    hub.put_service(name, Some(service.clone()));
                }
                for (node, address) in &routes {
                    hub.put_route(node, Some(way(node, *address)));
                }
                for ((node, uid), pod) in &mut pods {
                    if random.random_bool(0.5) {
                        pod.stop_grace_seconds = None;
                    }
                    hub.put_pod(node, uid, Some(pod.clone()));
                }
                hub.complete();
                for (node, applied, connected) in &mut nodes {
                    applied.replacing = None;
                    *connected = connect(&hub, node, &applied.hello());
                    *(if connected.snapshot {
                        &mut snapshots
                    } else {
                        &mut resumed
                    }) += 1;
                }
            }
        }
        hub.complete();
        for (node, applied, connected) in &mut nodes {
            // The rest of the step that is under way, and what came meanwhile.
            for _ in 0..2 {
                for update in updates(&hub, node, &connected.mailbox) {
                    applied.take(update);
                }
            }
            applied.agrees(&hub, node, &format!("seed {seed}, {node}"));
        }
    }
    assert!(changes > 200 && wholes > 200, "{changes} {wholes}");
    assert!(resumed > 100 && snapshots < 5, "{resumed} {snapshots}");
    assert!(parts > 4, "replaced buckets in several parts: {parts}");
}
