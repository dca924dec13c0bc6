//! `foil rollout`: a Deployment's way from one template to the next.
//!
//! Revisions are the Deployment's ReplicaSets; going back is giving the
//! Deployment an older one's template again. `status` is in `rollout_status.rs`.

use std::io::Write;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::client::{Client, Patch, Selection};
use crate::error::{CommandError, RequestError};
use crate::kinds::{self, Kind};
use crate::output::table::Table;
use crate::select::Object;
use crate::session::{Session, typed};
use crate::{duration, yaml};

/// Numbers the rollouts of a Deployment, on it and on its ReplicaSets.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// What a user notes about a change.
const CAUSE: &str = "kubernetes.io/change-cause";
/// Tells the pods of one ReplicaSet from those of another; not part of the template.
const HASH: &str = "pod-template-hash";
/// A change to the template that only starts the pods anew.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// Manage the rollout of a Deployment
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil rollout status deploy/web
  foil rollout history deploy/web
  foil rollout history deploy/web --revision=2
  foil rollout undo deploy/web                      to the one before
  foil rollout undo deploy/web --to-revision=1
  foil rollout restart deploy/web                   new pods, same template
  foil rollout pause deploy/web                     change several things, then
  foil rollout resume deploy/web")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the state of a rollout until it finishes
    Status {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
        /// Wait for the rollout to finish; --watch=false prints its state and returns
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        watch: bool,
        /// How long to wait; 0 waits without limit
        #[arg(long, value_parser = duration::parse, default_value = "0s")]
        timeout: Duration,
    },
    /// List the revisions
    History {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
        /// Print the pod template of this revision
        #[arg(long)]
        revision: Option<i64>,
    },
    /// Go back to an earlier revision
    Undo {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
        /// Revision to go back to; 0: the previous one
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
    },
    /// Pause: changes to the pod template take no effect until resumed
    Pause {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
    },
    /// Resume a paused Deployment
    Resume {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
    },
    /// Replace all pods, a few at a time
    Restart {
        #[arg(value_name = "WHAT", required = true)]
        words: Vec<String>,
    },
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let words = match &args.what {
        What::Status { words, .. }
        | What::History { words, .. }
        | What::Undo { words, .. }
        | What::Pause { words }
        | What::Resume { words }
        | What::Restart { words } => words.clone(),
    };
    let (client, object) = session.object(&words).await?;
    let Object {
        kind,
        namespace,
        name,
    } = object;
    if kind.kind != "Deployment" {
        return Err(RequestError::Verb {
            kind: kind.singular,
            verb: "rolled out",
        }
        .into());
    }
    let mut rollout = Rollout {
        kind,
        namespace,
        name,
        client,
    };
    match args.what {
        What::Status { watch, timeout, .. } => {
            let Rollout {
                kind,
                namespace,
                name,
                mut client,
            } = rollout;
            let object = super::rollout_status::Object {
                kind: &kind,
                namespace: &namespace,
                name: &name,
            };
            super::rollout_status::follow(session, &mut client, object, watch, timeout, out).await
        }
        What::History { revision, .. } => rollout.history(revision, out).await,
        What::Undo { to_revision, .. } => rollout.undo(to_revision, out).await,
        What::Pause { .. } => {
            rollout
                .patch(json!({"spec": {"paused": true}}), "paused", out)
                .await
        }
        What::Resume { .. } => {
            rollout
                .patch(json!({"spec": {"paused": null}}), "resumed", out)
                .await
        }
        What::Restart { .. } => {
            if rollout.deployment().await?.pointer("/spec/paused") == Some(&Value::Bool(true)) {
                return Err(RequestError::Paused { name: rollout.name }.into());
            }
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let annotations = json!({RESTARTED: now});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
            rollout.patch(patch, "restarted", out).await
        }
    }
}

/// One Deployment that something is done to.
struct Rollout {
    kind: Kind,
    namespace: String,
    name: String,
    client: Client,
}

/// A ReplicaSet as a revision.
struct Revision {
    number: i64,
    cause: String,
    template: Value,
}

impl Rollout {
    async fn deployment(&mut self) -> Result<Value, CommandError> {
        Ok(self
            .client
            .get(&self.kind, &self.namespace, &self.name)
            .await?)
    }

    async fn patch(
        &mut self,
        patch: Value,
        word: &str,
        out: &mut dyn Write,
    ) -> Result<(), CommandError> {
        self.client
            .patch(
                &self.kind,
                &self.namespace,
                &self.name,
                Patch::Merge(&patch),
                "foil-rollout",
                false,
            )
            .await?;
        Ok(writeln!(out, "{} {word}", self.kind.object(&self.name))?)
    }

    /// Oldest first.
    async fn revisions(&mut self, deployment: &Value) -> Result<Vec<Revision>, CommandError> {
        let kind = kinds::by_word(&kinds::known(), "replicasets.apps")?;
        let selection = Selection {
            namespace: self.namespace.clone(),
            ..Selection::default()
        };
        let uid = control_api::meta::uid(deployment);
        let mut found = Vec::new();
        for object in self.client.list(&kind, &selection).await?.items {
            let set: ReplicaSet = typed(&object)?;
            let owned = set
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|owner| owner.uid == uid);
            let annotation = |key: &str| {
                set.metadata
                    .annotations
                    .as_ref()
                    .and_then(|all| all.get(key))
                    .cloned()
            };
            let Some(number) = annotation(REVISION)
                .and_then(|text| text.parse().ok())
                .filter(|_| owned)
            else {
                continue;
            };
            let template = object
                .pointer("/spec/template")
                .cloned()
                .unwrap_or_default();
            found.push(Revision {
                number,
                cause: annotation(CAUSE).unwrap_or_default(),
                template,
            });
        }
        found.sort_by_key(|revision| revision.number);
        Ok(found)
    }

    async fn history(
        &mut self,
        wanted: Option<i64>,
        out: &mut dyn Write,
    ) -> Result<(), CommandError> {
        let deployment = self.deployment().await?;
        let revisions = self.revisions(&deployment).await?;
        if let Some(wanted) = wanted {
            let revision = self.pick(&revisions, wanted)?;
            writeln!(
                out,
                "{} with revision #{wanted}",
                self.kind.object(&self.name)
            )?;
            let text = yaml::print(
                &json!({"Pod Template": crate::output::presentable(&revision.template)}),
            );
            return Ok(out.write_all(text.as_bytes())?);
        }
        writeln!(out, "{} ", self.kind.object(&self.name))?;
        let mut table = Table::default();
        table.row(vec!["REVISION".into(), "CHANGE-CAUSE".into()]);
        for revision in &revisions {
            let cause = crate::printer::or_none(Some(&revision.cause));
            table.row(vec![revision.number.to_string(), cause]);
        }
        Ok(table.flush(out)?)
    }

    async fn undo(&mut self, to_revision: i64, out: &mut dyn Write) -> Result<(), CommandError> {
        let deployment = self.deployment().await?;
        if deployment.pointer("/spec/paused") == Some(&Value::Bool(true)) {
            return Err(RequestError::Paused {
                name: self.name.clone(),
            }
            .into());
        }
        let revisions = self.revisions(&deployment).await?;
        let wanted = if to_revision > 0 {
            to_revision
        } else {
            let before = revisions
                .len()
                .checked_sub(2)
                .and_then(|at| revisions.get(at));
            before
                .ok_or_else(|| RequestError::NoEarlier {
                    name: self.name.clone(),
                })?
                .number
        };
        let mut template = self.pick(&revisions, wanted)?.template.clone();
        if let Some(labels) = template
            .pointer_mut("/metadata/labels")
            .and_then(Value::as_object_mut)
        {
            labels.shift_remove(HASH);
        }
        let now = deployment
            .pointer("/spec/template")
            .cloned()
            .unwrap_or_default();
        let Some(patch) = difference(&now, &template) else {
            let object = self.kind.object(&self.name);
            let message =
                format!("skipped rollback (current template already matches revision {wanted})");
            return Ok(writeln!(out, "{object} {message}")?);
        };
        self.patch(json!({"spec": {"template": patch}}), "rolled back", out)
            .await
    }

    fn pick<'r>(
        &self,
        revisions: &'r [Revision],
        wanted: i64,
    ) -> Result<&'r Revision, RequestError> {
        revisions
            .iter()
            .find(|revision| revision.number == wanted)
            .ok_or_else(|| {
                let has: Vec<String> = revisions
                    .iter()
                    .map(|revision| revision.number.to_string())
                    .collect();
                let has = if has.is_empty() {
                    "none".into()
                } else {
                    has.join(", ")
                };
                RequestError::NoRevision {
                    name: self.name.clone(),
                    revision: wanted,
                    has,
                }
            })
    }
}

/// The merge patch (RFC 7386) that makes `to` of `from`; `None` when they are equal.
fn difference(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        let change = match old.get(key) {
            Some(before) => difference(before, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_a_merge_patch_that_leads_there() {
        for (from, to, patch) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2}))),
            (
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                json!({"b": {"c": 1}}),
                Some(json!({"a": null, "b": {"d": null}})),
            ),
            (
                json!({}),
                json!({"a": {"b": 1}}),
                Some(json!({"a": {"b": 1}})),
            ),
            (
                json!({"l": [1, 2]}),
                json!({"l": [2]}),
                Some(json!({"l": [2]})),
            ),
        ] {
            assert_eq!(difference(&from, &to), patch);
            let mut result = from;
            control_api::patch::merge(&mut result, &patch.unwrap_or(json!({})));
            assert_eq!(result, to);
        }
    }
}
