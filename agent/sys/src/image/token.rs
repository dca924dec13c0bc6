//! How a registry is told who asks: by a token of its token server, or by a password.
//!
//! Distribution's "Token Authentication Specification", and RFC 7617. The caller is
//! `distribution.rs`.

use http_auth::{ChallengeRef, parse_challenges};
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use super::answer::{DOCUMENT_TIMEOUT, RegistryError, success, whole};
use super::json;

/// A token server's answer of more bytes is refused. A token is sent in a header, and servers
/// refuse those of more than 8 or 16 KiB.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Anonymous,
    Basic { username: String, password: String },
}

/// What a request to a registry carries.
#[derive(Clone)]
pub(super) enum Authorization {
    Basic { username: String, password: String },
    Bearer { token: String },
}

impl Authorization {
    pub(super) fn on(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic { username, password } => request.basic_auth(username, Some(password)),
            Self::Bearer { token } => request.bearer_auth(token),
        }
    }
}

/// A token server's answer.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Where a token is had.
struct TokenServer {
    realm: String,
    service: Option<String>,
}

/// What a registry accepts.
#[derive(Default)]
struct Challenges {
    bearer: Option<TokenServer>,
    basic: bool,
}

/// What the registry asks for in the headers of a refusal; `None` if it cannot be given.
///
/// # Errors
/// As of asking the token server.
pub(super) async fn authorize(
    (http, registry, credentials): (&reqwest::Client, &str, &Credentials),
    repository: &str,
    headers: &HeaderMap,
) -> Result<Option<Authorization>, RegistryError> {
    let challenges = challenges(headers);
    let Some(server) = challenges.bearer else {
        return Ok(match credentials {
            Credentials::Basic { username, password } if challenges.basic => {
                Some(Authorization::Basic {
                    username: username.clone(),
                    password: password.clone(),
                })
            }
            Credentials::Basic { .. } | Credentials::Anonymous => None,
        });
    };
    let TokenServer { realm, service } = server;
    let is_https = |url: &str| Url::parse(url).is_ok_and(|url| url.scheme() == "https");
    if is_https(registry) && !is_https(&realm) {
        return Err(RegistryError::InsecureRealm { realm });
    }
    let mut query = vec![("scope", format!("repository:{repository}:pull"))];
    query.extend(service.map(|service| ("service", service)));
    let request = http.get(&realm).query(&query).timeout(DOCUMENT_TIMEOUT);
    let request = match credentials {
        Credentials::Basic { username, password } => request.basic_auth(username, Some(password)),
        Credentials::Anonymous => request,
    };
    let answer = success(request.send().await?).await.map_err(|error| {
        // Not an image is missing.
        if let RegistryError::NotFound = error {
            RegistryError::NoToken {
                realm: realm.clone(),
            }
        } else {
            error
        }
    })?;
    let body = whole(answer, "token", MAX_TOKEN_BYTES).await?;
    let answer: Answer = json::parse(&body).map_err(|source| RegistryError::Token {
        realm: realm.clone(),
        source,
    })?;
    let token = answer.token.or(answer.access_token);
    token
        .map(|token| Some(Authorization::Bearer { token }))
        .ok_or(RegistryError::NoToken { realm })
}

fn challenges(headers: &HeaderMap) -> Challenges {
    let mut found = Challenges::default();
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let parsed = header.to_str().ok().and_then(|text| {
            let parsed = parse_challenges(text);
            parsed.ok()
        });
        for challenge in parsed.unwrap_or_default() {
            found.basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            if challenge.scheme.eq_ignore_ascii_case("bearer") && found.bearer.is_none() {
                found.bearer = token_server(&challenge);
            }
        }
    }
    found
}

fn token_server(challenge: &ChallengeRef<'_>) -> Option<TokenServer> {
    let param = |wanted: &str| {
        let mut params = challenge.params.iter();
        let found = params.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.to_unescaped())
    };
    Some(TokenServer {
        realm: param("realm")?,
        service: param("service"),
    })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn challenges_are_found_among_others() {
        // (headers, realm, service, basic)
        type Row = (
            &'static [&'static str],
            Option<&'static str>,
            Option<&'static str>,
            bool,
        );
        let rows: [Row; 6] = [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                ],
                Some("https://auth.docker.io/token"),
                Some("registry.docker.io"),
                false,
            ),
            (
                &[r#"bearer REALM="http://a""#],
                Some("http://a"),
                None,
                false,
            ),
            (&[r#"Basic realm="Registry Realm""#], None, None, true),
            (
                &[
                    r#"Basic realm="x""#,
                    r#"Bearer realm="https://t",service="s\"q""#,
                ],
                Some("https://t"),
                Some("s\"q"),
                true,
            ),
            (&["Bearer service=\"s\""], None, None, false),
            (&["", "\"", "Negotiate"], None, None, false),
        ];
        for (headers, realm, service, basic) in rows {
            let mut map = HeaderMap::new();
            for header in headers {
                map.append(WWW_AUTHENTICATE, HeaderValue::from_str(header).unwrap());
            }
            let found = challenges(&map);
            let server = found.bearer.as_ref();
            assert_eq!(server.map(|s| s.realm.as_str()), realm, "{headers:?}");
            let found_service = server.and_then(|s| s.service.as_deref());
            assert_eq!(
                (found_service, found.basic),
                (service, basic),
                "{headers:?}"
            );
        }
    }
}
