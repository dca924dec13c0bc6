//! Answers to those who serve requests, from what is observed.
//!
//! Called by the loop, which alone knows.

use agent_plan::action::Instance;
use agent_plan::settings::Settings;
use agent_plan::status;
use agent_plan::time::Moment;
use agent_plan::world::{Life, Observed};
use proto::v1;

use crate::event::{Instances, Question, Unknown};

/// Answers a task that serves a request.
pub(crate) fn answer(question: Question, observed: &Observed, settings: &Settings, now: Moment) {
    match question {
        Question::Instances {
            uid,
            container,
            answer,
        } => {
            // The task that asked may have ended.
            drop(answer.send(instances(observed, &uid, &container, settings, now)));
        }
        Question::Lives { instance, answer } => {
            let lives = observed
                .pods
                .get(&instance.uid)
                .and_then(|pod| pod.containers.get(&instance.container))
                .is_some_and(|c| {
                    c.attempt == instance.attempt
                        && match c.life {
                            Life::Exited(_) => false,
                            Life::None
                            | Life::Creating
                            | Life::Created
                            | Life::Starting
                            | Life::Running { .. }
                            | Life::Refused { .. } => true,
                        }
                });
            if answer.send(lives).is_err() {
                tracing::debug!("the task that asked has ended");
            }
        }
    }
}

fn instances(
    observed: &Observed,
    uid: &str,
    container: &str,
    settings: &Settings,
    now: Moment,
) -> Result<Instances, Unknown> {
    let pod = observed
        .pods
        .get(uid)
        .ok_or_else(|| Unknown(format!("pod {uid} is not on this node")))?;
    let spec = &pod.spec;
    let mut all = spec.containers.iter().chain(&spec.init_containers);
    let wanted = match (container, spec.containers.as_slice()) {
        ("", [only]) => Some(only),
        ("", several) => {
            let names: Vec<&str> = several.iter().map(|c| c.name.as_str()).collect();
            return Err(Unknown(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                spec.name,
                names.join(" ")
            )));
        }
        (name, _) => all.find(|c| c.name == name),
    };
    let found = wanted.and_then(|c| Some((c, pod.containers.get(&c.name)?)));
    let Some((wanted, state)) = found else {
        return Err(Unknown(format!(
            "container {container} is not valid for pod {}",
            spec.name
        )));
    };
    let status = status::of(pod, settings, now);
    let shown = status.containers.iter().chain(&status.init_containers);
    let waits = shown
        .filter(|s| s.name == wanted.name)
        .find_map(|s| match s.state.as_ref()?.state.as_ref()? {
            v1::container_state::State::Waiting(w) => Some(w.reason.clone()),
            v1::container_state::State::Terminated(t) => Some(t.reason.clone()),
            v1::container_state::State::Running(_) => None,
        })
        .unwrap_or_default();
    let running = matches!(state.life, Life::Running { .. });
    Ok(Instances {
        namespace: spec.namespace.clone(),
        pod: spec.name.clone(),
        current: Instance {
            uid: uid.into(),
            container: wanted.name.clone(),
            attempt: state.attempt,
        },
        began: running || matches!(state.life, Life::Exited(_)),
        running,
        waits,
    })
}
