//! Server-side apply by rows: what was there, what is applied, what comes out.
#![cfg(test)]

use control_api::apply::merge;
use control_api::fieldset::FieldSet;
use control_api::managed::{self, Conflicts, Manager, Operation};
use control_api::{admit, decode, equality, find_for, meta};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

fn now() -> jiff::Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn manager(name: &str) -> Manager<'_> {
    let subresource = "";
    Manager { name, subresource }
}

/// As the server does it, without admission in between.
fn run(
    current: Option<&Value>,
    applied: &Value,
    name: &str,
    force: bool,
) -> Result<Value, Conflicts> {
    let kind = find_for(applied).unwrap();
    let (mut merged, set) = merge(current, applied, name);
    let operation = Operation::Apply { set, force };
    managed::track(kind, current, &mut merged, manager(name), &operation, now())?;
    Ok(merged)
}

/// Admission, and then who owns what.
fn admitted(current: Option<&Value>, applied: &Value, name: &str) -> Value {
    let kind = find_for(applied).unwrap();
    let (merged, set) = merge(current, applied, name);
    let (mut next, _) = admit(&merged, kind, current).unwrap();
    let force = false;
    let operation = Operation::Apply { set, force };
    managed::track(kind, current, &mut next, manager(name), &operation, now()).unwrap();
    next
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

/// What is left of `before` (applied first, then changed by `touch`) when
/// `after` is applied over it. Metadata is not compared.
fn check(before: Value, touch: impl Fn(&mut Value), after: Value, expected: Value) {
    let (before, after) = (deployment(before), deployment(after));
    let mut current = run(None, &before, "foil", false).unwrap();
    touch(&mut current["spec"]);
    let merged = run(Some(&current), &after, "foil", false).unwrap();
    assert_eq!(merged["spec"], expected, "{after} over {}", current["spec"]);
    let again = run(Some(&merged), &after, "foil", false).unwrap();
    assert_eq!(again, merged, "applied again, nothing changes");
}

#[test]
fn a_struct_that_is_not_applied_any_more_goes_with_its_defaults() {
    let container = |more: Value| {
        let mut container = json!({"name": "a", "image": "a:1"});
        for (name, value) in more.as_object().unwrap() {
            container[name] = value.clone();
        }
        json!({"template": {"spec": {"containers": [container]}}})
    };
    check(
        container(json!({"readinessProbe": {"httpGet": {"path": "/", "port": 80}}})),
        |spec| {
            let probe = &mut spec["template"]["spec"]["containers"][0]["readinessProbe"];
            probe["httpGet"]["scheme"] = json!("HTTP");
            probe["timeoutSeconds"] = json!(1);
        },
        container(json!({})),
        container(json!({})),
    );
    // One field of it is applied still: the defaults beside it stay.
    check(
        container(
            json!({"readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 3}}),
        ),
        |spec| {
            let probe = &mut spec["template"]["spec"]["containers"][0]["readinessProbe"];
            probe["timeoutSeconds"] = json!(1);
        },
        container(json!({"readinessProbe": {"httpGet": {"path": "/", "port": 80}}})),
        container(
            json!({"readinessProbe": {"httpGet": {"path": "/", "port": 80}, "timeoutSeconds": 1}}),
        ),
    );
    // A map's other keys are somebody else's.
    let labels = |labels: Value| json!({"template": {"metadata": {"labels": labels}}});
    check(
        labels(json!({"mine": "1"})),
        |spec| spec["template"]["metadata"]["labels"]["theirs"] = json!("2"),
        json!({"paused": true}),
        json!({"paused": true, "template": {"metadata": {"labels": {"theirs": "2"}}}}),
    );
}

#[test]
fn merges_three_ways() {
    let none = |_: &mut Value| {};
    // Scalars: set, changed, left out.
    check(
        json!({"replicas": 2}),
        none,
        json!({"replicas": 3}),
        json!({"replicas": 3}),
    );
    check(
        json!({"replicas": 2, "paused": true}),
        none,
        json!({"replicas": 2}),
        json!({"replicas": 2}),
    );
    // What somebody else added stays.
    check(
        json!({"replicas": 2}),
        |spec| spec["paused"] = json!(true),
        json!({"replicas": 2}),
        json!({"replicas": 2, "paused": true}),
    );
    // Containers by name: changed, removed, added; defaults of others stay.
    check(
        json!({"template": {"spec": {"containers": [
            {"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}]}}}),
        |spec| spec["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always"),
        json!({"template": {"spec": {"containers": [
            {"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2"}]}}}),
        json!({"template": {"spec": {"containers": [
            {"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2", "imagePullPolicy": "Always"}]}}}),
    );
    // Variables by name, also when one changes its form.
    check(
        json!({"template": {"spec": {"containers": [{"name": "a", "env": [
            {"name": "X", "value": "1"}, {"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}]}]}}}),
        none,
        json!({"template": {"spec": {"containers": [{"name": "a", "env": [
            {"name": "Y", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "Z", "value": "4"}]}]}}}),
        json!({"template": {"spec": {"containers": [{"name": "a", "env": [
            {"name": "Y", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "Z", "value": "4"}]}]}}}),
    );
    // Ports by number and protocol, an absent protocol being TCP.
    check(
        json!({"template": {"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 80, "name": "x"}, {"containerPort": 53, "protocol": "UDP"}]}]}}}),
        |spec| spec["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP"),
        json!({"template": {"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 80, "name": "y"}]}]}}}),
        json!({"template": {"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 80, "name": "y", "protocol": "TCP"}]}]}}}),
    );
    // Lists without keys are replaced as a whole.
    check(
        json!({"template": {"spec": {"containers": [{"name": "a", "args": ["1", "2"]}]}}}),
        none,
        json!({"template": {"spec": {"containers": [{"name": "a", "args": ["2"]}]}}}),
        json!({"template": {"spec": {"containers": [{"name": "a", "args": ["2"]}]}}}),
    );
    // A list and a map that are left out altogether go, with what held only them.
    check(
        json!({"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"volumes": [{"name": "v"}], "hostname": "h"}}}),
        none,
        json!({"template": {"spec": {"hostname": "h"}}}),
        json!({"template": {"spec": {"hostname": "h"}}}),
    );
    // Volumes by name change their source.
    check(
        json!({"template": {"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}}),
        |spec| spec["template"]["spec"]["volumes"][0]["secret"]["defaultMode"] = json!(420),
        json!({"template": {"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}}),
        json!({"template": {"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}}),
    );
    // A selector is one value.
    check(
        json!({"selector": {"matchLabels": {"a": "1", "b": "2"}}}),
        none,
        json!({"selector": {"matchLabels": {"a": "1"}}}),
        json!({"selector": {"matchLabels": {"a": "1"}}}),
    );
}

#[test]
fn labels_of_others_stay() {
    let mut mine = deployment(json!({}));
    mine["metadata"]["labels"] = json!({"a": "1", "b": "2"});
    let mut current = run(None, &mine, "foil", false).unwrap();
    current["metadata"]["labels"]["theirs"] = json!("x");
    current["metadata"]["finalizers"] = json!(["example.com/keep"]);
    mine["metadata"]["labels"] = json!({"a": "3"});
    mine["metadata"]["finalizers"] = json!(["example.com/mine"]);
    let merged = run(Some(&current), &mine, "foil", false).unwrap();
    assert_eq!(
        merged["metadata"]["labels"],
        json!({"a": "3", "theirs": "x"})
    );
    assert_eq!(
        merged["metadata"]["finalizers"],
        json!(["example.com/mine", "example.com/keep"])
    );
    assert_eq!(merged["metadata"]["name"], "web");
}

#[test]
fn managers_conflict_unless_they_agree_or_force() {
    let mine = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}]}}}),
    );
    let current = run(None, &mine, "foil", false).unwrap();
    let same = deployment(json!({"replicas": 2, "paused": true}));
    let shared = run(Some(&current), &same, "other", false).unwrap();
    let other = deployment(
        json!({"replicas": 5, "template": {"spec": {"containers": [{"name": "a", "image": "x:2"}]}}}),
    );
    let conflicts = run(Some(&shared), &other, "third", false).unwrap_err();
    let mut said: Vec<String> = conflicts.0.iter().map(ToString::to_string).collect();
    said.sort();
    assert_eq!(
        said,
        [
            "spec.replicas: conflict with \"foil\"",
            "spec.replicas: conflict with \"other\"",
            "spec.template.spec.containers[name=\"a\"].image: conflict with \"foil\"",
        ]
    );
    // What two own stays when one of them lets go of it.
    let gone = run(Some(&shared), &deployment(json!({})), "foil", false).unwrap();
    assert_eq!(gone["spec"], json!({"replicas": 2, "paused": true}));
    // By force it is taken over, and the former owner no longer removes it.
    let forced = run(Some(&shared), &other, "third", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    let after = run(Some(&forced), &deployment(json!({})), "foil", false).unwrap();
    assert_eq!(after["spec"]["replicas"], 5);
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["image"],
        "x:2"
    );
}

#[test]
fn managed_fields_are_those_of_kubernetes() {
    let mut mine = deployment(json!({"replicas": 2, "template": {"spec": {"containers": [
        {"name": "a", "image": "x", "args": ["1"], "ports": [{"containerPort": 80}]}]}}}));
    mine["metadata"]["labels"] = json!({"app": "web"});
    let stored = run(None, &mine, "foil", false).unwrap();
    let expected = json!([{
        "manager": "foil", "operation": "Apply", "apiVersion": "apps/v1",
        "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                    ".": {}, "f:args": {}, "f:image": {}, "f:name": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }}}},
            },
        },
    }]);
    assert_eq!(stored["metadata"]["managedFields"], expected);
    let set = FieldSet::of(&mine);
    assert_eq!(
        FieldSet::from_fields_v1(&set.to_fields_v1()),
        set,
        "read back as it was written"
    );
}

/// The way of the server: apply, admit, store; and the same manifest once more.
#[test]
fn the_same_manifest_again_is_no_write() {
    let mut manifest = deployment(json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "0.5Gi"}},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        },
    }));
    manifest["metadata"]["labels"] = json!({"a": "b"});
    let mut stored = admitted(None, &manifest, "foil");
    meta::stamp_created(&mut stored, "u-1", now());
    let again = admitted(Some(&stored), &manifest, "foil");
    assert!(equality::unchanged(&again, &stored), "{again}\n{stored}");
    // Raising and lowering a limit works, also after defaulting.
    for cpu in ["2", "100m"] {
        manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] =
            json!(cpu);
        stored = admitted(Some(&stored), &manifest, "foil");
    }
    manifest["spec"]["strategy"] = json!({"type": "Recreate"});
    let stored = admitted(Some(&stored), &manifest, "foil");
    assert_eq!(stored["spec"]["strategy"], json!({"type": "Recreate"}));
    assert_eq!(stored["metadata"]["generation"], 4);
}

#[test]
fn equality_is_kubernetes() {
    let rows = [
        (json!({"a": null}), json!({}), true),
        (json!({"a": []}), json!({}), true),
        (json!({"a": {"b": {}}}), json!({}), true),
        (json!({"a": ""}), json!({}), false),
        (json!({"a": 0}), json!({}), false),
        (json!({"a": [1, 2]}), json!({"a": [2, 1]}), false),
        (
            json!({"metadata": {"resourceVersion": "1"}}),
            json!({"metadata": {"resourceVersion": "2"}}),
            true,
        ),
        (
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {}}),
            false,
        ),
        (json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), true),
    ];
    for (a, b, expected) in rows {
        assert_eq!(equality::unchanged(&a, &b), expected, "{a} and {b}");
        assert_eq!(equality::unchanged(&b, &a), expected, "{b} and {a}");
    }
}

/// A value of the wrong type is not lost in the merge: admission gets to see it.
#[test]
fn wrong_types_reach_admission() {
    let base = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}, "finalizers": ["a/b"]},
            "spec": {"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]},
        },
    });
    let kind = find_for(&deployment(json!({}))).unwrap();
    let mut current = run(None, &deployment(base.clone()), "foil", false).unwrap();
    // Somebody else's items, which a merge has to keep.
    let mut add = |path: &str, item: Value| {
        let list = current
            .pointer_mut(&format!("/spec/template/{path}"))
            .unwrap();
        list.as_array_mut().unwrap().push(item);
    };
    add("spec/containers/0/ports", json!({"containerPort": 81}));
    add("spec/containers", json!({"name": "b", "image": "y"}));
    add("metadata/finalizers", json!("c/d"));
    let values = [
        json!({}),
        json!({"name": "a"}),
        json!(["a"]),
        json!("a"),
        json!(1),
        json!(true),
    ];
    let paths = [
        "/template/spec/containers",
        "/template/spec/containers/0/ports",
        "/template/spec/containers/0",
        "/template/spec",
        "/template/metadata/labels",
        "/template/metadata/finalizers",
        "/selector",
        "/selector/matchLabels",
    ];
    for path in paths {
        for value in &values {
            let mut spec = base.clone();
            *spec.pointer_mut(path).unwrap() = value.clone();
            let applied = deployment(spec);
            let typed = decode::strict::<Deployment>(&applied).is_ok();
            let merged = run(Some(&current), &applied, "foil", false).unwrap();
            let over = admit(&merged, kind, Some(&current)).is_ok();
            assert!(typed || !over, "{path} = {value} is lost over {current}");
        }
    }
}
