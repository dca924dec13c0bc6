//! The JSON documents of images, as far as a node reads them.
//!
//! OCI image-spec v1.1 (manifest.md, image-index.md, config.md) and Docker's
//! image manifest v2 schema 2, which has the same fields. Lenient where the
//! specification lets fields be absent or null; digests are checked.

use serde::{Deserialize, Serialize};

use super::json;
use super::reference::checked_digest;
use super::{ImageConfig, ImageError};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Key of a descriptor's annotation that holds the image's name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's key for the whole name, in layouts that it exported.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Indexes that point to indexes: more steps than this are refused.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;
/// Documents larger than this are refused, as registries do.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Points at a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

/// An image of one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One image for several platforms, or the table of contents of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

impl Index {
    pub(crate) fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_INDEX.to_owned(),
            manifests,
        }
    }

    /// The entry for this machine. Entries without a platform count as fitting
    /// when there is no better one (some tools write such).
    pub(crate) fn choose(&self, architecture: &str) -> Option<&Descriptor> {
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == architecture)
        };
        self.manifests
            .iter()
            .find(fits)
            .or_else(|| self.manifests.iter().find(|entry| entry.platform.is_none()))
    }
}

/// What a manifest's bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// The configuration blob.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) architecture: Option<String>,
    #[serde(default)]
    pub(crate) os: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<Execution>,
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RootFs {
    /// Digests of the layers' archives, uncompressed.
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Execution {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    stop_signal: Option<String>,
}

impl ConfigFile {
    pub(crate) fn image_config(self) -> ImageConfig {
        let run = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
            architecture: self.architecture.unwrap_or_default(),
            os: self.os.unwrap_or_default(),
        }
    }
}

/// Reads a manifest or an index; `digest` is for the error.
pub(crate) fn parse_document(digest: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    let invalid = |why: String| ImageError::InvalidManifest {
        what: "manifest",
        digest: digest.to_owned(),
        why,
    };
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        schema_version: u32,
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let head: Head = json::parse(bytes).map_err(|error| invalid(error.to_string()))?;
    if head.schema_version != 2 {
        return Err(invalid(format!(
            "schema version {} is not supported",
            head.schema_version
        )));
    }
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, ""];
    let media_type = head.media_type.unwrap_or_default();
    if !known.contains(&media_type.as_str()) {
        return Err(invalid(format!(
            "media type {media_type:?} is not supported"
        )));
    }
    let document = if head.manifests.is_some() {
        let index: Index = json::parse(bytes).map_err(|e| invalid(e.to_string()))?;
        Document::Index(index)
    } else {
        let manifest: Manifest = json::parse(bytes).map_err(|e| invalid(e.to_string()))?;
        checked_digest(&manifest.config.digest)?;
        for layer in &manifest.layers {
            checked_digest(&layer.digest)?;
        }
        Document::Manifest(manifest)
    };
    Ok(document)
}

/// Reads a configuration and checks it against its manifest.
pub(crate) fn parse_config(manifest: &Manifest, bytes: &[u8]) -> Result<ConfigFile, ImageError> {
    let invalid = |why: String| ImageError::InvalidManifest {
        what: "configuration",
        digest: manifest.config.digest.clone(),
        why,
    };
    let config: ConfigFile = json::parse(bytes).map_err(|error| invalid(error.to_string()))?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(invalid(format!(
            "{} diff_ids for {} layers",
            config.rootfs.diff_ids.len(),
            manifest.layers.len()
        )));
    }
    for diff_id in &config.rootfs.diff_ids {
        checked_digest(diff_id)?;
    }
    Ok(config)
}

/// This machine, in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", hex::encode([n; 32]))
    }

    #[test]
    fn the_entry_of_this_machine_is_chosen() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[
            {{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
            {{"digest":"{}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}},
            {{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            digest(1),
            digest(2),
            digest(3)
        );
        let Document::Index(index) = parse_document("d", text.as_bytes()).unwrap() else {
            panic!("an index");
        };
        assert_eq!(index.choose("amd64").unwrap().digest, digest(3));
        assert_eq!(index.choose("arm64").unwrap().digest, digest(1));
        assert_eq!(index.choose("riscv64"), None);
    }

    #[test]
    fn documents_that_are_not_understood_are_refused() {
        for (text, why) in [
            ("", "unexpected end of JSON at line 1 column 0"),
            ("[]", "value of another type at line 1"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema version 1"),
            (
                r#"{"schemaVersion":2,"mediaType":"text/html"}"#,
                "media type",
            ),
            (r#"{"schemaVersion":2}"#, "missing field"),
            (r#""secret of the node""#, "another type at line 1"),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#,
                "only sha256",
            ),
        ] {
            let error = parse_document("d", text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn null_fields_of_docker_are_empty() {
        let manifest = Manifest {
            schema_version: 2,
            media_type: String::new(),
            config: Descriptor {
                digest: digest(1),
                ..Descriptor::default()
            },
            layers: vec![],
        };
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Entrypoint":null,
            "Env":null,"User":"","Volumes":null},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = parse_config(&manifest, text.as_bytes())
            .unwrap()
            .image_config();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.entrypoint, Vec::<String>::new());
        let error =
            parse_config(&manifest, text.replace("[]}", r#"["x"]}"#).as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("1 diff_ids for 0 layers"),
            "{error}"
        );
    }
}
