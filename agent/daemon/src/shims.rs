//! The pods' shims: one task listens to each and tells the loop how its
//! containers end; and the orderly end of a shim.
//!
//! Called by `sandbox.rs` and by `observe.rs` at adoption.

use std::sync::Arc;
use std::time::Duration;

use agent_plan::action::Instance;
use agent_plan::outcome::Outcome;
use agent_plan::time::{Moment, Monotonic, Wall};
use agent_plan::world::{Exit, Life, parse_container_id};
use agent_sys::shim::{self, Client, ShimError, Watch};
use proto::v1;
use proto::v1::shim_container::State;

use crate::clock;
use crate::last_words;
use crate::startup::Sys;

/// How long a shim may take to end all of a pod that is being removed.
const END: Duration = Duration::from_secs(10);

/// Listens to a shim until it ends.
pub(crate) async fn watch(sys: &Arc<Sys>, uid: &str) -> Result<(), ShimError> {
    let client = Client::connect(&sys.layout, uid).await?;
    let states = client.watch().await?;
    tokio::spawn(listen(sys.clone(), uid.to_owned(), states));
    Ok(())
}

async fn listen(sys: Arc<Sys>, uid: String, mut states: Watch) {
    loop {
        match states.next().await {
            Ok(Some(container)) => {
                if let Some((instance, exit)) = ended(&sys, &container).await {
                    sys.tell(Outcome::Exited { instance, exit }).await;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(pod = uid, %error, "shim");
                break;
            }
        }
    }
    sys.tell(Outcome::ShimLost { uid }).await;
}

/// How a container that has ended did so.
async fn ended(sys: &Arc<Sys>, container: &v1::ShimContainer) -> Option<(Instance, Exit)> {
    if container.state() != State::Exited {
        return None;
    }
    let (uid, name, attempt) = parse_container_id(&container.id)?;
    let instance = Instance {
        uid: uid.into(),
        container: name.into(),
        attempt,
    };
    let mut exit = exit(container, attempt);
    let of = instance.clone();
    exit.message = sys
        .blocking(move |sys| Ok(last_words::read(sys, &of)))
        .await
        .unwrap_or_default();
    Some((instance, exit))
}

fn exit(container: &v1::ShimContainer, attempt: u32) -> Exit {
    let code = match (container.exit_code, container.signal) {
        (0, signal) if signal != 0 => 128 + signal,
        (code, _) => code,
    };
    let reason = match code {
        _ if container.oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    Exit {
        code,
        signal: container.signal,
        reason: reason.into(),
        message: String::new(),
        started: Wall::from_ms(container.started_ms),
        finished: moment(container.finished_monotonic_ms, container.finished_ms),
        attempt,
    }
}

/// A moment as a shim tells it. One that knows the wall clock only is taken at its
/// word for what is told, and what is due counts from now.
fn moment(monotonic_ms: i64, wall_ms: i64) -> Moment {
    Moment {
        monotonic: match monotonic_ms {
            0 => clock::monotonic(),
            ms => Monotonic::from_ms(ms),
        },
        wall: Wall::from_ms(wall_ms),
    }
}

/// When a container was started.
pub(crate) fn started(container: &v1::ShimContainer) -> Moment {
    moment(container.started_monotonic_ms, container.started_ms)
}

/// A shim's container as an instance in its life.
pub(crate) async fn life(sys: &Arc<Sys>, container: &v1::ShimContainer) -> Life {
    match container.state() {
        State::Created => Life::Created,
        State::Running => Life::Running {
            started: started(container),
        },
        State::Exited => match ended(sys, container).await {
            Some((_, exit)) => Life::Exited(exit),
            None => Life::None,
        },
        State::Unspecified => Life::None,
    }
}

/// Ends what is left in a shim, then the shim. No shim is success: its folder may
/// be there after a crash, and what it left in the pod's cgroup is killed.
pub(crate) async fn end(sys: &Arc<Sys>, uid: &str) -> Result<(), String> {
    let orderly = tokio::time::timeout(END, shut_down(sys, uid)).await;
    let failed = match orderly {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(ShimError::Connect { .. })) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_elapsed) => Some(format!("the shim did not end within {} s", END.as_secs())),
    };
    let id = uid.to_owned();
    let killed = sys
        .blocking(move |sys| sys.groups.kill(&id).map_err(|e| e.to_string()))
        .await;
    match (failed, killed) {
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) | (Some(error), _) => Err(error),
    }
}

async fn shut_down(sys: &Sys, uid: &str) -> Result<(), ShimError> {
    let mut client = Client::connect(&sys.layout, uid).await?;
    let (containers, _) = client.list().await?;
    for container in &containers {
        if container.state() != State::Exited {
            client.kill(&container.id, 9, true).await?;
        }
    }
    if containers.iter().any(|c| c.state() != State::Exited) {
        let mut states = Client::connect(&sys.layout, uid).await?.watch().await?;
        let mut open: Vec<&str> = containers.iter().map(|c| c.id.as_str()).collect();
        while !open.is_empty() {
            match states.next().await? {
                Some(c) if c.state() == State::Exited => open.retain(|id| *id != c.id),
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }
    for container in &containers {
        client.delete(&container.id).await?;
    }
    match client.shutdown().await {
        // It may be quicker with its end than with its answer.
        Ok(()) | Err(ShimError::Closed) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Pods that have a shim's folder.
pub(crate) fn known(sys: &Sys) -> Vec<String> {
    shim::list(&sys.layout).unwrap_or_else(|error| {
        tracing::error!(%error, "shims cannot be listed");
        Vec::new()
    })
}
