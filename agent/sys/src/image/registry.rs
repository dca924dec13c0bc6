//! Where an image is asked for: endpoints, credentials, connections, and what a
//! registry's refusals mean.
//!
//! The caller is `pull.rs`, which knows what to ask for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use proto::error::chain;
use proto::v1::PullSecret;
use sha2::{Digest, Sha256};

use super::reference::Version;
use super::{ImageError, Reference};
use crate::clock;

/// A registry that does not answer the connect in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer without progress for this long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where to ask for a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The registry as names have it: "docker.io".
    pub host: String,
    /// "http://172.31.0.1:5000" or "https://mirror.example".
    pub url: String,
}

impl Endpoint {
    /// Whether images can be asked for at this address.
    ///
    /// # Errors
    /// [`ImageError::InvalidEndpoint`]
    pub fn check(url: &str) -> Result<(), ImageError> {
        parts(url).map(drop)
    }
}

/// Protocol, and host with port.
fn parts(url: &str) -> Result<(ClientProtocol, &str), ImageError> {
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
    Ok((protocol, host))
}

/// Clients that are kept at the same time; the oldest makes way for a new one.
const MOST_CLIENTS: usize = 32;
/// How long a client is used. It holds a token of the registry, which may be valid for
/// hours: credentials that were revoked at the registry end with the client.
const CLIENT_AGE: Duration = Duration::from_secs(300);

/// Connections to registries, kept for some minutes: a pod whose image must always be
/// asked for does not pay for a new one.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<ClientKey, Kept>>);

/// Endpoint, and the digest of the credentials.
type ClientKey = (String, String);

struct Kept {
    client: Client,
    made: Instant,
}

/// One place to try.
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) auth: RegistryAuth,
    /// "172.31.0.1:5000"
    pub(super) host: String,
    /// For messages: "http://172.31.0.1:5000"
    url: String,
    repository: String,
    /// Whole name of the image wanted, for messages.
    pub(super) wanted: String,
}

impl Clients {
    fn get(
        &self,
        url: &str,
        protocol: ClientProtocol,
        auth: &RegistryAuth,
        now: Instant,
    ) -> Result<Client, String> {
        let key = (url.to_owned(), key_of(auth));
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pull under way has a clone of its client.
        clients.retain(|_, kept| now.saturating_duration_since(kept.made) < CLIENT_AGE);
        if let Some(kept) = clients.get(&key) {
            return Ok(kept.client.clone());
        }
        let client = connect(protocol)?;
        if clients.len() >= MOST_CLIENTS
            && let Some(oldest) = clients.iter().min_by_key(|(_, kept)| kept.made)
        {
            let oldest = oldest.0.clone();
            clients.remove(&oldest);
        }
        let kept = Kept {
            client: client.clone(),
            made: now,
        };
        clients.insert(key, kept);
        Ok(client)
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// Tells credentials apart, without keeping them.
fn key_of(auth: &RegistryAuth) -> String {
    match auth {
        RegistryAuth::Basic(user, password) => digest(&format!("{user}\0{password}")),
        RegistryAuth::Bearer(token) => digest(token),
        RegistryAuth::Anonymous => String::new(),
    }
}

/// What tells a pull from another one: the name, and who asks for it at each of the
/// places to try.
pub(super) fn pull_key(reference: &Reference, urls: &[String], secrets: &[PullSecret]) -> String {
    let mut key = reference.to_string();
    for url in urls {
        let host = url.split_once("://").map_or("", |(_, host)| host);
        key.push(' ');
        key.push_str(&key_of(&credentials(host.trim_end_matches('/'), secrets)));
    }
    key
}

impl Source {
    /// An endpoint that can be asked for `reference`.
    ///
    /// # Errors
    /// [`ImageError::InvalidEndpoint`]; [`ImageError::Registry`] when this
    /// machine cannot speak TLS (no root certificates).
    pub(super) fn new(
        clients: &Clients,
        reference: &Reference,
        url: &str,
        secrets: &[PullSecret],
    ) -> Result<Self, ImageError> {
        let (protocol, host) = parts(url)?;
        let auth = credentials(host, secrets);
        let client = clients
            .get(url, protocol, &auth, clock::now())
            .map_err(|why| ImageError::Registry {
                reference: reference.to_string(),
                endpoint: url.to_owned(),
                why,
            })?;
        Ok(Self {
            client,
            auth,
            host: host.to_owned(),
            url: url.to_owned(),
            repository: reference.repository.clone(),
            wanted: reference.to_string(),
        })
    }

    pub(super) fn reference(&self, version: &Version) -> oci_client::Reference {
        let (host, repository) = (self.host.clone(), self.repository.clone());
        match version {
            Version::Tag(tag) => oci_client::Reference::with_tag(host, repository, tag.clone()),
            Version::Digest(digest) => {
                oci_client::Reference::with_digest(host, repository, digest.clone())
            }
        }
    }

    /// The client's error in our words.
    pub(super) fn failed(&self, error: OciDistributionError) -> ImageError {
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
pub(super) fn urls(registry: &str, endpoints: &[Endpoint]) -> Vec<String> {
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

/// The secret for the host that is asked. Credentials of a registry are never sent
/// to its mirrors: their operators would have them. A mirror that wants its own
/// needs a secret that names it. Docker's configuration files call Docker Hub by an
/// address of their own.
fn credentials(asked: &str, secrets: &[PullSecret]) -> RegistryAuth {
    let hub = |host: &str| ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host);
    let host = |text: &str| {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        text.split('/').next().unwrap_or_default().to_owned()
    };
    secrets
        .iter()
        .find(|secret| {
            let of = host(&secret.registry);
            of == asked || (hub(asked) && hub(&of))
        })
        .map_or(RegistryAuth::Anonymous, |secret| {
            RegistryAuth::Basic(secret.username.clone(), secret.password.clone())
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::image::{ImageStore, tests};

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
    fn secrets_are_found_by_the_host_that_is_asked() {
        let secret = |registry: &str| PullSecret {
            registry: registry.to_owned(),
            username: "u".to_owned(),
            password: "p".to_owned(),
        };
        for (asked, written, found) in [
            ("index.docker.io", "https://index.docker.io/v1/", true),
            ("registry-1.docker.io", "docker.io", true),
            ("mirror.example", "https://index.docker.io/v1/", false),
            ("mirror.example", "mirror.example", true),
            ("r.example:5000", "r.example:5000", true),
            ("r.example", "https://r.example/v2/", true),
            ("r.example", "r.example:5000", false),
            ("r.example", "index.docker.io", false),
        ] {
            let auth = credentials(asked, &[secret(written)]);
            assert_eq!(auth != RegistryAuth::Anonymous, found, "{asked} {written}");
        }
    }

    #[test]
    fn clients_are_bounded_by_age_and_count() {
        let clients = Clients::default();
        let basic = |user: &str| RegistryAuth::Basic(user.to_owned(), "p".to_owned());
        let get = |user: &str, now| {
            let made = clients.get("http://a:1", ClientProtocol::Http, &basic(user), now);
            made.unwrap();
            clients.0.lock().unwrap().len()
        };
        let begin = Instant::now();
        assert_eq!((get("a", begin), get("a", begin)), (1, 1));
        assert_eq!(get("b", begin), 2, "other credentials, another client");
        assert_eq!(get("b", begin + CLIENT_AGE), 1, "both were too old");
        for number in 0..2 * MOST_CLIENTS {
            let now = begin + CLIENT_AGE + Duration::from_millis(number as u64);
            assert!(get(&number.to_string(), now) <= MOST_CLIENTS);
        }
        let kept = clients.0.lock().unwrap();
        let newest = ("http://a:1".to_owned(), key_of(&basic("63")));
        assert!(kept.contains_key(&newest), "the oldest make way");
        assert!(kept.keys().all(|(_, key)| key.len() == 64));
    }

    /// With a policy of Always a pod may use an image that is here only if the registry
    /// lets it, by digest too.
    #[tokio::test]
    async fn an_image_that_is_here_by_digest_is_asked_for() {
        let (host, heard) = hostile_registry().await;
        let dir = tempfile::tempdir().unwrap();
        let (name, layout) = (format!("{host}/private/app:1"), dir.path().join("in"));
        let digest = tests::layout(&layout, &tests::two_layers(), Some(&name));
        let store = ImageStore::open(&dir.path().join("store")).unwrap();
        store.import(&layout, None).await.unwrap();
        let reference = Reference::parse(&format!("{host}/private/app@{digest}")).unwrap();
        assert!(store.get(&reference).unwrap().is_some(), "it is here");
        let refused = store.pull(&reference, &[], &[]).await.unwrap_err();
        assert!(matches!(refused, ImageError::NotFound { .. }), "{refused}");
        let heard = heard.lock().unwrap().join("\n");
        assert!(heard.contains(&format!("/manifests/{digest}")), "{heard}");
    }

    /// A registry that has nothing and asks for credentials; what it was sent.
    async fn hostile_registry() -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (log, realm) = (heard.clone(), format!("http://{host}/token"));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap() == 0 {
                        break;
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let token = head.starts_with("GET /token");
                let authorized = head.to_ascii_lowercase().contains("authorization: bearer");
                log.lock().unwrap().push(head);
                let answer = if token {
                    let body = "{\"token\":\"t\"}";
                    format!(
                        "200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )
                } else if authorized {
                    "404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned()
                } else {
                    format!(
                        "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\nContent-Length: 0\r\n\r\n"
                    )
                };
                let answer = format!("HTTP/1.1 {answer}")
                    .replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (host, heard)
    }

    #[tokio::test]
    async fn a_mirror_never_gets_the_registrys_credentials() {
        let (origin, origin_heard) = hostile_registry().await;
        let (mirror, mirror_heard) = hostile_registry().await;
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let reference = Reference::parse(&format!("{origin}/library/secret:1")).unwrap();
        let endpoints = [&mirror, &origin].map(|host| Endpoint {
            host: origin.clone(),
            url: format!("http://{host}"),
        });
        let secret = |registry: &str, password: &str| PullSecret {
            registry: registry.to_owned(),
            username: "someone".to_owned(),
            password: password.to_owned(),
        };
        // `base64("someone:opensesame")`
        let (secrets, header) = (
            [secret(&origin, "opensesame")],
            "basic c29tzw9uztpvcgvuc2vzyw1l",
        );
        let sent = |heard: &Mutex<Vec<String>>| {
            let heard = heard.lock().unwrap();
            assert!(!heard.is_empty(), "it was asked");
            let all = heard.join("\n").to_ascii_lowercase();
            (all.contains(header), all.contains("authorization: basic"))
        };
        store
            .pull(&reference, &endpoints, &secrets)
            .await
            .unwrap_err();
        assert_eq!(sent(&mirror_heard), (false, false));
        assert_eq!(sent(&origin_heard), (true, true));
        // A mirror with a secret of its own gets that one.
        let secrets = [secret(&origin, "opensesame"), secret(&mirror, "another")];
        store
            .pull(&reference, &endpoints, &secrets)
            .await
            .unwrap_err();
        assert_eq!(sent(&mirror_heard), (false, true));
    }
}
