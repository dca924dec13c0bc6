//! The channel to the control plane: TLS by rustls, under the cluster's own CA.
//!
//! Before the node has the CA's certificate it knows only the hash of its public
//! key; then [`first_contact`] takes whichever CA has that hash, and no other.
//! Called by `join.rs` and `watch.rs`.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::ControlAddress;

/// A channel for calls beside the stream (`Attach`, `Renew`); `None` while there is none.
pub(crate) type Calls = tokio::sync::watch::Receiver<Option<Channel>>;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The host is neither a name nor an address.
    #[error("control: {host:?} is neither a host name nor an address")]
    Host {
        /// As configured.
        host: String,
    },
    /// The node's certificate, its key or the CA does not parse.
    #[error("{what} in {path}: {reason}")]
    Pem {
        /// Which.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// rustls does not accept what we have.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// We refuse the peer's certificate, or it ours.
    #[error("connect to {address}: {source}")]
    Certificate {
        /// HOST:PORT.
        address: String,
        /// Which, and why.
        source: rustls::Error,
    },
    /// No answer, or the handshake failed for another reason.
    #[error("connect to {address}: {reason}")]
    Connect {
        /// HOST:PORT.
        address: String,
        /// Why.
        reason: String,
    },
}

impl TlsError {
    /// HOST:PORT of a peer whose certificate is of another CA than the one that is trusted.
    pub(crate) fn other_ca(&self) -> Option<&str> {
        let issuer = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        match self {
            TlsError::Certificate { address, source } if *source == issuer => Some(address),
            TlsError::Certificate { .. }
            | TlsError::Connect { .. }
            | TlsError::Host { .. }
            | TlsError::Pem { .. }
            | TlsError::Rustls(_) => None,
        }
    }
}

/// A status without its code: the message, then the causes that it does not contain.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        let causes = proto::error::chain(source);
        if !text.contains(&causes) {
            text = format!("{text}: {causes}");
        }
    }
    text
}

/// The node's certificate, its key, and the CA, PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Leaf first.
    pub(crate) certificate_pem: String,
    /// PKCS#8.
    pub(crate) key_pem: String,
    /// The cluster's CA.
    pub(crate) ca_pem: String,
    /// Where they lie, for messages.
    pub(crate) folder: PathBuf,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?)
}

fn h2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// For a node that has a certificate.
pub(crate) fn mutual(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let pem = |what: &'static str, reason: String| TlsError::Pem {
        what,
        path: identity.folder.clone(),
        reason,
    };
    let chain = |text: &str, what: &'static str| {
        CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| pem(what, e.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in chain(&identity.ca_pem, "CA certificate")? {
        roots.add(certificate)?;
    }
    let own = chain(&identity.certificate_pem, "node certificate")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|e| pem("node key", e.to_string()))?;
    Ok(h2(builder()?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, key)?))
}

/// For a node that knows the CA by its hash only: "sha256:HEX".
pub(crate) fn first_contact(ca_hash: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Verifier::new(Trust::CaHash(ca_hash.to_ascii_lowercase()));
    Ok(h2(builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth()))
}

/// For HTTPS probes: kubelet does not verify the pod's certificate either.
pub(crate) fn unverified() -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Verifier::new(Trust::Anyone);
    let config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What became of the certificates of a channel, as rustls says it.
///
/// With TLS 1.3 the peer judges ours when we may write already, so that its refusal
/// comes with the first answer; of that error h2 keeps nothing but its text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handshake(Arc<OnceLock<rustls::Error>>);

impl Handshake {
    /// The refusal of a certificate, if that is what broke the channel.
    pub(crate) fn refused(&self) -> Option<rustls::Error> {
        self.0.get().cloned()
    }

    /// Remembers an error of the stream if it is about a certificate.
    fn note(&self, error: &io::Error) {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(error) = inner.filter(|e| is_refusal(e)) {
            // The first one counts: those of later connections say the same.
            self.0.get_or_init(|| error.clone());
        }
    }
}

fn is_refusal(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::AlertReceived(
                Alert::NoCertificate
                    | Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::UnknownCA
                    | Alert::AccessDenied
                    | Alert::CertificateRequired
                    // The signature under it is not of the CA of that name: the
                    // certificate of another cluster.
                    | Alert::DecryptError
            )
    )
}

/// A TLS stream whose errors are looked at on their way to h2.
struct Noted<S> {
    stream: S,
    handshake: Handshake,
}

impl<S: AsyncRead + Unpin> Noted<S> {
    /// What a write came to. A peer that refuses us sends its alert and closes: the
    /// alert may still be unread when a write fails.
    fn written<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.handshake.note(error);
            let mut bytes = [0; 64];
            let mut unread = ReadBuf::new(&mut bytes);
            if let Poll::Ready(Err(error)) =
                Pin::new(&mut self.stream).poll_read(context, &mut unread)
            {
                self.handshake.note(&error);
            }
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &result {
            self.handshake.note(error);
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(result, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.written(result, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(result, context)
    }
}

/// Connects and shakes hands. The second value says, also later, whether it was a
/// certificate that broke the channel.
pub(crate) async fn connect(
    address: &ControlAddress,
    tls: Arc<ClientConfig>,
) -> Result<(Channel, Handshake), TlsError> {
    let name =
        ServerName::try_from(address.host.clone()).map_err(|_invalid_name| TlsError::Host {
            host: address.host.clone(),
        })?;
    let target = format!("{}:{}", address.host, address.port);
    let failed = |reason: String| TlsError::Connect {
        address: target.clone(),
        reason,
    };
    let host = address.host.clone();
    let port = address.port;
    let connector = tokio_rustls::TlsConnector::from(tls);
    // The scheme is plain for tonic, which would else ask for its own TLS: ours is
    // inside the connector, with a verifier that tonic cannot be given.
    let uri = if host.contains(':') {
        format!("http://[{host}]:{port}")
    } else {
        format!("http://{host}:{port}")
    };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|e| failed(e.to_string()))?
        .connect_timeout(std::time::Duration::from_secs(5))
        .http2_keep_alive_interval(std::time::Duration::from_secs(10))
        .keep_alive_timeout(std::time::Duration::from_secs(10))
        .tcp_nodelay(true);
    let handshake = Handshake::default();
    let shared = handshake.clone();
    let service = tower::service_fn(move |_uri: http::Uri| {
        let (host, name, connector) = (host.clone(), name.clone(), connector.clone());
        let handshake = shared.clone();
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let shaken = connector.connect(name, stream).await;
            let stream = shaken.inspect_err(|e| handshake.note(e))?;
            Ok::<_, io::Error>(TokioIo::new(Noted { stream, handshake }))
        }
    });
    match endpoint.connect_with_connector(service).await {
        Ok(channel) => Ok((channel, handshake)),
        Err(error) => Err(match handshake.refused() {
            Some(source) => TlsError::Certificate {
                address: target.clone(),
                source,
            },
            None => failed(proto::error::chain(&error)),
        }),
    }
}

/// "sha256:HEX" over the SubjectPublicKeyInfo, as kubeadm has it.
fn spki_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(format!(
        "sha256:{}",
        hex::encode(Sha256::digest(parsed.public_key().raw))
    ))
}

/// Which chains are trusted where no root certificate is at hand.
#[derive(Debug)]
enum Trust {
    /// The one whose CA has this hash.
    CaHash(String),
    /// All. That the peer has the key of its certificate is still checked.
    Anyone,
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Verifier {
    fn new(trust: Trust) -> Arc<Self> {
        let provider = provider();
        Arc::new(Self { trust, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hash = match &self.trust {
            Trust::Anyone => return Ok(ServerCertVerified::assertion()),
            Trust::CaHash(hash) => hash,
        };
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|c| spki_hash(c).as_ref() == Some(hash))
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// A CA's certificate, and one with its key for "control" and "localhost" that it
    /// signed.
    fn signed() -> (Certificate, Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = ca.self_signed(&key).unwrap();
        let issuer = Issuer::from_params(&ca, &key);
        let names = ["control".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).unwrap();
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        (signed, leaf, leaf_key)
    }

    fn chain() -> (CertificateDer<'static>, CertificateDer<'static>) {
        let (ca, leaf, _) = signed();
        (ca.der().clone(), leaf.der().clone())
    }

    /// Which side refuses the other's certificate is told by type, whenever it comes.
    #[tokio::test]
    async fn a_refused_certificate_is_told_from_a_broken_network() {
        let (ca, server, server_key) = signed();
        let (other_ca, client, client_key) = signed();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider(),
        )
        .build()
        .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![server.der().clone()],
                PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ControlAddress {
            host: "localhost".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                assert!(acceptor.accept(stream).await.is_err(), "no client is known");
            }
        });
        let identity = |ca: &Certificate| Identity {
            certificate_pem: client.pem(),
            key_pem: client_key.serialize_pem(),
            ca_pem: ca.pem(),
            folder: "/pki".into(),
        };
        // We refuse the server's.
        let refused = connect(&address, mutual(&identity(&other_ca)).unwrap()).await;
        assert!(
            matches!(
                refused,
                Err(TlsError::Certificate {
                    source: rustls::Error::InvalidCertificate(_),
                    ..
                })
            ),
            "{refused:?}"
        );
        // The server refuses ours: told at the first answer at the latest.
        let alert = match connect(&address, mutual(&identity(&ca)).unwrap()).await {
            Err(TlsError::Certificate { source, .. }) => Some(source),
            Err(error) => panic!("{error}"),
            Ok((channel, handshake)) => {
                let request = proto::v1::JoinRequest::default();
                let mut client = proto::v1::node_client::NodeClient::new(channel);
                client.join(request).await.unwrap_err();
                handshake.refused()
            }
        };
        assert!(
            matches!(alert, Some(rustls::Error::AlertReceived(_))),
            "{alert:?}"
        );
        // A refused connection is not a matter of certificates.
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        let gone = connect(&address, mutual(&identity(&ca)).unwrap()).await;
        assert!(matches!(gone, Err(TlsError::Connect { .. })), "{gone:?}");
    }

    #[test]
    fn the_hash_stands_for_the_key_that_signed() {
        let (ca, leaf) = chain();
        let (other_ca, other_leaf) = chain();
        let verify = |hash: &CertificateDer<'_>, leaf: &CertificateDer<'_>, sent: &[_], name| {
            let verifier = Verifier::new(Trust::CaHash(spki_hash(hash).unwrap()));
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(leaf, sent, &name, &[], UnixTime::now())
        };
        assert!(verify(&ca, &leaf, std::slice::from_ref(&ca), "control").is_ok());
        assert!(verify(&ca, &leaf, std::slice::from_ref(&ca), "else").is_err());
        // Another cluster's chain, also when it brings our CA along.
        let both = [ca.clone(), other_ca.clone()];
        assert!(verify(&ca, &other_leaf, &[other_ca], "control").is_err());
        assert!(verify(&ca, &other_leaf, &both, "control").is_err());
        assert!(verify(&ca, &leaf, &[], "control").is_err());
    }
}
