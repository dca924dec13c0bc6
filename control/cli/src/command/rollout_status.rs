//! `foil rollout status`: where a rollout is, in a sentence, until its end.

use std::io::Write;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{CommandError, RequestError};
use crate::follow::{self, Wanted};
use crate::kinds::Kind;
use crate::session::{Session, typed};

/// Which Deployment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'o> {
    pub(super) kind: &'o Kind,
    pub(super) namespace: &'o str,
    pub(super) name: &'o str,
}

/// Where a rollout is.
#[derive(Debug, PartialEq)]
enum Progress {
    Done(String),
    Waiting(String),
    Failed(RequestError),
}

pub(super) async fn follow(
    session: &Session,
    client: &mut Client,
    object: Object<'_>,
    watch: bool,
    timeout: Duration,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let wanted = Wanted {
        kind: object.kind,
        namespace: object.namespace,
        name: object.name,
        deadline: (!timeout.is_zero()).then(|| Instant::now() + timeout),
        what: format!("the rollout of {}", object.kind.object(object.name)),
    };
    let mut said = String::new();
    follow::until(session, client, &wanted, &mut |found| {
        let what = || object.kind.object(object.name);
        let Some(found) = found else {
            return Err(RequestError::Field {
                what: what(),
                message: "not found".into(),
            }
            .into());
        };
        let progress = progress(object.name, &typed(found)?);
        let (line, done) = match progress {
            Progress::Done(line) => (line, true),
            Progress::Waiting(line) => (line, !watch),
            Progress::Failed(error) => return Err(error.into()),
        };
        if line != said {
            writeln!(out, "{line}")?;
            out.flush()?;
            said = line;
        }
        Ok(done.then_some(()))
    })
    .await
}

/// The same sentences as `kubectl`'s.
fn progress(name: &str, deployment: &Deployment) -> Progress {
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    if deployment.metadata.generation.unwrap_or(0) > status.observed_generation.unwrap_or(0) {
        return Progress::Waiting("Waiting for deployment spec update to be observed...".into());
    }
    let progressing = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing");
    if progressing
        .is_some_and(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    {
        return Progress::Failed(RequestError::Deadline {
            name: name.to_string(),
        });
    }
    let wanted = spec.replicas.unwrap_or(1);
    let all = status.replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let waiting = |what: String| {
        Progress::Waiting(format!(
            "Waiting for deployment \"{name}\" rollout to finish: {what}..."
        ))
    };
    if updated < wanted {
        return waiting(format!(
            "{updated} out of {wanted} new replicas have been updated"
        ));
    }
    if all > updated {
        return waiting(format!(
            "{} old replicas are pending termination",
            all - updated
        ));
    }
    if available < updated {
        return waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    Progress::Done(format!("deployment \"{name}\" successfully rolled out"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let template = json!({"metadata": {}, "spec": {"containers": []}});
        for (generation, status, want) in [
            (
                2,
                json!({"observedGeneration": 1}),
                "Waiting for deployment spec update to be observed...",
            ),
            (
                1,
                json!({"observedGeneration": 1, "updatedReplicas": 1}),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                1,
                json!({"observedGeneration": 1, "updatedReplicas": 3, "replicas": 4}),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
            ),
            (
                1,
                json!({"observedGeneration": 1, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2}),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
            ),
            (
                1,
                json!({"observedGeneration": 1, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}),
                "deployment \"web\" successfully rolled out",
            ),
            (
                1,
                json!({"observedGeneration": 1, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}),
                "deployment \"web\" exceeded its progress deadline",
            ),
        ] {
            let deployment = serde_json::from_value(json!({"metadata": {"generation": generation}, "spec": {"replicas": 3, "selector": {}, "template": template}, "status": status})).unwrap();
            let text = match progress("web", &deployment) {
                Progress::Done(text) | Progress::Waiting(text) => text,
                Progress::Failed(error) => error.to_string(),
            };
            assert_eq!(text, want);
        }
    }
}
