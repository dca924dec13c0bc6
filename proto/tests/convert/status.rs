//! What nodes report, as Kubernetes has it.

use proto::convert::status;
use proto::v1;
use serde_json::{Value, json};

#[test]
fn status_is_kubernetes_own() {
    use proto::v1::container_state::{self as state, State as Is};
    let ran = v1::ContainerState {
        state: Some(Is::Terminated(state::Terminated {
            exit_code: 137,
            signal: 9,
            reason: "OOMKilled".to_owned(),
            started_ms: 1_767_323_045_000,
            finished_ms: 1_767_323_046_999,
            ..Default::default()
        })),
    };
    let running = v1::ContainerState {
        state: Some(Is::Running(state::Running {
            started_ms: 1_767_323_047_000,
        })),
    };
    let message = v1::PodStatus {
        phase: "Running".to_owned(),
        pod_ips: vec!["10.244.1.7".to_owned()],
        host_ip: "172.31.0.11".to_owned(),
        start_time_ms: 1_767_323_045_000,
        conditions: vec![v1::Condition {
            r#type: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_ms: 1_767_323_047_000,
            ..Default::default()
        }],
        containers: vec![v1::ContainerStatus {
            name: "a".to_owned(),
            image: "x".to_owned(),
            container_id: "foil://1".to_owned(),
            ready: true,
            started: true,
            restart_count: 1,
            state: Some(running),
            last_state: Some(ran),
            ..Default::default()
        }],
        qos_class: "Burstable".to_owned(),
        ..Default::default()
    };
    let old = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]}});
    let got = status::pod_status(&message, &old);
    assert_eq!(
        got,
        json!({
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:07Z"},
            ],
            "hostIP": "172.31.0.11", "hostIPs": [{"ip": "172.31.0.11"}],
            "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}],
            "startTime": "2026-01-02T03:04:05Z",
            "containerStatuses": [{
                "name": "a", "ready": true, "started": true, "restartCount": 1, "image": "x", "imageID": "",
                "containerID": "foil://1",
                "state": {"running": {"startedAt": "2026-01-02T03:04:07Z"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "signal": 9,
                    "startedAt": "2026-01-02T03:04:05Z", "finishedAt": "2026-01-02T03:04:06Z"}},
            }],
            "qosClass": "Burstable",
        })
    );
    let kind = control_api::find("", "v1", "Pod").unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}, "status": got});
    control_api::admit_status(&pod, kind, &pod).unwrap();
}

#[test]
fn conditions_do_not_add_up() {
    let types = |status: &Value| -> Vec<String> {
        let all = status["conditions"].as_array().unwrap().iter();
        all.map(|c| c["type"].as_str().unwrap().to_owned())
            .collect()
    };
    let set = |kinds: &[&str]| {
        let all = kinds.iter().map(|k| json!({"type": k, "status": "True"}));
        json!(all.collect::<Vec<_>>())
    };
    let mut pod = json!({"spec": {"readinessGates": [{"conditionType": "example.org/gate"}]},
        "status": {"conditions": set(&["PodScheduled", "DisruptionTarget", "example.org/gate"])}});
    let mut node = json!({"conditions": set(&["Ready"])});
    for round in 0..3 {
        let said = vec![v1::Condition {
            r#type: format!("Own{round}"),
            status: "True".to_owned(),
            ..Default::default()
        }];
        let message = v1::PodStatus {
            conditions: said.clone(),
            ..Default::default()
        };
        pod["status"] = status::pod_status(&message, &pod);
        let own = format!("Own{round}");
        assert_eq!(
            types(&pod["status"]),
            ["PodScheduled", "DisruptionTarget", "example.org/gate", &own]
        );
        let message = v1::NodeStatus {
            conditions: said,
            ..Default::default()
        };
        node = status::node_status(&message, "0.0.0", Some(&node));
        assert_eq!(types(&node), ["Ready", &own]);
    }
}

#[test]
fn node_status_and_events_are_admitted() {
    let message = v1::NodeStatus {
        addresses: vec!["172.31.0.11".to_owned()],
        hostname: "n1".to_owned(),
        cpu_millis: 2500,
        memory_bytes: 8 << 30,
        max_pods: 110,
        conditions: vec![v1::Condition {
            r#type: "Ready".to_owned(),
            status: "True".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let got = status::node_status(&message, "0.0.0", None);
    assert_eq!(
        got["capacity"],
        json!({"cpu": "2500m", "memory": "8388608Ki", "pods": "110"})
    );
    assert_eq!(
        got["addresses"][0],
        json!({"type": "InternalIP", "address": "172.31.0.11"})
    );
    let kind = control_api::find("", "v1", "Node").unwrap();
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": got});
    control_api::admit_status(&node, kind, &node).unwrap();

    let kind = control_api::find("", "v1", "Event").unwrap();
    for (about, namespace) in [("Pod", "team"), ("Node", "")] {
        let event = v1::NodeEvent {
            kind: about.to_owned(),
            namespace: namespace.to_owned(),
            name: "web-0".to_owned(),
            r#type: "Warning".to_owned(),
            reason: "BackOff".to_owned(),
            time_ms: 1_767_323_045_000,
            ..Default::default()
        };
        let object = status::event(&event, "n1");
        assert_eq!(object["lastTimestamp"], "2026-01-02T03:04:05Z");
        control_api::admit(&object, kind, None).unwrap_or_else(|error| panic!("{error}"));
    }
}
