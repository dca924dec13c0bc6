//! Which machine is which node: a new one joins with a token and takes a name, one
//! that is known is recognised by its key and gets its certificate renewed.
//!
//! A node's name belongs to the key that its Node object names, for as long as the
//! object is there: a token, or an older certificate of that name, is no way in
//! for another machine. A machine whose Node object was deleted stays out until it is
//! given a token that was made after that. Tokens are `token.rs`, signing is `pki.rs`.
//! Called by `session.rs`.

use std::sync::{Arc, Mutex, PoisonError};

use control_api::meta;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use proto::v1;
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockWriteGuard};
use tokio::time::Instant;
use tonic::Status;

use crate::auth::NodeCaller;
use crate::budget::Rate;
use crate::csr::{CsrError, NodeRequest};
use crate::objects::{ATTEMPTS, Objects};
use crate::pki::{Pki, PkiError};
use crate::rates::{Rates, TooOften};
use crate::refusal::Refusal;
use crate::stored::known;
use crate::token::{Applicant, Redeemed, Refused, TokenError, Tokens};
use crate::writing::{CONTROLLERS, Change, Writing};

/// Annotation of a Node with the hash of its public key.
pub const KEY: &str = "hydrofoil.dev/node-key";

/// Why a node is not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its token.
    #[error(transparent)]
    Token(#[from] Refused),
    /// Its certificate request.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// The name is another machine's.
    #[error(
        "node {node:?} is another machine, with another key; for this one to become {node:?}, \
         delete the Node object first"
    )]
    Taken {
        /// The name.
        node: String,
    },
    /// The Node object was deleted, and the token or certificate is older than that.
    #[error(
        "node {node:?} is not part of the cluster: its Node object was deleted. To join again, \
         this machine needs a new join token"
    )]
    Deleted {
        /// The name.
        node: String,
    },
    /// The Node object names no key.
    #[error(
        "node {node:?} has no key yet: the Node object was not made by joining. This machine \
         needs a new join token"
    )]
    NoKey {
        /// The name.
        node: String,
    },
    /// A renewal for another key than that of the certificate.
    #[error("the certificate request of node {node:?} is for another key than its certificate")]
    OtherKey {
        /// Which node.
        node: String,
    },
    /// A node asks for certificates again and again.
    #[error("node {node:?} renews its certificate too often; please try again later")]
    TooOften {
        /// Which node.
        node: String,
    },
    /// Keys and tokens cannot be read or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store, or the rules of objects: the name, for one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A task panicked.
    #[error("a task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<TokenError> for JoinError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Refused(refused) => JoinError::Token(refused),
            TokenError::Pki(error) => JoinError::Pki(error),
        }
    }
}

impl From<JoinError> for Status {
    fn from(error: JoinError) -> Self {
        let text = error.to_string();
        match error {
            JoinError::Token(_)
            | JoinError::Taken { .. }
            | JoinError::Deleted { .. }
            | JoinError::NoKey { .. } => Status::permission_denied(text),
            JoinError::Request(_) | JoinError::OtherKey { .. } => Status::invalid_argument(text),
            JoinError::TooOften { .. } => Status::resource_exhausted(text),
            JoinError::Refused(refusal) => refusal.into(),
            JoinError::Pki(_) | JoinError::Task(_) => {
                tracing::error!("{text}");
                Status::internal("cannot read or write keys and certificates")
            }
        }
    }
}

/// Lets nodes in.
pub struct Gate {
    objects: Arc<Objects>,
    pki: Arc<Pki>,
    tokens: Arc<Tokens>,
    /// How long a node's certificate is valid.
    life: SignedDuration,
    /// Of each node.
    renewals: Mutex<Rates<String>>,
    /// Read by those who join, written by who deletes a node: no token that is revoked makes
    /// the node anew.
    leaving: RwLock<()>,
}

/// Certificates that one node gets renewed. An agent asks once in its certificate's life, and
/// ten times in the rest of it when that fails.
const RENEWALS: Rate = Rate {
    per_second: 0.5,
    burst: 20.0,
};
/// Of all nodes: a signature each.
const ALL_RENEWALS: Rate = Rate {
    per_second: 200.0,
    burst: 2000.0,
};

impl Gate {
    /// For nodes, with this lifetime of their certificates.
    pub fn new(objects: Arc<Objects>, pki: Arc<Pki>, life: SignedDuration) -> Self {
        let tokens = Arc::new(Tokens::new(pki.folder()));
        Self {
            objects,
            pki,
            tokens,
            life,
            renewals: Mutex::new(Rates::new(RENEWALS, ALL_RENEWALS, Instant::now())),
            leaving: RwLock::default(),
        }
    }

    /// Revokes the tokens of a node that is about to be deleted. No machine joins until the
    /// guard is dropped, after the deletion.
    pub async fn revoke(&self, node: &str) -> Result<RwLockWriteGuard<'_, ()>, JoinError> {
        let guard = self.leaving.write().await;
        let (tokens, node) = (self.tokens.clone(), node.to_owned());
        tokio::task::spawn_blocking(move || tokens.revoke(&node)).await??;
        Ok(guard)
    }

    /// The certificate, PEM, of a machine that becomes a node by its token.
    pub async fn join(&self, join: v1::JoinRequest, now: Timestamp) -> Result<String, JoinError> {
        let request = NodeRequest::parse(&join.csr_pem, &join.node_name)?;
        let applicant = Applicant {
            node: request.node().to_owned(),
            key: request.key().to_owned(),
        };
        let _none_leaves = self.leaving.read().await;
        let (tokens, token) = (self.tokens.clone(), join.token.clone());
        let who = applicant.clone();
        let redeemed = move || tokens.redeem(&token, &who, now);
        let redeemed = tokio::task::spawn_blocking(redeemed).await??;
        if redeemed == Redeemed::Spent {
            self.recognise(request.node(), request.key()).await?;
            return Ok(self.pki.sign_node(request, self.life, now)?);
        }
        let owned = self.own(request.node(), request.key()).await;
        let (tokens, is_owned) = (self.tokens.clone(), owned.is_ok());
        let noted = move || match (is_owned, redeemed) {
            (true, _) => tokens.joined(&join.token, &applicant),
            (false, Redeemed::Taken) => tokens.give_back(&join.token, &applicant),
            (false, Redeemed::Had | Redeemed::Spent) => Ok(()),
        };
        tokio::task::spawn_blocking(noted).await??;
        owned?;
        Ok(self.pki.sign_node(request, self.life, now)?)
    }

    /// A new certificate, PEM, for the same name and key.
    pub async fn renew(
        &self,
        caller: &NodeCaller,
        csr_pem: &str,
        now: Timestamp,
    ) -> Result<String, JoinError> {
        self.may_renew(&caller.name)?;
        let request = NodeRequest::parse(csr_pem, &caller.name)?;
        if request.key() != caller.key {
            let node = caller.name.clone();
            return Err(JoinError::OtherKey { node });
        }
        self.admit(caller).await?;
        Ok(self.pki.sign_node(request, self.life, now)?)
    }

    fn may_renew(&self, node: &str) -> Result<(), JoinError> {
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let node = node.to_owned();
        match renewals.take(Some(node.clone()), Instant::now()) {
            Ok(()) => Ok(()),
            Err(TooOften::Caller | TooOften::CallerAgain | TooOften::All) => {
                Err(JoinError::TooOften { node })
            }
        }
    }

    /// Recognises a node with a valid certificate.
    pub async fn admit(&self, caller: &NodeCaller) -> Result<(), JoinError> {
        self.recognise(&caller.name, &caller.key).await
    }

    /// The Node object is there and names this key.
    async fn recognise(&self, node: &str, key: &str) -> Result<(), JoinError> {
        let kind = known("", "v1", "Node").map_err(JoinError::Refused)?;
        let found = self.objects.find(kind, "", node).await?;
        let node = node.to_owned();
        match found.as_ref().map(|found| annotated(&found.value)) {
            Some(Some(known)) if known == key => Ok(()),
            Some(Some(_)) => Err(JoinError::Taken { node }),
            Some(None) => Err(JoinError::NoKey { node }),
            None => Err(JoinError::Deleted { node }),
        }
    }

    /// Gives a name to a key: makes the Node object, or notes the key in one that an
    /// operator made.
    async fn own(&self, node: &str, key: &str) -> Result<(), JoinError> {
        let kind = known("", "v1", "Node").map_err(JoinError::Refused)?;
        let writing = Writing::system(CONTROLLERS);
        for _ in 0..ATTEMPTS {
            let Some(found) = self.objects.find(kind, "", node).await? else {
                let new = Change::To(new_node(node, key));
                match self.objects.create(kind, new, &[], &writing).await {
                    Ok(_) => return Ok(()),
                    Err(Refusal::AlreadyExists { .. }) => continue,
                    Err(refusal) => return Err(refusal.into()),
                }
            };
            match annotated(&found.value) {
                Some(known) if known == key => return Ok(()),
                Some(_) => {
                    let node = node.to_owned();
                    return Err(JoinError::Taken { node });
                }
                None => {}
            }
            let annotate = |old: &crate::stored::Stored| {
                if annotated(&old.value).is_some() {
                    return Ok(Change::Nothing);
                }
                let mut next = old.value.clone();
                next["metadata"]["annotations"][KEY] = json!(key);
                Ok(Change::To(next))
            };
            let change = self.objects.change(kind, "", node, &writing, annotate);
            match change.await {
                // Looked at again: another machine may have been faster.
                Ok(_) | Err(Refusal::NotFound { .. }) => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Err(Refusal::Unavailable(format!("node {node:?} comes and goes")).into())
    }
}

/// Hash of the key of the machine that a Node is; `None`: none has joined as it.
pub fn key(node: &Node) -> Option<&str> {
    let annotations = node.metadata.annotations.as_ref()?;
    annotations.get(KEY).map(String::as_str)
}

/// The same of a stored Node.
pub(crate) fn annotated(node: &Value) -> Option<&str> {
    node.get("metadata")?.get("annotations")?.get(KEY)?.as_str()
}

fn new_node(name: &str, key: &str) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"annotations": {KEY: key}},
    });
    meta::set_name(&mut node, name);
    node
}
