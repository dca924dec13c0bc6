//! What the controllers ask for, done: one `match` over all writes.
//!
//! Decides nothing. Called by `run.rs`, many at once.

use control_api::kind::Kind;
use control_api::meta;
use control_plan::{Key, Object, Write};
use serde_json::{Value, json};

use crate::delete::{DeleteOptions, Propagation};
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::writing::{CONTROLLERS, Change, Writing};

/// Does one write; the revision at which it shows, 0 if there was nothing to do.
pub async fn apply(objects: &Objects, write: &Write) -> Result<u64, Refusal> {
    let writing = Writing::system(CONTROLLERS);
    match write {
        Write::Put { object, claims } => {
            let value = value_of(object)?;
            let kind = kind_of(&object.key())?;
            if object.revision() == 0 {
                let (stored, _) = objects
                    .create(kind, Change::To(value), claims, &writing)
                    .await?;
                return Ok(stored.revision);
            }
            objects
                .replace(kind, value, object.revision(), claims)
                .await
        }
        Write::Claims(claims) => objects.write_claims(claims).await,
        Write::Delete {
            key,
            uid,
            revision,
            grace_seconds,
            foreground,
        } => {
            let options = DeleteOptions {
                grace_seconds: *grace_seconds,
                propagation: if *foreground {
                    Propagation::Foreground
                } else {
                    Propagation::Background
                },
                uid: uid.clone(),
                revision: *revision,
                dry_run: false,
            };
            let (kind, name) = (kind_of(key)?, &key.name);
            match objects
                .delete(kind, &name.namespace, &name.name, &options)
                .await
            {
                Ok((stored, _)) => Ok(stored.revision),
                Err(Refusal::NotFound { .. }) => Ok(0),
                Err(error) => Err(error),
            }
        }
        Write::Remove { key, revision } => {
            let name = &key.name;
            objects
                .remove(kind_of(key)?, &name.namespace, &name.name, *revision)
                .await
        }
        Write::Unhook {
            key,
            revision,
            finalizer,
            owners,
        } => {
            let name = &key.name;
            let kind = kind_of(key)?;
            let done = objects
                .change(kind, &name.namespace, &name.name, &writing, |old| {
                    if old.revision != *revision {
                        let message = format!("{key} has changed");
                        return Err(Refusal::Conflict {
                            message,
                            causes: Vec::new(),
                        });
                    }
                    Ok(unhook(&old.value, finalizer.as_deref(), owners))
                })
                .await;
            match done {
                Ok((stored, _, _)) => Ok(stored.revision),
                Err(Refusal::NotFound { .. }) => Ok(0),
                Err(error) => Err(error),
            }
        }
    }
}

fn unhook(old: &Value, finalizer: Option<&str>, owners: &[String]) -> Change {
    let mut next = old.clone();
    if let Some(finalizer) = finalizer {
        let left: Vec<&str> = meta::finalizers(old).filter(|f| *f != finalizer).collect();
        let left = (!left.is_empty()).then(|| json!(left));
        meta::set(&mut next, "finalizers", left);
    }
    if !owners.is_empty() {
        let mut left = meta::owners(old);
        left.retain(|o| !owners.contains(&o.uid));
        let left = (!left.is_empty()).then(|| json!(left));
        meta::set(&mut next, "ownerReferences", left);
    }
    Change::To(next)
}

fn kind_of(key: &Key) -> Result<&'static Kind, Refusal> {
    let mut all = control_api::kinds().iter().copied();
    all.find(|k| k.group == key.group && k.kind == key.kind)
        .ok_or_else(|| Refusal::UnknownKind {
            group: key.group.clone(),
            version: String::new(),
            kind: key.kind.clone(),
        })
}

/// The JSON of an object that a plan made.
fn value_of(object: &Object) -> Result<Value, Refusal> {
    let (_, kind) = object.kind();
    let Some(value) = object.to_json() else {
        let message = format!("a {kind} is never written as a whole");
        return Err(Refusal::BadRequest(message));
    };
    value.map_err(|error| Refusal::BadRequest(error.to_string()))
}
