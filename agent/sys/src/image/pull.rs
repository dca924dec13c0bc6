//! Images from registries, by the OCI distribution protocol.
//!
//! Manifest, configuration, layers, in this order; each blob is verified while
//! it streams to the disk. What is in the store already is not fetched.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt};
use proto::v1::PullSecret;

use super::answer::Blob;
use super::blob::{BlobWriter, Unfinished};
use super::lock::FileLock;
use super::manifest::{
    self, Descriptor, Document, MAX_INDEX_DEPTH, Manifest, OCI_INDEX, OCI_MANIFEST,
};
use super::reference::Version;
use super::registry::{Source, pull_key, urls};
use super::store::{ImageStore, blocking, choose, sha256, too_deep};
use super::{Endpoint, Image, ImageError, Reference};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// Bytes of a blob that are written at once, at least.
const PIECE: usize = 256 << 10;

/// Whether a registry is asked for what is here by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Always,
    IfMissing,
}

impl ImageStore {
    /// Fetches the image, even when one of that name is here (its name may
    /// stand for another image by now); blobs and layers that are here are not
    /// fetched again. A name with a digest is asked for as well: another pod may have
    /// brought the image with credentials that this one lacks. Pulls of the same image at the same time share the work.
    /// `endpoints` are tried in order for the registries that they name;
    /// a registry that no endpoint names is asked itself, by https (by http on
    /// a loopback address, as elsewhere). Each is sent the secret that names its
    /// own host, and no other.
    ///
    /// Dropped before its end, it asks for nothing more, unless others wait for the same image;
    /// blobs that have arrived are kept. Of more than [`MAX_PULLS`] some wait.
    ///
    /// [`MAX_PULLS`]: super::pulls::MAX_PULLS
    ///
    /// # Errors
    /// See [`ImageError`]. Nothing half-made is kept.
    pub async fn pull(
        &self,
        reference: &Reference,
        endpoints: &[Endpoint],
        secrets: &[PullSecret],
    ) -> Result<Image, Arc<ImageError>> {
        let urls = urls(&reference.registry, endpoints);
        let key = pull_key(reference, &urls, secrets);
        let pull = || {
            let (store, reference) = (self.clone(), reference.clone());
            let (urls, secrets) = (urls.clone(), secrets.to_vec());
            let pull = async move {
                let _permit = store.inner.pulls.permit().await;
                let adding = Arc::new(store.adding().await?);
                let pull = store.pull_from_any(&reference, &urls, &secrets, &adding);
                pull.await.map_err(Arc::new)
            };
            pull.boxed()
        };
        self.inner.pulls.join(&key, pull).await
    }

    async fn pull_from_any(
        &self,
        reference: &Reference,
        urls: &[String],
        secrets: &[PullSecret],
        adding: &Arc<FileLock>,
    ) -> Result<Image, ImageError> {
        let mut answer = None;
        for url in urls {
            let tried = match Source::new(&self.inner.clients, reference, url, secrets) {
                Ok(source) => self.pull_from(reference, &source, adding).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(image) => return Ok(image),
                // "Not found" says the least: another endpoint's trouble is the better answer.
                Err(error) if matches!(answer, None | Some(ImageError::NotFound { .. })) => {
                    answer = Some(error);
                }
                Err(error) => tracing::debug!(image = %reference, %error, "endpoint failed"),
            }
        }
        Err(answer.unwrap_or_else(|| ImageError::NotFound {
            reference: reference.to_string(),
            endpoint: reference.registry.clone(),
        }))
    }

    async fn pull_from(
        &self,
        reference: &Reference,
        source: &Source,
        adding: &Arc<FileLock>,
    ) -> Result<Image, ImageError> {
        let (top, manifest) = self.fetch_manifest(reference, source).await?;
        self.fetch_blob(source, &manifest.config).await?;
        let bytes = self.read_blob(&manifest.config.digest)?.unwrap_or_default();
        let config = manifest::parse_config(&manifest, &bytes)?;
        // Owned: a closure over borrowed layers makes the future not spawnable.
        futures::stream::iter(manifest.layers.clone())
            .map(|layer| async move { self.fetch_blob(source, &layer).await })
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        self.unpack_layers(&manifest, &config, adding).await?;
        // Waits for who else changes the index, and for the disk.
        let (store, names, adding) = (self.clone(), [reference.to_string()], adding.clone());
        blocking("name", move || {
            let named = store.name(&top, &names);
            // Up to here, also if the caller has gone away.
            drop(adding);
            named
        })
        .await
    }

    /// What the name stands for, and this machine's manifest in it.
    async fn fetch_manifest(
        &self,
        reference: &Reference,
        source: &Source,
    ) -> Result<(Descriptor, Manifest), ImageError> {
        let mut top = None;
        let mut version = reference.version.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let ask = match top {
                None => Ask::Always,
                // Named by one that the registry has just answered for.
                Some(_) => Ask::IfMissing,
            };
            let (digest, bytes) = self.fetch_document(source, &version, ask).await?;
            let document = manifest::parse_document(&digest, &bytes)?;
            let media_type = match &document {
                Document::Index(index) => non_empty(&index.media_type, OCI_INDEX),
                Document::Manifest(manifest) => non_empty(&manifest.media_type, OCI_MANIFEST),
            };
            let top = top.get_or_insert_with(|| Descriptor {
                media_type,
                digest: digest.clone(),
                size: bytes.len() as u64,
                ..Descriptor::default()
            });
            match document {
                Document::Index(index) => {
                    version = Version::Digest(choose(&index, &digest)?.digest.clone());
                }
                Document::Manifest(manifest) => return Ok((top.clone(), manifest)),
            }
        }
        Err(too_deep(&reference.to_string()))
    }

    /// A manifest or index; kept in the store under its digest.
    async fn fetch_document(
        &self,
        source: &Source,
        version: &Version,
        ask: Ask,
    ) -> Result<(String, Vec<u8>), ImageError> {
        if let Version::Digest(digest) = version
            && let Some(bytes) = self.read_blob(digest)?
        {
            if ask == Ask::Always {
                let found = source.client.find_manifest(&source.repository, version);
                found.await.map_err(|error| source.failed(&error))?;
            }
            return Ok((digest.clone(), bytes));
        }
        let bytes = source.client.manifest(&source.repository, version).await;
        let bytes = bytes.map_err(|error| source.failed(&error))?;
        let digest = sha256(&bytes);
        if let Version::Digest(expected) = version
            && *expected != digest
        {
            return Err(ImageError::DigestMismatch {
                expected: expected.clone(),
                actual: digest,
            });
        }
        if !self.has_blob(&digest) {
            let (store, digest, bytes) = (self.clone(), digest.clone(), bytes.clone());
            blocking("manifest", move || {
                let mut writer = BlobWriter::create(&store)?;
                writer.write(&bytes)?;
                let expected = Some((digest.as_str(), bytes.len() as u64));
                writer.finish(&store, expected).map(drop)
            })
            .await?;
        }
        Ok((digest, bytes))
    }

    /// A configuration or a layer, streamed to the disk. What another registry sends of it
    /// meanwhile is not waited for: that one may be slow, on purpose or not.
    pub(super) async fn fetch_blob(
        &self,
        source: &Source,
        blob: &Descriptor,
    ) -> Result<(), ImageError> {
        let key = format!("blob {} {}", source.url, blob.digest);
        let _one = self.lock(&key).await;
        if self.has_blob(&blob.digest) {
            return Ok(());
        }
        let body = source.client.blob(&source.repository, &blob.digest).await;
        let body = body.map_err(|error| source.failed(&error))?;
        // Hashing and writing block: on a thread for that, a piece at a time, while the next
        // one is read. None waits for the registry.
        let store = self.clone();
        let create = move || BlobWriter::create(&store).map(Unfinished::new);
        let mut unfinished = blocking("blob", create).await?;
        let mut incoming = Incoming {
            source,
            blob,
            body,
            length: 0,
        };
        let mut piece = incoming.next().await?;
        while !piece.is_empty() {
            if self.has_blob(&blob.digest) {
                // From elsewhere.
                return Ok(());
            }
            let written = blocking("blob", move || {
                let mut writer = unfinished.take()?;
                writer.write(&piece)?;
                Ok(Unfinished::new(writer))
            });
            (unfinished, piece) = futures::try_join!(written, incoming.next())?;
        }
        let (store, digest, size) = (self.clone(), blob.digest.clone(), blob.size);
        blocking("blob", move || {
            let expected = Some((digest.as_str(), size));
            unfinished.take()?.finish(&store, expected).map(drop)
        })
        .await
    }
}

/// A blob as a registry sends it.
struct Incoming<'a> {
    source: &'a Source,
    blob: &'a Descriptor,
    body: Blob,
    /// Bytes that came.
    length: u64,
}

impl Incoming<'_> {
    /// The next piece; empty at the end.
    async fn next(&mut self) -> Result<Vec<u8>, ImageError> {
        let piece = self.body.next(PIECE).await;
        let piece = piece.map_err(|error| self.source.failed(&error))?;
        self.length += piece.len() as u64;
        if self.length > self.blob.size {
            return Err(ImageError::SizeMismatch {
                digest: self.blob.digest.clone(),
                expected: self.blob.size,
                actual: self.length,
            });
        }
        Ok(piece)
    }
}

fn non_empty(text: &str, otherwise: &str) -> String {
    if text.is_empty() {
        otherwise.to_owned()
    } else {
        text.to_owned()
    }
}
