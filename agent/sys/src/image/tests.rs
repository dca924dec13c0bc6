//! The store on a real file system: layers with all that archives can hold,
//! archives that attack, images from files, and the overlay on top.
//! Devices, owners and mounts need root, as the agent does.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::unpack::{UnpackError, unpack};
use super::*;

/// An archive under construction.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(
        mut self,
        kind: tar::EntryType,
        path: &str,
        data: &[u8],
        set: impl Fn(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1000);
        // Not `set_path`: the crate itself refuses what is tested here.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        set(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.entry(tar::EntryType::Regular, path, data.as_bytes(), |_| {})
    }

    fn dir(self, path: &str) -> Self {
        self.entry(tar::EntryType::Directory, path, b"", |_| {})
    }

    fn link(self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        self.entry(kind, path, b"", |header| {
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        })
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.link(tar::EntryType::Symlink, path, target)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with a layer, and a neighbour that must not change.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("foil-image")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Self(dir)
    }

    fn layer(&self) -> PathBuf {
        self.0.path().join("layer")
    }

    fn unpack(&self, archive: &[u8], lowers: &[PathBuf]) -> Result<String, UnpackError> {
        let path = self.0.path().join("archive");
        fs::write(&path, archive).unwrap();
        unpack(File::open(path).unwrap(), &self.layer(), lowers)
    }

    fn outside_is_untouched(&self) -> bool {
        let names: Vec<_> = fs::read_dir(self.0.path().join("outside"))
            .unwrap()
            .collect();
        names.len() == 1
            && fs::read_to_string(self.0.path().join("outside/secret")).unwrap() == "untouched"
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(rootfs::unmount_below(self.0.path()));
    }
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = [0_u8; 256];
    // SAFETY: both names are C strings, the buffer is as long as is said.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    usize::try_from(length)
        .ok()
        .map(|length| value[..length].to_vec())
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

#[test]
fn everything_an_archive_holds_is_there() {
    let place = Place::new();
    let owned = |header: &mut tar::Header| {
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mode(0o4751);
    };
    let archive = Tar::new()
        .dir("./")
        .dir("etc/")
        .file("./etc/passwd", "root")
        .entry(tar::EntryType::Regular, "suid", b"x", owned)
        .entry(tar::EntryType::Directory, "tmp/", b"", |header| {
            header.set_mode(0o1777)
        })
        .link(tar::EntryType::Link, "etc/same", "./etc/passwd")
        .link(tar::EntryType::Link, "etc/rooted", "/etc/passwd")
        .symlink("var", "usr/var")
        .entry(tar::EntryType::Fifo, "fifo", b"", |_| {})
        .file("etc/passwd2", "")
        .bytes();
    let digest = place.unpack(&archive, &[]).unwrap();
    assert_eq!(digest, store::sha256(&archive));
    let at = |path: &str| place.layer().join(path);
    let meta = |path: &str| fs::symlink_metadata(at(path)).unwrap();
    assert_eq!(fs::read_to_string(at("etc/passwd")).unwrap(), "root");
    assert_eq!(meta("etc/passwd").ino(), meta("etc/same").ino());
    // Some builders write the path in the image with its slash.
    assert_eq!(meta("etc/passwd").ino(), meta("etc/rooted").ino());
    assert_eq!(
        (
            meta("suid").uid(),
            meta("suid").gid(),
            meta("suid").mode() & 0o7777
        ),
        (1234, 5678, 0o4751)
    );
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_link(at("var")).unwrap(), Path::new("usr/var"));
    assert!(meta("fifo").file_type().is_fifo());
    for path in ["etc", "etc/passwd", "var", ""] {
        assert_eq!(meta(path).mtime(), 1000, "{path}");
    }
}

#[test]
fn whiteouts_take_overlays_form() {
    let place = Place::new();
    let archive = Tar::new()
        .dir("a/")
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "")
        .file(".wh..wh.plnk", "")
        // A whiteout hides what is below, not its own layer's entries.
        .file("c/kept", "1")
        .file("c/.wh.kept", "")
        .file("c/folder/inside", "2")
        .file("c/.wh.folder", "")
        .file("d/.wh.again", "")
        .dir("d/again/")
        .file("d/.wh.plain", "")
        .file("d/plain", "3")
        .bytes();
    place.unpack(&archive, &[]).unwrap();
    let at = |path: &str| place.layer().join(path);
    assert!(is_whiteout(&at("a/gone")));
    assert!(is_opaque(&at("b")) && at("b/new").is_file() && !is_opaque(&at("a")));
    assert_eq!(fs::read_to_string(at("c/kept")).unwrap(), "1");
    assert!(is_opaque(&at("c/folder")) && at("c/folder/inside").is_file());
    assert!(is_opaque(&at("d/again")) && at("d/plain").is_file());
    assert!(
        fs::read_dir(at(""))
            .unwrap()
            .flatten()
            .all(|e| !e.file_name().to_string_lossy().starts_with(".wh."))
    );
}

#[test]
fn device_files_are_not_made() {
    let place = Place::new();
    let lower = place.0.path().join("lower");
    fs::create_dir_all(lower.join("dev")).unwrap();
    for name in ["dev/sda", "dev/same", "plain"] {
        fs::write(lower.join(name), "of the layer below").unwrap();
    }
    let device = |header: &mut tar::Header| {
        header.set_device_major(8).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_mode(0o666);
    };
    let archive = Tar::new()
        .dir("dev/")
        .entry(tar::EntryType::Block, "dev/sda", b"", device)
        .entry(tar::EntryType::Char, "dev/other", b"", device)
        .link(tar::EntryType::Link, "dev/same", "dev/sda")
        // Overlayfs's own whiteout, as some builders write it.
        .entry(tar::EntryType::Char, "plain", b"", |header| {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        })
        .entry(tar::EntryType::Char, "replaced", b"", device)
        .file("replaced", "a file after all")
        .bytes();
    place.unpack(&archive, &[lower]).unwrap();
    let at = |path: &str| place.layer().join(path);
    for name in ["dev/sda", "dev/same", "plain"] {
        assert!(is_whiteout(&at(name)), "{name}: the layer below is hidden");
    }
    assert!(fs::symlink_metadata(at("dev/other")).is_err());
    assert!(at("replaced").is_file());
}

#[test]
fn nothing_is_written_outside() {
    let escape = "../outside/";
    let absolute = |place: &Place| place.0.path().join("outside").display().to_string();
    let refused = |archive: &dyn Fn(&Place) -> Tar, what: &str| {
        let place = Place::new();
        let result = place.unpack(&archive(&place).bytes(), &[]);
        assert!(place.outside_is_untouched(), "{what}");
        assert!(result.is_err(), "{what}");
    };
    refused(&|_| Tar::new().file("../outside/new", ""), "..");
    refused(
        &|_| Tar::new().file("a/../../outside/new", ""),
        ".. in the middle",
    );
    refused(&|_| Tar::new().dir("../outside/new/"), ".. folder");
    refused(
        &|place| Tar::new().file(&format!("{}/new", absolute(place)), ""),
        "absolute",
    );
    refused(
        &|_| Tar::new().symlink("out", escape).file("out/secret", "bad"),
        "relative link",
    );
    refused(
        &|place| {
            Tar::new()
                .symlink("out", &absolute(place))
                .file("out/secret", "bad")
        },
        "absolute link",
    );
    refused(
        &|_| {
            Tar::new()
                .symlink("out", "/proc/self/cwd")
                .file("out/x", "bad")
        },
        "link into /proc",
    );
    refused(
        &|_| Tar::new().link(tar::EntryType::Link, "hard", "../outside/secret"),
        "hard link by ..",
    );
    refused(
        &|_| Tar::new().link(tar::EntryType::Link, "hard", "/../outside/secret"),
        "hard link by .. from the root",
    );
    refused(
        &|place| {
            Tar::new().link(
                tar::EntryType::Link,
                "hard",
                &format!("{}/secret", absolute(place)),
            )
        },
        "hard link, absolute",
    );
    refused(
        &|_| {
            Tar::new()
                .symlink("out", escape)
                .link(tar::EntryType::Link, "hard", "out/secret")
        },
        "hard link through a link",
    );
    refused(&|_| Tar::new().file("a/.wh...", ""), "whiteout of ..");
    refused(&|_| Tar::new().file("a/.wh.", ""), "whiteout of nothing");
    refused(
        &|_| Tar::new().symlink("out", escape).file("out/.wh.secret", ""),
        "whiteout through a link",
    );
    refused(
        &|_| {
            Tar::new()
                .symlink("out", escape)
                .file("out/.wh..wh..opq", "")
        },
        "opaque through a link",
    );

    // These are contained instead: a link is replaced, never written through.
    let place = Place::new();
    let archive = Tar::new()
        .symlink("f", "../outside/secret")
        .file("f", "mine")
        .symlink("d", escape)
        .dir("d/")
        .file("d/x", "");
    place.unpack(&archive.bytes(), &[]).unwrap();
    assert!(place.outside_is_untouched());
    assert_eq!(fs::read_to_string(place.layer().join("f")).unwrap(), "mine");
    assert!(place.layer().join("d/x").is_file());
}

#[test]
fn an_archive_cannot_speak_to_overlayfs() {
    let place = Place::new();
    let mut archive = Tar::new();
    let pax = [
        ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.kept", b"a\nb"),
    ];
    archive.0.append_pax_extensions(pax).unwrap();
    place.unpack(&archive.dir("d/").bytes(), &[]).unwrap();
    let dir = place.layer().join("d");
    assert!(!is_opaque(&dir));
    assert_eq!(xattr(&dir, "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&dir, "trusted.kept").as_deref(), Some(&b"a\nb"[..]));
}

#[test]
fn every_compression_unpacks_to_the_same() {
    let archive = Tar::new().file("a", &"text ".repeat(5000)).bytes();
    let (first, second) = archive.split_at(archive.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    let frames = [
        zstd::encode_all(first, 1).unwrap(),
        zstd::encode_all(second, 1).unwrap(),
    ]
    .concat();
    for (what, bytes) in [
        ("plain", archive.clone()),
        ("gzip", gzip(&archive)),
        ("gzip members", members),
        ("zstd", frames),
    ] {
        let place = Place::new();
        assert_eq!(
            place.unpack(&bytes, &[]).unwrap(),
            store::sha256(&archive),
            "{what}"
        );
        // Cut anywhere: an error, or a digest that does not fit.
        for part in [1, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            let place = Place::new();
            let cut = place.unpack(&bytes[..part], &[]);
            assert!(
                cut.is_err() || cut.unwrap() != store::sha256(&archive),
                "{what} cut at {part}"
            );
        }
    }
    assert!(
        Place::new()
            .unpack(b"<html>no archive</html>", &[])
            .is_err()
    );
}

#[test]
fn implied_folders_keep_owner_and_mode_of_below() {
    let place = Place::new();
    let lower = place.0.path().join("lower");
    fs::create_dir_all(lower.join("home/user")).unwrap();
    for (path, mode, uid) in [
        ("", 0o711, 0),
        ("home", 0o750, 0),
        ("home/user", 0o700, 1000),
    ] {
        fs::set_permissions(
            lower.join(path),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap();
        std::os::unix::fs::chown(lower.join(path), Some(uid), Some(uid)).unwrap();
    }
    place
        .unpack(&Tar::new().file("home/user/new/file", "").bytes(), &[lower])
        .unwrap();
    let meta = |path: &str| {
        let metadata = fs::metadata(place.layer().join(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid())
    };
    assert_eq!(meta(""), (0o711, 0));
    assert_eq!(meta("home"), (0o750, 0));
    assert_eq!(meta("home/user"), (0o700, 1000));
    assert_eq!(meta("home/user/new"), (0o755, 0));
}

/// Writes an OCI layout with these layers.
pub(super) fn layout(dir: &Path, layers: &[Vec<u8>], name: Option<&str>) -> String {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = store::sha256(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        serde_json::json!({"mediaType": "", "digest": digest, "size": bytes.len()})
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| store::sha256(layer)).collect();
    let config = serde_json::json!({
        "architecture": manifest::architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["A=b"], "User": "1:2", "WorkingDir": "/w"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(config.to_string().as_bytes());
    let layers: Vec<_> = layers.iter().map(|layer| put(&gzip(layer))).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut entry = put(manifest.to_string().as_bytes());
    let digest = entry["digest"].as_str().unwrap().to_owned();
    if let Some(name) = name {
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    digest
}

pub(super) fn two_layers() -> Vec<Vec<u8>> {
    let base = Tar::new()
        .dir("bin/")
        .file("bin/sh", "shell")
        .file("old", "below")
        .file("dir/low", "")
        .bytes();
    let top = Tar::new()
        .file(".wh.old", "")
        .file("dir/.wh..wh..opq", "")
        .file("dir/high", "")
        .bytes();
    vec![base, top]
}

#[tokio::test]
async fn a_layout_becomes_an_image_and_goes_again() {
    let place = Place::new();
    let digest = layout(
        &place.0.path().join("in"),
        &two_layers(),
        Some("example.org/a/b:1"),
    );
    let root = place.0.path().join("store");
    let store = ImageStore::open(&root).unwrap();
    let images = store
        .import(&place.0.path().join("in"), None)
        .await
        .unwrap();
    assert_eq!(images[0].references, ["example.org/a/b:1"]);
    assert_eq!(images[0].digest, digest);
    assert_eq!(images[0].image_id(), format!("example.org/a/b@{digest}"));
    assert_eq!(
        (
            images[0].config.user.as_str(),
            images[0].config.working_dir.as_str()
        ),
        ("1:2", "/w")
    );

    // By tag, by digest, and by another process.
    let other = ImageStore::open(&root).unwrap();
    for name in [
        "example.org/a/b:1",
        &format!("example.org/a/b@{digest}"),
        &format!("example.org/a/b:9@{digest}"),
    ] {
        assert_eq!(
            other.get(&Reference::parse(name).unwrap()).unwrap(),
            Some(images[0].clone()),
            "{name}"
        );
    }
    for name in ["example.org/a/b:2", &format!("example.org/a/c@{digest}")] {
        assert_eq!(
            other.get(&Reference::parse(name).unwrap()).unwrap(),
            None,
            "{name}"
        );
    }

    // The overlay shows the layers as one.
    let dir = place.0.path().join("pods/uid/c-0");
    let mounted = rootfs::mount(&dir, &images[0]).unwrap();
    assert_eq!(fs::read_to_string(mounted.join("bin/sh")).unwrap(), "shell");
    assert!(!mounted.join("old").exists() && !mounted.join("dir/low").exists());
    assert!(mounted.join("dir/high").exists());
    fs::write(mounted.join("written"), "").unwrap();
    rootfs::make_working_dir(&mounted, "/w/x", 1, 2).unwrap();
    let made = fs::metadata(mounted.join("w/x")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1, 2));
    assert!(rootfs::make_working_dir(&mounted, "/bin/sh", 1, 2).is_err());
    let mounts = crate::mounts::list(place.0.path()).unwrap();
    let found: Vec<_> = mounts
        .iter()
        .map(|mount| (&mount.path, mount.fs_type.as_str(), mount.source.as_str()))
        .collect();
    assert_eq!(found, [(&mounted, "overlay", "overlay")]);
    assert_eq!(rootfs::image_of(&dir), Some(digest.clone()));

    // Taken away while in use: its name goes, its layers stay.
    let reference = Reference::parse("example.org/a/b:1").unwrap();
    assert!(
        store
            .remove(&reference, &BTreeSet::from([digest]))
            .await
            .unwrap()
    );
    assert_eq!(store.get(&reference).unwrap(), None);
    assert_eq!(fs::read_to_string(mounted.join("bin/sh")).unwrap(), "shell");

    // A new attempt starts from the image.
    assert!(
        !rootfs::mount(&dir, &images[0])
            .unwrap()
            .join("written")
            .exists()
    );
    rootfs::unmount(&dir).unwrap();
    rootfs::unmount(&dir).unwrap();
    assert!(!dir.exists());
    assert!(store.collect(&BTreeSet::new()).await.unwrap() > 0);
    for folder in ["blobs/sha256", "layers/sha256"] {
        assert_eq!(
            fs::read_dir(root.join(folder)).unwrap().count(),
            0,
            "{folder}"
        );
    }
    assert!(!store.remove(&reference, &BTreeSet::new()).await.unwrap());
}

#[tokio::test]
async fn archives_are_recognised_by_what_is_in_them() {
    let place = Place::new();
    let layers = two_layers();
    let dir = place.0.path().join("in");
    layout(&dir, &layers, Some("latest"));
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all(".", &dir).unwrap();
    let oci = place.0.path().join("My.Image.tar");
    fs::write(&oci, archive.into_inner().unwrap()).unwrap();

    // As `docker save` wrote them: equal layers are links.
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [store::sha256(&layers[0]), store::sha256(&layers[0])]}});
    let contents = serde_json::json!([{"Config": "c.json", "RepoTags": ["busybox:1", "r.example/x:y"],
        "Layers": ["l1/layer.tar", "l2/layer.tar"]}]);
    let layer = String::from_utf8(layers[0].clone()).unwrap();
    let docker = Tar::new()
        .file("l1/layer.tar", &layer)
        .symlink("l2/layer.tar", "../l1/layer.tar")
        .file("c.json", &config.to_string())
        .file("manifest.json", &contents.to_string());
    let saved = place.0.path().join("saved.tar.gz");
    fs::write(&saved, gzip(&docker.bytes())).unwrap();

    let store = ImageStore::open(&place.0.path().join("store")).unwrap();
    let image = &store.import(&oci, None).await.unwrap()[0];
    assert_eq!(image.references, ["docker.io/library/my.image:latest"]);
    let image = &store.import(&saved, None).await.unwrap()[0];
    assert_eq!(
        image.references,
        ["docker.io/library/busybox:1", "r.example/x:y"]
    );
    assert_eq!(
        (image.layers.len(), &image.config.cmd[..]),
        (2, &["x".to_owned()][..])
    );
    let name = Reference::parse("named").unwrap();
    let image = &store.import(&oci, Some(&name)).await.unwrap()[0];
    assert_eq!(
        image.references,
        [
            "docker.io/library/my.image:latest",
            "docker.io/library/named:latest"
        ]
    );
    assert_eq!(store.list().unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_wrong_is_told_and_nothing_is_kept() {
    let store_of = |place: &Place| ImageStore::open(&place.0.path().join("store")).unwrap();
    let refused = async |place: &Place, what: &str| {
        let store = store_of(place);
        let error = store
            .import(&place.0.path().join("in"), None)
            .await
            .unwrap_err();
        assert_eq!(store.list().unwrap(), [], "{what}");
        let layers = fs::read_dir(place.0.path().join("store/layers/sha256"))
            .unwrap()
            .count();
        assert_eq!(layers, 0, "{what}");
        error
    };
    let blob =
        |place: &Place, digest: &str| place.0.path().join("in/blobs/sha256").join(&digest[7..]);

    let place = Place::new();
    let digest = layout(&place.0.path().join("in"), &two_layers(), Some("x:1"));
    let text = fs::read_to_string(blob(&place, &digest)).unwrap();
    fs::write(
        blob(&place, &digest),
        text.replace("schemaVersion", "schemaversion"),
    )
    .unwrap();
    let error = refused(&place, "manifest changed").await;
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
    assert_eq!(error.reason(), Reason::Pull);

    let place = Place::new();
    let digest = layout(&place.0.path().join("in"), &two_layers(), Some("x:1"));
    fs::remove_file(blob(&place, &digest)).unwrap();
    let error = refused(&place, "manifest missing").await;
    assert!(
        matches!(error, ImageError::InvalidArchive { .. }),
        "{error}"
    );

    let place = Place::new();
    layout(&place.0.path().join("in"), &two_layers(), None);
    let error = refused(&place, "no name").await;
    assert!(error.to_string().contains("has no name"), "{error}");

    // The blob is what the manifest says, but not what the configuration says.
    let place = Place::new();
    let dir = place.0.path().join("in");
    layout(&dir, &[Tar::new().file("../x", "").bytes()], Some("x:1"));
    let error = refused(&place, "layer attacks").await;
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");

    let place = Place::new();
    fs::create_dir(place.0.path().join("in")).unwrap();
    let error = refused(&place, "empty folder").await;
    assert!(error.to_string().contains("no index.json"), "{error}");
    let error = store_of(&place)
        .import(&place.0.path().join("absent"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    let place = Place::new();
    let disk = place.0.path().join("disk");
    fs::create_dir(&disk).unwrap();
    nix::mount::mount(
        Some("foil"),
        &disk,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=256k"),
    )
    .unwrap();
    // Small when compressed, too large when unpacked.
    layout(
        &place.0.path().join("in"),
        &[Tar::new().file("zeros", &"0".repeat(1 << 20)).bytes()],
        Some("x:1"),
    );
    let store = ImageStore::open(&disk.join("store")).unwrap();
    let error = store
        .import(&place.0.path().join("in"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(
        fs::read_dir(disk.join("store/layers/sha256"))
            .unwrap()
            .count(),
        0
    );
    let scratch = fs::read_dir(disk.join("store/tmp"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 1, "only the lock");
}

/// What is in the store can be used on a full disk: what fills it may be one of the containers.
#[tokio::test]
async fn a_store_opens_on_a_full_disk() {
    let place = Place::new();
    let disk = place.0.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let (none, options) = (nix::mount::MsFlags::empty(), Some("nr_inodes=40"));
    nix::mount::mount(Some("foil"), &disk, Some("tmpfs"), none, options).unwrap();
    let root = disk.join("store");
    drop(ImageStore::open(&root).unwrap());
    let ballast = |n: usize| disk.join(n.to_string());
    let files = (0..)
        .take_while(|n| File::create(ballast(*n)).is_ok())
        .count();
    assert!((1..40).contains(&files), "{files}");
    let store = ImageStore::open(&root).unwrap();
    layout(
        &place.0.path().join("in"),
        &[Tar::new().file("a", "b").bytes()],
        Some("x:1"),
    );
    let import = async || store.import(&place.0.path().join("in"), None).await;
    let error = import().await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    for n in 0..files {
        fs::remove_file(ballast(n)).unwrap();
    }
    import().await.unwrap();
    drop(store);
    let left = fs::read_dir(root.join("tmp")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn scratch_of_the_dead_is_cleared_and_of_the_living_kept() {
    let place = Place::new();
    let root = place.0.path().join("store");
    let living = ImageStore::open(&root).unwrap();
    let mine = living.tmp_path().unwrap();
    fs::write(&mine, "unfinished").unwrap();
    let dead = root.join("tmp/1-0");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("0"), "unfinished").unwrap();
    ImageStore::open(&root).unwrap();
    assert!(mine.exists() && !dead.exists());
    drop(living);
    assert!(!mine.exists());
}
