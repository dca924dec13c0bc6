//! How a node comes by its certificate: with the join token; afterwards it lies in
//! `root/pki`, and `renew.rs` replaces it before it ends.
//!
//! The key is made once and stays: the control plane knows the node by it. Called
//! by `main.rs` before anything else speaks to the control plane.

use std::path::{Path, PathBuf};

use agent_sys::state;
use proto::v1;
use proto::v1::node_client::NodeClient;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use crate::config::Config;
use crate::tls::{self, Identity, TlsError};

/// Why the node has no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// Neither a certificate nor a token.
    #[error("no certificate in {folder} and no [join] section in the configuration")]
    NoToken {
        /// Where it would lie.
        folder: PathBuf,
    },
    /// The control plane said no.
    #[error("refused by the control plane: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// A key or request could not be made.
    #[error("make certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// Another cluster's, or one that was set up anew.
    #[error(
        "the CA of the control plane at {address} is not that of ca_hash: replace the [join] \
         section by what `foil-control join-token` prints there"
    )]
    OtherCa {
        /// HOST:PORT.
        address: String,
    },
    /// No channel.
    #[error(transparent)]
    Tls(TlsError),
    /// No answer. It may be tried again.
    #[error("cannot reach the control plane: {reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// It has no time now. It may be tried again.
    #[error("the control plane is busy: {reason}")]
    Busy {
        /// Its words.
        reason: String,
    },
    /// The files.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// The files.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JoinError {
    /// True if another try may go better.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            JoinError::Unreachable { .. }
            | JoinError::Busy { .. }
            | JoinError::Tls(TlsError::Connect { .. }) => true,
            // A certificate that was refused stays refused.
            JoinError::Tls(
                TlsError::Certificate { .. }
                | TlsError::Host { .. }
                | TlsError::Pem { .. }
                | TlsError::Rustls(_),
            )
            | JoinError::NoToken { .. }
            | JoinError::OtherCa { .. }
            | JoinError::Refused { .. }
            | JoinError::Request(_)
            | JoinError::State(_)
            | JoinError::Read { .. } => false,
        }
    }
}

impl From<TlsError> for JoinError {
    fn from(error: TlsError) -> Self {
        match error.other_ca().map(str::to_owned) {
            Some(address) => JoinError::OtherCa { address },
            None => JoinError::Tls(error),
        }
    }
}

pub(crate) fn folder(config: &Config) -> PathBuf {
    config.root.join("pki")
}

fn read(path: &Path) -> Result<Option<String>, JoinError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JoinError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// The certificate that the node has already.
pub(crate) fn kept(config: &Config) -> Result<Option<Identity>, JoinError> {
    let folder = folder(config);
    let (certificate, key, ca) = (
        read(&folder.join("node.crt"))?,
        read(&folder.join("node.key"))?,
        read(&folder.join("ca.crt"))?,
    );
    Ok(match (certificate, key, ca) {
        (Some(certificate_pem), Some(key_pem), Some(ca_pem)) => Some(Identity {
            certificate_pem,
            key_pem,
            ca_pem,
            folder,
        }),
        _ => None,
    })
}

/// Asks for a certificate with the join token, and keeps it.
pub(crate) async fn join(config: &Config) -> Result<Identity, JoinError> {
    let folder = folder(config);
    let join = config.join.as_ref().ok_or_else(|| JoinError::NoToken {
        folder: folder.clone(),
    })?;
    state::create_folder(&folder)?;
    let key = key(&folder.join("node.key"))?;
    let csr_pem = request(&key, &config.node_name)?;
    let (channel, _) = tls::connect(&config.control, tls::first_contact(&join.ca_hash)?).await?;
    let request = v1::JoinRequest {
        token: join.token.clone(),
        csr_pem,
        node_name: config.node_name.clone(),
    };
    let answer = NodeClient::new(channel)
        .join(request)
        .await
        .map_err(|status| {
            let reason = status.message().to_owned();
            match status.code() {
                tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => {
                    JoinError::Unreachable {
                        reason: format!("{reason} ({})", status.code()),
                    }
                }
                tonic::Code::ResourceExhausted => JoinError::Busy { reason },
                tonic::Code::Ok
                | tonic::Code::Cancelled
                | tonic::Code::InvalidArgument
                | tonic::Code::NotFound
                | tonic::Code::AlreadyExists
                | tonic::Code::PermissionDenied
                | tonic::Code::FailedPrecondition
                | tonic::Code::Aborted
                | tonic::Code::OutOfRange
                | tonic::Code::Unimplemented
                | tonic::Code::Internal
                | tonic::Code::DataLoss
                | tonic::Code::Unauthenticated => JoinError::Refused { reason },
            }
        })?;
    let answer = answer.into_inner();
    let identity = Identity {
        certificate_pem: answer.certificate_pem,
        key_pem: key.serialize_pem(),
        ca_pem: answer.ca_pem,
        folder: folder.clone(),
    };
    // What does not work must not be kept.
    tls::mutual(&identity)?;
    state::replace(&folder.join("ca.crt"), identity.ca_pem.as_bytes(), 0o600)?;
    // Last: without it the node joins anew.
    keep(&identity)?;
    Ok(identity)
}

/// Keeps the certificate; a crash leaves the one before or this one.
pub(crate) fn keep(identity: &Identity) -> Result<(), JoinError> {
    let path = identity.folder.join("node.crt");
    state::replace(&path, identity.certificate_pem.as_bytes(), 0o600)?;
    Ok(())
}

/// The node's key. A new one is on disk before anything is signed for it, so that
/// an answer that is lost can be asked for again.
fn key(path: &Path) -> Result<KeyPair, JoinError> {
    if let Some(pem) = read(path)? {
        return Ok(KeyPair::from_pem(&pem)?);
    }
    let key = KeyPair::generate()?;
    state::replace(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// A certificate request of this node, PEM.
pub(crate) fn request(key: &KeyPair, node: &str) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name = name;
    params.serialize_request(key)?.pem()
}
