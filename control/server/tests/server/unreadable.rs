//! A store that a newer version wrote, or that is damaged: it is refused by name of
//! what cannot be read, or that is left alone together with what depends on it.

use std::sync::Arc;
use std::time::Duration;

use control_plan::World;
use control_server::hub::Reported;
use control_server::objects::Objects;
use control_server::record::Recorder;
use control_server::run::Controllers;
use control_server::{Config, StartError, start};
use control_store::{Condition, Embedded, Store};
use proto::v1;
use serde_json::json;

use crate::harness::*;

/// Opens the store of a server that ended; it is closed when the last request lets
/// go of it.
async fn open(folder: &std::path::Path) -> Embedded {
    let options = || control_store::Options {
        history: 100,
        cache_bytes: 1 << 20,
    };
    eventually("the store", async || {
        Embedded::open(&folder.join("store.redb"), options()).map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_by_name_or_left_alone() {
    let mut server = server().await;
    let map =
        |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let owned = |name: &str, api_version: &str, kind: &str, owner: &str| {
        let mut value = map(name);
        value["metadata"]["ownerReferences"] = json!([{"apiVersion": api_version,
            "kind": kind, "name": owner, "uid": format!("uid-{owner}")}]);
        value
    };
    server.apply(&map("plain")).await;
    server.running.take().unwrap().stop().await.unwrap();

    // What a newer version could have written.
    let newer = [
        (
            "widgets.example.org/default/w",
            json!({"metadata": {"name": "w", "namespace": "default", "uid": "uid-w"}}),
        ),
        (
            "pods/default/odd",
            json!({"metadata": {"name": "odd", "namespace": "default", "uid": "uid-odd"}, "spec": {"containers": 5}}),
        ),
    ];
    let dependents = [
        owned("of-widget", "example.org/v1", "Widget", "w"),
        owned("of-odd", "v1", "Pod", "odd"),
        owned("orphan", "v1", "Pod", "gone"),
    ];
    let store = open(server.folder.path()).await;
    for (key, value) in &newer {
        let bytes = serde_json::to_vec(value).unwrap();
        store
            .put((*key).to_owned(), bytes.into(), Condition::Absent)
            .await
            .unwrap();
    }
    for mut value in dependents {
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        value["metadata"]["namespace"] = json!("default");
        value["metadata"]["uid"] = json!(name);
        let bytes = serde_json::to_vec(&value).unwrap();
        let key = format!("configmaps/default/{name}");
        store
            .put(key, bytes.into(), Condition::Absent)
            .await
            .unwrap();
    }
    let before = store.revision().await.unwrap();
    drop(store);

    let text = |more: &str| {
        format!(
            "listen = \"127.0.0.1:0\"\ndata = {:?}\nnames = [\"localhost\"]\n{more}",
            server.folder.path()
        )
    };
    let config = Config::parse(&text("")).unwrap();
    let refused = eventually("a refusal", async || match start(&config).await {
        Ok(_) => panic!("started on a store that it cannot read"),
        // The store was open a moment ago.
        Err(error @ StartError::Store(_)) => Err(error.to_string()),
        Err(error) => Ok(error.to_string()),
    })
    .await;
    for part in [
        "2 in the store",
        "pods/default/odd",
        "widgets.example.org/default/w",
        "skip_unreadable_objects",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let store = open(server.folder.path()).await;
    assert_eq!(
        store.revision().await.unwrap(),
        before,
        "a refused start writes nothing"
    );
    drop(store);

    server.run_with("skip_unreadable_objects = true").await;
    // The orphan goes, as its owner is known to be gone. The others stay.
    let names =
        |items: &[serde_json::Value]| -> Vec<String> { items.iter().map(text_of).collect() };
    let left = server
        .until("configmaps", "", "the orphan to go", |items| {
            !names(items).contains(&"orphan".to_owned())
        })
        .await;
    assert_eq!(names(&left), ["of-odd", "of-widget", "plain"]);
    server.running.take().unwrap().stop().await.unwrap();
    let store = open(server.folder.path()).await;
    for (key, value) in &newer {
        let entry = store.get(key).await.unwrap().entry.unwrap();
        assert_eq!(entry.value, serde_json::to_vec(value).unwrap(), "{key}");
    }
}

fn text_of(object: &serde_json::Value) -> String {
    text(object, "/metadata/name").to_owned()
}

/// A Node that this version cannot read any more, while it runs, and that is then deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_node_that_is_deleted_loses_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(open(folder.path()).await);
    let config = Config::parse(&format!("data = {:?}", folder.path())).unwrap();
    let objects = Arc::new(Objects::new(store.clone(), config.settings()));
    objects.make_builtin().await.unwrap();
    let key = "nodes/n1".to_owned();
    let put = async |value: serde_json::Value| {
        let bytes = serde_json::to_vec(&value).unwrap();
        let put = store.put(key.clone(), bytes.into(), Condition::Any).await;
        put.unwrap();
    };
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata":
        {"name": "n1", "uid": "u", "annotations": {control_server::join::KEY: "k"}}});
    put(node.clone()).await;
    let (controllers, hub) = Controllers::load(
        objects.clone(),
        Recorder::start(objects.clone()),
        World::new(config.settings()),
        control_server::run::Options {
            facts: config.facts(),
            lost_after: Duration::from_secs(40),
            skip_unreadable: false,
        },
    )
    .await
    .unwrap();
    let running = tokio::spawn(controllers.run());
    let hello = v1::Hello::default();
    let session = hub.connect("n1", "k", &hello, Reported::default()).unwrap();
    node["spec"] = json!(5);
    put(node).await;
    store.delete(key.clone(), Condition::Any).await.unwrap();
    eventually("the session to end", async || {
        if hub.heard("n1", session.id) {
            Err("it goes on".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    running.abort();
}

/// A Deployment that an older version accepted: its pods are refused now, and that is
/// said by it, by its set and by an event, until an operator mends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_whose_pods_are_refused_says_why() {
    let mut server = server().await;
    server.apply(&deployment("web", 0, "a")).await;
    let sets = |sets: &[serde_json::Value]| sets.len() == 1;
    server.until("replicasets", "", "its set", sets).await;
    server.running.take().unwrap().stop().await.unwrap();
    let store = open(server.folder.path()).await;
    for (resource, kind) in [
        ("deployments.apps", "deployments"),
        ("replicasets.apps", "replicasets"),
    ] {
        let list = control_store::ListRequest::all(format!("{resource}/default/"));
        let page = store.list(list).await.unwrap();
        let entry = &page.entries[0];
        let mut value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
        value["spec"]["replicas"] = json!(2);
        value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("");
        let bytes = serde_json::to_vec(&value).unwrap();
        let changed = store
            .put(entry.key.clone(), bytes.into(), Condition::Any)
            .await;
        changed.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    drop(store);
    server.run_with("").await;
    let failed = |objects: &[serde_json::Value]| {
        control_api::condition::is_true(&objects[0], "ReplicaFailure")
    };
    for word in ["replicasets", "deployments"] {
        let found = server.until(word, "", "a failure", failed).await;
        let failure = control_api::condition::get(&found[0], "ReplicaFailure").unwrap();
        assert_eq!(text(failure, "/reason"), "FailedCreate");
        assert!(text(failure, "/message").contains("image"), "{failure}");
    }
    server
        .until("events", "", "an event", |all| {
            let mut all = all.iter();
            all.any(|e| text(e, "/reason") == "FailedCreate" && text(e, "/type") == "Warning")
        })
        .await;
    let _n1 = server.agent("n1").await;
    server.apply(&deployment("web", 2, "b")).await;
    let pods = |pods: &[serde_json::Value]| pods.len() == 2 && pods.iter().all(is_ready);
    server.until("pods", "", "2 ready pods", pods).await;
    let mended = |objects: &[serde_json::Value]| !failed(objects);
    server.until("deployments", "", "no failure", mended).await;
}
