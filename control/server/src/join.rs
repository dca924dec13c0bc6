//! Which machine is which node: a new one joins with a token and takes a name, one
//! that is known is recognised by its key and gets its certificate renewed.
//!
//! A node's name belongs to the key that its Node object names, for as long as the
//! object is there: a token, or an older certificate of that name, is no way in
//! for another machine. Tokens are `token.rs`, signing is `pki.rs`. Called by
//! `session.rs`.

use std::sync::Arc;

use control_api::meta;
use jiff::{SignedDuration, Timestamp};
use proto::v1;
use serde_json::{Value, json};
use tonic::Status;

use crate::auth::NodeCaller;
use crate::csr::{CsrError, NodeRequest};
use crate::objects::{ATTEMPTS, Objects};
use crate::pki::{Pki, PkiError};
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
    /// A renewal for another key than that of the certificate.
    #[error("the certificate request of node {node:?} is for another key than its certificate")]
    OtherKey {
        /// Which node.
        node: String,
    },
    /// Keys and tokens cannot be read or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store, or the rules of objects: the name, for one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A task of ours panicked.
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
            JoinError::Token(_) | JoinError::Taken { .. } => Status::permission_denied(text),
            JoinError::Request(_) | JoinError::OtherKey { .. } => Status::invalid_argument(text),
            JoinError::Refused(refusal) => refusal.into(),
            JoinError::Pki(_) | JoinError::Task(_) => {
                tracing::error!("{text}");
                Status::internal("keys and certificates are not to be had")
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
}

impl Gate {
    /// For nodes whose certificates are valid for so long.
    pub fn new(objects: Arc<Objects>, pki: Arc<Pki>, life: SignedDuration) -> Self {
        let tokens = Arc::new(Tokens::new(pki.folder()));
        Self {
            objects,
            pki,
            tokens,
            life,
        }
    }

    /// The certificate, PEM, of a machine that becomes a node by its token.
    pub async fn join(&self, join: v1::JoinRequest, now: Timestamp) -> Result<String, JoinError> {
        let request = NodeRequest::parse(&join.csr_pem, &join.node_name)?;
        let applicant = Applicant {
            node: request.node().to_owned(),
            key: request.key().to_owned(),
        };
        let (tokens, token) = (self.tokens.clone(), join.token.clone());
        let who = applicant.clone();
        let redeemed = move || tokens.redeem(&token, &who, now);
        let redeemed = tokio::task::spawn_blocking(redeemed).await??;
        if let Err(error) = self.own(request.node(), request.key(), false).await {
            if redeemed == Redeemed::Taken {
                let tokens = self.tokens.clone();
                let give_back = move || tokens.give_back(&join.token, &applicant);
                tokio::task::spawn_blocking(give_back).await??;
            }
            return Err(error);
        }
        Ok(self.pki.sign_node(request, self.life, now)?)
    }

    /// A new certificate, PEM, for the same name and key.
    pub async fn renew(
        &self,
        caller: &NodeCaller,
        csr_pem: &str,
        now: Timestamp,
    ) -> Result<String, JoinError> {
        let request = NodeRequest::parse(csr_pem, &caller.name)?;
        if request.key() != caller.key {
            let node = caller.name.clone();
            return Err(JoinError::OtherKey { node });
        }
        self.admit(caller).await?;
        Ok(self.pki.sign_node(request, self.life, now)?)
    }

    /// Recognises a node with a valid certificate. One whose Node object was
    /// deleted becomes a new node of that name.
    pub async fn admit(&self, caller: &NodeCaller) -> Result<(), JoinError> {
        self.own(&caller.name, &caller.key, true).await
    }

    /// Sees to it that the Node object names this key. `certified`: a Node that
    /// names no key, as it is older than this rule, gets it.
    async fn own(&self, node: &str, key: &str, certified: bool) -> Result<(), JoinError> {
        let kind = known("", "v1", "Node").map_err(JoinError::Refused)?;
        let writing = Writing::system(CONTROLLERS);
        let taken = || JoinError::Taken {
            node: node.to_owned(),
        };
        for _ in 0..ATTEMPTS {
            let Some(found) = self.objects.find(kind, "", node).await? else {
                let new = Change::To(new_node(node, key));
                match self.objects.create(kind, new, &[], &writing).await {
                    Ok(_) => return Ok(()),
                    Err(Refusal::AlreadyExists { .. }) => continue,
                    Err(refusal) => return Err(refusal.into()),
                }
            };
            match (annotated(&found.value), certified) {
                (Some(known), _) if known == key => return Ok(()),
                (Some(_), _) | (None, false) => return Err(taken()),
                (None, true) => {}
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

fn annotated(node: &Value) -> Option<&str> {
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
