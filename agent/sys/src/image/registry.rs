//! Where an image is asked for: endpoints, credentials, connections, and what a
//! registry's refusals mean.
//!
//! The caller is `pull.rs`, which knows what to ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::v1::PullSecret;
use sha2::{Digest, Sha256};

use super::answer::RegistryError;
use super::distribution::Client;
use super::token::Credentials;
use super::{ImageError, Reference};
use crate::clock;

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
        host(url).map(drop)
    }
}

/// Host with port.
fn host(url: &str) -> Result<&str, ImageError> {
    let invalid = || ImageError::InvalidEndpoint {
        url: url.to_owned(),
    };
    let (scheme, host) = url.split_once("://").ok_or_else(invalid)?;
    let host = host.trim_end_matches('/');
    if !["http", "https"].contains(&scheme) || host.is_empty() || host.contains('/') {
        return Err(invalid());
    }
    Ok(host)
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
    client: Arc<Client>,
    made: Instant,
}

/// One place to try.
pub(super) struct Source {
    pub(super) client: Arc<Client>,
    /// "http://172.31.0.1:5000"
    pub(super) url: String,
    pub(super) repository: String,
    /// Whole name of the image wanted, for messages.
    pub(super) wanted: String,
}

impl Clients {
    fn get(
        &self,
        url: &str,
        credentials: Credentials,
        now: Instant,
    ) -> Result<Arc<Client>, RegistryError> {
        let key = (url.to_owned(), key_of(&credentials));
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pull under way shares its client.
        clients.retain(|_, kept| now.saturating_duration_since(kept.made) < CLIENT_AGE);
        if let Some(kept) = clients.get(&key) {
            return Ok(kept.client.clone());
        }
        let client = Arc::new(Client::new(url, credentials)?);
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
fn key_of(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Basic { username, password } => digest(&format!("{username}\0{password}")),
        Credentials::Anonymous => String::new(),
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
        let client = clients
            .get(url, credentials(host(url)?, secrets), clock::now())
            .map_err(|error| ImageError::Registry {
                reference: reference.to_string(),
                endpoint: url.to_owned(),
                why: error.to_string(),
            })?;
        Ok(Self {
            client,
            url: url.to_owned(),
            repository: reference.repository.clone(),
            wanted: reference.to_string(),
        })
    }

    /// The client's error with what was asked for where.
    pub(super) fn failed(&self, error: &RegistryError) -> ImageError {
        let (reference, endpoint) = (self.wanted.clone(), self.url.clone());
        let why = error.to_string();
        match error {
            RegistryError::NotFound => ImageError::NotFound {
                reference,
                endpoint,
            },
            RegistryError::Unauthorized { .. } => ImageError::Unauthorized {
                reference,
                endpoint,
                why,
            },
            RegistryError::Status { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::TooSlow { .. }
            | RegistryError::Token { .. }
            | RegistryError::NoToken { .. }
            | RegistryError::InsecureRealm { .. }
            | RegistryError::Request(_) => ImageError::Registry {
                reference,
                endpoint,
                why,
            },
        }
    }
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
fn credentials(asked: &str, secrets: &[PullSecret]) -> Credentials {
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
        .map_or(Credentials::Anonymous, |secret| Credentials::Basic {
            username: secret.username.clone(),
            password: secret.password.clone(),
        })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
