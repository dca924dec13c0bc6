//! Pods: where, as what, in which state, and why. Containers are in `container.rs`.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::text::{Text, time};
use super::{Describer, typed};
use super::{container, volume};
use crate::printer::{NONE, or_none, pairs};

/// Name, namespace, labels, annotations: what every description begins with.
pub(super) fn heading(text: &mut Text, meta: &ObjectMeta) {
    text.pair(0, "Name", meta.name.as_deref().unwrap_or_default());
    if let Some(namespace) = &meta.namespace {
        text.pair(0, "Namespace", namespace);
    }
    marks(text, meta);
}

/// Labels and annotations, one below the other.
fn marks(text: &mut Text, meta: &ObjectMeta) {
    text.pair(0, "Labels", below(pairs(meta.labels.iter().flatten(), "=")));
    let annotations: Vec<String> = meta
        .annotations
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {}", value.replace('\n', " ")))
        .collect();
    text.pair(
        0,
        "Annotations",
        if annotations.is_empty() {
            NONE.to_string()
        } else {
            annotations.join("\n")
        },
    );
}

/// One below the other.
pub(super) fn below(list: String) -> String {
    list.replace(',', "\n")
}

pub(crate) const DESCRIBER: Describer = Describer {
    related: None,
    text: |text, object, _, _| {
        describe(text, &typed(object)?);
        Ok(())
    },
};

fn describe(text: &mut Text, pod: &Pod) {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let meta = &pod.metadata;
    text.pair(0, "Name", meta.name.as_deref().unwrap_or_default());
    text.pair(
        0,
        "Namespace",
        meta.namespace.as_deref().unwrap_or_default(),
    );
    text.pair(0, "Priority", spec.priority.unwrap_or(0).to_string());
    let node = match (&spec.node_name, &status.host_ip) {
        (Some(name), Some(ip)) => format!("{name}/{ip}"),
        (Some(name), None) => name.clone(),
        (None, _) => NONE.into(),
    };
    text.pair(0, "Node", node);
    if status.start_time.is_some() {
        text.pair(0, "Start Time", time(status.start_time.as_ref()));
    }
    marks(text, meta);
    match &meta.deletion_timestamp {
        Some(when) => {
            text.pair(
                0,
                "Status",
                format!("Terminating (by {})", time(Some(when))),
            );
            let grace = meta.deletion_grace_period_seconds.unwrap_or(0);
            text.pair(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => text.pair(0, "Status", status.phase.as_deref().unwrap_or_default()),
    }
    for (name, value) in [("Reason", &status.reason), ("Message", &status.message)] {
        if let Some(value) = value {
            text.pair(0, name, value);
        }
    }
    text.pair(0, "IP", status.pod_ip.as_deref().unwrap_or_default());
    let ips: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    if !ips.is_empty() {
        text.section(0, "IPs");
        ips.iter().for_each(|ip| text.pair(1, "IP", ip));
    }
    if let Some(owner) = meta
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
    {
        text.pair(0, "Controlled By", format!("{}/{}", owner.kind, owner.name));
    }
    if let Some(init) = spec
        .init_containers
        .as_deref()
        .filter(|init| !init.is_empty())
    {
        text.section(0, "Init Containers");
        container::of_pod(
            text,
            init,
            status
                .init_container_statuses
                .as_deref()
                .unwrap_or_default(),
        );
    }
    text.section(0, "Containers");
    container::of_pod(
        text,
        &spec.containers,
        status.container_statuses.as_deref().unwrap_or_default(),
    );
    if let Some(conditions) = status
        .conditions
        .as_deref()
        .filter(|conditions| !conditions.is_empty())
    {
        text.section(0, "Conditions");
        let mut rows = vec![vec!["Type".to_string(), "Status".into()]];
        rows.extend(
            conditions
                .iter()
                .map(|condition| vec![condition.type_.clone(), condition.status.clone()]),
        );
        text.table(1, rows);
    }
    volume::describe(text, spec.volumes.as_deref().unwrap_or_default());
    text.pair(0, "QoS Class", or_none(status.qos_class.as_deref()));
    text.pair(
        0,
        "Node-Selectors",
        below(pairs(spec.node_selector.iter().flatten(), "=")),
    );
    let toleration = |toleration: &k8s_openapi::api::core::v1::Toleration| {
        let key = toleration.key.clone().unwrap_or_default();
        let value = toleration
            .value
            .as_ref()
            .map(|value| format!("={value}"))
            .unwrap_or_default();
        let effect = toleration
            .effect
            .as_ref()
            .map(|effect| format!(":{effect}"))
            .unwrap_or_default();
        let operator = toleration
            .operator
            .as_ref()
            .map(|operator| format!(" op={operator}"))
            .unwrap_or_default();
        let seconds = toleration
            .toleration_seconds
            .map(|seconds| format!(" for {seconds}s"))
            .unwrap_or_default();
        format!("{key}{value}{effect}{operator}{seconds}")
    };
    let tolerations: Vec<String> = spec.tolerations.iter().flatten().map(toleration).collect();
    text.pair(
        0,
        "Tolerations",
        if tolerations.is_empty() {
            NONE.into()
        } else {
            tolerations.join("\n")
        },
    );
}

/// A template's containers: of Deployments and ReplicaSets.
pub(super) fn template(text: &mut Text, template: &PodTemplateSpec) {
    text.section(0, "Pod Template");
    let labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone())
        .unwrap_or_default();
    text.pair(1, "Labels", below(pairs(labels, "=")));
    let Some(spec) = &template.spec else { return };
    if let Some(init) = spec
        .init_containers
        .as_deref()
        .filter(|init| !init.is_empty())
    {
        text.section(1, "Init Containers");
        text.deeper(container::of_template(init));
    }
    text.section(1, "Containers");
    text.deeper(container::of_template(&spec.containers));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_crashes() {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"app": "web", "tier": "a"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "foil/app:1", "command": ["app"], "args": ["serve"],
                "ports": [{"containerPort": 8080}, {"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                "volumeMounts": [{"name": "v", "mountPath": "/etc/v", "readOnly": true}]}],
                "volumes": [{"name": "v", "configMap": {"name": "settings"}}]},
            "status": {"phase": "Running", "podIP": "10.244.1.5", "hostIP": "172.31.0.11", "startTime": "2026-01-01T00:00:00Z", "qosClass": "Burstable",
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "app", "image": "foil/app:1", "imageID": "foil/app@sha256:00", "containerID": "foil://1", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                    "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "startedAt": "2026-01-01T00:01:00Z", "finishedAt": "2026-01-01T00:02:00Z"}}}]},
        }))
        .unwrap();
        let mut text = Text::default();
        describe(&mut text, &pod);
        let expected = "\
Name:            web-1
Namespace:       default
Priority:        0
Node:            n1/172.31.0.11
Start Time:      Thu, 01 Jan 2026 00:00:00 +0000
Labels:          app=web
                 tier=a
Annotations:     <none>
Status:          Running
IP:              10.244.1.5
Controlled By:   ReplicaSet/web
Containers:
  app:
    Container ID:  foil://1
    Image:         foil/app:1
    Image ID:      foil/app@sha256:00
    Ports:         8080/TCP, 53/UDP
    Host Ports:    0/TCP, 5353/UDP
    Command:
      app
    Args:
      serve
    State:         Waiting
      Reason:   CrashLoopBackOff
      Message:  back-off 40s
    Last State:    Terminated
      Reason:     Error
      Exit Code:  3
      Started:    Thu, 01 Jan 2026 00:01:00 +0000
      Finished:   Thu, 01 Jan 2026 00:02:00 +0000
    Ready:         False
    Restart Count:  3
    Limits:
      cpu:     500m
      memory:  64Mi
    Readiness:  http-get http://:http/ delay=0s timeout=1s period=1s #success=1 #failure=3
    Environment:
      A:  1
      B:  <set to the key 'k' in secret 's'>
    Mounts:
      /etc/v from v (ro)
Conditions:
  Type    Status
  Ready   False
Volumes:
  v:
    Type:      ConfigMap (files made of a ConfigMap's keys)
    Name:      settings
    Optional:  false
QoS Class:       Burstable
Node-Selectors:  <none>
Tolerations:     <none>
";
        let squeeze = |text: &str| -> Vec<String> {
            text.lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect()
        };
        let found = text.finish();
        assert_eq!(squeeze(&found), squeeze(expected), "{found}");
    }
}
