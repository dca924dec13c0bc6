//! A blob on its way into the store: hashed and counted while it is written.
//!
//! It gets its name, which is its digest, only when both fit; else it goes away.
//! Callers are `pull.rs` and `import.rs`.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::{ImageError, ImageStore};

/// An unfinished blob; dropping it removes its file.
pub(super) struct BlobWriter {
    file: File,
    tmp: PathBuf,
    hash: Sha256,
    written: u64,
}

impl BlobWriter {
    pub(super) fn create(store: &ImageStore) -> Result<Self, ImageError> {
        let tmp = store.tmp_path()?;
        let file = File::create(&tmp).map_err(ImageError::io("create", &tmp))?;
        Ok(Self {
            file,
            tmp,
            hash: Sha256::new(),
            written: 0,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(ImageError::io("write", &self.tmp))
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Names the blob, if it is the one that was expected (none: any
    /// blob). Returns its digest.
    ///
    /// # Errors
    /// [`ImageError::SizeMismatch`], [`ImageError::DigestMismatch`], I/O.
    pub(super) fn finish(
        self,
        store: &ImageStore,
        expected: Option<(&str, u64)>,
    ) -> Result<String, ImageError> {
        let actual = format!("sha256:{}", hex::encode(self.hash.clone().finalize()));
        if let Some((digest, size)) = expected {
            if actual != digest {
                return Err(ImageError::DigestMismatch {
                    expected: digest.to_owned(),
                    actual,
                });
            }
            if self.written != size {
                return Err(ImageError::SizeMismatch {
                    digest: digest.to_owned(),
                    expected: size,
                    actual: self.written,
                });
            }
        }
        self.file
            .sync_all()
            .map_err(ImageError::io("sync", &self.tmp))?;
        let path = store.blob_path(&actual);
        fs::rename(&self.tmp, &path).map_err(ImageError::io("rename", &path))?;
        Ok(actual)
    }
}

/// A [`BlobWriter`] of a task. If the task ends, the file is removed on a thread for work that
/// blocks: for a large one that takes long.
pub(super) struct Unfinished(Option<BlobWriter>);

impl Unfinished {
    pub(super) fn new(writer: BlobWriter) -> Self {
        Self(Some(writer))
    }

    /// Takes it from the task.
    ///
    /// # Errors
    /// [`ImageError::Interrupted`]: it is taken.
    pub(super) fn take(&mut self) -> Result<BlobWriter, ImageError> {
        self.0.take().ok_or_else(|| ImageError::Interrupted {
            reference: "blob".to_owned(),
        })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take() {
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || drop(writer))),
                Err(_no_runtime) => drop(writer),
            }
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // Gone already after a rename; what cannot be removed goes when the
        // store is opened the next time.
        drop(fs::remove_file(&self.tmp));
    }
}
