//! Images pulled from Debian's docker-registry, in a namespace of our own: the
//! same bytes arrive, wrong ones are refused, and what failed leaves nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_sys::image::{Endpoint, ImageError, ImageStore, Reference, rootfs, user};
use tests_harness::{NetNs, Process, image, registry};

/// A registry with one image, and a store beside it.
struct Place {
    store: ImageStore,
    _registry: Process,
    netns: NetNs,
    root: tempfile::TempDir,
}

impl Place {
    /// `library/busybox:latest` and `foil/unique:1` are in the registry.
    fn new() -> Self {
        let netns = NetNs::create("registry");
        netns.ip(&[
            "addr",
            "add",
            &format!("{}/32", tests_harness::topology::WIRE_IP),
            "dev",
            "lo",
        ]);
        let root = tempfile::Builder::new()
            .prefix("foil-registry")
            .tempdir()
            .unwrap();
        let registry = registry::start(&netns, root.path());
        let place = Self {
            store: ImageStore::open(&root.path().join("images")).unwrap(),
            _registry: registry,
            netns,
            root,
        };
        let busybox = image::busybox_layout(place.root.path());
        image::push(
            &place.netns,
            &busybox,
            &format!("{}/library/busybox:latest", registry::address()),
        );
        let unique = place.unique();
        image::push(
            &place.netns,
            &unique,
            &format!("{}/foil/unique:1", registry::address()),
        );
        place
    }

    fn unique(&self) -> PathBuf {
        image::unique_layout(self.root.path(), "unique")
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.root.path().join("images/blobs/sha256"))
            .unwrap()
            .count()
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.root.path().join("images/layers/sha256"))
            .unwrap()
            .count()
    }

    /// Runs a future inside the registry's namespace.
    fn inside<T: Send>(&self, future: impl AsyncFnOnce() -> T + Send) -> T {
        self.netns.enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(future())
        })
    }
}

fn mirror() -> Vec<Endpoint> {
    vec![Endpoint {
        host: "docker.io".to_owned(),
        url: format!("http://{}", registry::address()),
    }]
}

fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap()
}

fn pull(place: &Place, name: &str) -> Result<agent_sys::image::Image, Arc<ImageError>> {
    place.inside(async || place.store.pull(&reference(name), &mirror(), &[]).await)
}

#[test]
fn pull_image() {
    let place = Place::new();
    let busybox = pull(&place, "busybox").unwrap();
    assert_eq!(busybox.references, ["docker.io/library/busybox:latest"]);
    assert_eq!(busybox.config.cmd, ["sh"]);
    assert_eq!(
        place.store.get(&reference("busybox")).unwrap().as_ref(),
        Some(&busybox)
    );
    let shell = busybox.layers[0].join("bin/busybox");
    assert_eq!(
        std::fs::read(shell).unwrap(),
        std::fs::read("/bin/busybox").unwrap()
    );
    assert_eq!(
        user::resolve(&busybox.layers[0], "nobody").unwrap().uid,
        65534
    );

    // By digest, under the same name; and by a wrong one.
    let by_digest = pull(&place, &format!("busybox@{}", busybox.digest)).unwrap();
    assert_eq!(by_digest.layers, busybox.layers);
    let wrong = pull(&place, &format!("busybox@sha256:{}", "0".repeat(64))).unwrap_err();
    assert!(matches!(*wrong, ImageError::NotFound { .. }), "{wrong}");

    // Shares its lower layer: one more folder, not two.
    let (before, unique) = (place.layers(), pull(&place, "foil/unique:1").unwrap());
    assert_eq!((unique.layers.len(), place.layers()), (2, before + 1));
    assert_eq!(unique.layers[0], busybox.layers[0]);

    // Taking one away leaves what the other needs.
    let none = BTreeSet::new();
    place.inside(async || {
        assert!(
            place
                .store
                .remove(&reference("foil/unique:1"), &none)
                .await
                .unwrap()
        );
    });
    assert_eq!(place.layers(), before);
    assert!(place.store.get(&reference("busybox")).unwrap().is_some());

    // A root of it runs a program.
    let dir = place.root.path().join("pods/uid/main-0");
    let mounted = rootfs::mount(&dir, &busybox).unwrap();
    let out = std::process::Command::new("chroot")
        .arg(&mounted)
        .args(["/bin/echo", "alive"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "alive\n");
    rootfs::unmount(&dir).unwrap();
}

#[test]
fn pulls_of_one_image_share_the_work() {
    let place = Place::new();
    place.inside(async || {
        let (name, mirror) = (reference("foil/unique:1"), mirror());
        let results = tokio::join!(
            place.store.pull(&name, &mirror, &[]),
            place.store.pull(&name, &mirror, &[]),
            place.store.pull(&name, &mirror, &[]),
        );
        let first = results.0.unwrap();
        assert_eq!(
            (results.1.unwrap(), results.2.unwrap()),
            (first.clone(), first)
        );
    });
    // Each blob was asked for once.
    let log = std::fs::read_to_string(place.root.path().join("registry.log")).unwrap();
    let mut blobs: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("foil-agent"))
        .filter_map(|line| line.split("\"GET ").nth(1)?.split(' ').next())
        .filter(|path| path.contains("/blobs/"))
        .collect();
    let all = blobs.len();
    blobs.sort_unstable();
    blobs.dedup();
    assert_eq!(
        (all, blobs.len()),
        (3, 3),
        "configuration and two layers: {blobs:?}"
    );
    // Once for the first; once for all that asked while it was at work.
    let manifests = log
        .lines()
        .filter(|line| {
            line.contains("\"GET ") && line.contains("foil-agent") && line.contains("/manifests/1 ")
        })
        .count();
    assert_eq!(manifests, 2, "{log}");
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let place = Place::new();
    image::corrupt(&place.root.path().join("registry"), &place.unique());
    let error = pull(&place, "foil/unique:1").unwrap_err();
    assert!(
        matches!(*error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
    assert_eq!(error.reason(), agent_sys::image::Reason::Pull);
    assert_eq!(place.store.get(&reference("foil/unique:1")).unwrap(), None);
    let again = pull(&place, "foil/unique:1").unwrap_err();
    let ImageError::DigestMismatch { expected, .. } = &*again else {
        panic!("{again}");
    };
    let blob = format!("images/blobs/{}", expected.replace(':', "/"));
    assert!(!place.root.path().join(blob).exists());
    assert!(
        place.blobs() <= 3,
        "manifest, configuration and the good layer"
    );
}

#[test]
fn what_is_not_there_is_told_in_time() {
    let place = Place::new();
    let none = pull(&place, "does-not-exist:1").unwrap_err();
    assert!(matches!(*none, ImageError::NotFound { .. }), "{none}");
    assert!(
        none.to_string()
            .contains("docker.io/library/does-not-exist:1"),
        "{none}"
    );
    let tag = pull(&place, "busybox:no-such-tag").unwrap_err();
    assert!(matches!(*tag, ImageError::NotFound { .. }), "{tag}");

    // Nobody listens there; the next endpoint has it.
    let mut endpoints = vec![Endpoint {
        host: "docker.io".to_owned(),
        url: "http://127.0.0.1:9".to_owned(),
    }];
    let refused = place.inside(async || {
        place
            .store
            .pull(&reference("busybox"), &endpoints, &[])
            .await
    });
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    endpoints.extend(mirror());
    let second = place.inside(async || {
        place
            .store
            .pull(&reference("busybox"), &endpoints, &[])
            .await
    });
    assert!(second.is_ok(), "{second:?}");
}

#[test]
fn an_interrupted_pull_is_not_an_image() {
    let place = Place::new();
    let whole = pull(&place, "busybox").unwrap();
    // As if the process had died before the layer got its name.
    std::fs::remove_dir_all(&whole.layers[0]).unwrap();
    assert_eq!(place.store.get(&reference("busybox")).unwrap(), None);
    assert_eq!(pull(&place, "busybox").unwrap(), whole);
    assert!(Path::new(&whole.layers[0]).join("bin/sh").exists());
}
