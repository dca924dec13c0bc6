//! Field owners and writes that change nothing, as clients see them.

use proto::v1;
use proto::v1::apply_response::Outcome;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::*;

/// "manager operation subresource" of each entry.
fn managers(object: &Value) -> Vec<String> {
    let entries = object.pointer("/metadata/managedFields");
    let entries = entries.and_then(Value::as_array).into_iter().flatten();
    let word = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("").to_owned();
    let names = ["manager", "operation", "subresource"];
    entries
        .map(|entry| {
            names
                .map(|name| word(entry, name))
                .join(" ")
                .trim_end()
                .to_owned()
        })
        .collect()
}

fn value(object: v1::Object) -> Value {
    serde_json::from_slice(&object.json).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_is_not_undone_by_the_next_apply() {
    let mut server = server().await;
    server.apply(&deployment("web", 2, "a")).await;
    server.scale("web", 5).await;
    let mut without = deployment("web", 2, "a");
    without["spec"].as_object_mut().unwrap().remove("replicas");
    assert_eq!(server.apply(&without).await["spec"]["replicas"], 5);
    // And an apply that names them again is told whose they are.
    let refused = server.try_apply(&deployment("web", 2, "a")).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(detail(&refused).1, ["spec.replicas"]);
    assert!(
        refused
            .message()
            .contains("with subresource \"scale\" using apps/v1"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_writer_owns_what_it_writes() {
    let mut server = server().await;
    let _agent = server.agent("n1").await;
    let request = v1::CreateRequest {
        json: deployment("web", 1, "a").to_string().into_bytes(),
        ..v1::CreateRequest::default()
    };
    server.client.create(request).await.unwrap();
    let pods = server
        .until("pods", "", "a ready pod", |all| {
            all.len() == 1 && is_ready(&all[0])
        })
        .await;
    let all = managers(&pods[0]);
    for manager in [
        "foil-control Update",
        "foil-control Update status",
        "foil-agent Update status",
    ] {
        assert!(all.iter().any(|m| m == manager), "{manager} in {all:?}");
    }
    let web = server.get("deployment", "web").await.unwrap();
    // Named by the client's user-agent, as it names itself not otherwise.
    assert!(
        managers(&web).contains(&"tonic Update".to_owned()),
        "{web:#}"
    );
    assert!(
        managers(&web).contains(&"foil-control Update status".to_owned()),
        "{web:#}"
    );
    let node = server.get("node", "n1").await.unwrap();
    assert!(
        managers(&node).contains(&"foil-agent Update status".to_owned()),
        "{node:#}"
    );
    // The creator's fields are in conflict with an apply that changes them.
    let refused = server
        .try_apply(&deployment("web", 2, "a"))
        .await
        .unwrap_err();
    assert_eq!(detail(&refused).1, ["spec.replicas"]);
    let said = refused.message();
    assert!(
        said.contains("conflict with \"tonic\" using apps/v1"),
        "{said}"
    );
    // A controller's annotation outlives an apply by a manifest without metadata.
    let again = server.apply(&deployment("web", 1, "a")).await;
    assert_eq!(
        again["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    // An apply cannot bring owners; a client's write can reset them.
    let mut bringing = deployment("web", 1, "a");
    bringing["metadata"]["managedFields"] = json!([]);
    let refused = server.try_apply(&bringing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let reset = json!({"metadata": {"managedFields": [{}]}});
    let web = server.patch("deployment", "web", reset).await;
    assert!(web.pointer("/metadata/managedFields").is_none(), "{web:#}");
    let long = v1::CreateRequest {
        json: deployment("long", 1, "a").to_string().into_bytes(),
        field_manager: "x".repeat(129),
        ..v1::CreateRequest::default()
    };
    let refused = server.client.create(long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// A manifest as people write it, its fields in another order each time.
fn manifest(kind: &str, reversed: bool) -> Value {
    let spec = r#"{"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "resources": {"requests": {"cpu": "0.1", "memory": "64Mi"}, "limits": {"memory": "0.125Gi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}"#;
    let spec: Value = serde_json::from_str(spec).unwrap();
    let object = match kind {
        "Pod" => json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "same"}, "spec": spec}),
        _deployment => json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "same"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "same"}},
                "template": {"metadata": {"labels": {"app": "same"}}, "spec": spec}}}),
    };
    if reversed { turned(&object) } else { object }
}

/// The same, with the fields of every map from last to first.
fn turned(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let turned = fields.iter().rev().map(|(k, v)| (k.clone(), turned(v)));
            Value::Object(turned.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(turned).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_manifest_is_not_written() {
    let mut server = server().await;
    let _agent = server.agent("n1").await;
    for (word, kind) in [("pod", "Pod"), ("deployment", "Deployment")] {
        server.apply(&manifest(kind, false)).await;
        // The scheduler, the controllers and the node have all had their say.
        server
            .until("pods", "", "ready pods", |all| {
                !all.is_empty() && all.iter().all(is_ready)
            })
            .await;
        let settled = |all: &[Value]| {
            all.iter().all(|d| {
                d["status"]["availableReplicas"] == 1
                    && d["status"]["observedGeneration"] == d["metadata"]["generation"]
            })
        };
        server.until("deployments", "", "the status", settled).await;
        let before = server.get(word, "same").await.unwrap();
        for reversed in [true, false] {
            let again = server.try_apply(&manifest(kind, reversed)).await.unwrap();
            assert_eq!(again.outcome(), Outcome::Unchanged, "{kind} {reversed}");
            assert_eq!(value(again.object.unwrap()), before, "{kind} {reversed}");
        }
        assert_eq!(server.get(word, "same").await.unwrap(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_changes_nothing_is_none() {
    let mut server = server().await;
    let agent = server.agent("n1").await;
    server.apply(&deployment("web", 1, "a")).await;
    let pods = server
        .until("pods", "", "a ready pod", |all| {
            all.len() == 1 && is_ready(&all[0])
        })
        .await;
    server
        .until("deployments", "", "the status", |all| {
            all[0]["status"]["availableReplicas"] == 1
                && all[0]["status"]["observedGeneration"] == all[0]["metadata"]["generation"]
        })
        .await;
    let web = server.get("deployment", "web").await.unwrap();
    assert_eq!(server.scale("web", 1).await, web);
    let same = json!({"spec": {"template": {"spec": {"restartPolicy": "Always"}}}});
    assert_eq!(server.patch("deployment", "web", same).await, web);
    for subresource in ["", "status"] {
        let request = v1::UpdateRequest {
            json: web.to_string().into_bytes(),
            subresource: subresource.to_owned(),
            ..v1::UpdateRequest::default()
        };
        assert_eq!(
            value(server.client.update(request).await.unwrap().into_inner()),
            web
        );
    }
    // A node that says the same again is not heard of in a watch.
    let name = text(&pods[0], "/metadata/name").to_owned();
    let told = agent.told.borrow().pods.values().next().unwrap().clone();
    let saying = |message: &str| {
        let mut report = report(&told);
        if let Some(v1::node_up::Up::PodStatus(status)) = &mut report.up {
            status.message = message.to_owned();
        }
        report
    };
    let once = saying("once");
    agent.up.send(once.clone()).await.unwrap();
    let said = |all: &[Value], what: &str| {
        let mut all = all.iter().filter(|p| text(p, "/metadata/name") == name);
        all.any(|p| text(p, "/status/message") == what)
    };
    let pods = server
        .until("pods", "", "the report", |all| said(all, "once"))
        .await;
    let request = v1::WatchRequest {
        kind: kind("pod"),
        label_selector: "app=web".to_owned(),
        resource_version: text(&pods[0], "/metadata/resourceVersion").to_owned(),
        ..v1::WatchRequest::default()
    };
    let mut watch = server.client.watch(request).await.unwrap().into_inner();
    for name in ["b", "c"] {
        agent.up.send(once.clone()).await.unwrap();
        // Reports are written in order: this pod's after the one above.
        server.apply(&pod(name)).await;
        let running = |p: &Value| text(p, "/metadata/name") == name && is_ready(p);
        server
            .until("pods", "", "another pod", |all| all.iter().any(running))
            .await;
    }
    agent.up.send(saying("twice")).await.unwrap();
    server
        .until("pods", "", "the report", |all| said(all, "twice"))
        .await;
    loop {
        let event = watch.message().await.unwrap().unwrap();
        let Some(object) = event.object else { continue };
        assert_eq!(text(&value(object), "/status/message"), "twice");
        break;
    }
}
