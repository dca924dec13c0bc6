//! Credentials for registries, from secrets of the docker types. A secret that
//! is missing or unreadable gives none: the pull then fails by itself and says
//! so. Called by `pod`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::v1::PullSecret;

/// All credentials of a secret, in the order of their registries.
pub fn pull_secrets(secret: &Secret) -> Vec<PullSecret> {
    let data = secret.data.as_ref();
    let json = |key: &str| {
        let bytes = data.and_then(|data| data.get(key))?;
        serde_json::from_slice::<Value>(&bytes.0).ok()
    };
    let auths = match json(".dockerconfigjson") {
        Some(config) => config.get("auths").cloned(),
        None => json(".dockercfg"),
    };
    let auths = auths
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let mut found: Vec<PullSecret> = auths
        .filter_map(|(registry, auth)| credentials(registry, auth))
        .collect();
    found.sort_by(|a, b| a.registry.cmp(&b.registry));
    found
}

fn credentials(registry: &str, auth: &Value) -> Option<PullSecret> {
    let text = |name: &str| auth.get(name).and_then(Value::as_str).map(str::to_owned);
    let (username, password) = match (text("username"), text("password")) {
        (Some(username), Some(password)) => (username, password),
        (Some(_) | None, Some(_) | None) => {
            let decoded = STANDARD.decode(text("auth")?).ok()?;
            let decoded = String::from_utf8(decoded).ok()?;
            let (username, password) = decoded.split_once(':')?;
            (username.to_owned(), password.to_owned())
        }
    };
    Some(PullSecret {
        registry: host(registry),
        username,
        password,
    })
}

/// "https://index.docker.io/v1/" is docker.io.
fn host(registry: &str) -> String {
    let bare = registry
        .split_once("://")
        .map_or(registry, |(_, rest)| rest);
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn of(key: &str, text: &str) -> Vec<(String, String, String)> {
        let data = [(key.to_owned(), ByteString(text.as_bytes().to_vec()))];
        let secret = Secret {
            data: Some(data.into()),
            ..Default::default()
        };
        pull_secrets(&secret)
            .into_iter()
            .map(|s| (s.registry, s.username, s.password))
            .collect()
    }

    #[test]
    fn reads_both_formats() {
        let own = |r: &str, u: &str, p: &str| (r.to_owned(), u.to_owned(), p.to_owned());
        let auth = STANDARD.encode("me:se:cret");
        let rows = [
            (
                ".dockerconfigjson",
                format!(
                    r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"a:5000":{{"username":"u","password":"p"}}}}}}"#
                ),
                vec![own("a:5000", "u", "p"), own("docker.io", "me", "se:cret")],
            ),
            (
                ".dockercfg",
                format!(r#"{{"r.example":{{"auth":"{auth}"}}}}"#),
                vec![own("r.example", "me", "se:cret")],
            ),
            (
                ".dockerconfigjson",
                r#"{"auths":{"x":{"auth":"%%%"},"y":{},"z":7}}"#.to_owned(),
                vec![],
            ),
            (".dockerconfigjson", "not json".to_owned(), vec![]),
            ("other", "{}".to_owned(), vec![]),
        ];
        for (key, text, expected) in rows {
            assert_eq!(of(key, &text), expected, "{text}");
        }
    }
}
