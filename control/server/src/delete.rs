//! Deleting objects: which are removed at once, and which stay, marked, until
//! finalizers and nodes have cleaned up.
//!
//! What happens to dependents afterwards is control-plan's `gc.rs`. Called by
//! rpcs, by the controllers' writes, and for pods that nodes say are gone.

use control_api::kind::Kind;
use control_api::{equality, meta};
use control_plan::gc;
use control_store::{Condition, StoreError};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::objects::{ATTEMPTS, Objects};
use crate::refusal::Refusal;
use crate::stored::{Stored, encode};

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds; `None`: the object's own.
    pub grace_seconds: Option<i64>,
    /// "Background", "Foreground" or "Orphan".
    pub propagation: Propagation,
    /// Only the object with this uid; "": any.
    pub uid: String,
    /// Only the object at this revision; `None`: any.
    pub revision: Option<u64>,
    /// Only say what would be.
    pub dry_run: bool,
}

/// What becomes of the dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// They go after the object.
    #[default]
    Background,
    /// They go before the object.
    Foreground,
    /// They stay.
    Orphan,
}

impl Objects {
    /// Deletes: at once, or marked until finalizers and nodes have cleaned up. The
    /// object as it was last seen, whether it is gone, and the revision.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Stored, bool), Refusal> {
        for _ in 0..ATTEMPTS {
            let old = self.get(kind, namespace, name).await?;
            if !options.uid.is_empty() && options.uid != meta::uid(&old.value) {
                let message = format!(
                    "the uid in the precondition ({}) is not the object's ({})",
                    options.uid,
                    meta::uid(&old.value)
                );
                return Err(Refusal::Conflict {
                    message,
                    causes: Vec::new(),
                });
            }
            if let Some(revision) = options.revision.filter(|r| *r != old.revision) {
                let message = format!(
                    "the resourceVersion in the precondition ({revision}) is not the object's ({})",
                    old.revision
                );
                return Err(Refusal::Conflict {
                    message,
                    causes: Vec::new(),
                });
            }
            let now = Timestamp::now();
            let (mut next, gone) = deleted(kind, &old.value, options, now);
            if options.dry_run {
                return Ok((
                    Stored {
                        value: next,
                        revision: old.revision,
                    },
                    gone,
                ));
            }
            if !gone && equality::unchanged(&next, &old.value) {
                return Ok((old, false));
            }
            let key = kind.key(namespace, name);
            let condition = Condition::Revision(old.revision);
            let done = if gone {
                self.store().delete(key, condition).await
            } else {
                self.store().put(key, encode(&next)?, condition).await
            };
            match done {
                Ok(revision) => {
                    meta::set_resource_version(&mut next, revision);
                    return Ok((
                        Stored {
                            value: next,
                            revision,
                        },
                        gone,
                    ));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::Unavailable("too many writers at once".to_owned()))
    }
}

/// The object after a delete, and whether it is gone with it.
fn deleted(kind: &Kind, old: &Value, options: &DeleteOptions, now: Timestamp) -> (Value, bool) {
    let mut next = old.clone();
    let mut finalizers: Vec<String> = meta::finalizers(old).map(str::to_owned).collect();
    if !meta::is_terminating(old) {
        let wanted = match options.propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some(gc::FOREGROUND),
            Propagation::Orphan => Some(gc::ORPHAN),
        };
        if let Some(wanted) = wanted.filter(|w| !finalizers.iter().any(|f| f == w)) {
            finalizers.push(wanted.to_owned());
            meta::set(&mut next, "finalizers", Some(json!(finalizers)));
        }
    }
    let grace = (kind.grace_seconds)(old, options.grace_seconds);
    let stays = (kind.terminate)(&mut next);
    if grace == 0 && finalizers.is_empty() && !stays {
        return (next, true);
    }
    meta::stamp_deleted(&mut next, grace, now);
    (next, false)
}
