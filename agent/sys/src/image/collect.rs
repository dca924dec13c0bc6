//! What no name leads to goes: removing images, and the space that they took.
//!
//! Never while anybody, in any process, adds to the store: what is being pulled
//! has no name yet.

use std::collections::BTreeSet;
use std::fs;

use super::lock::FileLock;
use super::manifest::REF_NAME;
use super::store::{ImageStore, blocking, chain_ids};
use super::{ImageError, Reference};

impl ImageStore {
    /// Takes the name away; false if there was none. The blobs and layers that
    /// no other image needs go too, except those of the images whose digests
    /// are `in_use` (see [`super::rootfs::image_of`]).
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn remove(
        &self,
        reference: &Reference,
        in_use: &BTreeSet<String>,
    ) -> Result<bool, ImageError> {
        let whole = reference.to_string();
        let found = self.change_index(|index| {
            let before = index.manifests.len();
            index
                .manifests
                .retain(|entry| entry.annotation(REF_NAME) != Some(&whole));
            index.manifests.len() != before
        })?;
        if found {
            let path = self.adding_path();
            let free = FileLock::try_exclusive(&path).map_err(ImageError::io("lock", &path))?;
            // While something is being pulled the space stays until the next time.
            if let Some(lock) = free {
                self.collect_under(lock, in_use).await?;
            }
        }
        Ok(found)
    }

    /// Deletes blobs and layers that belong to no named image and to none whose
    /// digest is `in_use`. Returns the bytes of blobs freed. Waits for pulls.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn collect(&self, in_use: &BTreeSet<String>) -> Result<u64, ImageError> {
        let path = self.adding_path();
        let lock = blocking("collect", move || {
            FileLock::exclusive(&path).map_err(ImageError::io("lock", &path))
        });
        self.collect_under(lock.await?, in_use).await
    }

    async fn collect_under(
        &self,
        lock: FileLock,
        in_use: &BTreeSet<String>,
    ) -> Result<u64, ImageError> {
        let (store, in_use) = (self.clone(), in_use.clone());
        blocking("collect", move || {
            let freed = store.collect_now(&in_use);
            drop(lock);
            freed
        })
        .await
    }

    fn collect_now(&self, in_use: &BTreeSet<String>) -> Result<u64, ImageError> {
        let mut roots = in_use.clone();
        roots.extend(
            self.index()?
                .manifests
                .iter()
                .map(|entry| entry.digest.clone()),
        );
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for digest in &roots {
            let Some((path, manifest, config)) = self.resolve(digest)? else {
                continue;
            };
            blobs.extend(path);
            blobs.insert(manifest.config.digest.clone());
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
            layers.extend(chain_ids(&config.rootfs.diff_ids));
        }
        let mut freed = 0;
        for (kind, kept) in [("blobs", &blobs), ("layers", &layers)] {
            let dir = self.digests_path(kind);
            let entries = fs::read_dir(&dir).map_err(ImageError::io("list", &dir))?;
            for entry in entries {
                let entry = entry.map_err(ImageError::io("list", &dir))?;
                if kept.contains(&format!("sha256:{}", entry.file_name().to_string_lossy())) {
                    continue;
                }
                let path = entry.path();
                if path.is_dir() {
                    self.discard(&path)?;
                } else {
                    freed += entry.metadata().map_or(0, |metadata| metadata.len());
                    fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
                }
            }
        }
        Ok(freed)
    }
}
