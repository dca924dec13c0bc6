//! Names in certificates: what subjects mean, and how a public key is named.
//!
//! Not what a subject may do (`auth.rs`). Called by `auth.rs`, `csr.rs`, `pki.rs`.

use sha2::{Digest, Sha256};

/// Group of those who may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of nodes.
pub const NODES: &str = "system:nodes";
/// A node's name follows.
pub const NODE_PREFIX: &str = "system:node:";

/// "sha256:HEX", kubeadm's form: over a SubjectPublicKeyInfo in DER.
pub fn key_hash(public_key: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(public_key)))
}
