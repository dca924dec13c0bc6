//! `apply` and `create`: what is sent, what is said, what is left out.

use serde_json::json;

use crate::run::{Bench, Workdir};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: busybox}
spec: {containers: [{name: busybox, image: busybox, command: [sleep, '1000']}]}
";
const CONFIG: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: '1'}
";

#[test]
fn created_unchanged_configured() {
    let bench = Bench::new();
    bench.write("all.yaml", &format!("{POD}---\n{CONFIG}"));
    assert_eq!(
        bench.foil(&["apply", "-f", "all.yaml"]).ok(),
        "pod/busybox created\nconfigmap/settings created\n"
    );
    assert_eq!(
        bench.foil(&["apply", "-f", "all.yaml"]).ok(),
        "pod/busybox unchanged\nconfigmap/settings unchanged\n"
    );
    let changed = CONFIG.replace("'1'", "'2'");
    assert_eq!(
        bench.foil_with(&["apply", "-f", "-"], &changed).ok(),
        "configmap/settings configured\n"
    );
    assert_eq!(
        bench
            .foil(&["get", "cm", "settings", "-o", "jsonpath={.data.a}"])
            .ok(),
        "2"
    );
}

#[test]
fn folders_and_lists() {
    let bench = Bench::new();
    bench.write("m/a.yaml", POD);
    bench.write("m/below/b.yml", CONFIG);
    assert_eq!(
        bench.foil(&["apply", "-f", "m"]).ok(),
        "pod/busybox created\n"
    );
    assert_eq!(
        bench.foil(&["apply", "-R", "-f", "m"]).ok(),
        "pod/busybox unchanged\nconfigmap/settings created\n"
    );
    bench.write(
        "list.json",
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "in-x", "namespace": "x"}}]})
        .to_string(),
    );
    assert_eq!(
        bench.foil(&["apply", "-f", "list.json"]).ok(),
        "namespace/x created\nconfigmap/in-x created\n"
    );
    let error = bench
        .foil(&["apply", "-n", "default", "-f", "list.json"])
        .refused();
    assert!(
        error.contains("ConfigMap/in-x: the namespace of the object (x) does not match"),
        "{error}"
    );
}

#[test]
fn a_document_is_applied_whole_or_not_at_all() {
    let bench = Bench::new();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "good"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Bad Name"}}]});
    bench.write("list.yaml", &format!("{list}\n---\n{POD}"));
    let ended = bench.foil(&["apply", "-f", "list.yaml"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (1, "pod/busybox created\n"),
        "{ended:?}"
    );
    assert!(
        ended.err.starts_with(
            "error: list.yaml: document 1: ConfigMap/Bad Name: metadata.name: Invalid value"
        ),
        "{ended:?}"
    );
    assert!(
        ended
            .err
            .ends_with("error: not applied: list.yaml: document 1; 1 other document was applied\n"),
        "{ended:?}"
    );
    assert_eq!(bench.foil(&["get", "cm", "-o", "name"]).ok(), "");
}

#[test]
fn dry_runs_store_nothing() {
    let bench = Bench::new();
    bench.write("pod.yaml", POD);
    assert_eq!(
        bench
            .foil(&["apply", "-f", "pod.yaml", "--dry-run=server"])
            .ok(),
        "pod/busybox created (server dry run)\n"
    );
    assert_eq!(
        bench
            .foil(&["apply", "-f", "pod.yaml", "--dry-run=client"])
            .ok(),
        "pod/busybox created (dry run)\n"
    );
    let ended = bench.foil(&["get", "pods"]);
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.as_str()),
        (0, "", "No resources found in default namespace.\n")
    );
    bench.write("bad.yaml", &POD.replace("image:", "imagee:"));
    let words = ["apply", "-f", "bad.yaml", "--dry-run=client"];
    assert!(
        bench
            .foil(&words)
            .refused()
            .contains("bad.yaml: document 1: Pod/busybox: spec.containers[0].imagee")
    );
}

#[test]
fn the_client_dry_run_needs_no_control_plane() {
    let bench = Workdir::new();
    bench.write("pod.yaml", POD);
    assert_eq!(
        bench
            .foil(&["apply", "-f", "pod.yaml", "--dry-run=client", "-o", "name"])
            .ok(),
        "pod/busybox\n"
    );
    let words = [
        "create",
        "deployment",
        "web",
        "--image=foil/app:1",
        "--port=8080",
        "--dry-run=client",
        "-o",
        "yaml",
    ];
    let yaml = bench.foil(&words).ok();
    assert!(
        yaml.contains(
            "containers:\n      - image: foil/app:1\n        name: app\n        ports:\n"
        ),
        "{yaml}"
    );
    assert_eq!(
        bench
            .foil_with(&["apply", "-f", "-", "--dry-run=client"], &yaml)
            .ok(),
        "deployment.apps/web created (dry run)\n"
    );
}

#[test]
fn create_refuses_what_is_there() {
    let bench = Bench::new();
    bench.write("pod.yaml", POD);
    assert_eq!(
        bench.foil(&["create", "-f", "pod.yaml"]).ok(),
        "pod/busybox created\n"
    );
    assert_eq!(
        bench.foil(&["create", "-f", "pod.yaml"]).refused(),
        "error: pod.yaml: document 1: Pod/busybox: pods \"busybox\" already exists\n"
    );
    assert_eq!(
        bench.foil(&["create", "ns", "x"]).ok(),
        "namespace/x created\n"
    );
    assert_eq!(
        bench.foil(&["create", "ns", "x"]).refused(),
        "Error from server (AlreadyExists): namespaces \"x\" already exists\n"
    );
    bench.write("app.conf", "listen = 80\n");
    let words = [
        "create",
        "cm",
        "c",
        "--from-literal=a=b=c",
        "--from-file=app.conf",
        "-o",
        "jsonpath={.data}",
    ];
    assert_eq!(
        bench.foil(&words).ok(),
        "{\"a\":\"b=c\",\"app.conf\":\"listen = 80\\n\"}"
    );
    let words = [
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=a=b",
        "-o",
        "jsonpath={.data.a}",
    ];
    assert_eq!(bench.foil(&words).ok(), "Yg==");
}

#[test]
fn labels_annotations_and_patches() {
    let bench = Bench::new();
    bench.write("pod.yaml", POD);
    bench.foil(&["apply", "-f", "pod.yaml"]).ok();
    assert_eq!(
        bench.foil(&["label", "po/busybox", "tier=a"]).ok(),
        "pod/busybox labeled\n"
    );
    assert_eq!(
        bench.foil(&["label", "po/busybox", "tier=b"]).refused(),
        "error: 'tier' already has a value (a), and --overwrite is false\n"
    );
    assert_eq!(
        bench.foil(&["label", "pods", "-l", "tier=a", "tier-"]).ok(),
        "pod/busybox unlabeled\n"
    );
    assert_eq!(
        bench.foil(&["annotate", "pod", "busybox", "note=x y"]).ok(),
        "pod/busybox annotated\n"
    );
    assert_eq!(
        bench
            .foil(&[
                "patch",
                "pod",
                "busybox",
                "-p",
                "metadata: {labels: {p: q}}"
            ])
            .ok(),
        "pod/busybox patched\n"
    );
    let words = [
        "get",
        "pod",
        "busybox",
        "-o",
        "jsonpath={.metadata.labels}{.metadata.annotations}",
    ];
    assert_eq!(bench.foil(&words).ok(), "{\"p\":\"q\"}{\"note\":\"x y\"}");
}

/// As kubectl: lists whose items have names are merged, unless another type is asked for.
#[test]
fn a_patch_of_an_image_leaves_the_rest_of_the_container() {
    let bench = Bench::new();
    bench.write("pod.yaml", POD);
    bench.foil(&["apply", "-f", "pod.yaml"]).ok();
    let web = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: \
               {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: \
               [{name: web, image: \"web:1\", ports: [{containerPort: 80}]}]}}}}";
    bench.foil_with(&["apply", "-f", "-"], web).ok();
    let patch = "spec: {template: {spec: {containers: [{name: web, image: \"web:2\"}]}}}";
    bench.foil(&["patch", "deploy", "web", "-p", patch]).ok();
    let path = "jsonpath={.spec.template.spec.containers[0].image} \
                {.spec.template.spec.containers[0].ports[0].containerPort}";
    let container = || bench.foil(&["get", "deploy", "web", "-o", path]).ok();
    assert_eq!(container(), "web:2 80");
    let merge = |patch| bench.foil(&["patch", "deploy", "web", "--type=merge", "-p", patch]);
    merge(patch).ok();
    assert_eq!(container(), "web:2 ");
    let patch = "spec: {containers: [{name: busybox, image: \"busybox:2\"}]}";
    assert_eq!(
        bench.foil(&["patch", "pod", "busybox", "-p", patch]).ok(),
        "pod/busybox patched\n"
    );
    let nameless = "spec: {template: {spec: {containers: [{image: \"web:3\"}]}}}";
    let error = bench
        .foil(&["patch", "deploy", "web", "-p", nameless])
        .refused();
    assert!(error.contains("has no \"name\""), "{error}");
    let other = bench.foil(&["patch", "deploy", "web", "--type=yaml", "-p", "[]"]);
    assert_eq!(other.code, 2, "{other:?}");
    assert!(other.err.contains("strategic, merge, json"), "{other:?}");
}

/// As kubectl's `--type=json`.
#[test]
fn a_json_patch_is_applied_as_a_whole_or_not() {
    let bench = Bench::new();
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: \"1\", b: \"2\"}}";
    bench.foil_with(&["apply", "-f", "-"], map).ok();
    let patch = |patch| bench.foil(&["patch", "cm", "m", "--type=json", "-p", patch]);
    let data = || {
        bench
            .foil(&["get", "cm", "m", "-o", "jsonpath={.data}"])
            .ok()
    };
    let moved = "[{op: test, path: /data/a, value: \"1\"}, {op: remove, path: /data/b}, \
                 {op: move, from: /data/a, path: /data/c}]";
    assert_eq!(patch(moved).ok(), "configmap/m patched\n");
    assert_eq!(data(), "{\"c\":\"1\"}");
    assert_eq!(patch("[]").ok(), "configmap/m patched (no change)\n");
    let half = "[{op: add, path: /data/d, value: x}, {op: test, path: /data/c, value: \"2\"}]";
    let error = patch(half).refused();
    assert!(error.contains("operation 1 at \"/data/c\""), "{error}");
    assert_eq!(data(), "{\"c\":\"1\"}");
    for (wrong, reason) in [
        ("{data: {c: x}}", "not a JSON patch"),
        (
            "[{op: replace, path: /metadata/name, value: n}]",
            "metadata.name",
        ),
        ("[{op: replace, path: \"\", value: 1}]", "object"),
    ] {
        let error = patch(wrong).refused();
        assert!(error.contains(reason), "{wrong}: {error}");
    }
    assert_eq!(data(), "{\"c\":\"1\"}");
}
