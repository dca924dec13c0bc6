//! The store: names, blobs by digest, unpacked layers.
//!
//! Everything is written to `tmp/`, verified, synced, and renamed into place:
//! what has its final name is whole. `pull.rs` and `import.rs` fill it.
//! Several processes may use a store (the agent, and `foil image`): names are
//! read from the disk each time, and changed under a lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::lock::{FileLock, Scratch};
use super::manifest::{
    self, ConfigFile, Descriptor, Document, Index, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH, Manifest,
    REF_NAME,
};
use super::pulls::Pulls;
use super::reference::{Version, checked_digest, name_part};
use super::{Image, ImageError, Reference, unpack};
use crate::removal::{self, Most};

/// The node's images. Clones share one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    root: PathBuf,
    scratch: Scratch,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) clients: super::registry::Clients,
    pub(super) pulls: Pulls,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the credentials that it keeps.
        f.debug_struct("ImageStore")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Opens or makes the store in `root`, and clears away what interrupted
    /// pulls left.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::DiskFull`].
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        // Layers hold set-user-id programs: only root may enter.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let tmp = root.join("tmp");
        for dir in [
            root,
            &tmp,
            &root.join("blobs/sha256"),
            &root.join("layers/sha256"),
        ] {
            builder.create(dir).map_err(ImageError::io("make", dir))?;
        }
        let lock = root.join("lock");
        let _changing = FileLock::exclusive(&lock).map_err(ImageError::io("lock", &lock))?;
        let store = Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                scratch: Scratch::open(&tmp).map_err(ImageError::io("clear", &tmp))?,
                locks: Mutex::default(),
                clients: super::registry::Clients::default(),
                pulls: Pulls::default(),
            }),
        };
        let layout = root.join("oci-layout");
        if !layout.exists() {
            let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
            proto::file::replace(&layout, version, 0o644)
                .map_err(ImageError::io("write", &layout))?;
        }
        Ok(store)
    }

    /// The image of that name, if it is whole here. Does not ask any registry.
    ///
    /// # Errors
    /// As of reading the store's files.
    pub fn get(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        let whole = reference.to_string();
        let index = self.index()?;
        let digest = index.manifests.iter().find_map(|entry| {
            let name = entry.annotation(REF_NAME)?;
            // The image that a tag brought is also there by its digest.
            let same = match &reference.version {
                Version::Tag(_) => name == whole,
                Version::Digest(digest) => {
                    entry.digest == *digest && name_part(name) == reference.name()
                }
            };
            same.then(|| entry.digest.clone())
        });
        digest.map_or(Ok(None), |digest| self.load(&digest))
    }

    /// All images, each once, with all its names.
    ///
    /// # Errors
    /// As of reading the store's files.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let digests: BTreeSet<String> = self
            .index()?
            .manifests
            .iter()
            .map(|entry| entry.digest.clone())
            .collect();
        digests
            .iter()
            .filter_map(|digest| self.load(digest).transpose())
            .collect()
    }

    /// The image behind a digest; none unless every part of it is here.
    pub(super) fn load(&self, digest: &str) -> Result<Option<Image>, ImageError> {
        let Some((_, manifest, config)) = self.resolve(digest)? else {
            return Ok(None);
        };
        let layers: Vec<PathBuf> = chain_ids(&config.rootfs.diff_ids)
            .iter()
            .map(|id| self.layer_path(id))
            .collect();
        if !layers.iter().all(|layer| layer.is_dir()) {
            return Ok(None);
        }
        let mut references: Vec<String> = self
            .index()?
            .manifests
            .iter()
            .filter(|entry| entry.digest == digest)
            .filter_map(|entry| entry.annotation(REF_NAME).map(str::to_owned))
            .collect();
        references.sort();
        Ok(Some(Image {
            references,
            digest: digest.to_owned(),
            config_digest: manifest.config.digest.clone(),
            layers,
            size: manifest.config.size + manifest.layers.iter().map(|l| l.size).sum::<u64>(),
            config: config.image_config(),
        }))
    }

    /// Follows a digest over indexes to this machine's manifest and its
    /// configuration; also the digests on the way. None if a part is missing.
    pub(super) fn resolve(
        &self,
        digest: &str,
    ) -> Result<Option<(Vec<String>, Manifest, ConfigFile)>, ImageError> {
        let mut way = vec![digest.to_owned()];
        let mut digest = digest.to_owned();
        for _ in 0..MAX_INDEX_DEPTH {
            let Some(bytes) = self.read_blob(&digest)? else {
                return Ok(None);
            };
            match manifest::parse_document(&digest, &bytes)? {
                Document::Index(index) => {
                    digest = choose(&index, &digest)?.digest.clone();
                    way.push(digest.clone());
                }
                Document::Manifest(found) => {
                    let Some(bytes) = self.read_blob(&found.config.digest)? else {
                        return Ok(None);
                    };
                    let config = manifest::parse_config(&found, &bytes)?;
                    return Ok(Some((way, found, config)));
                }
            }
        }
        Err(too_deep(&digest))
    }

    /// Unpacks what is not unpacked of these layers, whose blobs are here.
    pub(super) async fn unpack_layers(
        &self,
        manifest: &Manifest,
        config: &ConfigFile,
        adding: &Arc<FileLock>,
    ) -> Result<(), ImageError> {
        let ids = chain_ids(&config.rootfs.diff_ids);
        for (at, id) in ids.iter().enumerate() {
            let guard = self.lock(&format!("layer {id}")).await;
            let path = self.layer_path(id);
            if path.is_dir() {
                continue;
            }
            let job = LayerJob {
                blob: self.blob_path(&manifest.layers[at].digest),
                digest: manifest.layers[at].digest.clone(),
                diff_id: config.rootfs.diff_ids[at].clone(),
                lowers: ids[..at]
                    .iter()
                    .rev()
                    .map(|id| self.layer_path(id))
                    .collect(),
                path,
            };
            let (store, adding) = (self.clone(), adding.clone());
            blocking(&job.digest.clone(), move || {
                let done = store.unpack_layer(&job);
                // Up to here, also if the caller has gone away: the layers below stay, too.
                drop((guard, adding));
                done
            })
            .await?;
        }
        Ok(())
    }

    fn unpack_layer(&self, job: &LayerJob) -> Result<(), ImageError> {
        let archive = File::open(&job.blob).map_err(ImageError::io("open", &job.blob))?;
        let tmp = self.tmp_path()?;
        fs::create_dir(&tmp).map_err(ImageError::io("make", &tmp))?;
        let done = unpack::unpack(archive, &tmp, &job.lowers)
            .map_err(|source| {
                if source.is_disk_full() {
                    ImageError::DiskFull {
                        path: job.path.clone(),
                    }
                } else {
                    ImageError::Layer {
                        layer: job.digest.clone(),
                        source,
                    }
                }
            })
            .and_then(|actual| {
                if actual == job.diff_id {
                    Ok(())
                } else {
                    Err(ImageError::DigestMismatch {
                        expected: job.diff_id.clone(),
                        actual,
                    })
                }
            })
            .and_then(|()| {
                // All of the layer must be on the disk before its name says so.
                File::open(&tmp)
                    .and_then(|dir| Ok(nix::unistd::syncfs(dir)?))
                    .map_err(ImageError::io("sync", &tmp))
            });
        if let Err(error) = done {
            self.discard(&tmp)?;
            return Err(error);
        }
        match fs::rename(&tmp, &job.path) {
            Ok(()) => Ok(()),
            // Somebody whose caller went away has just finished the same layer.
            Err(_) if job.path.is_dir() => self.discard(&tmp),
            Err(error) => Err(ImageError::io("rename", &tmp)(error)),
        }
    }

    /// Gives names to the image behind `top`, all of whose parts are here.
    pub(super) fn name(&self, top: &Descriptor, names: &[String]) -> Result<Image, ImageError> {
        self.change_index(|index| {
            for name in names {
                index
                    .manifests
                    .retain(|entry| entry.annotation(REF_NAME) != Some(name));
                index.manifests.push(Descriptor {
                    platform: None,
                    annotations: Some(BTreeMap::from([(REF_NAME.to_owned(), name.clone())])),
                    ..top.clone()
                });
            }
        })?;
        self.load(&top.digest)?
            .ok_or_else(|| ImageError::Interrupted {
                reference: names.join(", "),
            })
    }

    pub(super) fn change_index<T>(
        &self,
        change: impl FnOnce(&mut Index) -> T,
    ) -> Result<T, ImageError> {
        let lock = self.inner.root.join("lock");
        let _changing = FileLock::exclusive(&lock).map_err(ImageError::io("lock", &lock))?;
        let index = self.index()?;
        let mut next = index.clone();
        let result = change(&mut next);
        if index != next {
            let path = self.inner.root.join("index.json");
            let bytes = serde_json::to_vec(&next)
                .map_err(|error| ImageError::io("write", &path)(io::Error::other(error)))?;
            proto::file::replace(&path, &bytes, 0o644).map_err(ImageError::io("write", &path))?;
        }
        Ok(result)
    }

    /// The names, as they are on the disk now.
    pub(super) fn index(&self) -> Result<Index, ImageError> {
        let path = self.inner.root.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| ImageError::InvalidManifest {
                    what: "table of contents",
                    digest: path.display().to_string(),
                    why: error.to_string(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::new(Vec::new())),
            Err(error) => Err(ImageError::io("read", &path)(error)),
        }
    }

    /// A small blob, whole; none if it is not here.
    pub(super) fn read_blob(&self, digest: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.blob_path(checked_digest(digest)?);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_DOCUMENT_BYTES => {
                Err(ImageError::InvalidManifest {
                    what: "document",
                    digest: digest.to_owned(),
                    why: format!("{} bytes are too many", metadata.len()),
                })
            }
            Ok(_) => fs::read(&path)
                .map(Some)
                .map_err(ImageError::io("read", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("read", &path)(error)),
        }
    }

    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Of a checked digest.
    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        self.inner.root.join("blobs").join(digest.replace(':', "/"))
    }

    fn layer_path(&self, chain_id: &str) -> PathBuf {
        self.inner
            .root
            .join("layers")
            .join(chain_id.replace(':', "/"))
    }

    /// The folder of blobs or of layers, whose entries are named by their digests.
    pub(super) fn digests_path(&self, kind: &str) -> PathBuf {
        self.inner.root.join(kind).join("sha256")
    }

    /// A path that no other pull uses; its content is never taken for complete.
    pub(super) fn tmp_path(&self) -> Result<PathBuf, ImageError> {
        let path = self.inner.scratch.path();
        path.map_err(ImageError::io(
            "make a folder in",
            &self.inner.root.join("tmp"),
        ))
    }

    /// Removes a folder so that it is never seen half-removed.
    pub(super) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        let tmp = self.tmp_path()?;
        fs::rename(path, &tmp).map_err(ImageError::io("rename", path))?;
        removal::remove(&tmp, Most::All).map_err(ImageError::io("remove", &tmp))
    }

    /// One at a time for each key.
    pub(super) async fn lock(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .inner
                .locks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Keeps [`ImageStore::collect`] away, in every process, while blobs without
    /// a name are written.
    pub(super) async fn adding(&self) -> Result<FileLock, ImageError> {
        let path = self.adding_path();
        blocking("add", move || {
            FileLock::shared(&path).map_err(ImageError::io("lock", &path))
        })
        .await
    }

    pub(super) fn adding_path(&self) -> PathBuf {
        self.inner.root.join("adding.lock")
    }
}

struct LayerJob {
    blob: PathBuf,
    digest: String,
    diff_id: String,
    lowers: Vec<PathBuf>,
    path: PathBuf,
}

/// The entry of an index for this machine.
pub(super) fn choose<'a>(index: &'a Index, digest: &str) -> Result<&'a Descriptor, ImageError> {
    let architecture = manifest::architecture();
    let entry = index
        .choose(architecture)
        .ok_or_else(|| ImageError::NoPlatform {
            digest: digest.to_owned(),
            architecture: architecture.to_owned(),
        })?;
    checked_digest(&entry.digest)?;
    Ok(entry)
}

pub(super) fn too_deep(digest: &str) -> ImageError {
    ImageError::InvalidManifest {
        what: "index",
        digest: digest.to_owned(),
        why: format!("more than {MAX_INDEX_DEPTH} indexes deep"),
    }
}

/// Names of stacked layers (image-spec, config.md, "Layer ChainID"): the same
/// archive over other layers is another folder, as it takes attributes of
/// implied folders from those.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match ids.last() {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        ids.push(id);
    }
    ids
}

/// "sha256:..."
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Runs work that blocks on the runtime's threads for that.
pub(super) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_gone| ImageError::Interrupted {
            reference: what.to_owned(),
        })?
}
