//! Waits until an object meets a condition.
//!
//! A watch that breaks is begun again, as long as there is time: the control
//! plane may be restarted in the middle of a `wait`. Not for lists of objects.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::client::{CallError, Client, Selection};
use crate::error::CommandError;
use crate::kinds::Kind;
use crate::session::{Session, absent_is_none};
use proto::v1::watch_event::Type;

/// Pause before a broken watch is begun again.
const PAUSE: Duration = Duration::from_millis(500);

/// Which object, and how long to wait for it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'w> {
    pub(crate) kind: &'w Kind,
    pub(crate) namespace: &'w str,
    pub(crate) name: &'w str,
    /// `None`: as long as it takes.
    pub(crate) deadline: Option<Instant>,
    /// For the message when time is up: "pods/x to be deleted".
    pub(crate) what: String,
}

/// Looks at the object as it is; what it returns ends the wait.
pub(crate) type Judge<'j, T> = dyn FnMut(Option<&Value>) -> Result<Option<T>, CommandError> + 'j;

/// Calls `judge` with the object, now and after each change (`None`: it is not
/// there), until it returns something. Looks once even when the time is up: it is
/// for the last of many objects, and for a deadline of none.
pub(crate) async fn until<T>(
    session: &Session,
    client: &mut Client,
    wanted: &Wanted<'_>,
    judge: &mut Judge<'_, T>,
) -> Result<T, CommandError> {
    match wanted.deadline {
        None => endless(session, client, wanted, judge).await,
        Some(deadline) if deadline <= Instant::now() => {
            let got = client.get(wanted.kind, wanted.namespace, wanted.name);
            judge(absent_is_none(got.await)?.as_ref())?.ok_or_else(|| CommandError::TimedOut {
                what: wanted.what.clone(),
            })
        }
        Some(deadline) => {
            tokio::time::timeout_at(deadline, endless(session, client, wanted, judge))
                .await
                .unwrap_or_else(|_elapsed| {
                    Err(CommandError::TimedOut {
                        what: wanted.what.clone(),
                    })
                })
        }
    }
}

async fn endless<T>(
    session: &Session,
    client: &mut Client,
    wanted: &Wanted<'_>,
    judge: &mut Judge<'_, T>,
) -> Result<T, CommandError> {
    let mut warned = false;
    loop {
        match once(client, wanted, judge).await {
            Ok(Some(done)) => return Ok(done),
            // The server ended the watch.
            Ok(None) => {}
            Err(error) if passes(&error) => {
                if !std::mem::replace(&mut warned, true) {
                    eprintln!("Warning: lost the control plane, trying again");
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
        match session.connect().await {
            Ok(again) => *client = again,
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// May it be otherwise in a moment? A restart of the control plane, or a watch
/// that began too long ago.
fn passes(error: &CommandError) -> bool {
    use tonic::Code;
    matches!(
        error,
        CommandError::Call(
            CallError::Unreachable(_)
                | CallError::Refused {
                    code: Code::OutOfRange | Code::Unavailable | Code::Cancelled,
                    ..
                }
        )
    )
}

/// One watch; `None` when it ended before the judge was content.
async fn once<T>(
    client: &mut Client,
    wanted: &Wanted<'_>,
    judge: &mut Judge<'_, T>,
) -> Result<Option<T>, CommandError> {
    let now = absent_is_none(client.get(wanted.kind, wanted.namespace, wanted.name).await)?;
    if let Some(done) = judge(now.as_ref())? {
        return Ok(Some(done));
    }
    let selection = Selection {
        namespace: wanted.namespace.to_string(),
        fields: format!("metadata.name={}", wanted.name),
        ..Selection::default()
    };
    // From the beginning: what happened since the `get` comes as the first object.
    let mut watch = client.watch(wanted.kind, &selection, "").await?;
    let mut there = false;
    while let Some(change) = watch.next().await? {
        let object = match change.kind {
            Type::Added | Type::Modified => {
                there = true;
                change.object
            }
            Type::Deleted => {
                there = false;
                None
            }
            // All that there is was sent: if it was not among it, it is gone.
            Type::Bookmark if !there => None,
            Type::Bookmark | Type::Unspecified => continue,
        };
        if let Some(done) = judge(object.as_ref())? {
            return Ok(Some(done));
        }
    }
    Ok(None)
}
