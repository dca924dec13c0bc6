//! Waits until an object meets a condition, and follows the changes of many objects.
//!
//! A watch that breaks is begun again, as long as there is time: the control plane may be
//! restarted in the middle of a `wait` or of `get -w`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::client::{CallError, Change, Client, Selection, Watch};
use crate::error::CommandError;
use crate::kinds::Kind;
use crate::session::{Session, absent_is_none};
use proto::v1::watch_event::Type;

/// Said once for each outage.
const LOST: &str = "Warning: lost the connection to the control plane, connecting again";

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
                    eprintln!("{LOST}");
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

/// Changes of all objects of a selection, without an end.
pub(crate) struct Changes<'c> {
    session: &'c Session,
    client: &'c mut Client,
    kind: &'c Kind,
    selection: &'c Selection,
    /// Revision up to which all changes were returned; empty: all objects come first.
    revision: String,
    watch: Option<Watch>,
    warned: bool,
}

impl<'c> Changes<'c> {
    /// Changes after a revision, usually that of a list.
    pub(crate) fn after(
        session: &'c Session,
        client: &'c mut Client,
        kind: &'c Kind,
        selection: &'c Selection,
        revision: String,
    ) -> Self {
        Self {
            session,
            client,
            kind,
            selection,
            revision,
            watch: None,
            warned: false,
        }
    }

    /// The next change, also if the control plane is away in between.
    pub(crate) async fn next(&mut self) -> Result<Change, CommandError> {
        loop {
            let error = match self.step().await {
                Ok(Some(change)) => return Ok(change),
                // The server ended the watch.
                Ok(None) => None,
                Err(error) if passes(&error) => Some(error),
                Err(error) => return Err(error),
            };
            self.watch = None;
            if error.as_ref().is_some_and(is_expired) {
                eprintln!("Warning: some changes were missed, listing all objects again");
                self.revision.clear();
                continue;
            }
            if error.is_some() && !std::mem::replace(&mut self.warned, true) {
                eprintln!("{LOST}");
            }
            tokio::time::sleep(PAUSE).await;
            match self.session.connect().await {
                Ok(again) => *self.client = again,
                Err(error) if passes(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Change>, CommandError> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => {
                let watch = self.client.watch(self.kind, self.selection, &self.revision);
                let watch = none.insert(watch.await?);
                self.warned = false;
                watch
            }
        };
        let change = watch.next().await?;
        // While all objects come, none of them names a revision that is complete.
        if let Some(change) = &change
            && (change.kind == Type::Bookmark || !self.revision.is_empty())
        {
            self.revision.clone_from(&change.resource_version);
        }
        Ok(change)
    }
}

/// The watch began at a revision that is no longer kept.
fn is_expired(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Call(CallError::Refused {
            code: tonic::Code::OutOfRange,
            ..
        })
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
