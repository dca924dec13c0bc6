//! Join tokens: made by `foil-control join-token`, one file each in
//! `data/pki/tokens`, redeemed by `Node.Join`.
//!
//! A token is "id.secret"; the file holds a hash of the secret, so that a reader of
//! the file cannot join. Command and server are two processes: each change is made
//! under the folder's lock. Not who may have which name (`join.rs`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pki::{self, PkiError};

/// What a token is good for, until it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One node, of any name. It may ask again with the same key, as the answer
    /// may be lost.
    Once,
    /// The node of this name, as often as it asks.
    Node(String),
}

/// Why a token does not let a node join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such token; also for a wrong secret.
    #[error("unknown or expired join token")]
    Unknown,
    /// It is past its end.
    #[error("unknown or expired join token")]
    Expired,
    /// Another node used it.
    #[error("the join token was used by node {by:?} already")]
    Used {
        /// Which.
        by: String,
    },
    /// Its node has been deleted since.
    #[error("the join token was made before node {node:?} was deleted: make a new one")]
    Deleted {
        /// Which.
        node: String,
    },
    /// It was made for another node.
    #[error("the join token is for node {node:?} only")]
    OtherNode {
        /// For which.
        node: String,
    },
}

/// A token cannot be made or redeemed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not accepted.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its file cannot be read or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Who asks to join: a node's name, and the hash of its public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applicant {
    /// Node name.
    pub node: String,
    /// "sha256:HEX" over its SubjectPublicKeyInfo.
    pub key: String,
}

/// The file of a token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// SHA-256 of the secret, hexadecimal.
    secret_hash: String,
    /// Seconds since the epoch.
    expires: i64,
    /// The only node that may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Who used it, where it is for one use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_by: Option<Applicant>,
    /// That applicant asked again: an earlier answer may have reached it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    asked_again: bool,
    /// Keys whose nodes have joined with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    joined: Vec<String>,
    /// Its node was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    revoked: bool,
}

/// A token that was accepted, for one attempt to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redeemed {
    /// By this call: it gives the token back if the attempt fails.
    Taken,
    /// The applicant had it already, or it is for more than one use; it has not
    /// joined with it.
    Had,
    /// The applicant has joined with it before.
    Spent,
}

impl Record {
    /// The node that it is for, or that used it.
    fn of_node(&self) -> Option<&str> {
        let used_by = self.used_by.as_ref().map(|by| by.node.as_str());
        self.node.as_deref().or(used_by)
    }

    fn judge(&self, secret: &str, applicant: &Applicant, now: Timestamp) -> Result<(), Refused> {
        // Compared as hashes, so that the time it takes says nothing of the secret.
        if self.secret_hash != hash(secret) {
            return Err(Refused::Unknown);
        }
        if now.as_second() >= self.expires {
            return Err(Refused::Expired);
        }
        if let Some(node) = self.of_node().filter(|_| self.revoked) {
            let node = node.to_owned();
            return Err(Refused::Deleted { node });
        }
        match (&self.node, &self.used_by) {
            (Some(node), _) if *node != applicant.node => {
                Err(Refused::OtherNode { node: node.clone() })
            }
            (None, Some(by)) if by != applicant => Err(Refused::Used {
                by: by.node.clone(),
            }),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// The tokens of one cluster.
pub struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    /// In the folder of keys and certificates, `data/pki`.
    pub fn new(pki: &Path) -> Self {
        Self {
            folder: pki.join("tokens"),
        }
    }

    /// Makes a token, and removes those that have expired.
    pub fn make(
        &self,
        scope: &Scope,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let _lock = self.lock()?;
        self.remove_expired(now)?;
        let id = hex::encode(rand::random::<[u8; 3]>());
        let secret = hex::encode(rand::random::<[u8; 16]>());
        let record = Record {
            secret_hash: hash(&secret),
            expires: now.as_second().saturating_add(life.as_secs()),
            node: match scope {
                Scope::Once => None,
                Scope::Node(node) => Some(node.clone()),
            },
            used_by: None,
            asked_again: false,
            joined: Vec::new(),
            revoked: false,
        };
        self.write(&id, &record)?;
        Ok(format!("{id}.{secret}"))
    }

    /// Accepts a token. One for one use is this applicant's from now on.
    pub fn redeem(
        &self,
        token: &str,
        applicant: &Applicant,
        now: Timestamp,
    ) -> Result<Redeemed, TokenError> {
        let (id, secret) = parts(token).ok_or(Refused::Unknown)?;
        let _lock = self.lock()?;
        let mut record = self.read(id)?.ok_or(Refused::Unknown)?;
        record.judge(secret, applicant, now)?;
        if record.joined.contains(&applicant.key) {
            return Ok(Redeemed::Spent);
        }
        if record.node.is_some() {
            return Ok(Redeemed::Had);
        }
        if record.used_by.is_none() {
            record.used_by = Some(applicant.clone());
            self.write(id, &record)?;
            return Ok(Redeemed::Taken);
        }
        if !record.asked_again {
            record.asked_again = true;
            self.write(id, &record)?;
        }
        Ok(Redeemed::Had)
    }

    /// Takes back that this applicant used a token: it did not join. Only for the
    /// call whose [`Tokens::redeem`] returned [`Redeemed::Taken`]. If the applicant
    /// asked again meanwhile, that call may have yielded a certificate, and the token
    /// stays this applicant's.
    pub fn give_back(&self, token: &str, applicant: &Applicant) -> Result<(), PkiError> {
        let Some((id, _)) = parts(token) else {
            return Ok(());
        };
        let _lock = self.lock()?;
        let Some(mut record) = self.read(id)? else {
            return Ok(());
        };
        if record.used_by.as_ref() == Some(applicant) && !record.asked_again {
            record.used_by = None;
            self.write(id, &record)?;
        }
        Ok(())
    }

    /// Notes that this applicant's node has joined with the token: it is not accepted
    /// from it as a new node again.
    pub fn joined(&self, token: &str, applicant: &Applicant) -> Result<(), PkiError> {
        let Some((id, _)) = parts(token) else {
            return Ok(());
        };
        let _lock = self.lock()?;
        let Some(mut record) = self.read(id)? else {
            return Ok(());
        };
        if !record.joined.contains(&applicant.key) {
            record.joined.push(applicant.key.clone());
            self.write(id, &record)?;
        }
        Ok(())
    }

    /// Ends the tokens that are for this node or were used by it: none of them makes it a
    /// node again.
    pub fn revoke(&self, node: &str) -> Result<(), PkiError> {
        let _lock = self.lock()?;
        for id in self.ids()? {
            let Some(mut record) = self.read(&id)? else {
                continue;
            };
            if record.of_node() == Some(node) && !record.revoked {
                record.revoked = true;
                self.write(&id, &record)?;
            }
        }
        Ok(())
    }

    /// Held by the process that changes the folder; released when dropped.
    fn lock(&self) -> Result<fs::File, PkiError> {
        pki::private_folder(&self.folder)?;
        pki::lock(&self.folder)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn read(&self, id: &str) -> Result<Option<Record>, PkiError> {
        let path = self.path(id);
        let failed = |source| PkiError::File {
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed(io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn write(&self, id: &str, record: &Record) -> Result<(), PkiError> {
        let path = self.path(id);
        let bytes = serde_json::to_vec(record).map_err(|error| PkiError::File {
            path: path.clone(),
            source: io::Error::other(error),
        })?;
        pki::write_private(&path, &bytes)
    }

    /// Of all tokens that are kept.
    fn ids(&self) -> Result<Vec<String>, PkiError> {
        let failed = |source| PkiError::File {
            path: self.folder.clone(),
            source,
        };
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.map(str::to_owned));
        }
        Ok(ids)
    }

    fn remove_expired(&self, now: Timestamp) -> Result<(), PkiError> {
        for id in self.ids()? {
            let record = self.read(&id)?;
            if record.is_some_and(|record| now.as_second() >= record.expires) {
                let path = self.path(&id);
                fs::remove_file(&path).map_err(|source| PkiError::File { path, source })?;
            }
        }
        Ok(())
    }
}

/// Id and secret; the id is safe as a file's name.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    (id.len() <= 64 && plain(id) && plain(secret)).then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn applicant(node: &str, key: &str) -> Applicant {
        Applicant {
            node: node.to_owned(),
            key: key.to_owned(),
        }
    }

    fn refused(result: Result<Redeemed, TokenError>) -> Option<Refused> {
        match result {
            Ok(Redeemed::Taken | Redeemed::Had | Redeemed::Spent) => None,
            Err(TokenError::Refused(refused)) => Some(refused),
            Err(TokenError::Pki(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_token_is_for_one_use_or_for_one_node_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        let once = tokens.make(&Scope::Once, hour, at(0)).unwrap();
        let named = Scope::Node("n1".to_owned());
        let named = tokens.make(&named, hour, at(0)).unwrap();
        let used = |by: &str| Some(Refused::Used { by: by.to_owned() });
        let only = |node: &str| {
            Some(Refused::OtherNode {
                node: node.to_owned(),
            })
        };
        let wrong = format!("{}.00", once.split_once('.').unwrap().0);
        let rows = [
            (wrong.as_str(), "n1", "a", 1, Some(Refused::Unknown)),
            ("abcdef.0123", "n1", "a", 1, Some(Refused::Unknown)),
            ("", "n1", "a", 1, Some(Refused::Unknown)),
            ("../ca.0", "n1", "a", 1, Some(Refused::Unknown)),
            (once.as_str(), "n1", "a", 2, None),
            // The answer was lost: the same node asks again.
            (once.as_str(), "n1", "a", 3, None),
            (once.as_str(), "n1", "b", 3, used("n1")),
            (once.as_str(), "n2", "a", 3, used("n1")),
            (once.as_str(), "n1", "a", 3600, Some(Refused::Expired)),
            (named.as_str(), "n2", "a", 1, only("n1")),
            (named.as_str(), "n1", "a", 1, None),
            (named.as_str(), "n1", "b", 1, None),
            (named.as_str(), "n1", "a", 3600, Some(Refused::Expired)),
        ];
        for (token, node, key, when, expected) in rows {
            let got = refused(tokens.redeem(token, &applicant(node, key), at(when)));
            assert_eq!(got, expected, "{node} {key} {when}");
        }
        // Those that have ended go when the next one is made.
        tokens.make(&Scope::Once, hour, at(4000)).unwrap();
        let files = fs::read_dir(folder.path().join("tokens")).unwrap();
        let files = files.filter(|f| {
            let name = f.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".json")
        });
        assert_eq!(files.count(), 1);
    }

    #[test]
    fn a_token_that_did_not_help_can_be_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        let token = tokens.make(&Scope::Once, hour, at(0)).unwrap();
        let (first, second) = (applicant("n1", "a"), applicant("n2", "b"));
        tokens.redeem(&token, &first, at(1)).unwrap();
        // Only who has it can give it back.
        tokens.give_back(&token, &second).unwrap();
        assert!(tokens.redeem(&token, &second, at(1)).is_err());
        tokens.give_back(&token, &first).unwrap();
        tokens.redeem(&token, &second, at(1)).unwrap();
    }

    #[test]
    fn a_token_that_yielded_a_certificate_is_not_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        let token = tokens.make(&Scope::Once, hour, at(0)).unwrap();
        let (first, second) = (applicant("n1", "a"), applicant("n2", "b"));
        let redeemed = tokens.redeem(&token, &first, at(1)).unwrap();
        assert_eq!(redeemed, Redeemed::Taken);
        // The same machine asks again at the same time, and joins.
        let redeemed = tokens.redeem(&token, &first, at(1)).unwrap();
        assert_eq!(redeemed, Redeemed::Had);
        // The first attempt fails.
        tokens.give_back(&token, &first).unwrap();
        assert!(tokens.redeem(&token, &second, at(1)).is_err());
        tokens.redeem(&token, &first, at(1)).unwrap();
    }

    #[test]
    fn a_token_makes_a_key_a_new_node_once() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        for scope in [Scope::Once, Scope::Node("n1".to_owned())] {
            let token = tokens.make(&scope, hour, at(0)).unwrap();
            let who = applicant("n1", "a");
            let redeem = || tokens.redeem(&token, &who, at(1)).unwrap();
            assert_ne!(redeem(), Redeemed::Spent);
            // The answer may be lost before the node has joined.
            assert_eq!(redeem(), Redeemed::Had);
            tokens.joined(&token, &who).unwrap();
            tokens.joined(&token, &who).unwrap();
            assert_eq!(redeem(), Redeemed::Spent, "{scope:?}");
            let other = tokens.redeem(&token, &applicant("n1", "b"), at(1));
            assert_eq!(other.is_ok(), scope != Scope::Once, "{scope:?}");
        }
    }

    #[test]
    fn tokens_end_with_their_node() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        let make = |scope| tokens.make(&scope, hour, at(0)).unwrap();
        let named = |node: &str| make(Scope::Node(node.to_owned()));
        let (unused, used, once, other) =
            (named("n1"), named("n1"), make(Scope::Once), named("n2"));
        let free = make(Scope::Once);
        for token in [&used, &once] {
            let who = applicant("n1", "a");
            tokens.redeem(token, &who, at(1)).unwrap();
            tokens.joined(token, &who).unwrap();
        }
        tokens.revoke("n1").unwrap();
        tokens.revoke("n1").unwrap();
        let redeem = |token, node, key| refused(tokens.redeem(token, &applicant(node, key), at(1)));
        let node = "n1".to_owned();
        for token in [&unused, &used, &once] {
            let deleted = Some(Refused::Deleted { node: node.clone() });
            assert_eq!(redeem(token, "n1", "a"), deleted);
            assert_eq!(redeem(token, "n1", "b"), deleted);
        }
        assert_eq!(redeem(&other, "n2", "b"), None);
        assert_eq!(redeem(&free, "n1", "b"), None);
        assert_eq!(redeem(&named("n1"), "n1", "a"), None);
    }

    #[test]
    fn of_two_at_once_one_gets_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(folder.path());
        let hour = SignedDuration::from_hours(1);
        for _ in 0..20 {
            let token = tokens.make(&Scope::Once, hour, at(0)).unwrap();
            let won = std::thread::scope(|scope| {
                let tries = ["a", "b", "c", "d"].map(|key| {
                    let (token, pki) = (token.as_str(), folder.path());
                    scope.spawn(move || {
                        let redeemed = Tokens::new(pki).redeem(token, &applicant("n", key), at(1));
                        redeemed.is_ok()
                    })
                });
                tries
                    .into_iter()
                    .filter_map(|t| t.join().ok())
                    .filter(|won| *won)
                    .count()
            });
            assert_eq!(won, 1);
        }
    }
}
