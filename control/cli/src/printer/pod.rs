//! Pods: ready containers, the word for what a pod is doing, and restarts.
//!
//! The word is not a field: `kubectl` computes it from phase, container states
//! and deletion, and so do we, by the same rules. Also used by `describe`.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow, or_none, wide};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("READY"),
        narrow("STATUS"),
        narrow("RESTARTS"),
        narrow("AGE"),
        wide("IP"),
        wide("NODE"),
        wide("NOMINATED NODE"),
        wide("READINESS GATES"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let pod = Pod::deserialize(object)?;
    let summary = summary(&pod);
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let restarts = match summary
        .last_restart
        .as_ref()
        .filter(|_| summary.restarts > 0)
    {
        Some(when) => format!("{} ({} ago)", summary.restarts, age::since(Some(when), now)),
        None => summary.restarts.to_string(),
    };
    Ok(vec![
        pod.metadata.name.clone().unwrap_or_default(),
        format!("{}/{}", summary.ready, summary.total),
        summary.word.clone(),
        restarts,
        age::since(pod.metadata.creation_timestamp.as_ref(), now),
        or_none(status.and_then(|status| status.pod_ip.as_deref())),
        or_none(spec.and_then(|spec| spec.node_name.as_deref())),
        or_none(status.and_then(|status| status.nominated_node_name.as_deref())),
        gates(&pod),
    ])
}

/// "1/2" of the readiness gates, or `<none>`.
fn gates(pod: &Pod) -> String {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_deref())
        .unwrap_or_default();
    if gates.is_empty() {
        return super::NONE.into();
    }
    let open = gates
        .iter()
        .filter(|gate| condition(pod, &gate.condition_type))
        .count();
    format!("{open}/{}", gates.len())
}

/// Is the condition True?
fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == kind && condition.status == "True")
}

/// What the table says about a pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) word: String,
    pub(crate) ready: usize,
    pub(crate) total: usize,
    pub(crate) restarts: i32,
    pub(crate) last_restart: Option<Time>,
}

impl Summary {
    /// Counts a container's restarts, and remembers the latest end of one.
    fn count(&mut self, status: &ContainerStatus) {
        self.restarts += status.restart_count;
        let ended = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        if let Some(finished) = ended.and_then(|ended| ended.finished_at.as_ref()) {
            self.last_restart = self.last_restart.take().max(Some(finished.clone()));
        }
    }
}

/// Reads a pod as `kubectl get pods` does.
pub(crate) fn summary(pod: &Pod) -> Summary {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_default();
    let init_containers = spec.init_containers.unwrap_or_default();
    let sidecar = |name: &str| {
        init_containers.iter().any(|container| {
            container.name == name && container.restart_policy.as_deref() == Some("Always")
        })
    };
    let sidecars = init_containers
        .iter()
        .filter(|container| sidecar(&container.name))
        .count();
    let mut summary = Summary {
        total: spec.containers.len() + sidecars,
        ..Summary::default()
    };
    // What sidecars did counts for the pod's whole life, the other init containers only until they are through.
    let mut of_sidecars = Summary::default();
    let mut word = status
        .reason
        .clone()
        .filter(|reason| !reason.is_empty())
        .unwrap_or_else(|| phase.clone());
    let gated = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    });
    if gated {
        word = "SchedulingGated".into();
    }

    let mut initialising = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        summary.count(container);
        let is_sidecar = sidecar(&container.name);
        if is_sidecar {
            of_sidecars.count(container);
        }
        let state = container.state.clone().unwrap_or_default();
        if state
            .terminated
            .as_ref()
            .is_some_and(|ended| ended.exit_code == 0)
        {
            continue;
        }
        if is_sidecar && container.started == Some(true) {
            summary.ready += usize::from(container.ready);
            continue;
        }
        word = initialising_word(&state)
            .unwrap_or_else(|| format!("Init:{index}/{}", init_containers.len()));
        initialising = true;
        break;
    }

    if !initialising || condition(pod, "Initialized") {
        (summary.restarts, summary.last_restart) = (of_sidecars.restarts, of_sidecars.last_restart);
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            summary.count(container);
            let state = container.state.clone().unwrap_or_default();
            if let Some(found) = container_word(&state) {
                word = found;
            } else if container.ready && state.running.is_some() {
                running = true;
                summary.ready += 1;
            }
        }
        // One container is through and another still runs.
        if word == "Completed" && running {
            word = if condition(pod, "Ready") {
                "Running".into()
            } else {
                "NotReady".into()
            };
        }
    }

    if pod.metadata.deletion_timestamp.is_some() {
        if status.reason.as_deref() == Some("NodeLost") {
            word = "Unknown".into();
        } else if phase != "Succeeded" && phase != "Failed" {
            word = "Terminating".into();
        }
    }
    summary.word = word;
    summary
}

/// What keeps an init container; `None` when it simply has not ended yet.
fn initialising_word(state: &ContainerState) -> Option<String> {
    if state.terminated.is_some() {
        return container_word(state).map(|word| format!("Init:{word}"));
    }
    let reason = state.waiting.as_ref()?.reason.as_deref()?;
    (!reason.is_empty() && reason != "PodInitializing").then(|| format!("Init:{reason}"))
}

/// Why a container is not running; `None` when it is.
fn container_word(state: &ContainerState) -> Option<String> {
    if let Some(reason) = state
        .waiting
        .as_ref()
        .and_then(|waiting| waiting.reason.clone())
        .filter(|r| !r.is_empty())
    {
        return Some(reason);
    }
    let ended = state.terminated.as_ref()?;
    Some(match (ended.reason.as_deref(), ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.to_string(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        (_, _) => format!("ExitCode:{}", ended.exit_code),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    /// name|ready|status|restarts, from a spec's containers and a status.
    fn short(spec: &Value, status: &Value, deleted: bool) -> String {
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:09:59Z");
        }
        line(&PRINTER, &object)
            .split('|')
            .skip(1)
            .take(3)
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn words() {
        let one = json!({"containers": [{"name": "a"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let with_init = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let with_sidecar = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
        let running = |name: &str, ready: bool| json!({"name": name, "ready": ready, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}});
        let waiting = |reason: &str| json!({"name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"waiting": {"reason": reason}}});
        let ended = |name: &str, code: i32, reason: &str| json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": {"exitCode": code, "reason": reason}}});
        let mut restarted = running("a", true);
        restarted["restartCount"] = json!(3);
        restarted["lastState"] =
            json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:09:48Z"}});
        let mut started_sidecar = running("s", true);
        started_sidecar["started"] = json!(true);
        let mut signalled = ended("a", 137, "");
        signalled["state"]["terminated"]["signal"] = json!(9);
        let rows = [
            (&one, json!({"phase": "Pending"}), false, "0/1|Pending|0"),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [running("a", true)]}),
                false,
                "1/1|Running|0",
            ),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [running("a", false)]}),
                false,
                "0/1|Running|0",
            ),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [restarted]}),
                false,
                "1/1|Running|3 (12s ago)",
            ),
            (
                &one,
                json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}),
                false,
                "0/1|ContainerCreating|0",
            ),
            (
                &one,
                json!({"phase": "Pending", "containerStatuses": [waiting("ImagePullBackOff")]}),
                false,
                "0/1|ImagePullBackOff|0",
            ),
            (
                &one,
                json!({"phase": "Succeeded", "containerStatuses": [ended("a", 0, "Completed")]}),
                false,
                "0/1|Completed|0",
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses": [ended("a", 137, "OOMKilled")]}),
                false,
                "0/1|OOMKilled|0",
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses": [ended("a", 3, "")]}),
                false,
                "0/1|ExitCode:3|0",
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses": [signalled]}),
                false,
                "0/1|Signal:9|0",
            ),
            (
                &one,
                json!({"phase": "Failed", "reason": "Evicted"}),
                false,
                "0/1|Evicted|0",
            ),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [running("a", true)]}),
                true,
                "1/1|Terminating|0",
            ),
            (
                &one,
                json!({"phase": "Succeeded", "containerStatuses": [ended("a", 0, "Completed")]}),
                true,
                "0/1|Completed|0",
            ),
            (
                &one,
                json!({"phase": "Running", "reason": "NodeLost"}),
                true,
                "0/1|Unknown|0",
            ),
            (
                &two,
                json!({"phase": "Running", "containerStatuses": [ended("a", 0, "Completed"), running("b", true)], "conditions": [{"type": "Ready", "status": "False"}]}),
                false,
                "1/2|NotReady|0",
            ),
            (
                &with_init,
                json!({"phase": "Pending", "initContainerStatuses": [running("i", false), waiting("PodInitializing")]}),
                false,
                "0/1|Init:0/2|0",
            ),
            (
                &with_init,
                json!({"phase": "Pending", "initContainerStatuses": [ended("i", 0, "Completed"), running("j", false)]}),
                false,
                "0/1|Init:1/2|0",
            ),
            (
                &with_init,
                json!({"phase": "Pending", "initContainerStatuses": [ended("i", 1, "Error")]}),
                false,
                "0/1|Init:Error|0",
            ),
            (
                &with_init,
                json!({"phase": "Pending", "initContainerStatuses": [waiting("CrashLoopBackOff")]}),
                false,
                "0/1|Init:CrashLoopBackOff|0",
            ),
            (
                &with_sidecar,
                json!({"phase": "Running", "initContainerStatuses": [started_sidecar], "containerStatuses": [running("a", true)]}),
                false,
                "2/2|Running|0",
            ),
            (
                &one,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                false,
                "0/1|SchedulingGated|0",
            ),
        ];
        for (spec, status, deleted, want) in rows {
            assert_eq!(short(spec, &status, deleted), want, "{status}");
        }
    }

    #[test]
    fn wide_columns() {
        let object = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:05:00Z"},
            "spec": {"containers": [{"name": "a"}], "nodeName": "n1", "readinessGates": [{"conditionType": "x"}]},
            "status": {"phase": "Running", "podIP": "10.244.1.5", "conditions": [{"type": "x", "status": "True"}]}});
        assert_eq!(
            line(&PRINTER, &object),
            "p|0/1|Running|0|5m|10.244.1.5|n1|<none>|1/1"
        );
    }
}
