//! Image names, made whole: `busybox` is `docker.io/library/busybox:latest`.
//!
//! The grammar is that of Docker's references, read by `oci-client`; what is
//! added here is one canonical form, which is the store's key.

use std::fmt;

use super::ImageError;

/// A normalised image name. With a digest, the tag is dropped: the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// "docker.io", "registry.example:5000"
    pub registry: String,
    /// "library/busybox"
    pub repository: String,
    pub version: Version,
}

/// Which of a repository's images.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    Tag(String),
    /// "sha256:..."
    Digest(String),
}

impl Reference {
    /// Reads a name as people write it.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`], [`ImageError::UnsupportedDigest`].
    pub fn parse(name: &str) -> Result<Self, ImageError> {
        let invalid = |why: String| ImageError::InvalidName {
            name: name.to_owned(),
            why,
        };
        if is_bare_digest(name) {
            return Err(invalid(
                "invalid repository name, cannot be a 64-byte hexadecimal string".to_owned(),
            ));
        }
        let parsed: oci_spec::distribution::Reference = name
            .parse()
            .map_err(|error: oci_spec::distribution::ParseError| invalid(error.to_string()))?;
        // The parser looks at the whole name only, where "UPPER/x" might begin with a host.
        if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid(
                "invalid reference format: repository name must be lowercase".to_owned(),
            ));
        }
        let version = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) => Version::Digest(checked_digest(digest)?.to_owned()),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            version,
        })
    }

    /// Registry and repository: "docker.io/library/busybox".
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

/// "docker.io/library/busybox" of a whole name, without tag and digest.
pub(crate) fn name_part(whole: &str) -> &str {
    let name = whole.split_once('@').map_or(whole, |(name, _)| name);
    // A colon before the last slash is a port's.
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// The digest itself, if it is one that the store can hold; it becomes a file name.
///
/// # Errors
/// [`ImageError::UnsupportedDigest`].
pub(crate) fn checked_digest(digest: &str) -> Result<&str, ImageError> {
    let fine = digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    if fine {
        Ok(digest)
    } else {
        Err(ImageError::UnsupportedDigest {
            digest: digest.to_owned(),
        })
    }
}

fn is_bare_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_become_whole() {
        for (written, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("ubuntu:latest", "docker.io/library/ubuntu:latest"),
            (
                "index.docker.io/library/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("docker.io/busybox:1.36", "docker.io/library/busybox:1.36"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("172.31.0.1:5000/a/b:v1", "172.31.0.1:5000/a/b:v1"),
            ("ghcr.io/o/n:Tag_1.x-y", "ghcr.io/o/n:Tag_1.x-y"),
        ] {
            assert_eq!(
                Reference::parse(written).unwrap().to_string(),
                whole,
                "{written}"
            );
        }
        let both = Reference::parse(&format!("busybox:1.36@{D}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/busybox@{D}"));
        assert_eq!(both.name(), "docker.io/library/busybox");
        for (whole, name) in [
            ("h:5000/a/b:v1", "h:5000/a/b"),
            ("h:5000/a/b", "h:5000/a/b"),
            ("h/a:x@sha256:00", "h/a"),
        ] {
            assert_eq!(name_part(whole), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "",
            "Busybox",
            "UPPER/case",
            "ghcr.io/O/n",
            "busy box",
            "busybox:",
            ":latest",
            "busybox:a/b",
            "http://x/y",
            "../../etc/passwd",
            "busybox@sha256:12",
            "busybox@md5:0123456789abcdef0123456789abcdef",
            &D[7..],
        ] {
            let error = Reference::parse(name).unwrap_err();
            assert_eq!(
                error.reason(),
                crate::image::Reason::InvalidName,
                "{name}: {error}"
            );
        }
        let sha512 = format!("busybox@sha512:{}", "ab".repeat(64));
        assert!(matches!(
            Reference::parse(&sha512).unwrap_err(),
            ImageError::UnsupportedDigest { .. }
        ));
        let upper = format!("busybox@{}", D.replace('a', "A"));
        assert!(Reference::parse(&upper).is_err());
    }
}
