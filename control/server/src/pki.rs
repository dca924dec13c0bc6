//! Keys and certificates: the CA, made on the first start and kept in
//! `data/pki`; what it signs; and the join token.
//!
//! Not who may do what (`auth.rs`). Private keys are readable by their owner
//! only. Called by `main.rs` at the start, and by `Node.Join`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use sha2::{Digest, Sha256};

/// Years that the CA is valid.
const CA_YEARS: i64 = 20;
/// Years that all other certificates are valid. The server's is made anew with
/// each start; nodes and operators have to be given a new one in time.
pub const LEAF_YEARS: i64 = 5;
/// Seconds for which a join token is accepted.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// What goes wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read, written or locked.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate cannot be made or read.
    #[error("{what}: {source}")]
    Certificate {
        /// Which.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A certificate request whose subject is not that of the node.
    #[error("the certificate request is for {found:?}, not for {wanted:?}")]
    Subject {
        /// The request's subject.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// A certificate or request that does not parse.
    #[error("{what} does not parse: {reason}")]
    Parse {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |source| PkiError::File {
        path: path.to_owned(),
        source,
    }
}

fn certificate(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError + '_ {
    move |source| PkiError::Certificate {
        what: what.to_owned(),
        source,
    }
}

/// The cluster's CA and its folder.
pub struct Pki {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_hash: String,
}

/// A certificate chain and its key, PEM.
pub struct Signed {
    /// Leaf first, then the CA.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl Pki {
    /// Opens `data/pki`, or makes it with a new CA. Safe to be called by two
    /// processes at once.
    pub fn open(data: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let folder = data.join("pki");
        // The store beside it holds secrets as well.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(file(&folder))?;
        let lock_path = folder.join("lock");
        let lock = fs::File::create(&lock_path).map_err(file(&lock_path))?;
        lock.lock().map_err(file(&lock_path))?;
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        if !certificate_path.exists() {
            let (ca_pem, key_pem) = make_ca(now)?;
            // The certificate last: without it, all is made anew.
            write_private(&key_path, &key_pem)?;
            write(&certificate_path, &ca_pem, 0o644)?;
        }
        let ca_pem = fs::read_to_string(&certificate_path).map_err(file(&certificate_path))?;
        let key_pem = fs::read_to_string(&key_path).map_err(file(&key_path))?;
        let key = KeyPair::from_pem(&key_pem).map_err(certificate("CA key"))?;
        // kubeadm's form: over the CA's SubjectPublicKeyInfo.
        let ca_hash = format!(
            "sha256:{}",
            hex::encode(Sha256::digest(key.subject_public_key_info()))
        );
        let issuer =
            Issuer::from_ca_cert_pem(&ca_pem, key).map_err(certificate("CA certificate"))?;
        Ok(Self {
            folder,
            issuer,
            ca_pem,
            ca_hash,
        })
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// "sha256:..." over the CA's SubjectPublicKeyInfo.
    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// A certificate for the server, for these names and addresses.
    pub fn server(&self, names: &[String], now: Timestamp) -> Result<Signed, PkiError> {
        let params = CertificateParams::new(names).map_err(certificate("server names"))?;
        self.leaf(
            params,
            "foil-control",
            None,
            ExtendedKeyUsagePurpose::ServerAuth,
            now,
        )
    }

    /// A certificate for an operator: may do everything.
    pub fn admin(&self, now: Timestamp) -> Result<Signed, PkiError> {
        let params = CertificateParams::default();
        let group = Some("system:masters");
        self.leaf(
            params,
            "admin",
            group,
            ExtendedKeyUsagePurpose::ClientAuth,
            now,
        )
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        name: &str,
        group: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
        now: Timestamp,
    ) -> Result<Signed, PkiError> {
        subject(&mut params, name, group);
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, LEAF_YEARS, now);
        let key = KeyPair::generate().map_err(certificate("key"))?;
        let signed = params
            .signed_by(&key, &self.issuer)
            .map_err(certificate(name))?;
        let chain_pem = format!("{}{}", signed.pem(), self.ca_pem);
        Ok(Signed {
            chain_pem,
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a node's request: only for its own name, only as a client.
    pub fn sign_node(&self, csr_pem: &str, node: &str, now: Timestamp) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(certificate("certificate request"))?;
        let wanted = format!("CN=system:node:{node}, O=system:nodes");
        let part = |kind| match request.params.distinguished_name.get(&kind) {
            Some(DnValue::Utf8String(text)) => text.clone(),
            Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
            Some(_) | None => String::new(),
        };
        let (name, group) = (part(DnType::CommonName), part(DnType::OrganizationName));
        let found = format!("CN={name}, O={group}");
        let parts = request.params.distinguished_name.iter().count();
        if found != wanted || parts != 2 {
            return Err(PkiError::Subject { found, wanted });
        }
        // Nothing of the request but its subject and its key is taken over.
        let mut params = CertificateParams::default();
        subject(&mut params, &name, Some(&group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, LEAF_YEARS, now);
        request.params = params;
        let signed = request
            .signed_by(&self.issuer)
            .map_err(certificate(&name))?;
        Ok(signed.pem())
    }

    /// Writes `data/admin.conf`, the operator's context, unless it is there.
    pub fn write_context(
        &self,
        data: &Path,
        server: &str,
        now: Timestamp,
    ) -> Result<PathBuf, PkiError> {
        let path = data.join("admin.conf");
        if !path.exists() {
            let admin = self.admin(now)?;
            let text = format!(
                "apiVersion: v1\nkind: Config\nclusters:\n- name: hydrofoil\n  cluster:\n    \
                 server: {server}\n    certificate-authority-data: {ca}\nusers:\n- name: admin\n  \
                 user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
                 contexts:\n- name: admin@hydrofoil\n  context:\n    cluster: hydrofoil\n    \
                 user: admin\ncurrent-context: admin@hydrofoil\n",
                ca = STANDARD.encode(&self.ca_pem),
                certificate = STANDARD.encode(&admin.chain_pem),
                key = STANDARD.encode(&admin.key_pem),
            );
            write_private(&path, &text)?;
        }
        Ok(path)
    }

    /// The join token; a new one when there is none, or when it has expired.
    pub fn token(&self, now: Timestamp) -> Result<String, PkiError> {
        let path = self.folder.join("join-token");
        let lock_path = self.folder.join("lock");
        let lock = fs::File::create(&lock_path).map_err(file(&lock_path))?;
        lock.lock().map_err(file(&lock_path))?;
        if let Some(token) = self.valid_token(now) {
            return Ok(token);
        }
        let token = format!(
            "{}.{}",
            hex::encode(rand::random::<[u8; 3]>()),
            hex::encode(rand::random::<[u8; 16]>())
        );
        let end = now.as_second() + TOKEN_SECONDS;
        write_private(&path, &format!("{token} {end}\n"))?;
        Ok(token)
    }

    fn valid_token(&self, now: Timestamp) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("join-token")).ok()?;
        let (token, end) = text.trim().split_once(' ')?;
        (now.as_second() < end.parse().ok()?).then(|| token.to_owned())
    }

    /// True for the token that was given out and has not expired.
    pub fn accepts(&self, token: &str, now: Timestamp) -> bool {
        // Compared as hashes, so that time tells nothing about the token.
        self.valid_token(now).is_some_and(|valid| {
            Sha256::digest(valid.as_bytes()) == Sha256::digest(token.as_bytes())
        })
    }
}

fn make_ca(now: Timestamp) -> Result<(String, String), PkiError> {
    let mut params = CertificateParams::default();
    subject(&mut params, "hydrofoil-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    valid(&mut params, CA_YEARS, now);
    let key = KeyPair::generate().map_err(certificate("CA key"))?;
    let signed = params
        .self_signed(&key)
        .map_err(certificate("CA certificate"))?;
    Ok((signed.pem(), key.serialize_pem()))
}

fn subject(params: &mut CertificateParams, name: &str, group: Option<&str>) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
}

/// Valid from yesterday, as clocks differ, for so many years.
fn valid(params: &mut CertificateParams, years: i64, now: Timestamp) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let from = today.checked_sub(1.day()).unwrap_or(today);
    let to = today.checked_add(years.years()).unwrap_or(today);
    let day = |date: jiff::civil::Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = day(from);
    params.not_after = day(to);
}

fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    proto::file::replace(path, text.as_bytes(), mode).map_err(file(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request(name: &str, group: &str) -> String {
        let mut params = CertificateParams::default();
        subject(&mut params, name, Some(group));
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_ca_stays_and_signs_for_the_right_subject_only() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-05-05T00:00:00Z".parse().unwrap();
        let pki = Pki::open(folder.path(), now).unwrap();
        let again = Pki::open(folder.path(), now).unwrap();
        assert_eq!(pki.ca_pem(), again.ca_pem());
        assert_eq!(pki.ca_hash(), again.ca_hash());
        let key = fs::metadata(folder.path().join("pki/ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);

        pki.sign_node(&request("system:node:n1", "system:nodes"), "n1", now)
            .unwrap();
        let rows = [
            ("system:node:n2", "system:nodes"),
            ("system:node:n1", "system:masters"),
            ("admin", "system:masters"),
        ];
        for (name, group) in rows {
            let refused = pki.sign_node(&request(name, group), "n1", now);
            assert!(
                matches!(refused, Err(PkiError::Subject { .. })),
                "{name} {group}"
            );
        }
        assert!(pki.sign_node("nonsense", "n1", now).is_err());
    }

    #[test]
    fn tokens_expire() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-05-05T00:00:00Z".parse().unwrap();
        let pki = Pki::open(folder.path(), now).unwrap();
        assert!(!pki.accepts("", now));
        let token = pki.token(now).unwrap();
        assert_eq!(pki.token(now).unwrap(), token);
        assert!(pki.accepts(&token, now));
        assert!(!pki.accepts("abcdef.0123", now));
        let later = now + jiff::SignedDuration::from_secs(TOKEN_SECONDS + 1);
        assert!(!pki.accepts(&token, later));
        assert_ne!(pki.token(later).unwrap(), token);
    }
}
