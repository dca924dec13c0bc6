//! What is taken as it is, and what is filled in.

use serde_json::json;

use crate::manifest::{admitted, deployment, judge, node, pod, refused, service, with};

#[test]
fn pods_as_found_in_the_wild_are_taken() {
    let rows = [
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "busybox", "namespace": "default", "labels": {"app": "busybox"}},
            "spec": {"containers": [{"name": "busybox", "image": "busybox",
                "ports": [{"containerPort": 80}], "command": ["/bin/sh", "-ec", "sleep 1000"]}]}}),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "ubuntu", "namespace": "default"},
            "spec": {"containers": [{"name": "ubuntu", "image": "ubuntu:latest",
                "command": ["sleep"], "args": ["infinity"]}]}}),
        pod(),
        deployment(),
        service(),
        node(),
    ];
    for object in rows {
        assert_eq!(refused(&object, None), Vec::<String>::new(), "{object}");
    }
}

#[test]
fn fills_in_what_kubernetes_fills_in() {
    let pod = admitted(&pod());
    let rows = [
        ("/spec/restartPolicy", json!("Always")),
        ("/spec/dnsPolicy", json!("ClusterFirst")),
        ("/spec/schedulerName", json!("default-scheduler")),
        ("/spec/terminationGracePeriodSeconds", json!(30)),
        ("/spec/enableServiceLinks", json!(true)),
        ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
        (
            "/spec/containers/0/terminationMessagePath",
            json!("/dev/termination-log"),
        ),
        ("/spec/containers/0/terminationMessagePolicy", json!("File")),
        ("/spec/containers/0/ports/0/protocol", json!("TCP")),
        (
            "/spec/containers/0/resources/requests/memory",
            json!("64Mi"),
        ),
        ("/spec/containers/0/resources/requests/cpu", json!("100m")),
        ("/spec/containers/0/readinessProbe/periodSeconds", json!(10)),
        (
            "/spec/containers/0/readinessProbe/failureThreshold",
            json!(3),
        ),
        ("/spec/containers/0/readinessProbe/timeoutSeconds", json!(1)),
        ("/spec/containers/0/readinessProbe/httpGet/path", json!("/")),
        (
            "/spec/containers/0/readinessProbe/httpGet/scheme",
            json!("HTTP"),
        ),
        ("/spec/volumes/0/configMap/defaultMode", json!(0o644)),
        ("/status/phase", json!("Pending")),
        ("/status/qosClass", json!("Burstable")),
        ("/metadata/generation", json!(1)),
    ];
    for (path, expected) in rows {
        assert_eq!(pod.pointer(path), Some(&expected), "{path}");
    }
    let deployment = admitted(&deployment());
    let rows = [
        ("/spec/replicas", json!(1)),
        ("/spec/revisionHistoryLimit", json!(10)),
        ("/spec/progressDeadlineSeconds", json!(600)),
        ("/spec/strategy/type", json!("RollingUpdate")),
        ("/spec/strategy/rollingUpdate/maxSurge", json!("25%")),
        ("/spec/strategy/rollingUpdate/maxUnavailable", json!("25%")),
        (
            "/spec/template/spec/containers/0/imagePullPolicy",
            json!("Always"),
        ),
    ];
    for (path, expected) in rows {
        assert_eq!(deployment.pointer(path), Some(&expected), "{path}");
    }
    let requests = deployment.pointer("/spec/template/spec/containers/0/resources/requests");
    assert_eq!(requests, None, "a template keeps its limits to itself");
    let service = admitted(&service());
    let rows = [
        ("/spec/type", json!("ClusterIP")),
        ("/spec/sessionAffinity", json!("None")),
        ("/spec/ports/0/protocol", json!("TCP")),
        ("/spec/ports/0/targetPort", json!("http")),
    ];
    for (path, expected) in rows {
        assert_eq!(service.pointer(path), Some(&expected), "{path}");
    }
}

#[test]
fn defaults_are_idempotent() {
    for object in [pod(), deployment(), service(), node()] {
        let once = admitted(&object);
        let twice = judge(&once, Some(&once)).unwrap();
        assert_eq!(once, twice);
        assert!(control_api::equality::unchanged(&twice, &once));
    }
}

#[test]
fn pull_policy_follows_the_tag() {
    let rows = [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
    ];
    for (image, expected) in rows {
        let pod = admitted(&with(&pod(), "spec.containers[0].image", json!(image)));
        assert_eq!(
            pod["spec"]["containers"][0]["imagePullPolicy"], expected,
            "{image}"
        );
    }
}

#[test]
fn numbers_are_quantities_too() {
    let pod = admitted(&with(
        &pod(),
        "spec.containers[0].resources.limits.cpu",
        json!("0.5"),
    ));
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "500m"
    );
    let pod = with(&pod, "spec.containers[0].resources.limits.cpu", json!(2));
    assert_eq!(
        admitted(&pod)["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "2"
    );
}

#[test]
fn generated_names_are_names() {
    for (prefix, random) in [
        ("web-", 0),
        ("web-7d9f8b6c5-", u64::MAX),
        ("x".repeat(80).as_str(), 7),
    ] {
        let name = control_api::meta::generated_name(prefix, random);
        let pod = with(&pod(), "metadata.name", json!(name));
        assert_eq!(refused(&pod, None), Vec::<String>::new(), "{name}");
        assert!(name.len() <= 63);
    }
    assert_ne!(
        control_api::meta::generated_name("a-", 1),
        control_api::meta::generated_name("a-", 2)
    );
}

#[test]
fn qos_classes() {
    let rows = [
        (json!({}), "BestEffort"),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
            "Guaranteed",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
            "Guaranteed",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
            "Burstable",
        ),
        (json!({"limits": {"cpu": "1"}}), "Burstable"),
        (json!({"requests": {"memory": "1"}}), "Burstable"),
        (json!({"requests": {"cpu": "0"}}), "BestEffort"),
    ];
    for (resources, expected) in rows {
        let pod = admitted(&with(
            &pod(),
            "spec.containers[0].resources",
            resources.clone(),
        ));
        assert_eq!(pod["status"]["qosClass"], expected, "{resources}");
    }
}

#[test]
fn only_pods_on_nodes_have_a_grace_period() {
    let pods = control_api::by_word("pods").unwrap();
    let rows = [
        (json!({}), None, 0),
        (json!({"spec": {"nodeName": "n"}}), None, 30),
        (json!({"spec": {"nodeName": "n"}}), Some(5), 5),
        (json!({"spec": {"nodeName": "n"}}), Some(0), 0),
        (json!({"spec": {"nodeName": "n"}}), Some(-1), 0),
        (
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}}),
            None,
            7,
        ),
        (
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}),
            Some(9),
            0,
        ),
    ];
    for (fields, asked, expected) in rows {
        let mut stored = admitted(&pod());
        control_api::patch::merge(&mut stored, &fields);
        assert_eq!((pods.grace_seconds)(&stored, asked), expected, "{fields}");
    }
    let services = control_api::by_word("services").unwrap();
    assert_eq!((services.grace_seconds)(&admitted(&service()), Some(9)), 0);
}
