//! What controllers and clients write over what is stored, without a server.

use std::sync::Arc;

use control_api::kind::Kind;
use control_plan::{Object, Write};
use control_server::Config;
use control_server::objects::Objects;
use control_server::stored::known;
use control_server::writing::{Change, Writing};
use control_server::{load, write};
use control_store::{Embedded, Options, Store};
use serde_json::{Value, json};

use crate::harness::deployment;

struct Bench {
    _folder: tempfile::TempDir,
    objects: Objects,
    kind: &'static Kind,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            history: 8,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.path().join("store.redb"), options).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let config = Config::parse(&format!("data = {:?}", folder.path())).unwrap();
        let objects = Objects::new(store, config.settings());
        objects.make_builtin().await.unwrap();
        Self {
            _folder: folder,
            objects,
            kind: known("apps", "v1", "Deployment").unwrap(),
        }
    }

    async fn create(&self) {
        let mut web = deployment("web", 2, "a");
        web["metadata"]["namespace"] = json!("default");
        let writing = Writing::client("test", false);
        let made = self
            .objects
            .create(self.kind, Change::To(web), &[], &writing);
        made.await.unwrap();
    }

    async fn stored(&self) -> Value {
        self.objects
            .get(self.kind, "default", "web")
            .await
            .unwrap()
            .value
    }

    /// The object as controllers have it.
    async fn seen(&self) -> Object {
        let key = self.kind.key("default", "web");
        let entry = self.objects.store().get(&key).await.unwrap().entry.unwrap();
        load::object(self.kind, &entry.value, entry.revision).unwrap()
    }

    async fn put(&self, object: Object) -> u64 {
        let claims = Vec::new();
        write::apply(&self.objects, &Write::Put { object, claims })
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_controller_that_changes_nothing_writes_nothing() {
    let bench = Bench::new().await;
    bench.create().await;
    let before = bench.stored().await;
    let revision = bench.objects.store().revision().await.unwrap();
    let seen = bench.seen().await;
    assert_eq!(bench.put(seen.clone()).await, seen.revision());
    assert_eq!(bench.objects.store().revision().await.unwrap(), revision);
    assert_eq!(bench.stored().await, before);
    // And what it changes, it owns; the rest keeps its owners.
    let Object::Deployment(mut web) = seen else {
        panic!("a Deployment")
    };
    let changed = Arc::make_mut(&mut web);
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.insert(
        "deployment.kubernetes.io/revision".to_owned(),
        "1".to_owned(),
    );
    bench.put(Object::Deployment(web)).await;
    let after = bench.stored().await;
    let entries = after["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries.contains(&before["metadata"]["managedFields"][0]));
    let own = entries.iter().find(|e| e["manager"] == "foil-control");
    assert_eq!(
        own.unwrap()["fieldsV1"],
        json!({"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}})
    );
}
