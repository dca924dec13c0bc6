//! `foil drain`: a node without pods, for maintenance.
//!
//! The node is cordoned, then its pods are deleted with their grace period; controllers make
//! others elsewhere. Which pods may go is decided by [`choose`].

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use control_api::taint;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::cordon::{self, Nodes};
use super::delete::gone;
use crate::client::{CallError, Client, Deletion, Selection};
use crate::duration;
use crate::error::CommandError;
use crate::kinds;
use crate::select::Object;
use crate::session::{Session, list_typed};

/// A pod that the agent runs from a file of its own, which the API server cannot delete.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Cordon nodes, and evict their pods
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Nodes are cordoned first, and stay so: `foil uncordon` ends it. Nothing is evicted
if one pod of one of the nodes needs an option that was not given. Pods that come
to a node meanwhile have to go as well, unless they tolerate that it is cordoned.

Examples:
  foil drain n1
  foil drain n1 --delete-emptydir-data --timeout=5m
  foil drain n1 --force                    also pods that nothing will replace")]
pub(crate) struct Args {
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    options: Options,
    /// Grace period of pods in seconds; -1: the pod's own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// How long to wait; 0 waits without limit
    #[arg(long, value_parser = duration::parse, default_value = "0s")]
    timeout: Duration,
}

/// Which pods may go.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
struct Options {
    /// Also evict pods without a controller: nothing will replace them
    #[arg(long)]
    force: bool,
    /// Also evict pods with emptyDir volumes: their contents are lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Leave the pods of DaemonSets where they are
    #[arg(long)]
    ignore_daemonsets: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let (mut client, nodes) = args.nodes.find(session).await?;
    for node in &nodes {
        cordon::set(&mut client, node, true, out).await?;
    }
    let mut drain = Drain {
        grace_period_seconds: Some(args.grace_period).filter(|seconds| *seconds >= 0),
        options: args.options,
        deadline,
        warned: BTreeSet::new(),
        evicted: BTreeSet::new(),
    };
    for round in 0_u64.. {
        let mut pods = drain.judge(&mut client, &nodes).await?;
        if round > 0 {
            pods = drain.leave(pods);
        }
        if pods.is_empty() {
            break;
        }
        drain.evict(session, &mut client, pods, out).await?;
    }
    for node in nodes {
        writeln!(out, "{} drained", node.kind.object(&node.name))?;
    }
    Ok(out.flush()?)
}

/// A drain under way, in rounds: pods may come to a node after it was looked at.
struct Drain {
    /// `None`: each pod's own.
    grace_period_seconds: Option<i64>,
    options: Options,
    deadline: Option<Instant>,
    /// Warnings that were printed.
    warned: BTreeSet<String>,
    /// uids of pods that were told to go.
    evicted: BTreeSet<String>,
}

impl Drain {
    /// The pods of all nodes that have to go. An error, and nothing is evicted, if one of
    /// them may not.
    async fn judge(
        &mut self,
        client: &mut Client,
        nodes: &[Object],
    ) -> Result<Vec<Pod>, CommandError> {
        let (mut pods, mut refused) = (Vec::new(), false);
        for node in nodes {
            let selection = Selection {
                fields: format!("spec.nodeName={}", node.name),
                ..Selection::default()
            };
            let there = list_typed(client, "pods", &selection).await?;
            match choose(there, self.options) {
                Ok(chosen) => {
                    pods.extend(chosen.pods);
                    for warning in chosen.warnings {
                        if self.warned.insert(warning.clone()) {
                            eprintln!("Warning: {warning}");
                        }
                    }
                }
                Err(reasons) => {
                    let (node, reasons) = (&node.name, reasons.join("; "));
                    eprintln!("error: unable to drain node {node}: {reasons}");
                    refused = true;
                }
            }
        }
        if refused {
            Err(CommandError::Reported)
        } else {
            Ok(pods)
        }
    }

    /// Without those that the scheduler binds to a cordoned node: they would come again for ever.
    fn leave(&mut self, pods: Vec<Pod>) -> Vec<Pod> {
        let (stay, go): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(tolerates_cordon);
        for pod in stay {
            let name = format!(
                "{}/{}",
                pod.metadata.namespace.unwrap_or_default(),
                pod.metadata.name.unwrap_or_default()
            );
            if self.warned.insert(name.clone()) {
                eprintln!("Warning: ignoring Pods that tolerate an unschedulable node: {name}");
            }
        }
        go
    }

    /// Tells pods to go, and waits until they are gone.
    async fn evict(
        &mut self,
        session: &Session,
        client: &mut Client,
        pods: Vec<Pod>,
        out: &mut dyn Write,
    ) -> Result<(), CommandError> {
        let kind = kinds::by_word(&kinds::known(), "pods")?;
        let mut going = Vec::new();
        for pod in pods {
            let metadata = pod.metadata;
            let uid = metadata.uid.unwrap_or_default();
            let object = Object {
                kind: kind.clone(),
                namespace: metadata.namespace.unwrap_or_default(),
                name: metadata.name.unwrap_or_default(),
            };
            let deletion = Deletion {
                grace_period_seconds: self.grace_period_seconds,
                propagation_policy: "Background".to_owned(),
                // A pod of the same name that came after it may run elsewhere.
                uid: uid.clone(),
                dry_run: false,
            };
            let deleted = client
                .delete(&kind, &object.namespace, &object.name, &deletion)
                .await;
            match deleted {
                Ok(_) if self.evicted.insert(uid.clone()) => {
                    writeln!(out, "evicting pod {}/{}", object.namespace, object.name)?;
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() || is_conflict(&error) => continue,
                Err(error) => return Err(error.into()),
            }
            out.flush()?;
            going.push((object, uid));
        }
        for (object, uid) in going {
            gone(session, client, &object, &uid, self.deadline).await?;
            writeln!(out, "pod/{} evicted", object.name)?;
            out.flush()?;
        }
        Ok(())
    }
}

fn tolerates_cordon(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| taint::tolerates(spec, &taint::unschedulable()))
}

/// The uid is another one by now.
fn is_conflict(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Refused {
            code: tonic::Code::Aborted,
            ..
        }
    )
}

/// What is evicted, and what is to be said about the rest.
#[derive(Debug)]
struct Chosen {
    pods: Vec<Pod>,
    warnings: Vec<String>,
}

/// Which of a node's pods are evicted, by the rules and in the words of `kubectl drain`; else
/// why the node cannot be drained.
fn choose(pods: Vec<Pod>, options: Options) -> Result<Chosen, Vec<String>> {
    let mut chosen = Vec::new();
    let (mut daemons, mut alone, mut local) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let metadata = &pod.metadata;
        let annotations = metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key(MIRROR)) {
            continue;
        }
        let name = format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        );
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let controller = owners.iter().find(|owner| owner.controller == Some(true));
        if !ended && controller.is_some_and(|owner| owner.kind == "DaemonSet") {
            daemons.push(name);
            continue;
        }
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
        let has_local_data = volumes
            .unwrap_or_default()
            .iter()
            .any(|volume| volume.empty_dir.is_some());
        if !ended && controller.is_none() {
            alone.push(name.clone());
        }
        if !ended && has_local_data {
            local.push(name);
        }
        chosen.push(pod);
    }
    let rows = [
        (
            &daemons,
            options.ignore_daemonsets,
            "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore)",
            "ignoring DaemonSet-managed Pods",
        ),
        (
            &alone,
            options.force,
            "cannot delete Pods that declare no controller (use --force to override)",
            "deleting Pods that declare no controller",
        ),
        (
            &local,
            options.delete_emptydir_data,
            "cannot delete Pods with local storage (use --delete-emptydir-data to override)",
            "",
        ),
    ];
    let (mut reasons, mut warnings) = (Vec::new(), Vec::new());
    for (names, allowed, refusal, warning) in rows {
        let text = |words: &str| format!("{words}: {}", names.join(", "));
        match (names.is_empty(), allowed) {
            (true, _) => {}
            (false, false) => reasons.push(text(refusal)),
            (false, true) if warning.is_empty() => {}
            (false, true) => warnings.push(text(warning)),
        }
    }
    if reasons.is_empty() {
        Ok(Chosen {
            pods: chosen,
            warnings,
        })
    } else {
        Err(reasons)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, owner: &str, more: Value) -> Pod {
        let mut pod =
            json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"containers": []}});
        if !owner.is_empty() {
            pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1",
                "kind": owner, "name": "o", "uid": "u", "controller": true}]);
        }
        control_api::patch::merge(&mut pod, &more);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pods_that_come_again_are_left_in_later_rounds() {
        let mut drain = Drain {
            grace_period_seconds: None,
            options: Options::default(),
            deadline: None,
            warned: BTreeSet::new(),
            evicted: BTreeSet::new(),
        };
        let system = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        let pods = vec![
            pod("system", "ReplicaSet", system),
            pod("web", "ReplicaSet", json!({})),
        ];
        let left = drain.leave(pods);
        let names: Vec<_> = left
            .iter()
            .map(|pod| pod.metadata.name.as_deref())
            .collect();
        assert_eq!(names, [Some("web")]);
        assert!(drain.warned.contains("x/system"));
    }

    #[test]
    fn which_pods_go() {
        let empty_dir = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let pods = || {
            vec![
                pod("owned", "ReplicaSet", json!({})),
                pod("daemon", "DaemonSet", json!({})),
                pod("alone", "", json!({})),
                pod("data", "ReplicaSet", empty_dir.clone()),
                pod("done", "", json!({"status": {"phase": "Succeeded"}})),
                pod(
                    "file",
                    "",
                    json!({"metadata": {"annotations": {MIRROR: "1"}}}),
                ),
            ]
        };
        let reasons = choose(pods(), Options::default()).unwrap_err();
        assert_eq!(
            reasons,
            [
                "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): x/daemon",
                "cannot delete Pods that declare no controller (use --force to override): x/alone",
                "cannot delete Pods with local storage (use --delete-emptydir-data to override): x/data",
            ]
        );
        let all = Options {
            force: true,
            delete_emptydir_data: true,
            ignore_daemonsets: true,
        };
        let chosen = choose(pods(), all).unwrap();
        let names: Vec<_> = chosen
            .pods
            .iter()
            .map(|pod| pod.metadata.name.as_deref().unwrap())
            .collect();
        assert_eq!(names, ["owned", "alone", "data", "done"]);
        assert_eq!(
            chosen.warnings,
            [
                "ignoring DaemonSet-managed Pods: x/daemon",
                "deleting Pods that declare no controller: x/alone"
            ]
        );
    }
}
