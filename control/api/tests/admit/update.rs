//! What may change, and what belongs to the system.

use control_api::find_for;
use serde_json::{Value, json};

use crate::manifest::{admitted, deployment, judge, pod, refused, service, with};

#[test]
fn immutable_fields_stay() {
    let pod = admitted(&pod());
    let bound = with(&pod, "spec.nodeName", json!("n1"));
    let limited = with(&pod, "spec.activeDeadlineSeconds", json!(60));
    let deployment = admitted(&deployment());
    let service = with(
        &with(&admitted(&service()), "spec.clusterIP", json!("10.96.0.7")),
        "spec.clusterIPs",
        json!(["10.96.0.7"]),
    );
    let sealed = admitted(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "immutable": true,
        "metadata": {"name": "c", "namespace": "default"}, "data": {"a": "1"}}),
    );
    let secret = admitted(&json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"}, "stringData": {"a": "1"}}));
    let rows: Vec<(&Value, &str, Value, &str)> = vec![
        (&pod, "spec.containers[0].image", json!("nginx:2"), ""),
        (&pod, "metadata.labels.app", json!("x"), ""),
        (
            &pod,
            "spec.containers[0].env[0].value",
            json!("2"),
            "spec: Forbidden: pod updates may not change fields other than",
        ),
        (
            &pod,
            "spec.nodeName",
            json!("n2"),
            "spec: Forbidden: pod updates may not change",
        ),
        (&bound, "spec.nodeName", json!(null), ""),
        (&pod, "spec.activeDeadlineSeconds", json!(60), ""),
        (&limited, "spec.activeDeadlineSeconds", json!(59), ""),
        (
            &limited,
            "spec.activeDeadlineSeconds",
            json!(61),
            "spec.activeDeadlineSeconds: Invalid value: 61: must be less than or equal to",
        ),
        (
            &limited,
            "spec.activeDeadlineSeconds",
            json!(null),
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive",
        ),
        (
            &pod,
            "spec.containers",
            json!([]),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
        (
            &pod,
            "metadata.name",
            json!("other"),
            "metadata.name: Invalid value: \"other\": field is immutable",
        ),
        (
            &pod,
            "metadata.uid",
            json!("u"),
            "metadata.uid: Invalid value: \"u\": field is immutable",
        ),
        (&deployment, "spec.replicas", json!(5), ""),
        (
            &deployment,
            "spec.selector.matchLabels",
            json!({"app": "web", "x": "y"}),
            "spec.selector: Invalid value: \"app=web,x=y\": field is immutable",
        ),
        (&service, "spec.ports[0].port", json!(81), ""),
        (&service, "spec.clusterIP", json!(""), ""),
        (
            &service,
            "spec.clusterIP",
            json!("10.96.0.8"),
            "spec.clusterIP: Invalid value: \"10.96.0.8\": field is immutable",
        ),
        (
            &sealed,
            "data.a",
            json!("2"),
            "data: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            &sealed,
            "immutable",
            json!(false),
            "immutable: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            &secret,
            "type",
            json!("kubernetes.io/basic-auth"),
            "type: Invalid value: \"kubernetes.io/basic-auth\": field is immutable",
        ),
        (&secret, "data.b", json!("Yg=="), ""),
    ];
    for (old, path, value, expected) in rows {
        let new = with(old, path, value.clone());
        let got = refused(&new, Some(old));
        let fits = if expected.is_empty() {
            got.is_empty()
        } else {
            got.iter().any(|c| c.starts_with(expected))
        };
        assert!(fits, "{path} = {value}: {got:?}");
    }
}

#[test]
fn the_system_owns_status_and_generation() {
    let mut old = admitted(&deployment());
    old["status"] = json!({"replicas": 3});
    control_api::meta::stamp_created(&mut old, "u-1", "2026-01-02T03:04:05Z".parse().unwrap());
    let forged = with(
        &with(&old, "status.replicas", json!(99)),
        "metadata.generation",
        json!(77),
    );
    let same = judge(&forged, Some(&old)).unwrap();
    assert_eq!(same["status"], json!({"replicas": 3}));
    assert_eq!(
        (&same["metadata"]["generation"], &same["metadata"]["uid"]),
        (&json!(1), &json!("u-1"))
    );
    let labelled = judge(
        &with(&old, "metadata.labels", json!({"a": "b"})),
        Some(&old),
    )
    .unwrap();
    assert_eq!(
        labelled["metadata"]["generation"], 1,
        "metadata is not the spec"
    );
    let scaled = judge(&with(&old, "spec.replicas", json!(2)), Some(&old)).unwrap();
    assert_eq!(scaled["metadata"]["generation"], 2);
    let created = admitted(&forged);
    assert_eq!(
        (
            created.pointer("/status/replicas"),
            created.pointer("/metadata/uid")
        ),
        (None, None)
    );

    let kind = find_for(&old).unwrap();
    let (written, _) =
        control_api::admit_status(&with(&forged, "spec.replicas", json!(9)), kind, &old).unwrap();
    assert_eq!(
        (&written["status"]["replicas"], &written["spec"]["replicas"]),
        (&json!(99), &json!(1))
    );
    let bad = with(&old, "status.replica", json!(1));
    assert!(control_api::admit_status(&bad, kind, &old).is_err());
}

#[test]
fn secrets_and_namespaces() {
    let secret = admitted(&json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"},
        "data": {"a": "MQ==", "b": "Mg=="}, "stringData": {"b": "two"}}));
    assert_eq!(
        secret["data"],
        json!({"a": "MQ==", "b": "dHdv"}),
        "stringData wins"
    );
    assert_eq!(
        (secret.get("stringData"), &secret["type"]),
        (None, &json!("Opaque"))
    );
    let rows = [
        (
            "kubernetes.io/tls",
            json!({"tls.crt": ""}),
            "data[tls.key]: Required value",
        ),
        (
            "kubernetes.io/dockerconfigjson",
            json!({}),
            "data[.dockerconfigjson]: Required value",
        ),
        (
            "kubernetes.io/dockerconfigjson",
            json!({".dockerconfigjson": "eA=="}),
            "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\"",
        ),
        (
            "kubernetes.io/basic-auth",
            json!({}),
            "data[username]: Required value",
        ),
        (
            "Opaque",
            json!({"a/b": ""}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key",
        ),
    ];
    for (kind, data, expected) in rows {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "data": data,
            "metadata": {"name": "s", "namespace": "default"}});
        let got = refused(&secret, None);
        assert!(
            got.iter().any(|cause| cause.starts_with(expected)),
            "{kind}: {got:?}"
        );
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let stored = admitted(&namespace);
    assert_eq!(stored["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(stored["status"]["phase"], "Active");
    assert_eq!(
        stored["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "team"
    );
    let again = judge(&namespace, Some(&stored)).unwrap();
    assert_eq!(
        again["spec"]["finalizers"],
        json!(["kubernetes"]),
        "an update does not take it away"
    );
    let inside = with(&namespace, "metadata.namespace", json!("x"));
    assert_eq!(
        refused(&inside, None),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
}

#[test]
fn deletion_is_stamped_once_and_only_shortened() {
    let now = "2026-01-02T03:04:05.5Z".parse().unwrap();
    let mut pod = admitted(&pod());
    control_api::meta::stamp_deleted(&mut pod, 30, now);
    assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-02T03:04:35Z");
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    let before = pod.clone();
    control_api::meta::stamp_deleted(&mut pod, 60, now);
    assert_eq!(pod, before);
    control_api::meta::stamp_deleted(&mut pod, 0, now);
    assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
}
