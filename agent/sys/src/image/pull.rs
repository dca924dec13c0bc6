//! Images from registries, by the OCI distribution protocol.
//!
//! Manifest, configuration, layers, in this order; each blob is verified while
//! it streams to the disk. What is in the store already is not fetched.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use proto::v1::PullSecret;

use super::blob::BlobWriter;
use super::manifest::{
    self, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH,
    Manifest, OCI_INDEX, OCI_MANIFEST,
};
use super::reference::Version;
use super::store::{ImageStore, blocking, choose, sha256, too_deep};
use super::{Image, ImageError, Reference};

/// A registry that does not answer the connect in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer that stands still for so long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Layers fetched at the same time.
const PARALLEL: usize = 3;

/// Where to ask for a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The registry as names have it: "docker.io".
    pub host: String,
    /// "http://172.31.0.1:5000" or "https://mirror.example".
    pub url: String,
}

/// Connections to registries, kept: a pod whose image must always be asked for
/// does not pay for a new one. By endpoint and credentials.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<(String, String), Client>>);

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The keys hold passwords.
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// One place to try.
struct Source {
    client: Client,
    auth: RegistryAuth,
    /// "172.31.0.1:5000"
    host: String,
    /// For messages: "http://172.31.0.1:5000"
    url: String,
    repository: String,
    /// Whole name of the image wanted, for messages.
    wanted: String,
}

impl ImageStore {
    /// Fetches the image, even when one of that name is here (its name may
    /// stand for another image by now); blobs and layers that are here are not
    /// fetched again. Pulls of the same image at the same time share the work.
    /// `endpoints` are tried in order for the registries that they name;
    /// a registry that no endpoint names is asked itself, by https (by http on
    /// a loopback address, as elsewhere).
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
        let _one = self.lock(&format!("pull {reference}")).await;
        let mut answer = None;
        for url in urls(&reference.registry, endpoints) {
            let tried = match self.source(reference, &url, secrets) {
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

    fn source(
        &self,
        reference: &Reference,
        url: &str,
        secrets: &[PullSecret],
    ) -> Result<Source, ImageError> {
        let invalid = || ImageError::InvalidEndpoint {
            url: url.to_owned(),
        };
        let (scheme, host) = url.split_once("://").ok_or_else(invalid)?;
        let host = host.trim_end_matches('/');
        let protocol = match scheme {
            "http" => ClientProtocol::Http,
            "https" => ClientProtocol::Https,
            _ => return Err(invalid()),
        };
        if host.is_empty() || host.contains('/') {
            return Err(invalid());
        }
        let auth = credentials(&reference.registry, secrets);
        let key = match &auth {
            RegistryAuth::Basic(user, password) => format!("{user}\0{password}"),
            RegistryAuth::Anonymous | RegistryAuth::Bearer(_) => String::new(),
        };
        let mut clients = self
            .inner
            .clients
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let client = match clients.get(&(url.to_owned(), key.clone())) {
            Some(client) => client.clone(),
            None => {
                let client = connect(protocol).map_err(|why| ImageError::Registry {
                    reference: reference.to_string(),
                    endpoint: url.to_owned(),
                    why,
                })?;
                clients.insert((url.to_owned(), key), client.clone());
                client
            }
        };
        Ok(Source {
            client,
            auth,
            host: host.to_owned(),
            url: url.to_owned(),
            repository: reference.repository.clone(),
            wanted: reference.to_string(),
        })
    }

    async fn pull_from(&self, reference: &Reference, source: &Source) -> Result<Image, ImageError> {
        let (top, manifest) = self.fetch_manifest(reference, source).await?;
        self.fetch_blob(source, &manifest.config).await?;
        let bytes = self.read_blob(&manifest.config.digest)?.unwrap_or_default();
        let config = manifest::parse_config(&manifest, &bytes)?;
        futures::stream::iter(&manifest.layers)
            .map(|layer| self.fetch_blob(source, layer))
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
            let (digest, bytes) = self.fetch_document(source, &version).await?;
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
    ) -> Result<(String, Vec<u8>), ImageError> {
        if let Version::Digest(digest) = version
            && let Some(bytes) = self.read_blob(digest)?
        {
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

impl Source {
    fn reference(&self, version: &Version) -> oci_client::Reference {
        let (host, repository) = (self.host.clone(), self.repository.clone());
        match version {
            Version::Tag(tag) => oci_client::Reference::with_tag(host, repository, tag.clone()),
            Version::Digest(digest) => {
                oci_client::Reference::with_digest(host, repository, digest.clone())
            }
        }
    }

    /// The client's error in our words.
    fn failed(&self, error: OciDistributionError) -> ImageError {
        let (reference, endpoint) = (self.wanted.clone(), self.url.clone());
        if let Some((expected, actual)) = mismatch(&error) {
            return ImageError::DigestMismatch { expected, actual };
        }
        let why = chain(&error);
        let has = |wanted: &[OciErrorCode]| {
            if let OciDistributionError::RegistryError { envelope, .. } = &error {
                envelope
                    .errors
                    .iter()
                    .any(|error| wanted.contains(&error.code))
            } else {
                false
            }
        };
        let code = if let OciDistributionError::ServerError { code, .. } = &error {
            *code
        } else {
            0
        };
        let absent = matches!(error, OciDistributionError::ImageManifestNotFoundError(_))
            || code == 404
            || has(&[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::NotFound,
                OciErrorCode::BlobUnknown,
                OciErrorCode::ManifestBlobUnknown,
            ]);
        let forbidden = matches!(
            error,
            OciDistributionError::UnauthorizedError { .. }
                | OciDistributionError::AuthenticationFailure(_)
        ) || matches!(code, 401 | 403)
            || has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]);
        if absent {
            ImageError::NotFound {
                reference,
                endpoint,
            }
        } else if forbidden {
            ImageError::Unauthorized {
                reference,
                endpoint,
                why,
            }
        } else {
            ImageError::Registry {
                reference,
                endpoint,
                why,
            }
        }
    }
}

fn mismatch(error: &OciDistributionError) -> Option<(String, String)> {
    let digest_error = if let OciDistributionError::DigestError(error) = error {
        Some(error)
    } else if let OciDistributionError::IoError(error) = error {
        error.get_ref()?.downcast_ref::<DigestError>()
    } else {
        None
    };
    if let Some(DigestError::VerificationError { expected, actual }) = digest_error {
        Some((expected.clone(), actual.clone()))
    } else {
        None
    }
}

/// An error with its causes; the outermost says little ("error sending request").
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn connect(protocol: ClientProtocol) -> Result<Client, String> {
    // Only the first caller in a process installs; they all want the same one.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::trace!("a cryptography provider is installed already");
    }
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: "foil-agent",
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| chain(&error))
}

/// Endpoints of a registry, in the order to try them.
fn urls(registry: &str, endpoints: &[Endpoint]) -> Vec<String> {
    let named: Vec<String> = endpoints
        .iter()
        .filter(|e| e.host == registry)
        .map(|e| e.url.clone())
        .collect();
    if !named.is_empty() {
        return named;
    }
    let loopback = registry
        .rsplit_once(':')
        .map_or(registry, |(host, _)| host)
        .parse::<std::net::Ipv4Addr>()
        .is_ok_and(|address| address.is_loopback())
        || registry == "localhost"
        || registry.starts_with("localhost:");
    let scheme = if loopback { "http" } else { "https" };
    let host = if registry == "docker.io" {
        "index.docker.io"
    } else {
        registry
    };
    vec![format!("{scheme}://{host}")]
}

/// The secret for a registry. Docker's configuration files call Docker Hub by
/// an address of their own.
fn credentials(registry: &str, secrets: &[PullSecret]) -> RegistryAuth {
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let host = |text: &str| {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        text.split('/').next().unwrap_or_default().to_owned()
    };
    secrets
        .iter()
        .find(|secret| {
            let of = host(&secret.registry);
            of == registry || (registry == "docker.io" && hub.contains(&of.as_str()))
        })
        .map_or(RegistryAuth::Anonymous, |secret| {
            RegistryAuth::Basic(secret.username.clone(), secret.password.clone())
        })
}

fn non_empty(text: &str, otherwise: &str) -> String {
    if text.is_empty() {
        otherwise.to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_registry_is_asked_only_at_its_endpoints() {
        let endpoints = [
            ("docker.io", "http://a:1"),
            ("ghcr.io", "https://b"),
            ("docker.io", "https://c"),
        ]
        .map(|(host, url)| Endpoint {
            host: host.to_owned(),
            url: url.to_owned(),
        });
        for (registry, expected) in [
            ("docker.io", vec!["http://a:1", "https://c"]),
            ("ghcr.io", vec!["https://b"]),
            ("quay.io", vec!["https://quay.io"]),
            ("127.0.0.1:5000", vec!["http://127.0.0.1:5000"]),
            ("localhost:5000", vec!["http://localhost:5000"]),
            ("localhost.example", vec!["https://localhost.example"]),
        ] {
            assert_eq!(urls(registry, &endpoints), expected, "{registry}");
        }
        assert_eq!(urls("docker.io", &[]), ["https://index.docker.io"]);
    }

    #[test]
    fn secrets_are_found_by_registry() {
        let secret = |registry: &str| PullSecret {
            registry: registry.to_owned(),
            username: "u".to_owned(),
            password: "p".to_owned(),
        };
        for (registry, written, found) in [
            ("docker.io", "https://index.docker.io/v1/", true),
            ("r.example:5000", "r.example:5000", true),
            ("r.example", "https://r.example/v2/", true),
            ("r.example", "r.example:5000", false),
            ("r.example", "index.docker.io", false),
        ] {
            let auth = credentials(registry, &[secret(written)]);
            assert_eq!(
                auth != RegistryAuth::Anonymous,
                found,
                "{registry} {written}"
            );
        }
    }
}
