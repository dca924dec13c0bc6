//! The pods' shims: one task listens to each and tells the loop how its
//! containers end; and the orderly end of a shim.
//!
//! Called by `apply.rs` and by `sandbox.rs`.

use std::sync::Arc;
use std::time::Duration;

use agent_plan::action::Instance;
use agent_plan::outcome::{Answer, Found, Outcome};
use agent_plan::time::{Moment, Monotonic, Wall};
use agent_plan::world::{Exit, Life, parse_container_id};
use agent_sys::netns;
use agent_sys::shim::{self, Client, ShimError, Watch};
use proto::v1;
use proto::v1::shim_container::State;

use crate::clock;
use crate::last_words;
use crate::startup::Sys;

/// How long a shim may take to end all of a pod that is being removed.
const END: Duration = Duration::from_secs(10);
/// How often a shim that refuses to end is asked again, and after which pause.
const TRIES: u32 = 100;
const AGAIN: Duration = Duration::from_millis(20);

/// Opens the connection on which a shim tells how its containers end.
pub(crate) async fn watch(sys: &Sys, uid: &str) -> Result<Watch, ShimError> {
    Client::connect(&sys.layout, uid).await?.watch().await
}

/// Asks a shim whether it lives and what it has; with `listen`, it is listened to from
/// then on. One that does not answer holds up nothing but its own question.
pub(crate) fn ask(sys: &Arc<Sys>, uid: &str, listen: bool) {
    let (sys, uid) = (sys.clone(), uid.to_owned());
    tokio::spawn(async move {
        let asked = match sys.asks.acquire().await {
            Ok(_permit) => heard(&sys, &uid, listen).await,
            Err(_closed) => return,
        };
        let (answer, watch) = match asked {
            Ok((found, watch)) => (Answer::Alive(found), watch),
            Err(error) if error.is_dead() => (dead(&sys, &uid), None),
            Err(error) => {
                tracing::warn!(pod = uid, %error, "no answer from the shim; its state is unknown");
                (Answer::Silent, None)
            }
        };
        let listens = watch.is_some();
        let outcome = Outcome::ShimAnswered {
            uid: uid.clone(),
            listens,
            answer,
        };
        sys.tell(outcome).await;
        // Only now: what it tells is news compared with the answer.
        if let Some(states) = watch {
            self::listen(sys, uid, states).await;
        }
    });
}

/// What is left of the sandbox of a shim that is dead.
fn dead(sys: &Sys, uid: &str) -> Answer {
    if netns::exists(&sys.layout.namespace(uid)) {
        Answer::Dead
    } else {
        Answer::SandboxLost
    }
}

async fn heard(
    sys: &Arc<Sys>,
    uid: &str,
    listen: bool,
) -> Result<(Vec<Found>, Option<Watch>), ShimError> {
    let watch = match listen {
        true => Some(watch(sys, uid).await?),
        false => None,
    };
    let (containers, _) = Client::connect(&sys.layout, uid).await?.list().await?;
    let mut found = Vec::with_capacity(containers.len());
    for container in &containers {
        if let Some((of, name, attempt)) = parse_container_id(&container.id)
            && of == uid
        {
            found.push(Found {
                container: name.into(),
                attempt,
                life: life(sys, container).await,
            });
        }
    }
    Ok((found, watch))
}

/// Tells how a shim's containers start and end, until the connection for that does.
pub(crate) async fn listen(sys: Arc<Sys>, uid: String, mut states: Watch) {
    loop {
        match states.next().await {
            Ok(Some(container)) => {
                if let Some(outcome) = told(&sys, &container).await {
                    sys.tell(outcome).await;
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

/// What the news of a container are.
async fn told(sys: &Arc<Sys>, container: &v1::ShimContainer) -> Option<Outcome> {
    match container.state() {
        State::Running => Some(Outcome::Started {
            instance: instance(container)?,
            result: Ok(started(container)),
        }),
        State::Exited => {
            let (instance, exit) = ended(sys, container).await?;
            Some(Outcome::Exited { instance, exit })
        }
        State::Unspecified | State::Created | State::Starting => None,
    }
}

fn instance(container: &v1::ShimContainer) -> Option<Instance> {
    let (uid, name, attempt) = parse_container_id(&container.id)?;
    Some(Instance {
        uid: uid.into(),
        container: name.into(),
        attempt,
    })
}

/// How a container that has ended did so.
async fn ended(sys: &Arc<Sys>, container: &v1::ShimContainer) -> Option<(Instance, Exit)> {
    let instance = instance(container)?;
    let mut exit = exit(container, instance.attempt);
    let (of, failed) = (instance.clone(), exit.code != 0);
    exit.message = sys
        .blocking(move |sys| Ok(last_words::read(sys, &of, failed)))
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
async fn life(sys: &Arc<Sys>, container: &v1::ShimContainer) -> Life {
    match container.state() {
        State::Created => Life::Created,
        State::Starting => Life::Starting,
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
/// be there after a crash, and what it left in the pod's cgroup is killed. One that
/// does not answer is killed too, and one that refuses: it may be making a container,
/// which no list shows yet.
pub(crate) async fn end(sys: &Arc<Sys>, uid: &str) -> Result<(), String> {
    match tokio::time::timeout(END, shut_down(sys, uid)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => tracing::debug!(pod = uid, %error, "the shim is killed"),
        Err(_elapsed) => tracing::debug!(pod = uid, "the shim is killed: it takes too long"),
    }
    let id = uid.to_owned();
    let killed = sys.blocking(move |sys| {
        shim::kill(&sys.layout, &id).map_err(|e| format!("end the shim: {e}"))?;
        sys.groups.kill(&id).map(drop).map_err(|e| e.to_string())
    });
    killed.await
}

/// Ends all that a shim has, then the shim. A container that is being made, as an agent
/// that died has asked for it, is there only after the list: the shim then refuses to end,
/// and is asked again.
async fn shut_down(sys: &Sys, uid: &str) -> Result<(), ShimError> {
    let mut tries = 0;
    loop {
        match shut_down_once(sys, uid).await {
            Err(error) if error.is_answer() && tries < TRIES => {
                tracing::debug!(pod = uid, %error, "asked again");
                tries += 1;
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn shut_down_once(sys: &Sys, uid: &str) -> Result<(), ShimError> {
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
        tracing::error!(%error, "cannot list shims");
        Vec::new()
    })
}
