//! Who a caller is, by the subject of its certificate, and what it may do:
//! operators everything, a node its own session, a stranger only to join.
//!
//! The chain was checked against the CA by TLS before. Called by each rpc.

use jiff::Timestamp;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::subject::{MASTERS, NODE_PREFIX, NODES, key_hash};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// An operator, by name.
    Admin(String),
    /// A node.
    Node(NodeCaller),
    /// A certificate of this CA that grants nothing: its subject.
    Other(String),
    /// No certificate.
    Anonymous,
}

/// A node that calls, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCaller {
    /// Node name.
    pub name: String,
    /// Hash of its public key, [`key_hash`].
    pub key: String,
    /// When the certificate ends.
    pub ends: Timestamp,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::Admin(name) => write!(f, "operator {name:?}"),
            Caller::Node(node) => write!(f, "node {:?}", node.name),
            Caller::Other(subject) => write!(f, "{subject:?}"),
            Caller::Anonymous => f.write_str("a client without certificate"),
        }
    }
}

/// The caller of a request.
pub fn caller<T>(request: &Request<T>) -> Caller {
    let certificates = request.peer_certs();
    let leaf = certificates.as_ref().and_then(|all| all.first());
    leaf.map_or(Caller::Anonymous, |leaf| {
        of_certificate(leaf, Timestamp::now())
    })
}

fn of_certificate(der: &[u8], now: Timestamp) -> Caller {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Caller::Other("a certificate that does not parse".to_owned());
    };
    let subject = certificate.subject();
    // TLS has checked it in the handshake, which may be long ago, or that of an
    // earlier connection that this one resumed.
    let ends = Timestamp::from_second(certificate.validity().not_after.timestamp());
    let ends = ends.unwrap_or(Timestamp::MIN);
    if ends <= now {
        return Caller::Other(format!("{subject}, whose certificate ended at {ends}"));
    }
    let names: Vec<&str> = subject
        .iter_common_name()
        .filter_map(|n| n.as_str().ok())
        .collect();
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    let [name] = names.as_slice() else {
        return Caller::Other(subject.to_string());
    };
    if groups.contains(&MASTERS) {
        return Caller::Admin((*name).to_owned());
    }
    match name.strip_prefix(NODE_PREFIX) {
        Some(node) if groups.contains(&NODES) => Caller::Node(NodeCaller {
            name: node.to_owned(),
            key: key_hash(certificate.public_key().raw),
            ends,
        }),
        Some(_) | None => Caller::Other(subject.to_string()),
    }
}

fn refuse<T>(request: &Request<T>, caller: &Caller, what: &str) -> Status {
    let from = request
        .remote_addr()
        .map_or_else(|| "?".to_owned(), |a| a.to_string());
    tracing::warn!(%from, "refused: {caller} may not {what}");
    if *caller == Caller::Anonymous {
        Status::unauthenticated(format!("a client certificate is needed to {what}"))
    } else {
        Status::permission_denied(format!("{caller} may not {what}"))
    }
}

/// Lets those pass who have a certificate: asked before a request is read, so that
/// a stranger's is neither decoded nor kept in memory.
pub fn known(request: Request<()>) -> Result<Request<()>, Status> {
    match caller(&request) {
        Caller::Anonymous => Err(refuse(&request, &Caller::Anonymous, "call the cluster")),
        Caller::Admin(_) | Caller::Node(_) | Caller::Other(_) => Ok(request),
    }
}

/// Lets operators pass.
pub fn admin<T>(request: &Request<T>, what: &str) -> Result<(), Status> {
    match caller(request) {
        Caller::Admin(_) => Ok(()),
        other @ (Caller::Node(_) | Caller::Other(_) | Caller::Anonymous) => {
            Err(refuse(request, &other, what))
        }
    }
}

/// Lets nodes pass, and says which.
pub fn node<T>(request: &Request<T>, what: &str) -> Result<NodeCaller, Status> {
    match caller(request) {
        Caller::Node(node) => Ok(node),
        other @ (Caller::Admin(_) | Caller::Other(_) | Caller::Anonymous) => {
            Err(refuse(request, &other, what))
        }
    }
}
