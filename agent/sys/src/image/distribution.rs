//! Requests of the OCI distribution protocol (distribution-spec v1.1, "Pull").
//!
//! The caller is `pull.rs`. Answers are read by `answer.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::ACCEPT;
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::answer::{Blob, DOCUMENT_TIMEOUT, PACE, Pace, RegistryError, success, whole};
use super::lookup::Lookup;
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST};
use super::reference::Version;
use super::token::{self, Authorization, Credentials};

/// A registry that does not answer the connect in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry that does not begin its answer in this time gives none.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Authorizations kept in one client; one for each repository.
const MOST_AUTHORIZATIONS: usize = 256;

/// One registry, with the credentials for it.
pub(super) struct Client {
    http: reqwest::Client,
    /// "http://172.31.0.1:5000"
    url: String,
    credentials: Credentials,
    pub(super) pace: Pace,
    /// By repository, as a token is good for one.
    authorizations: Mutex<HashMap<String, Authorization>>,
}

impl Client {
    /// # Errors
    /// This machine cannot speak TLS (no root certificates).
    pub(super) fn new(url: &str, credentials: Credentials) -> Result<Self, RegistryError> {
        // Only the first caller in a process installs; they all want the same one.
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            tracing::trace!("a cryptography provider is installed already");
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .dns_resolver(Arc::new(Lookup))
            .read_timeout(READ_TIMEOUT)
            .user_agent("foil-agent")
            .build()?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            credentials,
            pace: PACE,
            authorizations: Mutex::default(),
        })
    }

    /// Whether the registry has that manifest for these credentials.
    pub(super) async fn find_manifest(
        &self,
        repository: &str,
        version: &Version,
    ) -> Result<(), RegistryError> {
        let path = format!("manifests/{}", version_text(version));
        let head = |url: &str| accepted(self.http.head(url)).timeout(DOCUMENT_TIMEOUT);
        self.send(repository, &path, head).await.map(drop)
    }

    /// A manifest or an index, of at most [`MAX_DOCUMENT_BYTES`].
    pub(super) async fn manifest(
        &self,
        repository: &str,
        version: &Version,
    ) -> Result<Vec<u8>, RegistryError> {
        let path = format!("manifests/{}", version_text(version));
        let get = |url: &str| accepted(self.http.get(url)).timeout(DOCUMENT_TIMEOUT);
        let response = self.send(repository, &path, get).await?;
        let most = usize::try_from(MAX_DOCUMENT_BYTES).unwrap_or(usize::MAX);
        whole(response, "manifest", most).await
    }

    /// A configuration or a layer, of at most `size` bytes as the caller counts them.
    pub(super) async fn blob(&self, repository: &str, digest: &str) -> Result<Blob, RegistryError> {
        let path = format!("blobs/{digest}");
        let get = |url: &str| self.http.get(url);
        let response = self.send(repository, &path, get).await?;
        Ok(Blob::new(response, self.pace))
    }

    /// Sends a request, again with an authorization if the registry asks for one. Returns
    /// answers of success only.
    async fn send(
        &self,
        repository: &str,
        path: &str,
        request: impl Fn(&str) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let url = format!("{}/v2/{repository}/{path}", self.url);
        let mut authorization = self.authorization(repository);
        let mut renewed = false;
        loop {
            let authorized = match &authorization {
                Some(authorization) => authorization.on(request(&url)),
                None => request(&url),
            };
            let response = authorized.send().await?;
            // A host that the registry leads to does not say where its credentials go.
            if response.status() != StatusCode::UNAUTHORIZED || renewed || !self.is_from(&response)
            {
                return success(response).await;
            }
            let of = (&self.http, self.url.as_str(), &self.credentials);
            let Some(new) = token::authorize(of, repository, response.headers()).await? else {
                return success(response).await;
            };
            self.keep(repository, new.clone());
            authorization = Some(new);
            renewed = true;
        }
    }

    fn is_from(&self, response: &Response) -> bool {
        Url::parse(&self.url).is_ok_and(|own| own.origin() == response.url().origin())
    }

    fn authorization(&self, repository: &str) -> Option<Authorization> {
        let kept = self.authorizations.lock();
        let kept = kept.unwrap_or_else(PoisonError::into_inner);
        kept.get(repository).cloned()
    }

    fn keep(&self, repository: &str, authorization: Authorization) {
        let kept = self.authorizations.lock();
        let mut kept = kept.unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_AUTHORIZATIONS {
            kept.clear();
        }
        kept.insert(repository.to_owned(), authorization);
    }
}

fn version_text(version: &Version) -> &str {
    match version {
        Version::Tag(text) | Version::Digest(text) => text,
    }
}

fn accepted(request: RequestBuilder) -> RequestBuilder {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST]
        .into_iter()
        .fold(request, |request, kind| request.header(ACCEPT, kind))
}
