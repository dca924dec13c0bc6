//! Several pulls at once, and pulls that are given up. The registries are those of
//! `registry_tests.rs`.

use super::*;
use crate::image::pulls::MAX_PULLS;

/// What the removal of a large file takes, no pod's heartbeat and probe is to wait for.
#[test]
fn an_unfinished_blob_is_removed_on_a_thread_for_that() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let registry = slow_registry(|| Body::Held("x")).await;
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let source = source(&registry, &Clients::default());
        let tmp = store.tmp_path().unwrap();
        let tmp = tmp.parent().unwrap().to_owned();
        let files = || std::fs::read_dir(&tmp).unwrap().count();
        let before = files();
        let begun = store.clone();
        let pull = tokio::spawn(async move { begun.fetch_blob(&source, &hundred_bytes()).await });
        until("its unfinished file", || files() > before).await;
        // The only such thread has other work.
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let other = tokio::task::spawn_blocking(move || wait.recv());
        pull.abort();
        assert!(pull.await.unwrap_err().is_cancelled());
        assert!(files() > before, "removed by the runtime's own thread");
        release.send(()).unwrap();
        other.await.unwrap().unwrap();
        until("the end of the file", || files() == before).await;
    });
}

/// An image with one layer, which is an empty archive: what is asked for, and the answers.
fn empty_image() -> [(String, &'static str); 3] {
    let digest = |text: &str| crate::image::store::sha256(text.as_bytes());
    let layer: &str = Box::leak("\0".repeat(1024).into_boxed_str());
    let config = serde_json::json!({
        "architecture": crate::image::manifest::architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    });
    let config: &str = Box::leak(config.to_string().into_boxed_str());
    let part = |kind: &str, text: &str| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media_type, "digest": digest(text), "size": text.len()})
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("config.v1+json", config), "layers": [part("layer.v1.tar", layer)],
    });
    let manifest: &str = Box::leak(manifest.to_string().into_boxed_str());
    [
        ("/manifests/".to_owned(), manifest),
        (format!("/blobs/{}", digest(config)), config),
        (format!("/blobs/{}", digest(layer)), layer),
    ]
}

/// The pod whose pull began first is deleted; another one waits for the same image.
#[tokio::test]
async fn a_pull_goes_on_for_the_others_that_wait_for_it() {
    let image = empty_image();
    let layer = image[2].0.clone();
    let (release, released) = tokio::sync::watch::channel(false);
    let registry = Server::new(move |head, _| {
        let (path, text) = image.iter().find(|(path, _)| head.contains(path)).unwrap();
        let body = if path.contains("manifests") {
            Body::Whole(text)
        } else {
            Body::After(released.clone(), text)
        };
        ("200 OK".to_owned(), body)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let reference = Reference::parse(&format!("{}/app:1", registry.host)).unwrap();
    let begun = (store.clone(), reference.clone());
    let first = tokio::spawn(async move { begun.0.pull(&begun.1, &[], &[]).await.map(drop) });
    until("the request for a blob", || {
        registry.heard().contains("/blobs/")
    })
    .await;
    let mut second = Box::pin(store.pull(&reference, &[], &[]));
    assert!(futures::poll!(second.as_mut()).is_pending());
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    release.send(true).unwrap();
    let pulled = within("the image", second).await.unwrap();
    assert_eq!(pulled.layers.len(), 1);
    assert_eq!(registry.cut.load(Ordering::Relaxed), 0);
    let heard = registry.heard();
    assert_eq!(heard.matches(&layer).count(), 1, "{heard}");
    // The name may stand for another image since the first one asked.
    assert_eq!(heard.matches("/manifests/").count(), 2, "{heard}");
}

/// So that what they hold of their images in memory is limited.
#[tokio::test]
async fn so_many_pulls_at_once_and_the_others_wait() {
    const MORE: usize = 3;
    let registry = slow_registry(|| Body::Held("{")).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let mut pulls = std::collections::VecDeque::new();
    for number in 0..MAX_PULLS + MORE {
        let (store, host) = (store.clone(), registry.host.clone());
        pulls.push_back(tokio::spawn(async move {
            let reference = Reference::parse(&format!("{host}/app:{number}")).unwrap();
            store.pull(&reference, &[], &[]).await.map(drop)
        }));
    }
    let heard = || registry.heard.lock().unwrap().len();
    for ended in 0..=MORE {
        until("the requests", || heard() >= MAX_PULLS + ended).await;
        for _ in 0..20 {
            assert_eq!(heard(), MAX_PULLS + ended);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pulls.pop_front().unwrap().abort();
    }
    pulls.iter().for_each(|pull| pull.abort());
}
