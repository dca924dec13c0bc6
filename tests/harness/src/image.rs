//! The tests' images: OCI layouts built from Debian's busybox-static and from `app`, and pushed
//! by skopeo into the registry.
//!
//! Not the agent's image store, which is what these images test. Called by the demo, the
//! cluster tests and the benchmark.

use crate::{NetNs, process};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// What one image is made of.
struct Image {
    /// "library/busybox:latest"
    name: &'static str,
    /// With `app` in a second layer.
    app: bool,
    /// Variables of the image.
    env: &'static [&'static str],
    /// Default command.
    command: &'static [&'static str],
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const IMAGES: [Image; 4] = [
    Image {
        name: "library/busybox:latest",
        app: false,
        env: &[PATH],
        command: &["sh"],
    },
    Image {
        name: "library/ubuntu:latest",
        app: false,
        env: &[PATH],
        command: &["/bin/sh"],
    },
    Image {
        name: "foil/app:1",
        app: true,
        env: &[PATH, "APP_VERSION=1"],
        command: &["app", "serve"],
    },
    Image {
        name: "foil/app:2",
        app: true,
        env: &[PATH, "APP_VERSION=2"],
        command: &["app", "serve"],
    },
];

/// Builds and pushes all images; `work` gets a folder for the layouts. Gives
/// "172.31.0.1:5000/library/busybox:latest" and so on.
///
/// # Panics
/// If busybox, `app` or skopeo is missing, or the registry refuses.
pub fn push_all(wire: &NetNs, registry: &str, work: &Path) -> Vec<String> {
    let base = layer(&base_entries());
    let app = layer(&[Entry::file(
        "usr/bin/app",
        read(&crate::binary("app")),
        0o755,
    )]);
    let mut references = Vec::new();
    for image in &IMAGES {
        let layers: &[&Layer] = if image.app { &[&base, &app] } else { &[&base] };
        let layout = work
            .join("layouts")
            .join(image.name.replace(['/', ':'], "-"));
        write_layout(&layout, layers, &config(image));
        let reference = format!("{registry}/{}", image.name);
        push(wire, &layout, &reference);
        references.push(reference);
    }
    references
}

/// Copies a layout into the registry, from inside `netns`.
///
/// # Panics
/// If skopeo fails.
pub fn push(netns: &NetNs, layout: &Path, reference: &str) {
    let mut skopeo = netns.command("skopeo");
    skopeo.args([
        "--insecure-policy",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
    ]);
    skopeo
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{reference}"));
    process::run(&mut skopeo).success();
}

/// The layout of the busybox image, for tests that need one file tree and no registry.
///
/// # Panics
/// If busybox is missing or the folder cannot be written.
pub fn busybox_layout(folder: &Path) -> PathBuf {
    let layout = folder.join("busybox");
    write_layout(&layout, &[&layer(&base_entries())], &config(&IMAGES[0]));
    layout
}

/// Overwrites the blob of an image's last layer in the registry's storage with other bytes of
/// the same length, so that its digest no longer fits.
///
/// # Panics
/// If the image is not there.
pub fn corrupt(registry_storage: &Path, layout: &Path) {
    let manifest = blob_of(layout, &index_digest(layout));
    let manifest: Value = serde_json::from_slice(&read(&manifest)).expect("a manifest");
    let layers = manifest["layers"].as_array().expect("layers");
    let digest = layers
        .last()
        .and_then(|layer| layer["digest"].as_str())
        .expect("a digest");
    let hex = digest.trim_start_matches("sha256:");
    let blob = registry_storage
        .join("docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(hex)
        .join("data");
    let mut bytes = read(&blob);
    let last = bytes.len() - 1;
    bytes[last] ^= 0xff;
    fs::write(&blob, bytes).unwrap_or_else(|error| panic!("{}: {error}", blob.display()));
}

/// Writes a layout with a further layer that holds `text`, so that no blob of it is shared.
///
/// # Panics
/// If busybox is missing or the folder cannot be written.
pub fn unique_layout(folder: &Path, text: &str) -> PathBuf {
    let layout = folder.join(format!("unique-{}", hex_of(text.as_bytes())));
    let own = layer(&[Entry::file("etc/unique", text.as_bytes().to_vec(), 0o644)]);
    write_layout(
        &layout,
        &[&layer(&base_entries()), &own],
        &config(&IMAGES[0]),
    );
    layout
}

struct Layer {
    blob: Vec<u8>,
    /// Digest of the archive before compression.
    diff_id: String,
}

enum Entry {
    File {
        path: String,
        data: Vec<u8>,
        mode: u32,
    },
    Folder {
        path: String,
        mode: u32,
    },
    Link {
        path: String,
        target: String,
    },
}

impl Entry {
    fn file(path: &str, data: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self::File {
            path: path.to_owned(),
            data: data.into(),
            mode,
        }
    }
}

/// busybox, a link for each of its applets, and what programs expect of a root folder.
fn base_entries() -> Vec<Entry> {
    let folder = |path: &str, mode| Entry::Folder {
        path: path.to_owned(),
        mode,
    };
    let mut entries: Vec<Entry> = [
        "bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "usr/bin/", "var/",
    ]
    .map(|path| folder(path, 0o755))
    .into();
    entries.push(folder("tmp/", 0o1777));
    entries.push(Entry::file("bin/busybox", read(Path::new(BUSYBOX)), 0o755));
    let applets = process::run(Command::new(BUSYBOX).arg("--list")).success();
    for applet in applets.lines().filter(|name| *name != "busybox") {
        entries.push(Entry::Link {
            path: format!("bin/{applet}"),
            target: "busybox".to_owned(),
        });
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    entries.push(Entry::file("etc/passwd", passwd, 0o644));
    entries.push(Entry::file(
        "etc/group",
        "root:x:0:\nnogroup:x:65534:\n",
        0o644,
    ));
    entries
}

fn layer(entries: &[Entry]) -> Layer {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let done = match entry {
            Entry::File { path, data, mode } => {
                header.set_mode(*mode);
                header.set_size(data.len() as u64);
                archive.append_data(&mut header, path, data.as_slice())
            }
            Entry::Folder { path, mode } => {
                header.set_mode(*mode);
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty())
            }
            Entry::Link { path, target } => {
                header.set_mode(0o777);
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive.append_link(&mut header, path, target)
            }
        };
        done.expect("an archive in memory");
    }
    let plain = archive.into_inner().expect("an archive in memory");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).expect("compression in memory");
    Layer {
        blob: gzip.finish().expect("compression in memory"),
        diff_id: digest(&plain),
    }
}

fn config(image: &Image) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": image.env, "Cmd": image.command},
    })
}

/// An OCI layout with one image, tagged "latest".
fn write_layout(layout: &Path, layers: &[&Layer], config: &Value) {
    fs::create_dir_all(layout.join("blobs/sha256")).expect("folder of a layout");
    let mut config = config.clone();
    config["rootfs"] = json!({
        "type": "layers",
        "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
    });
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        let path = blob_of(layout, &digest);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| blob("layer.v1.tar+gzip", &layer.blob))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", config.to_string().as_bytes()),
        "layers": layers,
    });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("index of a layout");
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("mark of a layout");
}

fn index_digest(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&read(&layout.join("index.json"))).expect("an index");
    index["manifests"][0]["digest"]
        .as_str()
        .expect("a digest")
        .to_owned()
}

fn blob_of(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn hex_of(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..6])
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_names_blobs_that_are_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = busybox_layout(folder.path());
        let manifest = read(&blob_of(&layout, &index_digest(&layout)));
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
        let blob = read(&blob_of(&layout, layer));
        assert_eq!(digest(&blob), layer);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(blob.as_slice()));
        let names: Vec<String> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                entry
                    .expect("entry")
                    .path()
                    .expect("path")
                    .display()
                    .to_string()
            })
            .collect();
        for name in ["bin/busybox", "bin/sh", "etc/passwd"] {
            assert!(names.iter().any(|one| one == name), "{name} in {names:?}");
        }
    }
}
