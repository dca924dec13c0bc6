//! Admission by rows: what is refused, with which field and words, what is
//! filled in, what may change.

use control_api::{Invalid, admit, find_for, kinds};
use serde_json::{Value, json};

fn judge(object: &Value, old: Option<&Value>) -> Result<Value, Invalid> {
    let kind = find_for(object)?;
    admit(object, kind, old).map(|(value, _)| value)
}

fn admitted(object: &Value) -> Value {
    judge(object, None).unwrap_or_else(|error| panic!("{error}"))
}

/// "field: message" of each cause.
fn refused(object: &Value, old: Option<&Value>) -> Vec<String> {
    match judge(object, old) {
        Ok(_) => Vec::new(),
        Err(invalid) => invalid.causes.iter().map(ToString::to_string).collect(),
    }
}

/// Sets `path` ("spec.containers[0].image") to a value; null removes it.
fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no parent of {path}"));
    if let Value::Array(items) = parent {
        items[name.parse::<usize>().unwrap()] = value;
    } else if value.is_null() {
        parent.as_object_mut().unwrap().shift_remove(name);
    } else {
        parent[name] = value;
    }
    object
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "containers": [{
                "name": "main", "image": "nginx:1.27",
                "ports": [{"name": "http", "containerPort": 80}],
                "env": [{"name": "A", "value": "1"}],
                "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "readinessProbe": {"httpGet": {"port": "http"}},
                "securityContext": {},
                "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
            }],
            "volumes": [{"name": "data", "configMap": {"name": "settings"}}],
            "securityContext": {},
        },
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "main", "image": "nginx",
                    "resources": {"limits": {"cpu": "1"}},
                }]},
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

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
    for object in [pod(), deployment(), service()] {
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
fn refuses_by_field_and_in_kubernetes_words() {
    let c = "spec.containers[0]";
    let rows: Vec<(Value, String, Value, String)> = vec![
        (pod(), "metadata.name".into(), json!("Web_1"), "metadata.name: Invalid value: \"Web_1\": a lowercase RFC 1123 subdomain must consist of".into()),
        (pod(), "metadata.name".into(), json!(null), "metadata.name: Required value: name or generateName is required".into()),
        (pod(), "metadata.labels.app".into(), json!("a b"), "metadata.labels[app]: Invalid value: \"a b\": a valid label must be".into()),
        (pod(), "spec".into(), json!(null), "spec.containers: Required value".into()),
        (pod(), "spec.containers".into(), json!([]), "spec.containers: Required value".into()),
        (pod(), format!("{c}.name"), json!("a.b"), format!("{c}.name: Invalid value: \"a.b\": a lowercase RFC 1123 label")),
        (pod(), format!("{c}.image"), json!(null), format!("{c}.image: Required value")),
        (pod(), format!("{c}.imagePullPolicy"), json!("Sometimes"), format!("{c}.imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"")),
        (pod(), format!("{c}.ports[0].containerPort"), json!(70000), format!("{c}.ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive")),
        (pod(), format!("{c}.ports[0].containerPort"), json!(null), format!("{c}.ports[0].containerPort: Required value")),
        (pod(), format!("{c}.ports[0].protocol"), json!("tcp"), format!("{c}.ports[0].protocol: Unsupported value: \"tcp\"")),
        (pod(), format!("{c}.ports[0].name"), json!("a-name-that-is-long"), format!("{c}.ports[0].name: Invalid value: \"a-name-that-is-long\": must be no more than 15 characters")),
        (pod(), format!("{c}.env[0].name"), json!("A=B"), format!("{c}.env[0].name: Invalid value: \"A=B\": a valid environment variable name")),
        (pod(), format!("{c}.env[0].valueFrom"), json!({"fieldRef": {"fieldPath": "metadata.name"}}), format!("{c}.env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty")),
        (pod(), format!("{c}.env[0]"), json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}), format!("{c}.env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.foo\"")),
        (pod(), format!("{c}.env[0]"), json!({"name": "A", "valueFrom": {}}), format!("{c}.env[0].valueFrom: Invalid value: \"\": must specify one of")),
        (pod(), format!("{c}.resources.requests.cpu"), json!("300m"), format!("{c}.resources.requests: Invalid value: \"300m\": must be less than or equal to cpu limit of 200m")),
        (pod(), format!("{c}.resources.limits.cpu"), json!("lots"), format!("{c}.resources.limits[cpu]: Invalid value: \"lots\": quantities must match the regular expression")),
        (pod(), format!("{c}.resources.limits.cpu"), json!("-1"), format!("{c}.resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0")),
        (pod(), format!("{c}.volumeMounts[0].name"), json!("nope"), format!("{c}.volumeMounts[0].name: Not found: \"nope\"")),
        (pod(), format!("{c}.volumeMounts[0].mountPath"), json!(""), format!("{c}.volumeMounts[0].mountPath: Required value")),
        (pod(), format!("{c}.volumeMounts[0].subPath"), json!("../x"), format!("{c}.volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'")),
        (pod(), format!("{c}.readinessProbe"), json!({}), format!("{c}.readinessProbe: Required value: must specify a handler type")),
        (pod(), format!("{c}.readinessProbe.httpGet.port"), json!("nope"), format!("{c}.readinessProbe.httpGet.port: Invalid value: \"nope\": the container has no port of this name")),
        (pod(), format!("{c}.readinessProbe.periodSeconds"), json!(-1), format!("{c}.readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0")),
        (pod(), format!("{c}.restartPolicy"), json!("Always"), format!("{c}.restartPolicy: Forbidden: may not be set for non-init containers")),
        (pod(), format!("{c}.securityContext.runAsUser"), json!(-5), format!("{c}.securityContext.runAsUser: Invalid value: -5: must be between")),
        (pod(), "spec.restartPolicy".into(), json!("Maybe"), "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"".into()),
        (pod(), "spec.dnsPolicy".into(), json!("None"), "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver".into()),
        (pod(), "spec.volumes[0].emptyDir".into(), json!({}), "spec.volumes[0]: Forbidden: may not specify more than 1 volume type".into()),
        (pod(), "spec.volumes[0].configMap.name".into(), json!(""), "spec.volumes[0].configMap.name: Required value".into()),
        (pod(), "spec.volumes[0].configMap.defaultMode".into(), json!(4096), "spec.volumes[0].configMap.defaultMode: Invalid value: 4096: must be a number between 0 and 0777".into()),
        (pod(), "spec.terminationGracePeriodSeconds".into(), json!(-2), "spec.terminationGracePeriodSeconds: Invalid value: -2".into()),
        (deployment(), "spec.selector.matchLabels.app".into(), json!("other"), "spec.template.metadata.labels: Invalid value: {\"app\": \"web\"}: `selector` does not match template `labels`".into()),
        (deployment(), "spec.selector".into(), json!({}), "spec.selector: Required value: empty selector is invalid for a workload".into()),
        (deployment(), "spec.selector.matchExpressions".into(), json!([{"key": "a", "operator": "In"}]), "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'".into()),
        (deployment(), "spec.replicas".into(), json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0".into()),
        (deployment(), "spec.strategy".into(), json!({"type": "Blue"}), "spec.strategy.type: Unsupported value: \"Blue\"".into()),
        (deployment(), "spec.strategy".into(), json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}), "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0".into()),
        (deployment(), "spec.strategy".into(), json!({"rollingUpdate": {"maxSurge": "many"}}), "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"many\": a valid percent string".into()),
        (deployment(), "spec.template.spec.restartPolicy".into(), json!("Never"), "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"".into()),
        (deployment(), "spec.template.spec".into(), json!(null), "spec.template.spec: Required value".into()),
        (deployment(), "spec.template.spec.containers[0].image".into(), json!(""), "spec.template.spec.containers[0].image: Required value".into()),
        (deployment(), "spec.minReadySeconds".into(), json!(600), "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds".into()),
        (service(), "metadata.name".into(), json!("1web"), "metadata.name: Invalid value: \"1web\": a DNS-1035 label must consist of".into()),
        (service(), "spec.ports".into(), json!([]), "spec.ports: Required value".into()),
        (service(), "spec.ports".into(), json!([{"port": 1}, {"port": 2}]), "spec.ports[0].name: Required value".into()),
        (service(), "spec.ports".into(), json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]), "spec.ports[1].name: Duplicate value: \"a\"".into()),
        (service(), "spec.ports".into(), json!([{"name": "a", "port": 1}, {"name": "b", "port": 1}]), "spec.ports[1]: Duplicate value: \"1/TCP\"".into()),
        (service(), "spec.ports[0].port".into(), json!(0), "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive".into()),
        (service(), "spec.ports[0].targetPort".into(), json!("Bad_Name"), "spec.ports[0].targetPort: Invalid value: \"Bad_Name\": must contain only".into()),
        (service(), "spec.clusterIP".into(), json!("10.0.0"), "spec.clusterIP: Invalid value: \"10.0.0\": must be empty, 'None', or a valid IP address".into()),
    ];
    for (object, path, value, expected) in rows {
        let got = refused(&with(&object, &path, value.clone()), None);
        assert!(
            got.iter().any(|cause| cause.starts_with(&expected)),
            "{path} = {value}:\n  {got:?}\n  {expected}"
        );
    }
}

#[test]
fn refuses_duplicates() {
    let pod = pod();
    let container = pod["spec"]["containers"][0].clone();
    let twice = with(&pod, "spec.containers", json!([container, container]));
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[1].name: Duplicate value: \"main\""]
    );
    let init = with(
        &pod,
        "spec.initContainers",
        json!([{"name": "main", "image": "x"}]),
    );
    assert_eq!(
        refused(&init, None),
        ["spec.initContainers[0].name: Duplicate value: \"main\""]
    );
    let volume = pod["spec"]["volumes"][0].clone();
    let twice = with(&pod, "spec.volumes", json!([volume, volume]));
    assert_eq!(
        refused(&twice, None),
        ["spec.volumes[1].name: Duplicate value: \"data\""]
    );
    let ports =
        json!([{"name": "http", "containerPort": 80}, {"name": "http", "containerPort": 81}]);
    let twice = with(&pod, "spec.containers[0].ports", ports);
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[0].ports[1].name: Duplicate value: \"http\""]
    );
    let mount = pod["spec"]["containers"][0]["volumeMounts"][0].clone();
    let twice = with(
        &pod,
        "spec.containers[0].volumeMounts",
        json!([mount, mount]),
    );
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/data\": must be unique"]
    );
    // Kubernetes takes a variable twice, and says that the later one wins.
    let twice = with(
        &pod,
        "spec.containers[0].env",
        json!([{"name": "A"}, {"name": "A"}]),
    );
    let (_, warnings) = admit(&twice, find_for(&twice).unwrap(), None).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].field, "spec.containers[0].env[1]");
}

#[test]
fn decodes_strictly() {
    let rows = [
        (
            "spec.containers[0].imagee",
            json!("x"),
            "spec.containers[0].imagee: unknown field (did you mean \"image\"?), expected one of args, command, env",
        ),
        (
            "replicas",
            json!(3),
            "replicas: unknown field, expected one of apiVersion, kind, metadata, spec, status",
        ),
        (
            "metadata.label",
            json!({}),
            "metadata.label: unknown field (did you mean \"labels\"?)",
        ),
        (
            "spec.containers[0].ports[0].containerPort",
            json!("80"),
            "spec.containers[0].ports[0].containerPort: expected an integer, got string \"80\"",
        ),
        (
            "spec.containers[0].ports[0].containerPort",
            json!(99_999_999_999_i64),
            "spec.containers[0].ports[0].containerPort: invalid value: integer `99999999999`, expected i32",
        ),
        (
            "spec.containers[0].env[0].value",
            json!(1),
            "spec.containers[0].env[0].value: expected a string, got number 1",
        ),
        (
            "spec.hostNetwork",
            json!("yes"),
            "spec.hostNetwork: expected a boolean, got string \"yes\"",
        ),
        (
            "spec.containers",
            json!({}),
            "spec.containers: expected a list, got an object",
        ),
        (
            "spec.volumes[0]",
            json!([]),
            "spec.volumes[0]: expected an object, got a list",
        ),
        (
            "metadata.labels",
            json!({"a": 1}),
            "metadata.labels[a]: expected a string, got number 1",
        ),
        (
            "spec.containers[0].resources.limits",
            json!({"cpu": {}}),
            "spec.containers[0].resources.limits[cpu]: ",
        ),
        (
            "metadata.creationTimestamp",
            json!("yesterday"),
            "metadata.creationTimestamp: ",
        ),
    ];
    for (path, value, expected) in rows {
        let got = refused(&with(&pod(), path, value), None);
        assert!(
            got.iter().any(|cause| cause.starts_with(expected)),
            "{path}: {got:?}"
        );
    }
    let several = with(&with(&pod(), "a", json!(1)), "spec.b", json!(2));
    assert_eq!(
        refused(&several, None).len(),
        2,
        "all unknown fields are named at once"
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "not base64!"}});
    assert!(refused(&secret, None)[0].starts_with("data[a]: "));
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
fn names_kinds_that_there_are_not() {
    let rows = [
        (
            json!({"apiVersion": "batch/v1", "kind": "Job"}),
            "kind: batch/v1 Job is not supported by Hydrofoil yet",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Deployment"}),
            "apiVersion: Unsupported value: \"v1\": supported values: \"apps/v1\"",
        ),
        (json!({"kind": "Pod"}), "apiVersion: Required value"),
        (json!({"apiVersion": "v1"}), "kind: Required value"),
        (json!([]), "must be an object"),
    ];
    for (object, expected) in rows {
        let error = find_for(&object).unwrap_err();
        assert_eq!(error.causes[0].to_string(), expected, "{object}");
    }
}

#[test]
fn finds_kinds_by_the_words_of_people() {
    let rows = [
        ("po", Some("Pod")),
        ("pods", Some("Pod")),
        ("Pod", Some("Pod")),
        ("deploy", Some("Deployment")),
        ("deployments.apps", Some("Deployment")),
        ("deployments.v1.apps", Some("Deployment")),
        ("deployments.batch", None),
        ("svc", Some("Service")),
        ("endpointslice", Some("EndpointSlice")),
        ("ns", Some("Namespace")),
        ("rs", Some("ReplicaSet")),
        ("cm", Some("ConfigMap")),
        ("jobs", None),
    ];
    for (word, expected) in rows {
        assert_eq!(
            control_api::by_word(word).map(|kind| kind.kind),
            expected,
            "{word}"
        );
    }
}

#[test]
fn kinds_have_words_and_keys_of_their_own() {
    let mut words: Vec<&str> = Vec::new();
    let mut prefixes = Vec::new();
    for kind in kinds() {
        words.extend([kind.plural, kind.singular]);
        words.extend(kind.short_names);
        prefixes.push(kind.prefix(None));
        assert!(kind.key("ns", "x").starts_with(&kind.prefix(Some("ns"))));
    }
    let count = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), count);
    prefixes.sort();
    prefixes.dedup();
    assert_eq!(prefixes.len(), kinds().len());
}

#[test]
fn immutable_fields_stay() {
    let pod = admitted(&pod());
    let bound = with(&pod, "spec.nodeName", json!("n1"));
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
        let mut new = with(old, path, value.clone());
        if path == "spec.clusterIP" && value == "" {
            new = with(&new, "spec.clusterIPs", json!(null));
        }
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
fn requests_of_a_pod() {
    let container = |cpu: &str, memory: &str, policy: Option<&str>| json!({"name": "x", "resources": {"requests": {"cpu": cpu, "memory": memory}}, "restartPolicy": policy});
    let rows = [
        (
            json!([container("100m", "1Ki", None), container("1", "1Ki", None)]),
            json!([]),
            (1100, 2048),
        ),
        // A plain init container runs alone, before the others.
        (
            json!([container("100m", "1Ki", None)]),
            json!([container("1", "1", None)]),
            (1000, 1024),
        ),
        // A sidecar runs beside all that come after it.
        (
            json!([container("100m", "1", None)]),
            json!([container("200m", "2", Some("Always"))]),
            (300, 3),
        ),
        (
            json!([container("100m", "1", None)]),
            json!([
                container("1", "0", None),
                container("200m", "2", Some("Always")),
                container("900m", "0", None)
            ]),
            (1100, 3),
        ),
        (
            json!([{"name": "x", "resources": {"limits": {"cpu": "2"}}}]),
            json!([]),
            (2000, 0),
        ),
        (json!([{"name": "x"}]), json!(null), (0, 0)),
    ];
    for (containers, init, expected) in rows {
        let spec = json!({"containers": containers, "initContainers": init});
        let spec = serde_json::from_value(spec.clone()).unwrap();
        let got = control_api::podspec::requests(&spec);
        assert_eq!(
            (got.cpu_millis, got.memory_bytes),
            expected,
            "{containers} {init}"
        );
    }
}
