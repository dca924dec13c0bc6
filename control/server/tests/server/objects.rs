//! Objects: apply, get, list, watch, update, delete, and what is refused.

use jiff::Timestamp;
use proto::v1;
use proto::v1::apply_response::Outcome;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::watch_event::Type;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Identity;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_applied_changed_and_deleted() {
    let mut server = server().await;
    let map = |v: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": v}});
    let first = server.try_apply(&map("1")).await.unwrap();
    assert_eq!(first.outcome(), Outcome::Created);
    let again = server.try_apply(&map("1")).await.unwrap();
    assert_eq!(again.outcome(), Outcome::Unchanged);
    assert_eq!(first.object, again.object);
    let changed = server.try_apply(&map("2")).await.unwrap();
    assert_eq!(changed.outcome(), Outcome::Configured);
    let got = server.get("configmap", "c").await.unwrap();
    assert_eq!(got["data"]["k"], "2");

    // Replaced at the revision that was read, and not at an older one.
    let mut fresh = got.clone();
    fresh["data"]["k"] = json!("3");
    let update = |value: &Value| v1::UpdateRequest {
        json: value.to_string().into_bytes(),
        ..v1::UpdateRequest::default()
    };
    server.client.update(update(&fresh)).await.unwrap();
    let refused = server.client.update(update(&fresh)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(detail(&refused).0, "Conflict");

    let patch = v1::PatchRequest {
        kind: kind("configmap"),
        name: "c".to_owned(),
        merge_patch: br#"{"data":{"k":null,"other":"x"}}"#.to_vec(),
        ..v1::PatchRequest::default()
    };
    let patched = server.client.patch(patch).await.unwrap().into_inner();
    let patched: Value = serde_json::from_slice(&patched.json).unwrap();
    assert_eq!(patched["data"], json!({"other": "x"}));

    let wrong_uid = v1::DeleteRequest {
        kind: kind("configmap"),
        name: "c".to_owned(),
        uid: "nobody".to_owned(),
        ..v1::DeleteRequest::default()
    };
    let refused = server.client.delete(wrong_uid).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert!(server.delete("configmap", "c").await.gone);
    let missing = server.get("configmap", "c").await.unwrap_err();
    assert_eq!(
        (missing.code(), detail(&missing).0.as_str()),
        (Code::NotFound, "NotFound")
    );
}

/// Addresses that were given out stay in force: their ranges may only become larger.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_do_not_hold_all_addresses_are_refused() {
    let mut server = server().await;
    let web = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.3.7", "ports": [{"port": 80}]}});
    server.apply(&web).await;
    let n1 = server.agent("n1").await;
    let range = |all: &[Value]| all.iter().all(|n| n["spec"]["podCIDR"].is_string());
    server.until("nodes", "", "a range", range).await;
    n1.kill();
    for (extra, key, object) in [
        (
            "service_cidr = \"10.97.0.0/16\"",
            "service_cidr",
            "Service default/web has 10.96.3.7",
        ),
        (
            "service_cidr = \"10.96.0.0/23\"",
            "service_cidr",
            "Service default/web has 10.96.3.7",
        ),
        (
            "pod_cidr = \"10.245.0.0/16\"",
            "pod_cidr",
            "Node n1 has 10.244.0.0/24",
        ),
        (
            "node_prefix = 25",
            "node_prefix",
            "Node n1 has 10.244.0.0/24",
        ),
    ] {
        let why = server.refused_with(extra).await;
        assert!(
            why.starts_with(key) && why.contains(object),
            "{extra}: {why}"
        );
        server.run_with("").await;
    }
    // Larger ones hold them all.
    let larger = "service_cidr = \"10.96.0.0/12\"\npod_cidr = \"10.244.0.0/15\"";
    server.restart_with(larger).await;
    let stored = server.get("service", "web").await.unwrap();
    assert_eq!(stored["spec"]["clusterIP"], "10.96.3.7");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_with_a_revision_is_not_created() {
    let mut server = server().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "c", "resourceVersion": "7"}});
    let refused = server.try_apply(&map).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("resourceVersion should not be set")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_by_field() {
    let mut server = server().await;
    let mut unknown_field = pod("p");
    unknown_field["spec"]["containers"][0]["imagee"] = json!("x");
    let mut wrong_type = pod("p");
    wrong_type["spec"]["containers"][0]["image"] = json!(1);
    let mut elsewhere = pod("p");
    elsewhere["metadata"]["namespace"] = json!("nowhere");
    let rows = [
        (
            unknown_field,
            Code::InvalidArgument,
            "spec.containers[0].imagee",
        ),
        (
            wrong_type,
            Code::InvalidArgument,
            "spec.containers[0].image",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod"}),
            Code::InvalidArgument,
            "metadata.name",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Gadget"}),
            Code::InvalidArgument,
            "kind",
        ),
        (json!([]), Code::InvalidArgument, ""),
        (elsewhere, Code::NotFound, ""),
    ];
    for (value, code, field) in rows {
        let refused = server.try_apply(&value).await.unwrap_err();
        assert_eq!(refused.code(), code, "{value}: {refused:?}");
        if !field.is_empty() {
            assert_eq!(detail(&refused).1, [field], "{value}: {refused:?}");
        }
    }
    let request = |json: &[u8]| v1::ApplyRequest {
        json: json.to_vec(),
        field_manager: "test".to_owned(),
        ..v1::ApplyRequest::default()
    };
    for bytes in [&b"{"[..], b"{\"a\":1,\"a\":2}", &[0xff; 8], b""] {
        let refused = server.client.apply(request(bytes)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bytes:?}");
    }
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    let refused = server
        .client
        .apply(request(long.as_bytes()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(server.list("pods", "").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_manager_s_field_is_a_conflict_unless_forced() {
    let mut server = server().await;
    server.apply(&deployment("web", 1, "a")).await;
    let mut request = v1::ApplyRequest {
        json: deployment("web", 2, "a").to_string().into_bytes(),
        field_manager: "other".to_owned(),
        ..v1::ApplyRequest::default()
    };
    let refused = server.client.apply(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let (reason, fields) = detail(&refused);
    assert_eq!(reason, "Conflict");
    assert!(fields.iter().any(|f| f.contains("replicas")), "{fields:?}");
    request.force = true;
    server.client.apply(request).await.unwrap();
    assert_eq!(
        server.get("deployment", "web").await.unwrap()["spec"]["replicas"],
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_at_one_revision_and_selected() {
    let mut server = server().await;
    for i in 0..7 {
        let app = if i % 2 == 0 { "even" } else { "odd" };
        server
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("c{i}"), "labels": {"app": app}}}))
            .await;
    }
    assert_eq!(server.list("configmaps", "app=even").await.len(), 4);
    assert_eq!(server.list("configmaps", "app!=even").await.len(), 3);
    let mut request = v1::ListRequest {
        kind: kind("configmaps"),
        limit: 3,
        ..v1::ListRequest::default()
    };
    let mut names = Vec::new();
    let mut revisions = Vec::new();
    loop {
        let page = server
            .client
            .list(request.clone())
            .await
            .unwrap()
            .into_inner();
        for item in &page.items {
            let value: Value = serde_json::from_slice(&item.json).unwrap();
            names.push(text(&value, "/metadata/name").to_owned());
        }
        revisions.push(page.resource_version);
        // Written between the pages: not in this list.
        server
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("z{}", names.len())}}))
            .await;
        if page.continue_token.is_empty() {
            break;
        }
        request.continue_token = page.continue_token;
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
    assert!(revisions.windows(2).all(|w| w[0] == w[1]), "{revisions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_is_there_and_every_change() {
    let mut server = server().await;
    let map = |name: &str, app: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"app": app}}})
    };
    server.apply(&map("a", "x")).await;
    server.apply(&map("b", "y")).await;
    let request = v1::WatchRequest {
        kind: kind("configmap"),
        label_selector: "app=x".to_owned(),
        ..v1::WatchRequest::default()
    };
    let mut watch = server
        .client
        .watch(request.clone())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let event = tokio::time::timeout(PATIENCE, watch.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let object = event.object.clone().unwrap_or_default().json;
        let value: Value = serde_json::from_slice(&object).unwrap_or_default();
        (
            event.r#type(),
            text(&value, "/metadata/name").to_owned(),
            event.resource_version,
        )
    };
    let (what, name, _) = next().await;
    assert_eq!((what, name.as_str()), (Type::Added, "a"));
    let (what, _, bookmark) = next().await;
    assert_eq!(what, Type::Bookmark);
    // Selected from now on; no longer; changed; gone.
    server.apply(&map("b", "x")).await;
    let (what, name, _) = next().await;
    assert_eq!((what, name.as_str()), (Type::Added, "b"));
    server.apply(&map("a", "y")).await;
    let (what, name, _) = next().await;
    assert_eq!((what, name.as_str()), (Type::Deleted, "a"));
    server.delete("configmap", "b").await;
    let (what, name, _) = next().await;
    assert_eq!((what, name.as_str()), (Type::Deleted, "b"));

    // Resumed at the bookmark: the same changes again.
    let resumed = v1::WatchRequest {
        resource_version: bookmark,
        ..request.clone()
    };
    let mut watch = server.client.watch(resumed).await.unwrap().into_inner();
    let event = watch.message().await.unwrap().unwrap();
    assert_eq!(event.r#type(), Type::Added);
    // Any state: the newest, as without a revision.
    let any = v1::WatchRequest {
        resource_version: "0".to_owned(),
        ..request.clone()
    };
    server.apply(&map("c", "x")).await;
    let mut watch = server.client.watch(any).await.unwrap().into_inner();
    let events = [
        watch.message().await.unwrap().unwrap(),
        watch.message().await.unwrap().unwrap(),
    ];
    let kinds = events.each_ref().map(v1::WatchEvent::r#type);
    assert_eq!(kinds, [Type::Added, Type::Bookmark]);
    let future = v1::WatchRequest {
        resource_version: "999999".to_owned(),
        ..request.clone()
    };
    let refused = server.client.watch(future).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let nonsense = v1::WatchRequest {
        resource_version: "x".to_owned(),
        ..request
    };
    assert_eq!(
        server.client.watch(nonsense).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_says_which_state_it_accepts() {
    let mut server = server().await;
    let map = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a"}, "data": {"k": value}})
    };
    let old = server.apply(&map("old")).await;
    let old = text(&old, "/metadata/resourceVersion").to_owned();
    let new = server.apply(&map("new")).await;
    let new = text(&new, "/metadata/resourceVersion").to_owned();
    for (version, rule, expected) in [
        ("", "", Some("new")),
        ("0", "", Some("new")),
        (old.as_str(), "", Some("new")),
        (old.as_str(), "NotOlderThan", Some("new")),
        (old.as_str(), "Exact", Some("old")),
        (new.as_str(), "Exact", Some("new")),
        ("999999", "", None),
        ("999999", "Exact", None),
    ] {
        let request = v1::ListRequest {
            kind: kind("configmaps"),
            resource_version: version.to_owned(),
            resource_version_match: rule.to_owned(),
            ..v1::ListRequest::default()
        };
        let listed = server.client.list(request).await;
        let got = listed.map(|list| {
            let list = list.into_inner();
            let value: Value = serde_json::from_slice(&list.items[0].json).unwrap();
            text(&value, "/data/k").to_owned()
        });
        match expected {
            Some(expected) => assert_eq!(got.unwrap(), expected, "{version:?} {rule:?}"),
            None => assert_eq!(got.unwrap_err().code(), Code::OutOfRange),
        }
    }
    for (version, found) in [("0", true), (old.as_str(), true), ("999999", false)] {
        let request = v1::GetRequest {
            kind: kind("configmaps"),
            name: "a".to_owned(),
            resource_version: version.to_owned(),
            ..v1::GetRequest::default()
        };
        let got = server.client.get(request).await;
        assert_eq!(got.is_ok(), found, "{version:?}: {got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_that_no_other_has() {
    let mut server = server().await;
    let first = server.apply(&service("a")).await;
    let second = server.apply(&service("b")).await;
    let (a, b) = (
        text(&first, "/spec/clusterIP"),
        text(&second, "/spec/clusterIP"),
    );
    assert!(
        a.starts_with("10.96.") && b.starts_with("10.96.") && a != b,
        "{a} {b}"
    );
    let id = |v: &Value| v["metadata"]["annotations"]["hydrofoil.dev/service-id"].clone();
    assert_ne!(id(&first), id(&second));
    // Applied again, it keeps them.
    assert_eq!(server.apply(&service("a")).await, first);

    let mut asking = service("c");
    asking["spec"]["clusterIP"] = json!(a);
    let refused = server.try_apply(&asking).await.unwrap_err();
    assert_eq!(detail(&refused).1, ["spec.clusterIPs[0]"], "{refused:?}");
    asking["spec"]["clusterIP"] = json!("192.0.2.1");
    let refused = server.try_apply(&asking).await.unwrap_err();
    assert_eq!(detail(&refused).1, ["spec.clusterIPs[0]"], "{refused:?}");
    asking["spec"]["clusterIP"] = json!("10.96.7.7");
    assert_eq!(
        text(&server.apply(&asking).await, "/spec/clusterIP"),
        "10.96.7.7"
    );
    asking["metadata"]["name"] = json!("headless");
    asking["spec"]["clusterIP"] = json!("None");
    assert_eq!(
        text(&server.apply(&asking).await, "/spec/clusterIP"),
        "None"
    );
    // Many at once: all different.
    let mut calls = Vec::new();
    for i in 0..40 {
        let mut client = server.client.clone();
        let json = service(&format!("many{i}")).to_string().into_bytes();
        calls.push(tokio::spawn(async move {
            let create = v1::CreateRequest {
                json,
                ..v1::CreateRequest::default()
            };
            client.create(create).await.unwrap();
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    let all = server.list("services", "").await;
    let mut ips: Vec<&str> = all.iter().map(|s| text(s, "/spec/clusterIP")).collect();
    ips.sort_unstable();
    let before = ips.len();
    ips.dedup();
    // With that of cluster DNS, which is there from the start.
    assert_eq!((before, ips.len()), (45, 45));
    assert!(ips.contains(&"10.96.0.10"), "{ips:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_honours_finalizers_propagation_and_namespaces() {
    let mut server = server().await;
    let mut held = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    server.apply(&held).await;
    assert!(!server.delete("configmap", "held").await.gone);
    assert!(
        !text(
            &server.get("configmap", "held").await.unwrap(),
            "/metadata/deletionTimestamp"
        )
        .is_empty()
    );
    held["metadata"]["finalizers"] = json!([]);
    server.apply(&held).await;
    server
        .until("configmaps", "", "the config map to go", |all| {
            all.is_empty()
        })
        .await;

    // Orphaned pods stay, and are adopted by the next set that selects them.
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("pods", "", "two pods", |all| all.len() == 2)
        .await;
    let request = v1::DeleteRequest {
        kind: kind("deployment"),
        name: "web".to_owned(),
        propagation_policy: "Orphan".to_owned(),
        ..v1::DeleteRequest::default()
    };
    server.client.delete(request).await.unwrap();
    server
        .until("deployments", "", "the deployment to go", |all| {
            all.is_empty()
        })
        .await;
    let sets = server.list("replicasets", "").await;
    assert_eq!(sets.len(), 1);
    assert!(sets[0]["metadata"].get("ownerReferences").is_none());
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("replicasets", "", "the set to be adopted", |all| {
            all.len() == 1 && text(&all[0], "/metadata/ownerReferences/0/kind") == "Deployment"
        })
        .await;
    // In the foreground: the Deployment goes last.
    let request = v1::DeleteRequest {
        kind: kind("deployment"),
        name: "web".to_owned(),
        propagation_policy: "Foreground".to_owned(),
        ..v1::DeleteRequest::default()
    };
    assert!(
        !server
            .client
            .delete(request)
            .await
            .unwrap()
            .into_inner()
            .gone
    );
    server
        .until("deployments", "", "the deployment to go", |all| {
            all.is_empty()
        })
        .await;
    assert!(server.list("replicasets", "").await.is_empty());
    server
        .until("pods", "", "the pods to go", |all| all.is_empty())
        .await;

    // A namespace takes its contents with it.
    server
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))
        .await;
    let mut inside = deployment("web", 1, "a");
    inside["metadata"]["namespace"] = json!("n");
    server.apply(&inside).await;
    server
        .until("pods", "", "a pod", |all| all.len() == 1)
        .await;
    assert!(!server.delete("namespace", "n").await.gone);
    inside["metadata"]["name"] = json!("late");
    let refused = server.try_apply(&inside).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::FailedPrecondition | Code::NotFound),
        "{refused:?}"
    );
    server
        .until("namespaces", "", "the namespace to go", |all| {
            all.len() == 2
        })
        .await;
    assert!(server.list("pods", "").await.is_empty());
    let builtin = v1::DeleteRequest {
        kind: kind("namespace"),
        name: "default".to_owned(),
        ..v1::DeleteRequest::default()
    };
    assert!(server.client.delete(builtin).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_is_refused() {
    let server = server().await;
    let running = server.running();
    // No certificate.
    let channel = endpoint(running, trusting(running))
        .connect()
        .await
        .unwrap();
    let version = || v1::VersionRequest {};
    let refused = ClusterClient::new(channel)
        .version(version())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // A node's.
    let identity = server.identity("n1").await;
    let channel = endpoint(running, trusting(running).identity(identity))
        .connect()
        .await
        .unwrap();
    let refused = ClusterClient::new(channel)
        .version(version())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Of another CA: the handshake fails.
    let other = tempfile::tempdir().unwrap();
    let other = control_server::pki::Pki::open(other.path(), Timestamp::now()).unwrap();
    let forged = other.admin(Timestamp::now()).unwrap();
    let identity = Identity::from_pem(forged.chain_pem, forged.key_pem);
    let connected = endpoint(running, trusting(running).identity(identity))
        .connect()
        .await;
    let refused = match connected {
        Err(_) => true,
        Ok(channel) => ClusterClient::new(channel)
            .version(version())
            .await
            .is_err(),
    };
    assert!(refused);
    // A server of another CA is not trusted.
    let stranger = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(other.ca_pem()));
    assert!(endpoint(running, stranger).connect().await.is_err());
    // Joining with a wrong token, or for somebody else.
    let key = rcgen::KeyPair::generate().unwrap();
    let refused = join(running, "n2", "system:nodes", "abcdef.0123", &key)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let token = server.token(&control_server::token::Scope::Once);
    let refused = join(running, "n2", "system:masters", &token, &key)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
