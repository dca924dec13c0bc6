//! The listening socket: TCP, TLS with our server certificate, client
//! certificates checked against our CA where there are any.
//!
//! Handshakes run beside each other, so that a slow client does not delay others; how many
//! is `handshakes.rs`. One that fails is a line in the log. Called by `lib.rs`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use crate::handshakes::Handshakes;
use crate::pki::Signed;

/// A client that has not finished its handshake by then is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that may wait to be served.
const QUEUE: usize = 64;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Our own PEM does not parse.
    #[error("{what} does not parse: {source}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A key that does not fit its certificate, and the like.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No verifier can be made of the CA.
    #[error("client certificates cannot be checked: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// How to speak TLS: our chain, and clients of our CA (or without certificate).
pub fn acceptor(signed: &Signed, ca_pem: &str) -> Result<TlsAcceptor, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes());
    roots.add(ca.map_err(pem("the CA's certificate"))?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(signed.chain_pem.as_bytes()).collect();
    let chain = chain.map_err(pem("the server's certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(signed.key_pem.as_bytes());
    let key = key.map_err(pem("the server's key"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Binds the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, TlsError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| TlsError::Listen { address, source })
}

/// Connections whose handshake succeeded.
pub type Incoming = ReceiverStream<Result<TlsStream<TcpStream>, io::Error>>;

/// Accepts until the receiver is dropped.
pub fn accept(listener: TcpListener, acceptor: TlsAcceptor) -> Incoming {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let handshakes = Handshakes::new(Instant::now());
    tokio::spawn(async move {
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, for one; it passes.
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let Some(turn) = handshakes.begin(peer.ip(), Instant::now()) else {
                continue;
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let stream = handshake(acceptor, stream, peer).await;
                drop(turn);
                if let Some(stream) = stream
                    && sender.send(Ok(stream)).await.is_err()
                {
                    tracing::debug!(%peer, "connected while the server was ending");
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "TCP_NODELAY: {error}");
    }
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::warn!(%peer, "refused: TLS: {error}");
            None
        }
        Err(_) => {
            tracing::warn!(%peer, "refused: no TLS handshake within {HANDSHAKE:?}");
            None
        }
    }
}
