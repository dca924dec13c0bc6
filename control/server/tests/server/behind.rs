//! Controllers that fall behind the store's history: they read everything again,
//! and miss neither what is new nor what is gone.

use std::sync::Arc;
use std::time::Duration;

use control_plan::World;
use control_server::Config;
use control_server::delete::DeleteOptions;
use control_server::hub::Reported;
use control_server::join;
use control_server::objects::Objects;
use control_server::record::Recorder;
use control_server::run::Controllers;
use control_server::stored::known;
use control_server::view::ClusterFacts;
use control_server::writing::{self, Writing};
use control_store::{Embedded, ListRequest, Options, Store};
use proto::Message as _;
use proto::v1::change::Change;
use proto::v1::{Hello, node_down};
use serde_json::json;

use crate::harness::{PATIENCE, deployment, eventually, service};

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_fell_behind_read_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        history: 8,
        cache_bytes: 1 << 20,
    };
    let store = Embedded::open(&folder.path().join("store.redb"), options).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let config = Config::parse(&format!("data = {:?}", folder.path())).unwrap();
    let objects = Arc::new(Objects::new(store.clone(), config.settings()));
    objects.make_builtin().await.unwrap();
    let create = async |kind, mut value: serde_json::Value| {
        if value["kind"] != "Node" {
            value["metadata"]["namespace"] = json!("default");
        }
        let writing = Writing::client("test", false);
        let value = writing::Change::To(value);
        let made = objects.create(kind, value, &[], &writing).await.unwrap();
        assert!(made.0.revision > 0);
    };
    let service_kind = known("", "v1", "Service").unwrap();
    create(service_kind, service("old")).await;
    let node_kind = known("", "v1", "Node").unwrap();
    let node = |name: &str, key: &str| {
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {join::KEY: key}}})
    };
    // Both have sessions; n2 is replaced below.
    for name in ["n2", "n3"] {
        create(node_kind, node(name, "k")).await;
    }
    let facts = ClusterFacts {
        domain: "cluster.local".to_owned(),
        dns_servers: Vec::new(),
        dns_address: String::new(),
        dns_stubs: Vec::new(),
    };
    let (controllers, hub) = Controllers::load(
        objects.clone(),
        Recorder::start(objects.clone()),
        World::new(config.settings()),
        control_server::run::Options {
            facts,
            lost_after: Duration::from_secs(40),
            skip_unreadable: false,
        },
    )
    .await
    .unwrap();
    let loaded = hub.revision();
    let [n2, n3] = ["n2", "n3"].map(|name| {
        let hello = Hello::default();
        hub.connect(name, "k", &hello, Reported::default()).unwrap()
    });
    // Neither node has a pod or a route: n1 would have been told the same.
    let mut source = 0;
    for message in hub.collect("n3", &n3.mailbox).messages {
        if let Some(node_down::Down::Update(update)) = message.down {
            source = update.source;
        }
    }

    // All of this is more than the history holds.
    let options = DeleteOptions::default();
    let deleted = objects.delete(service_kind, "default", "old", &options);
    deleted.await.unwrap();
    let deleted = objects.delete(node_kind, "", "n2", &options);
    deleted.await.unwrap();
    create(node_kind, node("n2", "k2")).await;
    create(service_kind, service("new")).await;
    let apps = known("apps", "v1", "Deployment").unwrap();
    create(apps, deployment("web", 2, "a")).await;
    let map = known("", "v1", "ConfigMap").unwrap();
    for n in 0..20 {
        let name = format!("m{n}");
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}});
        create(map, value).await;
    }
    assert!(store.watch(String::new(), loaded).await.is_err());

    let running = tokio::spawn(controllers.run());
    eventually("2 pods", async || {
        let all = store.list(ListRequest::all("pods/")).await.unwrap();
        match all.entries.len() {
            2 => Ok(()),
            other => Err(format!("{other} pods")),
        }
    })
    .await;
    assert!(!running.is_finished());

    let hello = Hello {
        cluster_id: store.id(),
        revision: loaded,
        source,
        ..Hello::default()
    };
    let session = hub.connect("n1", "k", &hello, Reported::default()).unwrap();
    assert!(!session.snapshot, "what changed since is known");
    let told = async {
        let mut told = Vec::new();
        while told.len() < 2 {
            session.mailbox.wait().await;
            for message in hub.collect("n1", &session.mailbox).messages {
                if let Some(node_down::Down::Update(update)) = message.down {
                    let changes = update.changes.into_iter();
                    told.extend(
                        changes.filter_map(|c| proto::v1::Change::decode(c).unwrap().change),
                    );
                }
            }
        }
        told
    };
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert!(told.contains(&Change::ServiceRemoved("default/old".to_owned())));
    let is_new = |c: &Change| matches!(c, Change::Service(s) if s.name == "new");
    assert!(told.iter().any(is_new), "{told:?}");
    assert!(!hub.heard("n2", n2.id), "another machine is n2");
    assert!(hub.heard("n3", n3.id));
    running.abort();
}
