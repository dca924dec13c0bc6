//! What controllers and clients write over what is stored, without a server.

use std::sync::Arc;

use control_api::kind::Kind;
use control_plan::{Object, Write};
use control_server::Config;
use control_server::objects::Objects;
use control_server::stored::known;
use control_server::writing::{Change, Writing};
use control_server::{load, write};
use control_store::{Condition, Embedded, Options, Store};
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

    /// Changes the bytes in the store, as another version of this program does.
    async fn alter(&self, change: impl Fn(&mut Value)) {
        let key = self.kind.key("default", "web");
        let entry = self.objects.store().get(&key).await.unwrap().entry.unwrap();
        let mut value: Value = serde_json::from_slice(&entry.value).unwrap();
        change(&mut value);
        let bytes = serde_json::to_vec(&value).unwrap().into();
        let condition = Condition::Revision(entry.revision);
        self.objects
            .store()
            .put(key, bytes, condition)
            .await
            .unwrap();
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

/// An owner that is taken off between the plan and the write keeps the object.
#[tokio::test]
async fn a_deletion_of_an_earlier_revision_is_refused() {
    let bench = Bench::new().await;
    bench.create().await;
    let seen = bench.seen().await;
    let delete = |revision| Write::Delete {
        key: seen.key(),
        uid: control_plan::object::uid(seen.meta()).to_owned(),
        revision,
        grace_seconds: None,
        foreground: false,
    };
    bench
        .alter(|web| web["metadata"]["annotations"] = json!({"a": "b"}))
        .await;
    let stale = write::apply(&bench.objects, &delete(Some(seen.revision()))).await;
    assert!(stale.unwrap_err().is_conflict());
    bench.stored().await;
    let current = bench.seen().await.revision();
    let deleted = write::apply(&bench.objects, &delete(Some(current))).await;
    assert!(deleted.unwrap() > current);
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

#[tokio::test]
async fn fields_of_a_newer_version_outlive_every_write() {
    let bench = Bench::new().await;
    bench.create().await;
    bench
        .alter(|web| {
            web["spec"]["future"] = json!({"a": [1]});
            let container = &mut web["spec"]["template"]["spec"]["containers"][0];
            container["future"] = json!("b");
            container["ports"][0]["future"] = json!("c");
            web["status"] = json!({"replicas": 2, "future": "d"});
        })
        .await;
    let check = async |what: &str| {
        let web = bench.stored().await;
        for (at, expected) in [
            ("/spec/future", json!({"a": [1]})),
            ("/spec/template/spec/containers/0/future", json!("b")),
            (
                "/spec/template/spec/containers/0/ports/0/future",
                json!("c"),
            ),
            ("/status/future", json!("d")),
        ] {
            assert_eq!(
                web.pointer(at),
                Some(&expected),
                "{at} after {what}: {web:#}"
            );
        }
        web
    };
    // A controller that changes nothing, and one that changes something.
    let before = check("nothing").await;
    bench.put(bench.seen().await).await;
    assert_eq!(bench.stored().await, before);
    let Object::Deployment(mut web) = bench.seen().await else {
        panic!("a Deployment")
    };
    let changed = Arc::make_mut(&mut web);
    changed.spec.as_mut().unwrap().paused = Some(true);
    changed.status.as_mut().unwrap().replicas = Some(3);
    bench.put(Object::Deployment(web)).await;
    let web = check("a controller").await;
    assert_eq!(web["spec"]["paused"], true);
    assert_eq!(web["status"]["replicas"], 3);
    assert_eq!(web["metadata"]["generation"], 2);
    // Clients: nothing; something; the whole object by one who does not know them.
    let writing = Writing::client("test", false);
    let client = async |change: &dyn Fn(&mut Value)| {
        let changed = bench
            .objects
            .change(bench.kind, "default", "web", &writing, |old| {
                let mut next = old.value.clone();
                change(&mut next);
                Ok(Change::To(next))
            });
        changed.await.unwrap().2
    };
    assert!(!client(&|_| {}).await, "a write of the same");
    assert!(client(&|web| web["spec"]["replicas"] = json!(7)).await);
    let web = check("a patch").await;
    assert_eq!(web["spec"]["replicas"], 7);
    assert_eq!(web["metadata"]["generation"], 3);
    let whole = |web: &mut Value| {
        let spec = web["spec"].as_object_mut().unwrap();
        spec.remove("future");
        let container = &mut web["spec"]["template"]["spec"]["containers"][0];
        container.as_object_mut().unwrap().remove("future");
        container["ports"] = json!([{"containerPort": 9}, container["ports"][0].clone()]);
    };
    assert!(client(&whole).await);
    let web = bench.stored().await;
    assert_eq!(web["spec"]["future"], json!({"a": [1]}));
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["future"], "b");
    assert_eq!(container["ports"][1]["future"], "c", "{web:#}");
    // A field that is new in a write is still refused.
    let unknown = bench
        .objects
        .change(bench.kind, "default", "web", &writing, |old| {
            let mut next = old.value.clone();
            next["spec"]["future"] = json!("mine");
            Ok(Change::To(next))
        });
    let refused = unknown.await.unwrap_err().to_string();
    assert!(refused.contains("spec.future: unknown field"), "{refused}");
}
