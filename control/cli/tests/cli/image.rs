//! `image`: a layout goes in, is listed under its names, and goes out again.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::run::Workdir;

/// Puts a document where a layout has it; gives its descriptor.
fn blob(layout: &Path, media_type: &str, document: &Value) -> Value {
    let bytes = document.to_string();
    let digest = hex::encode(Sha256::digest(&bytes));
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256").join(&digest), &bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

/// An image without a layer.
fn layout(at: &Path, name: Option<&str>) {
    let oci = |what: &str| format!("application/vnd.oci.image.{what}.v1+json");
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": {"type": "layers", "diff_ids": []}});
    let config = blob(at, &oci("config"), &config);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": oci("manifest"), "config": config, "layers": []});
    let mut manifest = blob(at, &oci("manifest"), &manifest);
    if let Some(name) = name {
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
    std::fs::write(at.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
}

#[test]
fn import_list_remove() {
    let bench = Workdir::new();
    layout(
        &bench.folder.path().join("image"),
        Some("example.com/a/b:1"),
    );
    layout(&bench.folder.path().join("nameless"), None);
    // Neither a context nor an agent is needed.
    let image = |words: &[&str]| bench.foil(&[&["image", "--root", "store"], words].concat());
    assert!(
        image(&["list"])
            .refused()
            .contains("there is no image store")
    );
    // Nor is one made in a folder that no agent uses.
    assert!(
        image(&["import", "image"])
            .refused()
            .contains("there is no image store")
    );
    assert!(!bench.folder.path().join("store").exists());
    std::fs::create_dir_all(bench.folder.path().join("store/images")).unwrap();
    assert_eq!(
        image(&["import", "image"]).ok(),
        "image imported as example.com/a/b:1\n"
    );
    assert_eq!(
        image(&["import", "image", "--name", "busybox"]).ok(),
        "image imported as docker.io/library/busybox:latest, example.com/a/b:1\n"
    );
    let listed: Value = serde_json::from_str(&image(&["list", "-o", "json"]).ok()).unwrap();
    assert_eq!(
        listed[0]["references"],
        json!(["docker.io/library/busybox:latest", "example.com/a/b:1"])
    );
    assert_eq!(
        image(&["rm", "busybox"]).ok(),
        "docker.io/library/busybox:latest removed\n"
    );
    assert_eq!(
        image(&["remove", "busybox"]).refused(),
        "error: image docker.io/library/busybox:latest not found\n"
    );
    let rows = image(&["list", "--no-headers"]).ok();
    assert!(
        rows.starts_with("example.com/a/b   1") && rows.lines().count() == 1,
        "{rows}"
    );
    let nameless = image(&["import", "nameless"]).refused();
    assert!(
        nameless.contains("has no name: give one with --name"),
        "{nameless}"
    );
    assert!(
        image(&["import", "config"])
            .refused()
            .contains("neither an OCI layout nor a docker archive")
    );
}
