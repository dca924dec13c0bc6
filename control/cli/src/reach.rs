//! Why the control plane could not be reached, and what to do about it.
//!
//! Reads the chain of sources below a transport error; where that does not tell,
//! `ask_again` connects once more to hear it.
//! Called by `client.rs` for connections that fail and for those that break.

use std::error::Error;
use std::fmt;
use std::io::{self, Read as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError};

use crate::config::Access;

/// What went wrong, as far as a person can act on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Obstacle {
    Refused,
    NoRoute,
    TimedOut,
    /// Name of the host does not resolve.
    UnknownHost(String),
    /// The server's certificate comes from another authority.
    UnknownAuthority,
    ServerExpired,
    ServerNotYetValid,
    ServerName,
    /// The server does not speak TLS.
    NotTls,
    /// Our own certificate was refused.
    ClientRefused(String),
    /// Our own certificate is too old.
    ClientExpired,
    /// It hung up without a word that reached us; `ask_again` finds out.
    HungUp,
    /// The address in the context file.
    Address(String),
    /// Our own certificate or key cannot be read.
    Identity(String),
    Other(String),
}

/// A control plane that cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Unreachable {
    pub(crate) server: String,
    pub(crate) context: String,
    pub(crate) file: std::path::PathBuf,
    pub(crate) obstacle: Obstacle,
}

impl Unreachable {
    pub(crate) fn new(access: &Access, obstacle: Obstacle) -> Self {
        Self {
            server: access.server.clone(),
            context: access.context.clone(),
            file: access.file.clone(),
            obstacle,
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, advice) = self.obstacle.words();
        write!(
            f,
            "cannot reach the control plane at {}: {what}\n  {advice}\n  (context \"{}\" of {})",
            self.server,
            self.context,
            self.file.display()
        )
    }
}

impl Obstacle {
    /// What happened.
    pub(crate) fn what(&self) -> String {
        self.words().0
    }

    /// What happened, and what to do.
    fn words(&self) -> (String, &'static str) {
        const NEW_CONTEXT: &str = "Was the control plane set up anew? Then use its new data/admin.conf as the context file.";
        match self {
            Self::Refused => (
                "connection refused".into(),
                "Is foil-control running there, and is this its `listen` address?",
            ),
            Self::NoRoute => (
                "no route to host".into(),
                "Is this the right address, and is the network up?",
            ),
            Self::TimedOut => (
                "no answer in time".into(),
                "Is the machine up, and does its firewall allow the port?",
            ),
            Self::UnknownHost(name) => (
                format!("no such host \"{name}\""),
                "Write an address that resolves into the context file (clusters[].cluster.server).",
            ),
            Self::UnknownAuthority => (
                "its certificate is not signed by the authority in the context file".into(),
                NEW_CONTEXT,
            ),
            Self::ServerExpired => (
                "its certificate has expired".into(),
                "Restart foil-control to renew it; if it is current, compare the clocks of both machines.",
            ),
            Self::ServerNotYetValid => (
                "its certificate is not valid yet".into(),
                "The clocks of the two machines differ: correct them.",
            ),
            Self::ServerName => (
                "its certificate is for other names".into(),
                "Add this address to `names` in foil-control's config, or set tls-server-name in the context file.",
            ),
            Self::NotTls => (
                "what listens there does not speak TLS".into(),
                "Is this the address and port of foil-control?",
            ),
            Self::ClientRefused(why) => {
                (format!("it refuses our certificate ({why})"), NEW_CONTEXT)
            }
            Self::ClientExpired => (
                "it refuses our certificate (expired)".into(),
                "Make a new context on the control plane's machine: foil-control --config FILE admin-config",
            ),
            Self::HungUp => (
                "it closed the connection at once".into(),
                "foil-control closes connections whose certificate it does not accept; its log says why.",
            ),
            Self::Address(why) => (
                format!("the address cannot be used: {why}"),
                "It must look like https://HOST:PORT (clusters[].cluster.server).",
            ),
            Self::Identity(why) => (
                format!("the certificate or key in the context file cannot be used: {why}"),
                "Use data/admin.conf of the control plane as the context file.",
            ),
            Self::Other(why) => (why.clone(), "The log of foil-control may say more."),
        }
    }
}

/// Finds the obstacle in an error and what lies below it.
pub(crate) fn obstacle(error: &(dyn Error + 'static)) -> Obstacle {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = recognise(error) {
            return found;
        }
        let text = error.to_string();
        // The transport keeps these as text only.
        if ["broken pipe", "connection reset", "connection closed"]
            .iter()
            .any(|end| text.contains(end))
        {
            return Obstacle::HungUp;
        }
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    Obstacle::Other(texts.join(": "))
}

/// How long to wait for what a server says before it hangs up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Connects once more and only listens. A server that refuses our certificate
/// says so after the handshake, when we have begun to write already: the reset
/// that answers our bytes often overtakes its words.
pub(crate) fn ask_again(access: &Access, before: Obstacle) -> Obstacle {
    if !matches!(before, Obstacle::HungUp | Obstacle::Other(_)) {
        return before;
    }
    listen(access)
        .err()
        .and_then(|error| recognise(&error))
        .unwrap_or(before)
}

fn listen(access: &Access) -> io::Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&access.ca) {
        roots
            .add(certificate.map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&access.certificate).collect();
    let key = PrivateKeyDer::from_pem_slice(&access.key).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map_err(io::Error::other)?, key)
        .map_err(io::Error::other)?;
    let uri: tonic::transport::Uri = access.server.parse().map_err(io::Error::other)?;
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_string();
    let address = (host.as_str(), uri.port_u16().unwrap_or(443))
        .to_socket_addrs()?
        .next();
    let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut tcp = TcpStream::connect_timeout(&address, LAST_WORDS)?;
    tcp.set_read_timeout(Some(LAST_WORDS))?;
    let name = access.server_name.clone().unwrap_or(host);
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let mut tls =
        rustls::ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut byte = [0];
    rustls::Stream::new(&mut tls, &mut tcp)
        .read(&mut byte)
        .map(drop)
}

fn recognise(error: &(dyn Error + 'static)) -> Option<Obstacle> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(of_tls(tls));
    }
    let io = error.downcast_ref::<io::Error>()?;
    // An io::Error's own source is what lies below the error that it carries: look at that one here.
    if let Some(found) = io.get_ref().and_then(|inner| recognise(inner)) {
        return Some(found);
    }
    let kinds = [
        (io::ErrorKind::ConnectionRefused, Obstacle::Refused),
        (io::ErrorKind::HostUnreachable, Obstacle::NoRoute),
        (io::ErrorKind::NetworkUnreachable, Obstacle::NoRoute),
        (io::ErrorKind::TimedOut, Obstacle::TimedOut),
        (io::ErrorKind::BrokenPipe, Obstacle::HungUp),
        (io::ErrorKind::ConnectionReset, Obstacle::HungUp),
    ];
    kinds
        .into_iter()
        .find(|(kind, _)| *kind == io.kind())
        .map(|(_, found)| found)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' enums are non-exhaustive, and few of their values are about certificates"
)]
fn of_tls(error: &rustls::Error) -> Obstacle {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            Bad::Expired | Bad::ExpiredContext { .. } => Obstacle::ServerExpired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => Obstacle::ServerNotYetValid,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Obstacle::ServerName,
            Bad::UnknownIssuer | Bad::BadSignature => Obstacle::UnknownAuthority,
            _ => Obstacle::Other(error.to_string()),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => Obstacle::ClientExpired,
            AlertDescription::UnknownCA => {
                Obstacle::ClientRefused("signed by an unknown authority".into())
            }
            AlertDescription::CertificateRequired => {
                Obstacle::ClientRefused("none was given".into())
            }
            AlertDescription::BadCertificate | AlertDescription::DecryptError => {
                Obstacle::ClientRefused("bad".into())
            }
            AlertDescription::CertificateRevoked => Obstacle::ClientRefused("revoked".into()),
            AlertDescription::AccessDenied => Obstacle::ClientRefused("access denied".into()),
            _ => Obstacle::Other(error.to_string()),
        },
        rustls::Error::InvalidMessage(_) => Obstacle::NotTls,
        _ => Obstacle::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_below_other_errors() {
        let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, want) in [
            (
                io::Error::from(io::ErrorKind::ConnectionRefused),
                Obstacle::Refused,
            ),
            (
                io::Error::from(io::ErrorKind::HostUnreachable),
                Obstacle::NoRoute,
            ),
            (
                tls(rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer,
                )),
                Obstacle::UnknownAuthority,
            ),
            (
                tls(rustls::Error::InvalidCertificate(CertificateError::Expired)),
                Obstacle::ServerExpired,
            ),
            (
                tls(rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
                Obstacle::ClientRefused("signed by an unknown authority".into()),
            ),
            (io::Error::other("odd"), Obstacle::Other("odd".into())),
        ] {
            assert_eq!(obstacle(&error), want, "{error:?}");
        }
    }
}
