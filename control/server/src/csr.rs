//! A node's certificate request, checked: it is signed with its own key, and its
//! subject is that of the node and nothing else.
//!
//! Not whether the node may have the certificate (`join.rs`). Signed by `pki.rs`.

use rcgen::{CertificateSigningRequestParams, DnType, DnValue, PublicKeyData};

use crate::subject::{NODE_PREFIX, NODES, key_hash};

/// A request that cannot be signed for any sender.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// It does not parse, or its signature is not that of its key.
    #[error("certificate request: {0}")]
    Parse(#[from] rcgen::Error),
    /// Its subject is not that of the node.
    #[error("the certificate request is for {found:?}, not for {wanted:?}")]
    Subject {
        /// The request's subject.
        found: String,
        /// What it must be.
        wanted: String,
    },
}

/// A request for the certificate of one node.
pub struct NodeRequest {
    params: CertificateSigningRequestParams,
    node: String,
    key: String,
}

impl NodeRequest {
    /// Reads a PKCS#10 request, PEM, of this node.
    pub fn parse(pem: &str, node: &str) -> Result<Self, CsrError> {
        let params = CertificateSigningRequestParams::from_pem(pem)?;
        let wanted = format!("CN={NODE_PREFIX}{node}, O={NODES}");
        let part = |kind| match params.params.distinguished_name.get(&kind) {
            Some(DnValue::Utf8String(text)) => text.clone(),
            Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
            Some(_) | None => String::new(),
        };
        let (name, group) = (part(DnType::CommonName), part(DnType::OrganizationName));
        let found = format!("CN={name}, O={group}");
        let parts = params.params.distinguished_name.iter().count();
        if found != wanted || parts != 2 {
            return Err(CsrError::Subject { found, wanted });
        }
        let key = key_hash(&params.public_key.subject_public_key_info());
        Ok(Self {
            params,
            node: node.to_owned(),
            key,
        })
    }

    /// Node name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Hash of the node's public key, [`key_hash`].
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is to be signed.
    pub(crate) fn into_params(self) -> CertificateSigningRequestParams {
        self.params
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, KeyPair};

    use super::*;

    fn request(name: &str, group: &str, unit: Option<&str>) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::OrganizationName, group);
        subject.push(DnType::CommonName, name);
        if let Some(unit) = unit {
            subject.push(DnType::OrganizationalUnitName, unit);
        }
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn only_the_node_s_own_subject_is_taken() {
        let good = request("system:node:n1", "system:nodes", None);
        assert_eq!(NodeRequest::parse(&good, "n1").unwrap().node(), "n1");
        for (name, group, unit) in [
            ("system:node:n2", "system:nodes", None),
            ("system:node:n1", "system:masters", None),
            ("system:node:n1", "system:nodes", Some("x")),
            ("admin", "system:masters", None),
        ] {
            let refused = NodeRequest::parse(&request(name, group, unit), "n1");
            assert!(
                matches!(refused, Err(CsrError::Subject { .. })),
                "{name} {group}"
            );
        }
        assert!(NodeRequest::parse("nonsense", "n1").is_err());
    }
}
