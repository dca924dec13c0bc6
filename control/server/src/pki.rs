//! Keys and certificates: the CA, made on the first start and kept in
//! `data/pki`, and what it signs.
//!
//! Not who may do what (`auth.rs`), nor who is let in (`token.rs`, `join.rs`).
//! Private keys are readable by their owner only. Called by `main.rs` at the
//! start, and by `join.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};

use crate::csr::NodeRequest;
use crate::subject::{MASTERS, NODE_PREFIX, NODES, key_hash};

/// Years that the CA is valid.
const CA_YEARS: i64 = 20;
/// Years that the certificates of the server and of the first operator are valid. The
/// server's is made anew with each start; `foil-control admin-config` makes an operator's.
const LEAF_YEARS: i64 = 5;
/// Name of the operator in `data/admin.conf`.
const ADMIN: &str = "admin";
/// What a certificate is backdated by, as clocks differ: a day, or this part of a
/// short life.
const BACKDATE_PART: i32 = 10;

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
        private_folder(&folder)?;
        let _lock = lock(&folder)?;
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        if !certificate_path.exists() {
            let (ca_pem, key_pem) = make_ca(now)?;
            // The certificate last: without it, all is made anew.
            write_private(&key_path, key_pem.as_bytes())?;
            write(&certificate_path, ca_pem.as_bytes(), 0o644)?;
        }
        let ca_pem = fs::read_to_string(&certificate_path).map_err(file(&certificate_path))?;
        let key_pem = fs::read_to_string(&key_path).map_err(file(&key_path))?;
        let key = KeyPair::from_pem(&key_pem).map_err(certificate("CA key"))?;
        let ca_hash = key_hash(&key.subject_public_key_info());
        let issuer =
            Issuer::from_ca_cert_pem(&ca_pem, key).map_err(certificate("CA certificate"))?;
        Ok(Self {
            folder,
            issuer,
            ca_pem,
            ca_hash,
        })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
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
        let mut params = CertificateParams::new(names).map_err(certificate("server names"))?;
        let name = "foil-control";
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        subject(&mut params, name, None);
        valid(&mut params, years(LEAF_YEARS), now);
        self.leaf(params, name, usage)
    }

    /// A certificate for the first operator: may do everything.
    pub fn admin(&self, now: Timestamp) -> Result<Signed, PkiError> {
        self.operator(ADMIN, years(LEAF_YEARS), now)
    }

    /// A certificate for an operator of this name: may do everything, for this long.
    pub fn operator(
        &self,
        name: &str,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<Signed, PkiError> {
        let mut params = CertificateParams::default();
        subject(&mut params, name, Some(MASTERS));
        valid(&mut params, life, now);
        self.leaf(params, name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Signed, PkiError> {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
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

    /// Signs a node's request, only as a client; the certificate, PEM.
    pub fn sign_node(
        &self,
        request: NodeRequest,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        // Nothing of the request but its subject and its key is taken over.
        let mut params = CertificateParams::default();
        let name = format!("{NODE_PREFIX}{}", request.node());
        subject(&mut params, &name, Some(NODES));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, life, now);
        let mut request = request.into_params();
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
            let text = self.context(server, ADMIN, &self.admin(now)?);
            write_private(&path, text.as_bytes())?;
        }
        Ok(path)
    }

    /// A context file of an operator: YAML, in the format of a kubeconfig. `server` is an URL.
    pub fn context(&self, server: &str, name: &str, signed: &Signed) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: hydrofoil\n  cluster:\n    \
             server: {server}\n    certificate-authority-data: {ca}\nusers:\n- name: {name}\n  \
             user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: {name}@hydrofoil\n  context:\n    cluster: hydrofoil\n    \
             user: {name}\ncurrent-context: {name}@hydrofoil\n",
            ca = STANDARD.encode(&self.ca_pem),
            certificate = STANDARD.encode(&signed.chain_pem),
            key = STANDARD.encode(&signed.key_pem),
        )
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
    valid(&mut params, years(CA_YEARS), now);
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

fn years(years: i64) -> SignedDuration {
    SignedDuration::from_hours(years * 365 * 24)
}

/// Valid from a while before now, as clocks differ, for this long.
fn valid(params: &mut CertificateParams, life: SignedDuration, now: Timestamp) {
    let backdate = SignedDuration::from_hours(24).min(life / BACKDATE_PART);
    let at = |time: SignedDuration| {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        epoch + Duration::try_from(time).unwrap_or_default()
    };
    let now = now.duration_since(Timestamp::UNIX_EPOCH);
    params.not_before = at(now.saturating_sub(backdate));
    params.not_after = at(now.saturating_add(life));
}

/// Makes a folder that only its owner may look into, with those above it.
pub(crate) fn private_folder(folder: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(file(folder))
}

/// Waits until no other process has the folder's lock, and takes it.
pub(crate) fn lock(folder: &Path) -> Result<fs::File, PkiError> {
    let path = folder.join("lock");
    let lock = fs::File::create(&path).map_err(file(&path))?;
    lock.lock().map_err(file(&path))?;
    Ok(lock)
}

/// A file that only its owner may read; the whole of it or nothing, also in a crash.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write(path, bytes, 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    proto::file::replace(path, bytes, mode).map_err(file(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_ca_stays() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-05-05T00:00:00Z".parse().unwrap();
        let pki = Pki::open(folder.path(), now).unwrap();
        let again = Pki::open(folder.path(), now).unwrap();
        assert_eq!(pki.ca_pem(), again.ca_pem());
        assert_eq!(pki.ca_hash(), again.ca_hash());
        let key = fs::metadata(folder.path().join("pki/ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn certificates_begin_before_now_and_last_as_long_as_said() {
        let now: Timestamp = "2026-05-05T00:00:00Z".parse().unwrap();
        let day = 24 * 3600;
        for (life, before) in [(365 * day, day), (60, 6)] {
            let mut params = CertificateParams::default();
            valid(&mut params, SignedDuration::from_secs(life), now);
            let at = now.as_second();
            assert_eq!(params.not_before.unix_timestamp(), at - before);
            assert_eq!(params.not_after.unix_timestamp(), at + life);
        }
    }
}
