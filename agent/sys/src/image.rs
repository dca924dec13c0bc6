//! Images on the node: a content-addressed store, and how images get into it.
//!
//! The store's folder is an OCI image layout (`oci-layout`, `index.json`,
//! `blobs/sha256/`), beside it each layer unpacked once (`layers/sha256/`).
//! Which image a node should have, and when, is decided in `agent-plan`; the
//! caller is `agent/daemon/src/apply.rs`.
//! Reading order: `reference`, `manifest`, `store`, `lock`, `blob`, `answer`, `token`,
//! `distribution`, `registry`, `pull`, `import`, `collect`; `archive`, `unpack`, `attributes`;
//! `rootfs`, `user`.

mod answer;
mod archive;
mod attributes;
mod blob;
mod collect;
mod distribution;
mod import;
mod json;
mod lock;
mod lookup;
mod manifest;
mod pull;
mod pulls;
pub mod reference;
mod registry;
pub mod rootfs;
mod store;
mod token;
pub mod unpack;
pub mod user;

use std::io;
use std::path::{Path, PathBuf};

pub use reference::Reference;
pub use registry::Endpoint;
pub use rootfs::RootfsError;
pub use store::ImageStore;
pub use user::{Account, UserError};

/// An image that is whole on this node: every layer unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The image's names here: `docker.io/library/busybox:latest`. Sorted.
    pub references: Vec<String>,
    /// Digest of what the name stood for at the registry (of the index, when
    /// it is built for several platforms): `sha256:...`.
    pub digest: String,
    /// Digest of the configuration: `sha256:...`, which Docker calls the image's id.
    pub config_digest: String,
    /// Folders of the unpacked layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Bytes of the blobs as transferred.
    pub size: u64,
    pub config: ImageConfig,
}

impl Image {
    /// What Kubernetes shows as a container's `imageID`:
    /// `docker.io/library/busybox@sha256:...`.
    pub fn image_id(&self) -> String {
        let name = self
            .references
            .first()
            .map_or("", |whole| reference::name_part(whole));
        if name.is_empty() {
            self.digest.clone()
        } else {
            format!("{name}@{}", self.digest)
        }
    }
}

/// What an image says of the process to start. Empty: it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// "NAME=value"
    pub env: Vec<String>,
    pub working_dir: String,
    /// "name", "uid", "name:group", "uid:gid"; see [`user::resolve`].
    pub user: String,
    /// "SIGTERM" or "15"
    pub stop_signal: String,
    /// In Go's words: "amd64", "arm64".
    pub architecture: String,
    pub os: String,
}

/// What kept an image from being there.
///
/// [`ImageError::reason`] is the word that Kubernetes uses for it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("couldn't parse image name {name:?}: {why}")]
    InvalidName { name: String, why: String },
    #[error("image {reference:?} is not present with pull policy of Never")]
    NotPresent { reference: String },
    #[error("{reference} at {endpoint}: not found")]
    NotFound { reference: String, endpoint: String },
    #[error("{reference} at {endpoint}: authorization failed: {why}")]
    Unauthorized {
        reference: String,
        endpoint: String,
        why: String,
    },
    #[error("{reference} at {endpoint}: {why}")]
    Registry {
        reference: String,
        endpoint: String,
        why: String,
    },
    #[error(
        "registry endpoint {url:?} is not http://HOST[:PORT] or https://HOST[:PORT]; paths are not supported"
    )]
    InvalidEndpoint { url: String },
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch { expected: String, actual: String },
    #[error("{digest}: only sha256 digests of 64 hexadecimal digits are supported")]
    UnsupportedDigest { digest: String },
    #[error("blob {digest}: {actual} bytes instead of {expected}")]
    SizeMismatch {
        digest: String,
        expected: u64,
        actual: u64,
    },
    #[error("no image for linux/{architecture} in {digest}")]
    NoPlatform {
        digest: String,
        architecture: String,
    },
    #[error("cannot parse {what} {digest}: {why}")]
    InvalidManifest {
        what: &'static str,
        digest: String,
        why: String,
    },
    #[error("layer {layer}: {source}")]
    Layer {
        layer: String,
        source: unpack::UnpackError,
    },
    #[error("{path:?} is neither an OCI layout nor a docker archive: {why}")]
    InvalidArchive { path: PathBuf, why: String },
    #[error("image {digest} in {path:?} has no name: give one with --name")]
    NoName { path: PathBuf, digest: String },
    #[error("{path:?} holds {count} images: --name is for archives with one image")]
    SeveralImages { path: PathBuf, count: usize },
    #[error("no space left on device while writing {path:?}")]
    DiskFull { path: PathBuf },
    #[error("{verb} {path:?}: {source}")]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("work on image {reference:?} was interrupted")]
    Interrupted { reference: String },
}

/// Why a container waits for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its name does not parse: `InvalidImageName`.
    InvalidName,
    /// It is not in the store, and no registry may be asked: `ErrImageNeverPull`.
    NeverPull,
    /// It could not be had: `ErrImagePull`.
    Pull,
}

impl ImageError {
    /// Why a container waits for this image.
    pub fn reason(&self) -> Reason {
        match self {
            Self::InvalidName { .. } => Reason::InvalidName,
            Self::NotPresent { .. } => Reason::NeverPull,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Registry { .. }
            | Self::InvalidEndpoint { .. }
            | Self::DigestMismatch { .. }
            | Self::UnsupportedDigest { .. }
            | Self::SizeMismatch { .. }
            | Self::NoPlatform { .. }
            | Self::InvalidManifest { .. }
            | Self::Layer { .. }
            | Self::InvalidArchive { .. }
            | Self::NoName { .. }
            | Self::SeveralImages { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. }
            | Self::Interrupted { .. } => Reason::Pull,
        }
    }

    /// For `map_err`: an I/O error with what was done to which path; a full
    /// disk gets its own variant.
    pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| {
            if crate::state::is_full(&source) {
                Self::DiskFull { path }
            } else {
                Self::Io { verb, path, source }
            }
        }
    }
}

#[cfg(test)]
mod tests;
