//! Images from registries, by the OCI distribution protocol.
//!
//! Manifest, configuration, layers, in this order; each blob is verified while
//! it streams to the disk. What is in the store already is not fetched.

use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use proto::v1::PullSecret;

use super::blob::BlobWriter;
use super::manifest::{
    self, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH,
    Manifest, OCI_INDEX, OCI_MANIFEST,
};
use super::reference::Version;
use super::registry::{Source, pull_key, urls};
use super::store::{ImageStore, blocking, choose, sha256, too_deep};
use super::{Endpoint, Image, ImageError, Reference};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;

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
    /// # Errors
    /// See [`ImageError`]. Nothing half-made is kept.
    pub async fn pull(
        &self,
        reference: &Reference,
        endpoints: &[Endpoint],
        secrets: &[PullSecret],
    ) -> Result<Image, ImageError> {
        let _adding = self.adding().await?;
        // Who waits here for a pull that began after it asked need not ask again.
        let turn = || self.inner.turn.fetch_add(1, Ordering::Relaxed);
        let urls = urls(&reference.registry, endpoints);
        let (key, asked) = (pull_key(reference, &urls, secrets), turn());
        let mut last_began = self.lock(&format!("pull {key}")).await;
        if *last_began > asked
            && let Some(image) = self.get(reference)?
        {
            return Ok(image);
        }
        let began = turn();
        let image = self.pull_from_any(reference, &urls, secrets).await?;
        *last_began = began;
        Ok(image)
    }

    async fn pull_from_any(
        &self,
        reference: &Reference,
        urls: &[String],
        secrets: &[PullSecret],
    ) -> Result<Image, ImageError> {
        let mut answer = None;
        for url in urls {
            let tried = match Source::new(&self.inner.clients, reference, url, secrets) {
                Ok(source) => self.pull_from(reference, &source).await,
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

    async fn pull_from(&self, reference: &Reference, source: &Source) -> Result<Image, ImageError> {
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
        self.unpack_layers(&manifest, &config).await?;
        self.name(&top, &[reference.to_string()])
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
                // A request without a body: whether it is there for these credentials.
                source
                    .client
                    .fetch_manifest_digest(&source.reference(version), &source.auth)
                    .await
                    .map_err(|error| source.failed(error))?;
            }
            return Ok((digest.clone(), bytes));
        }
        let accepted = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        let (bytes, _) = source
            .client
            .pull_manifest_raw(&source.reference(version), &source.auth, &accepted)
            .await
            .map_err(|error| source.failed(error))?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(ImageError::InvalidManifest {
                what: "manifest",
                digest: source.wanted.clone(),
                why: format!("{} bytes are too many", bytes.len()),
            });
        }
        let digest = sha256(&bytes);
        if let Version::Digest(expected) = version
            && *expected != digest
        {
            return Err(ImageError::DigestMismatch {
                expected: expected.clone(),
                actual: digest,
            });
        }
        let bytes = bytes.to_vec();
        if !self.has_blob(&digest) {
            let mut writer = BlobWriter::create(self)?;
            writer.write(&bytes)?;
            writer.finish(self, Some((&digest, bytes.len() as u64)))?;
        }
        Ok((digest, bytes))
    }

    /// A configuration or a layer, streamed to the disk.
    async fn fetch_blob(&self, source: &Source, blob: &Descriptor) -> Result<(), ImageError> {
        let _one = self.lock(&format!("blob {}", blob.digest)).await;
        if self.has_blob(&blob.digest) {
            return Ok(());
        }
        let wanted = OciDescriptor {
            digest: blob.digest.clone(),
            size: blob.size.cast_signed(),
            ..OciDescriptor::default()
        };
        source
            .client
            .store_auth_if_needed(&source.host, &source.auth)
            .await;
        let reference = source.reference(&Version::Digest(blob.digest.clone()));
        let mut stream = source
            .client
            .pull_blob_stream(&reference, &wanted)
            .await
            .map_err(|error| source.failed(error))?
            .stream;

        // Hashing and writing block: on a thread for that, a few chunks behind.
        let (sender, mut chunks) = tokio::sync::mpsc::channel::<Option<bytes::Bytes>>(8);
        let (store, digest, size) = (self.clone(), blob.digest.clone(), blob.size);
        let writing = tokio::spawn(blocking("blob", move || {
            let mut writer = BlobWriter::create(&store)?;
            // None is the end; a sender that is dropped gave up.
            while let Some(chunk) = chunks.blocking_recv() {
                let Some(chunk) = chunk else {
                    return writer.finish(&store, Some((&digest, size))).map(drop);
                };
                writer.write(&chunk)?;
                if writer.written() > size {
                    let actual = writer.written();
                    return Err(ImageError::SizeMismatch {
                        digest,
                        expected: size,
                        actual,
                    });
                }
            }
            Err(ImageError::Interrupted { reference: digest })
        }));
        let mut failure = None;
        loop {
            let chunk = match stream.next().await {
                Some(Err(error)) => {
                    failure = Some(source.failed(OciDistributionError::IoError(error)));
                    break;
                }
                Some(Ok(chunk)) => Some(chunk),
                None => None,
            };
            let end = chunk.is_none();
            if sender.send(chunk).await.is_err() || end {
                break;
            }
        }
        drop(sender);
        let written = writing.await.map_err(|_gone| ImageError::Interrupted {
            reference: source.wanted.clone(),
        })?;
        failure.map_or(written, Err)
    }
}

fn non_empty(text: &str, otherwise: &str) -> String {
    if text.is_empty() {
        otherwise.to_owned()
    } else {
        text.to_owned()
    }
}
