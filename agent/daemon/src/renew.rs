//! Renews the node's certificate after two thirds of its life, with the same key.
//!
//! Asks over the channel of the present stream; the stream is opened anew with the
//! new certificate, pods notice nothing. Started by `main.rs`.

use std::sync::Arc;
use std::time::Duration;

use agent_sys::clock;
use proto::v1;
use proto::v1::node_client::NodeClient;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::join::{self, JoinError};
use crate::tls::Calls;
use crate::tls::{self, Identity, TlsError};

/// The longest sleep: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// The shortest pause after a try that failed.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// How long the control plane may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    /// There is no stream to the control plane.
    #[error("cannot reach the control plane")]
    Away,
    /// It does not answer.
    #[error("no answer within {PATIENCE:?}")]
    Silent,
    /// It says no.
    #[error("{code}: {message}")]
    Refused { code: tonic::Code, message: String },
    /// The request cannot be made.
    #[error("make certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The new certificate is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot be kept.
    #[error(transparent)]
    Keep(#[from] JoinError),
}

/// When a certificate begins and ends, seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    begins: i64,
    ends: i64,
}

impl Life {
    /// `None` for what does not parse.
    fn of(certificate_pem: &str) -> Option<Life> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let validity = certificate.validity();
        Some(Life {
            begins: validity.not_before.timestamp(),
            ends: validity.not_after.timestamp(),
        })
    }

    /// Milliseconds until it is to be renewed; 0 when that time has come.
    fn due_in(self, now_ms: i64) -> u64 {
        let due = self.begins * 1000 + (self.ends - self.begins) * 1000 / 3 * 2;
        u64::try_from(due - now_ms).unwrap_or(0)
    }

    /// The pause after a try that failed: ten more tries fit into what is left.
    fn pause(self, now_ms: i64) -> Duration {
        let left = u64::try_from(self.ends * 1000 - now_ms).unwrap_or(0);
        Duration::from_millis(left / 10).clamp(SHORTEST_PAUSE, LONGEST_SLEEP)
    }
}

/// True when the certificate is past its end.
pub(crate) fn is_over(identity: &Identity) -> bool {
    let life = Life::of(&identity.certificate_pem);
    life.is_some_and(|life| clock::unix_ms() >= life.ends * 1000)
}

/// Runs for as long as somebody uses the certificate.
pub(crate) async fn run(
    mut identity: Identity,
    node: String,
    calls: Calls,
    swap: watch::Sender<Arc<ClientConfig>>,
) {
    let mut last = String::new();
    while let Some(life) = Life::of(&identity.certificate_pem) {
        let sleep = Duration::from_millis(life.due_in(clock::unix_ms())).min(LONGEST_SLEEP);
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = swap.closed() => return,
        }
        if life.due_in(clock::unix_ms()) > 0 {
            continue;
        }
        let channel = calls.borrow().clone();
        match renew(&identity, &node, channel).await {
            Ok((renewed, tls)) => {
                tracing::info!("the node's certificate was renewed");
                identity = renewed;
                swap.send_replace(tls);
                last.clear();
                // Also where the two clocks differ by more than its life.
                tokio::time::sleep(life.pause(clock::unix_ms())).await;
            }
            Err(error) => {
                let text = error.to_string();
                if text != last {
                    tracing::warn!("cannot renew the node's certificate yet: {text}");
                }
                last = text;
                tokio::time::sleep(life.pause(clock::unix_ms())).await;
            }
        }
    }
    tracing::error!("cannot parse the node's certificate: it will not be renewed");
}

async fn renew(
    identity: &Identity,
    node: &str,
    channel: Option<Channel>,
) -> Result<(Identity, Arc<ClientConfig>), RenewError> {
    let channel = channel.ok_or(RenewError::Away)?;
    let key = KeyPair::from_pem(&identity.key_pem)?;
    let csr_pem = join::request(&key, node)?;
    let mut client = NodeClient::new(channel);
    let asked = client.renew(v1::RenewRequest { csr_pem });
    let answer = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_elapsed| RenewError::Silent)?
        .map_err(|status| RenewError::Refused {
            code: status.code(),
            message: tls::status_text(&status),
        })?;
    let renewed = Identity {
        certificate_pem: answer.into_inner().certificate_pem,
        ..identity.clone()
    };
    // What does not work must not be kept.
    let tls = tls::mutual(&renewed)?;
    join::keep(&renewed)?;
    Ok((renewed, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let life = Life {
            begins: 1000,
            ends: 1300,
        };
        for (now, expected) in [
            (1_000_000, 200_000),
            (1_199_999, 1),
            (1_200_000, 0),
            (1_400_000, 0),
        ] {
            assert_eq!(life.due_in(now), expected, "{now}");
        }
        for (now, expected) in [
            (1_200_000, Duration::from_secs(10)),
            (1_299_999, SHORTEST_PAUSE),
            (1_400_000, SHORTEST_PAUSE),
        ] {
            assert_eq!(life.pause(now), expected, "{now}");
        }
    }

    #[test]
    fn a_life_is_read_from_the_certificate() {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        let life = Life::of(&pem).unwrap();
        assert_eq!(life.ends - life.begins, 365 * 24 * 3600);
        assert_eq!(Life::of("nonsense"), None);
    }
}
