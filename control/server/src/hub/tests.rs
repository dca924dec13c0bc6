//! The hub alone, without streams: what is collected, and when.

use super::*;

fn hello(cluster: &str, revision: u64) -> v1::Hello {
    let cluster_id = cluster.to_owned();
    v1::Hello {
        cluster_id,
        revision,
        ..v1::Hello::default()
    }
}

fn service(id: u32) -> v1::Service {
    v1::Service {
        name: "web".to_owned(),
        id,
        ..v1::Service::default()
    }
}

fn updates(hub: &Hub, node: &str, mailbox: &Mailbox) -> Vec<v1::Update> {
    hub.complete();
    let (down, _) = hub.collect(node, mailbox);
    let update = |d: v1::NodeDown| match d.down {
        Some(node_down::Down::Update(update)) => Some(update),
        Some(node_down::Down::Open(_) | node_down::Down::Goodbye(_)) | None => None,
    };
    down.into_iter().filter_map(update).collect()
}

#[test]
fn changes_are_coalesced_and_deltas_resume() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = hub.connect("n1", &hello("other", 10));
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
    let again = hub.connect("n1", &hello("c", 13));
    assert!(!again.snapshot);
    let got = updates(&hub, "n1", &again.mailbox);
    assert_eq!(got.len(), 1);
    let removed = change::Change::ServiceRemoved("d/web".to_owned());
    assert_eq!(
        got[0].changes,
        vec![v1::Change {
            change: Some(removed)
        }]
    );
    // From before this hub's time: everything.
    assert!(hub.connect("n1", &hello("c", 9)).snapshot);
}

#[test]
fn a_newer_stream_takes_over_and_acks_count_for_it_only() {
    let hub = Hub::new("c".to_owned(), 1);
    let first = hub.connect("n1", &hello("", 0));
    let second = hub.connect("n1", &hello("", 0));
    let (down, over) = hub.collect("n1", &first.mailbox);
    assert!(over);
    assert!(matches!(down[0].down, Some(node_down::Down::Goodbye(_))));
    assert!(!hub.heard("n1", first.id));
    hub.ack("n1", first.id, 5);
    assert!(!hub.all_acked(5));
    hub.ack("n1", second.id, 5);
    assert!(hub.all_acked(5));
    assert!(!hub.all_acked(6));
    assert!(!hub.disconnect("n1", first.id));
    assert!(hub.disconnect("n1", second.id));
    assert!(hub.all_acked(6));
}

#[test]
fn a_revision_is_named_only_when_all_of_it_is_sent() {
    let hub = Hub::new("c".to_owned(), 10);
    let connected = hub.connect("n1", &hello("c", 10));
    assert!(!connected.snapshot);
    hub.set_revision(11);
    hub.put_service("d/web", Some(service(1)));
    let (down, _) = hub.collect("n1", &connected.mailbox);
    assert!(down.is_empty(), "half of revision 11: {down:?}");
    hub.put_service("d/api", Some(service(2)));
    let got = updates(&hub, "n1", &connected.mailbox);
    assert_eq!((got.len(), got[0].revision), (1, 11));
    assert_eq!(got[0].changes.len(), 2);

    // Told beside the store, and lost with the stream: it comes again.
    hub.set_revision(11);
    hub.put_pod("n1", "u", Some(v1::PodSpec::default()));
    let again = hub.connect("n1", &hello("c", 11));
    let got = updates(&hub, "n1", &again.mailbox);
    assert_eq!((got.len(), got[0].changes.len()), (1, 1), "{got:?}");
    let change = &got[0].changes[0].change;
    assert!(matches!(change, Some(change::Change::Pod(_))), "{got:?}");
}
