//! Volumes, resolved to files.

use proto::v1::volume::Source;
use serde_json::{Value, json};

use crate::world::convert;

/// path, contents, mode; or the error.
fn files(volume: Value) -> (Vec<(String, String, u32)>, bool, String) {
    let mut volume = volume;
    volume["name"] = json!("v");
    let spec = convert(json!({"volumes": [volume], "containers": [
        {"name": "main", "resources": {"limits": {"memory": "64Mi"}}}]}));
    let Some(Source::Files(files)) = spec.volumes[0].source.clone() else {
        panic!("no files: {:?}", spec.volumes)
    };
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    let list = files
        .files
        .iter()
        .map(|f| (f.path.clone(), text(&f.data), f.mode))
        .collect();
    (list, files.tmpfs, files.error)
}

#[test]
fn resolves_volumes_to_files() {
    let file = |path: &str, data: &str, mode: u32| (path.to_owned(), data.to_owned(), mode);
    let item = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let memory = json!({"path": "m", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}});
    let rows = [
        (
            json!({"configMap": {"name": "settings", "defaultMode": 0o644}}),
            false,
            "",
            vec![
                file("color", "blue", 0o644),
                file("raw", "\0\u{1}", 0o644),
                file("size", "9", 0o644),
            ],
        ),
        (
            json!({"configMap": {"name": "settings", "defaultMode": 0o400, "items": [
                {"key": "color", "path": "a/b"}, {"key": "size", "path": "s", "mode": 0o755}]}}),
            false,
            "",
            vec![file("a/b", "blue", 0o400), file("s", "9", 0o755)],
        ),
        (
            json!({"configMap": {"name": "none"}}),
            false,
            "configmap \"none\" not found",
            vec![],
        ),
        (
            json!({"configMap": {"name": "none", "optional": true}}),
            false,
            "",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "items": [{"key": "k", "path": "p"}]}}),
            false,
            "references non-existent config key: k",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "optional": true, "items": [{"key": "k", "path": "p"}]}}),
            false,
            "",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "items": [{"key": "color", "path": "../p"}]}}),
            false,
            "path \"../p\" must be relative and must not contain '..'",
            vec![],
        ),
        (
            json!({"secret": {"secretName": "keys"}}),
            true,
            "",
            vec![file("password", "s3cret", 0o644)],
        ),
        (
            json!({"secret": {"secretName": "none"}}),
            true,
            "secret \"none\" not found",
            vec![],
        ),
        (
            json!({"secret": {"secretName": "keys", "items": [{"key": "k", "path": "p"}]}}),
            true,
            "references non-existent secret key: k",
            vec![],
        ),
        (
            json!({"downwardAPI": {"items": [item("l", "metadata.labels"), item("n", "metadata.annotations"), memory]}}),
            true,
            "",
            vec![
                file("l", "app=\"web\"\ntier=\"a\"", 0o644),
                file("n", "note=\"say \\\"hi\\\"\\n\"", 0o644),
                file("m", "64", 0o644),
            ],
        ),
        (
            json!({"projected": {"defaultMode": 0o440, "sources": [
                {"configMap": {"name": "settings", "items": [{"key": "color", "path": "c"}]}},
                {"secret": {"name": "keys"}},
                {"configMap": {"name": "more", "items": [{"key": "color", "path": "c"}]}},
                {"downwardAPI": {"items": [item("name", "metadata.name")]}}]}}),
            true,
            "",
            vec![
                file("c", "red", 0o440),
                file("name", "web-0", 0o440),
                file("password", "s3cret", 0o440),
            ],
        ),
        (
            json!({"projected": {"sources": [{"secret": {"name": "none"}}]}}),
            true,
            "secret \"none\" not found",
            vec![],
        ),
        (
            json!({"persistentVolumeClaim": {"claimName": "x"}}),
            false,
            "the volume's source is not supported by Hydrofoil yet",
            vec![],
        ),
    ];
    for (volume, tmpfs, error, expected) in rows {
        assert_eq!(
            files(volume.clone()),
            (expected, tmpfs, error.to_owned()),
            "{volume}"
        );
    }
}

#[test]
fn passes_node_volumes_on() {
    let spec = convert(json!({"containers": [], "volumes": [
        {"name": "a", "emptyDir": {}},
        {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "c", "hostPath": {"path": "/srv", "type": "Directory"}}]}));
    let [a, b, c] = spec.volumes.as_slice() else {
        panic!("{:?}", spec.volumes)
    };
    assert!(
        matches!(&a.source, Some(Source::EmptyDir(dir)) if !dir.memory && dir.size_limit_bytes == 0)
    );
    assert!(
        matches!(&b.source, Some(Source::EmptyDir(dir)) if dir.memory && dir.size_limit_bytes == 1 << 20)
    );
    assert!(
        matches!(&c.source, Some(Source::HostPath(host)) if host.path == "/srv" && host.r#type == "Directory")
    );
}
