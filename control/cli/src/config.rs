//! The context file: which control planes there are, and who we are to them.
//!
//! Shaped as `kubectl`'s, so that people find their way; certificates only, as
//! nothing else is accepted by the control plane. Pure but for `read` and
//! `write`. Called by `Session`; edited by `command/config.rs`.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::yaml;

/// The context file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(
        "there is no context file at {path}; name one by --config or FOIL_CONFIG, or copy data/admin.conf \
         of the control plane there"
    )]
    Missing { path: PathBuf },
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Yaml {
        path: PathBuf,
        source: yaml::YamlError,
    },
    #[error("{path}: {field}: {message}")]
    Shape {
        path: PathBuf,
        field: String,
        message: String,
    },
    #[error("{path}: there is no {what} \"{name}\"; it has: {has}")]
    NoSuch {
        path: PathBuf,
        what: &'static str,
        name: String,
        has: String,
    },
    #[error(
        "{path}: current-context is not set; choose one by `foil config use-context NAME` or --context"
    )]
    NoCurrent { path: PathBuf },
    #[error("{path}: {what} \"{name}\": {field} is missing")]
    Incomplete {
        path: PathBuf,
        what: &'static str,
        name: String,
        field: &'static str,
    },
    #[error("{path}: {what} \"{name}\": {field} is not base64")]
    Base64 {
        path: PathBuf,
        what: &'static str,
        name: String,
        field: &'static str,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shape {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    current_context: String,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
    namespace: Option<String>,
}

/// All that a connection needs.
#[derive(Debug)]
pub(crate) struct Access {
    /// Where this comes from, for messages.
    pub(crate) file: PathBuf,
    pub(crate) context: String,
    /// "https://10.77.0.1:7443"
    pub(crate) server: String,
    /// Name in the server's certificate, where it is not the address.
    pub(crate) server_name: Option<String>,
    /// PEM.
    pub(crate) ca: Vec<u8>,
    /// PEM.
    pub(crate) certificate: Vec<u8>,
    /// PEM.
    pub(crate) key: Vec<u8>,
    /// "default" unless the context says otherwise.
    pub(crate) namespace: String,
}

/// A context as `config get-contexts` lists it.
#[derive(Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) current: bool,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) user: String,
    pub(crate) namespace: String,
}

/// A context file that was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    /// As it was written, so that an edit keeps what we do not know.
    pub(crate) value: Value,
    shape: Shape,
}

impl ConfigFile {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ConfigError::Missing { path: path.into() })
            }
            Err(source) => Err(ConfigError::Read {
                path: path.into(),
                source,
            }),
        }
    }

    /// Understands its text.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let value = yaml::parse(text).map_err(|source| ConfigError::Yaml {
            path: path.into(),
            source,
        })?;
        let value = if value.is_null() {
            serde_json::json!({})
        } else {
            value
        };
        Self::from_value(path, value)
    }

    /// From a value that was edited.
    pub(crate) fn from_value(path: &Path, value: Value) -> Result<Self, ConfigError> {
        let shape =
            serde_path_to_error::deserialize(&value).map_err(|error| ConfigError::Shape {
                path: path.into(),
                field: error.path().to_string(),
                message: error.inner().to_string(),
            })?;
        Ok(Self {
            path: path.into(),
            value,
            shape,
        })
    }

    /// Replaces the file, readable by its owner only, as it holds a key.
    pub(crate) fn write(&self) -> Result<(), ConfigError> {
        let failed = |source| ConfigError::Write {
            path: self.path.clone(),
            source,
        };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = yaml::print(&self.value);
        proto::file::replace(&self.path, text.as_bytes(), 0o600).map_err(failed)
    }

    /// All contexts, in the file's order.
    pub(crate) fn contexts(&self) -> Vec<Listed> {
        self.shape
            .contexts
            .iter()
            .map(|named| Listed {
                current: named.name == self.shape.current_context,
                name: named.name.clone(),
                cluster: named.context.cluster.clone(),
                user: named.context.user.clone(),
                namespace: named.context.namespace.clone().unwrap_or_default(),
            })
            .collect()
    }

    /// Name of the context in use; empty when none is.
    pub(crate) fn current(&self) -> &str {
        &self.shape.current_context
    }

    /// What the context (or the current one) gives access to.
    pub(crate) fn access(&self, context: Option<&str>) -> Result<Access, ConfigError> {
        let name = context.unwrap_or(&self.shape.current_context);
        if name.is_empty() {
            return Err(ConfigError::NoCurrent {
                path: self.path.clone(),
            });
        }
        let contexts = &self.shape.contexts;
        let context = contexts
            .iter()
            .find(|named| named.name == name)
            .ok_or_else(|| {
                self.no_such("context", name, contexts.iter().map(|named| &named.name))
            })?;
        let wanted = &context.context.cluster;
        let clusters = &self.shape.clusters;
        let cluster = clusters
            .iter()
            .find(|named| &named.name == wanted)
            .ok_or_else(|| {
                self.no_such("cluster", wanted, clusters.iter().map(|named| &named.name))
            })?;
        let wanted = &context.context.user;
        let users = &self.shape.users;
        let user = users
            .iter()
            .find(|named| &named.name == wanted)
            .ok_or_else(|| self.no_such("user", wanted, users.iter().map(|named| &named.name)))?;
        let (of_cluster, of_user) = (&cluster.cluster, &user.user);
        let on_cluster = |field| (("cluster", cluster.name.as_str()), field);
        let on_user = |field| (("user", user.name.as_str()), field);
        let server = of_cluster
            .server
            .clone()
            .ok_or_else(|| self.incomplete(on_cluster("server")))?;
        Ok(Access {
            file: self.path.clone(),
            context: name.to_string(),
            server: server.trim_end_matches('/').to_string(),
            server_name: of_cluster.tls_server_name.clone(),
            ca: self.pem(
                on_cluster("certificate-authority-data"),
                of_cluster.certificate_authority_data.as_deref(),
                of_cluster.certificate_authority.as_deref(),
            )?,
            certificate: self.pem(
                on_user("client-certificate-data"),
                of_user.client_certificate_data.as_deref(),
                of_user.client_certificate.as_deref(),
            )?,
            key: self.pem(
                on_user("client-key-data"),
                of_user.client_key_data.as_deref(),
                of_user.client_key.as_deref(),
            )?,
            namespace: context
                .context
                .namespace
                .clone()
                .unwrap_or_else(|| "default".into()),
        })
    }

    /// From the file itself, or from another one that it names relative to its folder.
    fn pem(
        &self,
        ((what, name), field): ((&'static str, &str), &'static str),
        data: Option<&str>,
        path: Option<&Path>,
    ) -> Result<Vec<u8>, ConfigError> {
        if let Some(data) = data {
            return STANDARD
                .decode(data.trim())
                .map_err(|_error| ConfigError::Base64 {
                    path: self.path.clone(),
                    what,
                    name: name.to_string(),
                    field,
                });
        }
        let Some(path) = path else {
            return Err(self.incomplete(((what, name), field)));
        };
        let path = self.path.parent().unwrap_or(Path::new("/")).join(path);
        std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })
    }

    fn incomplete(
        &self,
        ((what, name), field): ((&'static str, &str), &'static str),
    ) -> ConfigError {
        ConfigError::Incomplete {
            path: self.path.clone(),
            what,
            name: name.to_string(),
            field,
        }
    }

    fn no_such<'n>(
        &self,
        what: &'static str,
        name: &str,
        has: impl Iterator<Item = &'n String>,
    ) -> ConfigError {
        let has: Vec<&str> = has.map(String::as_str).collect();
        let has = if has.is_empty() {
            "none".to_string()
        } else {
            has.join(", ")
        };
        ConfigError::NoSuch {
            path: self.path.clone(),
            what,
            name: name.to_string(),
            has,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: admin@demo
clusters:
- name: demo
  cluster: {server: 'https://10.77.0.1:7443/', certificate-authority-data: Q0E=}
users:
- name: admin
  user: {client-certificate-data: Q1JU, client-key-data: S0VZ}
- name: bare
  user: {}
contexts:
- name: admin@demo
  context: {cluster: demo, user: admin}
- name: other
  context: {cluster: demo, user: bare, namespace: x}
- name: broken
  context: {cluster: gone, user: admin}
";

    fn file() -> ConfigFile {
        ConfigFile::parse(Path::new("/c"), FILE).unwrap()
    }

    #[test]
    fn access_of_the_current_context() {
        let access = file().access(None).unwrap();
        assert_eq!(access.server, "https://10.77.0.1:7443");
        assert_eq!(
            (access.ca, access.certificate, access.key),
            (b"CA".into(), b"CRT".into(), b"KEY".into())
        );
        assert_eq!(access.namespace, "default");
    }

    #[test]
    fn refused() {
        for (context, want) in [
            (
                "nope",
                "/c: there is no context \"nope\"; it has: admin@demo, other, broken",
            ),
            ("broken", "/c: there is no cluster \"gone\"; it has: demo"),
            (
                "other",
                "/c: user \"bare\": client-certificate-data is missing",
            ),
        ] {
            assert_eq!(file().access(Some(context)).unwrap_err().to_string(), want);
        }
        for (text, want) in [
            (
                "clusters: 3",
                "/c: clusters: invalid type: integer `3`, expected a sequence",
            ),
            (
                "contexts:\n- name: a\n  context: {user: b}",
                "/c: contexts[0].context: missing field `cluster`",
            ),
            (
                "a: 1\na: 2",
                "/c: line 2, column 1: duplicate mapping key: a not allowed here",
            ),
        ] {
            assert_eq!(
                ConfigFile::parse(Path::new("/c"), text)
                    .unwrap_err()
                    .to_string(),
                want
            );
        }
        let empty = ConfigFile::parse(Path::new("/c"), "").unwrap();
        assert!(matches!(
            empty.access(None),
            Err(ConfigError::NoCurrent { .. })
        ));
    }
}
