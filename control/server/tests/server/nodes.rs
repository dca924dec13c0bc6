//! Nodes: scheduling, what reaches their streams, rollouts, deletion, restart.

use std::collections::BTreeSet;

use proto::v1::{self, attach_up, exec_input, exec_output, node_up};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::*;

fn all_ready(pods: &[Value], count: usize) -> bool {
    pods.len() == count && pods.iter().all(is_ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_lands_on_both_nodes_and_its_service_knows_it() {
    let mut server = server().await;
    let (mut n1, mut n2) = (server.agent("n1").await, server.agent("n2").await);
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 3, "a")).await;
    let pods = server
        .until("pods", "app=web", "3 ready pods", |p| all_ready(p, 3))
        .await;
    let nodes: BTreeSet<&str> = pods.iter().map(|p| text(p, "/spec/nodeName")).collect();
    assert_eq!(nodes, BTreeSet::from(["n1", "n2"]));
    let addresses: BTreeSet<&str> = pods.iter().map(|p| text(p, "/status/podIP")).collect();
    assert_eq!(addresses.len(), 3);

    let complete = |told: &Told| {
        told.services
            .get("default/web")
            .is_some_and(|s| s.ports[0].backends.len() == 3)
    };
    for agent in [&mut n1, &mut n2] {
        let told = agent.until("three backends", complete).await;
        let port = &told.services["default/web"].ports[0];
        assert!(port.id > 0 && told.services["default/web"].id > 0);
        let known: BTreeSet<&str> = port.backends.iter().map(|b| b.address.as_str()).collect();
        assert_eq!(known, addresses);
        assert!(port.backends.iter().all(|b| b.port == 8080));
        let config = told.config.unwrap();
        assert_eq!(config.pod_cidrs, ["10.244.0.0/16"]);
        // Only the other node's route, and only its own pods.
        assert_eq!(told.routes.len(), 1);
        let range: ipnet::IpNet = config.node_pod_cidrs[0].parse().unwrap();
        for pod in told.pods.values() {
            assert!(range.contains(&pod.ips[0].parse::<std::net::IpAddr>().unwrap()));
            assert!(pod.identity > 0 && pod.generation > 0);
        }
    }
    let at_n1 = n1.told.borrow().pods.len();
    let at_n2 = n2.told.borrow().pods.len();
    assert_eq!(at_n1 + at_n2, 3);
    // Quiet: nothing is written once all is as it should be.
    let web = server
        .until("deployments", "", "a complete deployment", |all| {
            all[0]["status"]["availableReplicas"] == 3
        })
        .await;
    let revision = |v: &Value| text(v, "/metadata/resourceVersion").to_owned();
    let before = revision(&web[0]);
    server.apply(&deployment("web", 3, "a")).await;
    assert_eq!(
        revision(&server.get("deployment", "web").await.unwrap()),
        before
    );
    let events = server.list("events", "").await;
    let reasons: BTreeSet<&str> = events.iter().map(|e| text(e, "/reason")).collect();
    for reason in ["Scheduled", "SuccessfulCreate", "ScalingReplicaSet"] {
        assert!(reasons.contains(reason), "{reason}: {reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_s_secrets_reach_its_node_only_and_follow_changes() {
    let mut server = server().await;
    let (mut n1, n2) = (server.agent("n1").await, server.agent("n2").await);
    let secret = |v: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "stringData": {"key": v}})
    };
    server.apply(&secret("one")).await;
    let mut with_secret = pod("p");
    with_secret["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    with_secret["spec"]["containers"][0]["env"] =
        json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}]);
    server.apply(&with_secret).await;
    let env = |told: &Told, value: &str| {
        let pods: Vec<_> = told.pods.values().collect();
        pods.iter().any(|p| {
            p.containers[0]
                .env
                .iter()
                .any(|e| e.name == "K" && e.value == value)
        })
    };
    let first = n1.until("the secret", |told| env(told, "one")).await;
    server.apply(&secret("two")).await;
    let second = n1
        .until("the changed secret", |told| env(told, "two"))
        .await;
    let generation = |told: &Told| told.pods.values().next().unwrap().generation;
    assert!(generation(&second) > generation(&first));
    assert!(n2.told.borrow().pods.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_never_has_too_few() {
    let mut server = server().await;
    let (_n1, _n2) = (server.agent("n1").await, server.agent("n2").await);
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 3, "a")).await;
    // Ready pods count as available when the deployment's controller has seen them.
    let available = |all: &[Value]| all[0]["status"]["availableReplicas"] == 3;
    server
        .until("deployments", "", "3 available pods", available)
        .await;
    let request = v1::WatchRequest {
        kind: kind("deployments"),
        ..v1::WatchRequest::default()
    };
    let mut watch = server.client.watch(request).await.unwrap().into_inner();
    server.apply(&deployment("web", 3, "b")).await;
    loop {
        let event = tokio::time::timeout(PATIENCE, watch.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let Some(object) = event.object else { continue };
        let value: Value = serde_json::from_slice(&object.json).unwrap();
        let number = |field: &str| value["status"][field].as_i64().unwrap_or(0);
        if number("observedGeneration") >= 2 {
            assert!(number("availableReplicas") >= 3, "{value:#}");
            assert!(number("replicas") <= 4, "{value:#}");
            let progress = control_api::condition::get(&value, "Progressing").unwrap();
            if progress["reason"] == "NewReplicaSetAvailable" && number("updatedReplicas") == 3 {
                break;
            }
        }
    }
    let pods = server
        .until("pods", "app=web", "3 pods", |p| all_ready(p, 3))
        .await;
    assert!(
        pods.iter()
            .all(|p| text(p, "/spec/containers/0/image") == "b")
    );
    let sets = server.list("replicasets", "").await;
    let revisions: BTreeSet<&str> = sets
        .iter()
        .map(|s| {
            s["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(revisions, BTreeSet::from(["1", "2"]));
    // Back again: the old set is used once more, under a new revision.
    server.apply(&deployment("web", 3, "a")).await;
    server
        .until("pods", "app=web", "3 pods of the first image", |p| {
            all_ready(p, 3) && p.iter().all(|p| text(p, "/spec/containers/0/image") == "a")
        })
        .await;
    assert_eq!(server.list("replicasets", "").await.len(), 2);
    let web = server.get("deployment", "web").await.unwrap();
    assert_eq!(
        web["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "3"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_and_deleting() {
    let mut server = server().await;
    let (mut n1, _n2) = (server.agent("n1").await, server.agent("n2").await);
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("pods", "", "2 ready pods", |p| all_ready(p, 2))
        .await;
    let scale = |replicas| v1::ScaleRequest {
        kind: kind("deployment"),
        name: "web".to_owned(),
        replicas,
        ..v1::ScaleRequest::default()
    };
    server.client.scale(scale(5)).await.unwrap();
    let pods = server
        .until("pods", "", "5 ready pods", |p| all_ready(p, 5))
        .await;
    // A deleted pod is replaced, by one with another name and address.
    let victim = text(&pods[0], "/metadata/name").to_owned();
    let address = text(&pods[0], "/status/podIP").to_owned();
    server.delete("pod", &victim).await;
    let pods = server
        .until("pods", "", "a replacement", |p| {
            all_ready(p, 5) && p.iter().all(|p| text(p, "/metadata/name") != victim)
        })
        .await;
    assert!(pods.iter().all(|p| text(p, "/status/podIP") != address));
    server.client.scale(scale(1)).await.unwrap();
    server
        .until("pods", "", "1 ready pod", |p| all_ready(p, 1))
        .await;
    let refused = server.client.scale(v1::ScaleRequest {
        kind: kind("configmap"),
        ..scale(1)
    });
    assert_eq!(refused.await.unwrap_err().code(), Code::InvalidArgument);

    server.delete("deployment", "web").await;
    server.until("pods", "", "no pods", |p| p.is_empty()).await;
    assert!(server.list("replicasets", "").await.is_empty());
    n1.until("no pods", |told| told.pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_stopped_after_all_nodes_know_that_it_terminates() {
    let mut server = server().await;
    let mut n1 = server.agent("n1").await;
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("pods", "", "2 ready pods", |p| all_ready(p, 2))
        .await;
    let active = |told: &Told, count: usize| {
        told.services.get("default/web").is_some_and(|s| {
            let backends = s.ports[0].backends.iter();
            let active = backends.filter(|b| b.state() == v1::backend::State::Active);
            active.count() == count
        })
    };
    let told = n1.until("active backends", |told| active(told, 2)).await;
    server.apply(&deployment("web", 1, "a")).await;
    let next = n1.until("a pod to go", |told| told.pods.len() == 1).await;
    let stays = next.pods.values().next().unwrap().name.clone();
    let mut gone = told.pods.values().map(|p| p.name.clone());
    let name = gone.find(|name| *name != stays).unwrap();
    let told = next;
    let at = |what: &str| {
        let found = told
            .story
            .iter()
            .position(|s| s.starts_with(what) && s.ends_with(&name));
        found.unwrap_or_else(|| panic!("{what}: {:?}", told.story))
    };
    assert!(at("terminating") < at("stop"), "{:?}", told.story);

    // The last one is served until it stops: there is no other.
    let before = told.story.len();
    server.delete("deployment", "web").await;
    let told = n1.until("no pod", |told| told.pods.is_empty()).await;
    let story = &told.story[before..];
    assert!(story.contains(&format!("stop {stays}")), "{story:?}");
    let terminating = format!("terminating default/{stays}");
    assert!(!story.contains(&terminating), "{story:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_said_and_placed_when_it_does() {
    let mut server = server().await;
    let small = Options {
        cpu_millis: 1000,
        ..Options::default()
    };
    let _n1 = server.agent_with("n1", small).await;
    let mut big = pod("big");
    big["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}});
    server.apply(&big).await;
    let events = server
        .until("events", "", "FailedScheduling", |all| {
            all.iter().any(|e| {
                text(e, "/reason") == "FailedScheduling"
                    && text(e, "/message").contains("Insufficient cpu")
            })
        })
        .await;
    let failed = events
        .iter()
        .find(|e| text(e, "/message").contains("Insufficient cpu"))
        .unwrap();
    assert_eq!(
        text(failed, "/message"),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    let _n2 = server.agent("n2").await;
    let pods = server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    assert_eq!(text(&pods[0], "/spec/nodeName"), "n2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_s_pods_start_elsewhere() {
    let mut server = server_with("node_lost_after_seconds = 5\npod_eviction_seconds = 0").await;
    let n1 = server.agent("n1").await;
    let beats_of_first = tokio::spawn(beat(n1.up.clone()));
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("pods", "", "2 ready pods", |p| all_ready(p, 2))
        .await;
    // The second says something now and then; the first has gone silent.
    let n2 = server.agent("n2").await;
    let beats = tokio::spawn(beat(n2.up.clone()));
    beats_of_first.abort();
    n1.kill();
    let on_n2 = |p: &[Value]| {
        p.iter()
            .filter(|p| text(p, "/spec/nodeName") == "n2" && is_ready(p))
            .count()
            == 2
    };
    let pods = server.until("pods", "", "2 ready pods on n2", on_n2).await;
    // Those of the lost node wait for it to say that they are gone.
    let old: Vec<&Value> = pods
        .iter()
        .filter(|p| text(p, "/spec/nodeName") == "n1")
        .collect();
    assert_eq!(old.len(), 2);
    assert!(old.iter().all(|p| !is_ready(p)));
    let node = server.get("node", "n1").await.unwrap();
    let ready = control_api::condition::get(&node, "Ready").unwrap();
    assert_eq!(ready["status"], "Unknown");
    // It comes back: it is told to stop them, and is of use again.
    let n1 = server.agent("n1").await;
    let beats_again = tokio::spawn(beat(n1.up.clone()));
    server
        .until("pods", "", "2 pods", |p| all_ready(p, 2))
        .await;
    // Taken out for good: its pods go with it.
    server.delete("node", "n1").await;
    beats_again.abort();
    beats.abort();
}

/// Heartbeats until the stream ends.
async fn beat(node: mpsc::Sender<v1::NodeUp>) {
    let heartbeat = || up(node_up::Up::Heartbeat(v1::Heartbeat {}));
    while node.send(heartbeat()).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_and_resumes() {
    let mut server = server().await;
    let mut n1 = server.agent("n1").await;
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 3, "a")).await;
    server
        .until("pods", "", "3 ready pods", |p| all_ready(p, 3))
        .await;
    n1.until("three backends", |told| {
        told.services
            .get("default/web")
            .is_some_and(|s| s.ports[0].backends.len() == 3)
    })
    .await;
    let before: Vec<Value> = server.list("pods", "").await;
    let service_before = server.get("service", "web").await.unwrap();
    let told_before = n1.told.borrow().clone();
    n1.kill();
    server.restart().await;
    assert_eq!(server.list("pods", "").await, before);
    assert_eq!(server.get("service", "web").await.unwrap(), service_before);

    let mut n1 = server.agent("n1").await;
    let told = n1.until("the snapshot", |told| told.pods.len() == 3).await;
    assert_eq!(
        told.services["default/web"].id,
        told_before.services["default/web"].id
    );
    let ips = |told: &Told| -> BTreeSet<String> {
        told.pods.values().map(|p| p.ips[0].clone()).collect()
    };
    assert_eq!(ips(&told), ips(&told_before));
    for (uid, pod) in &told.pods {
        assert!(pod.generation >= told_before.pods[uid].generation);
    }
    // A stream that comes back to the same server gets what it missed, no more.
    let now = n1.told.borrow().clone();
    n1.kill();
    server.apply(&service("other")).await;
    let from = now;
    let mut n1 = server
        .agent_with(
            "n1",
            Options {
                from,
                ..Options::default()
            },
        )
        .await;
    let told = n1
        .until("the new service", |t| {
            t.services.contains_key("default/other")
        })
        .await;
    assert_eq!((told.snapshots, told.changes), (0, 2), "and its config");
    // And the controllers go on.
    server
        .client
        .scale(v1::ScaleRequest {
            kind: kind("deployment"),
            name: "web".to_owned(),
            replicas: 4,
            ..v1::ScaleRequest::default()
        })
        .await
        .unwrap();
    server
        .until("pods", "", "4 ready pods", |p| all_ready(p, 4))
        .await;
}

/// A change of the settings changes what pods are told without a change of the store, and an
/// upgrade may: the node missed no revision.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_no_revision_gets_what_is_made_otherwise_now() {
    let mut server = server_with("").await;
    let mut n1 = server.agent("n1").await;
    server.apply(&pod("p")).await;
    server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    let told = n1.until("the pod", |told| told.pods.len() == 1).await;
    n1.kill();
    server.running.take().unwrap().stop().await.unwrap();
    server.run_with("cluster_domain = \"other.example\"").await;
    let options = Options {
        from: told,
        runs: false,
        ..Options::default()
    };
    n1 = server.agent_with("n1", options).await;
    let searches = |told: &Told| {
        let pod = told.pods.values().next().unwrap();
        pod.dns.as_ref().unwrap().searches.clone()
    };
    let is_other = |domain: &String| domain.ends_with("other.example");
    let told = n1
        .until("the domain", |t| searches(t).iter().any(is_other))
        .await;
    assert_eq!((told.snapshots, told.pods.len()), (0, 1));
}

/// Its agent may have been told nothing for as long as it likes, while others were: after a
/// restart of the control plane it gets what has changed for it, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_control_plane_sends_only_what_differs() {
    const SERVICES: usize = 100;
    let mut server = server_with("").await;
    let names: Vec<String> = (0..SERVICES).map(|n| format!("s{n}")).collect();
    let mut n1 = server.agent("n1").await;
    server.apply(&pod("p")).await;
    server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    for name in &names {
        server.apply(&service(name)).await;
    }
    let has_all = |told: &Told| {
        let is_there = |name: &String| told.services.contains_key(&format!("default/{name}"));
        names.iter().all(is_there) && told.pods.len() == 1
    };
    let mut told = n1.until("all services", has_all).await;
    let (whole, count) = (told.bytes, told.services.len());
    for changed in [false, false, true] {
        // The store goes on, with what is for no node.
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": if changed { "a" } else { "b" }}});
        server.apply(&map).await;
        n1.kill();
        if changed {
            // All while no node is connected.
            server.apply(&pod("q")).await;
            server.delete("service", &names[7]).await;
        }
        server.running.take().unwrap().stop().await.unwrap();
        server.run_with("").await;
        let options = Options {
            from: told.clone(),
            ..Options::default()
        };
        n1 = server.agent_with("n1", options).await;
        told = n1.until("its config", |t| t.config.is_some()).await;
        if !changed {
            assert_eq!((told.snapshots, told.messages, told.changes), (0, 1, 1));
            assert!(told.bytes < 250, "{} bytes", told.bytes);
            continue;
        }
        let is_gone = |told: &Told| {
            told.pods.len() == 2 && !told.services.contains_key(&format!("default/{}", names[7]))
        };
        let told = n1.until("what has changed", is_gone).await;
        assert_eq!((told.snapshots, told.services.len()), (0, count - 1));
        assert!(told.changes < 20, "{} changes", told.changes);
        assert!(told.bytes < whole / 4, "{} of {whole} bytes", told.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_within_a_long_step_loses_nothing() {
    let mut server = server().await;
    let mut n1 = server.agent("n1").await;
    server.apply(&service("web")).await;
    let told = n1
        .until("a service", |t| t.services.contains_key("default/web"))
        .await;
    n1.kill();
    // While the node is away: more than one message takes, and all of it one step.
    let names: Vec<String> = (0..3).map(|n| format!("p{n}")).collect();
    for name in &names {
        let text = "x".repeat(700 << 10);
        server
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name}, "data": {"k": text}}))
            .await;
        let mut large = pod(name);
        large["spec"]["nodeName"] = json!("n1");
        large["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": name}}]);
        server.apply(&large).await;
    }
    server
        .until("pods", "", "addresses", |pods| {
            pods.iter().all(|p| !text(p, "/status/podIP").is_empty())
        })
        .await;
    let from = told;
    let part = Options {
        from: from.clone(),
        messages: 1,
        ..Options::default()
    };
    let mut n1 = server.agent_with("n1", part).await;
    let first = n1.until("the first part", |t| t.messages == 1).await;
    n1.kill();
    assert!(first.snapshots == 0 && first.pods.len() < 3, "{first:?}");
    let resumed = Options {
        from: if first.revision > 0 {
            first.clone()
        } else {
            from
        },
        ..Options::default()
    };
    let mut n1 = server.agent_with("n1", resumed).await;
    let names_of = |told: &Told| -> BTreeSet<String> {
        let pods = first.pods.values().chain(told.pods.values());
        pods.map(|p| p.name.clone()).collect()
    };
    let all: BTreeSet<String> = names.into_iter().collect();
    let told = n1.until("all pods", |t| names_of(t) == all).await;
    assert_eq!(told.snapshots, 0);
}

/// An agent of another release, say, refuses what it does not understand.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refuses_is_told_and_holds_up_nothing() {
    let mut server = server().await;
    let picky = Options {
        refuses: |change| {
            matches!(change, v1::change::Change::Pod(pod) if pod.name == "bad")
                || matches!(change, v1::change::Change::Service(service) if service.name == "web")
        },
        ..Options::default()
    };
    let mut n1 = server.agent_with("n1", picky).await;
    server.apply(&service("web")).await;
    server.apply(&pod("bad")).await;
    server.apply(&pod("good")).await;
    let is_told = |all: &[Value], kind: &str, name: &str| {
        all.iter().any(|e| {
            text(e, "/reason") == "FailedApply"
                && text(e, "/type") == "Warning"
                && text(e, "/involvedObject/kind") == kind
                && text(e, "/involvedObject/name") == name
                && !text(e, "/involvedObject/uid").is_empty()
                && text(e, "/source/host") == "n1"
                && text(e, "/message") == "it is refused"
        })
    };
    server
        .until("events", "", "both refusals", |all| {
            is_told(all, "Pod", "bad") && is_told(all, "Service", "web")
        })
        .await;
    server
        .until("pods", "app=good", "the other pod", |p| all_ready(p, 1))
        .await;
    // What it refused is acknowledged: terminating pods do not wait for it, and the
    // refused one is removed by force.
    server.delete("pod", "good").await;
    let only_bad = |p: &[Value]| p.len() == 1 && text(&p[0], "/metadata/name") == "bad";
    server.until("pods", "", "it to be gone", only_bad).await;
    let bad = v1::DeleteRequest {
        kind: kind("pods"),
        name: "bad".to_owned(),
        grace_period_seconds: Some(0),
        ..v1::DeleteRequest::default()
    };
    server.client.delete(bad).await.unwrap();
    server.until("pods", "", "no pods", |p| p.is_empty()).await;
    server.apply(&pod("next")).await;
    n1.until("the next pod", |told| {
        told.pods.values().any(|pod| pod.name == "next")
    })
    .await;
    assert!(!n1.told.borrow().goodbye);
}

/// Events waited on the node while the control plane was away.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_the_time_at_which_it_happened() {
    let mut server = server().await;
    let n1 = server.agent("n1").await;
    let before: jiff::Timestamp = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(20);
    for (reason, time_ms) in [("Older", before.as_millisecond()), ("New", 0)] {
        let event = v1::NodeEvent {
            kind: "Node".to_owned(),
            reason: reason.to_owned(),
            time_ms,
            ..v1::NodeEvent::default()
        };
        n1.up.send(up(node_up::Up::Event(event))).await.unwrap();
    }
    let of = |all: &[Value], reason: &str| {
        let found = all.iter().find(|e| text(e, "/reason") == reason);
        found.map(|e| {
            text(e, "/lastTimestamp")
                .parse::<jiff::Timestamp>()
                .unwrap()
        })
    };
    let events = server
        .until("events", "", "both", |all| {
            of(all, "Older").is_some() && of(all, "New").is_some()
        })
        .await;
    let older = of(&events, "Older").unwrap();
    assert_eq!(older.as_second(), before.as_second());
    assert!(of(&events, "New").unwrap().as_second() >= before.as_second() + 1200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_for_itself_only() {
    let mut server = server().await;
    let (_n1, n2) = (server.agent("n1").await, server.agent("n2").await);
    let mut fixed = pod("p");
    fixed["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    server.apply(&fixed).await;
    let pods = server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    let failed = v1::PodStatus {
        uid: text(&pods[0], "/metadata/uid").to_owned(),
        namespace: "default".to_owned(),
        name: "p".to_owned(),
        phase: "Failed".to_owned(),
        ..v1::PodStatus::default()
    };
    n2.up
        .send(up(node_up::Up::PodStatus(failed)))
        .await
        .unwrap();
    // Its own event comes after it, and is stored.
    let event = v1::NodeEvent {
        kind: "Node".to_owned(),
        name: "n2".to_owned(),
        reason: "Mark".to_owned(),
        ..v1::NodeEvent::default()
    };
    for _ in 0..3 {
        n2.up
            .send(up(node_up::Up::Event(event.clone())))
            .await
            .unwrap();
    }
    let marks = |all: &[Value]| -> Vec<i64> {
        let mine = all.iter().filter(|e| text(e, "/reason") == "Mark");
        mine.filter_map(|e| e["count"].as_i64()).collect()
    };
    server
        .until("events", "", "one event, counted", |all| marks(all) == [3])
        .await;
    assert_eq!(
        text(&server.get("pod", "p").await.unwrap(), "/status/phase"),
        "Running"
    );

    // A hello with another's name is refused; a second stream takes over.
    let mut client = server.node_client("n3").await;
    let hello = v1::Hello {
        node_name: "n1".to_owned(),
        ..v1::Hello::default()
    };
    let stream = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
    assert_eq!(
        client.session(stream).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut old = n2;
    let _newer = server.agent("n2").await;
    old.until("a goodbye", |told| told.goodbye).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_exec_go_through_the_node() {
    let mut server = server().await;
    let n1 = server.agent("n1").await;
    server.apply(&pod("p")).await;
    server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    let (mut client, opens) = (n1.client.clone(), n1.opens.clone());
    // The node's side: answers each stream with what it was asked.
    let answering = tokio::spawn(async move {
        let mut taken = std::mem::replace(&mut *opens.lock().unwrap(), mpsc::channel(1).1);
        while let Some(open) = taken.recv().await {
            let (sender, receiver) = mpsc::channel(8);
            let say = |up| v1::AttachUp { up: Some(up) };
            sender.send(say(attach_up::Up::Id(open.id))).await.unwrap();
            let down = client.attach(ReceiverStream::new(receiver)).await.unwrap();
            let mut down = down.into_inner();
            match open.what.unwrap() {
                v1::open::What::Logs(logs) => {
                    let line = format!("{} {}\n", logs.container, logs.follow);
                    sender
                        .send(say(attach_up::Up::Stdout(line.into_bytes())))
                        .await
                        .unwrap();
                }
                v1::open::What::Exec(exec) => {
                    let input = down.next().await.unwrap().unwrap();
                    let text = format!("{:?} {:?}", exec.command, input.down.unwrap());
                    sender
                        .send(say(attach_up::Up::Stdout(text.into_bytes())))
                        .await
                        .unwrap();
                    sender.send(say(attach_up::Up::ExitCode(7))).await.unwrap();
                }
            }
            // Its side is closed; the stream ends when the server's is, too.
            drop(sender);
            while down.next().await.is_some() {}
        }
    });
    let logs = v1::LogsRequest {
        pod: "p".to_owned(),
        follow: true,
        ..v1::LogsRequest::default()
    };
    let mut stream = server.client.logs(logs.clone()).await.unwrap().into_inner();
    assert_eq!(
        stream.message().await.unwrap().unwrap().data,
        b"main true\n"
    );
    assert!(stream.message().await.unwrap().is_none());

    let start = v1::ExecStart {
        pod: "p".to_owned(),
        command: vec!["cat".to_owned()],
        stdin: true,
        ..v1::ExecStart::default()
    };
    let say = |input| v1::ExecInput { input: Some(input) };
    let input = [
        say(exec_input::Input::Start(start)),
        say(exec_input::Input::Stdin(b"hi".to_vec())),
    ];
    let mut stream = server
        .client
        .exec(tokio_stream::iter(input))
        .await
        .unwrap()
        .into_inner();
    let out = stream.message().await.unwrap().unwrap().output.unwrap();
    assert!(
        matches!(&out, exec_output::Output::Stdout(data)
        if String::from_utf8_lossy(data).contains("Stdin([104, 105])")),
        "{out:?}"
    );
    let last = stream.message().await.unwrap().unwrap().output.unwrap();
    assert_eq!(last, exec_output::Output::ExitCode(7));

    let wrong = v1::LogsRequest {
        container: "nope".to_owned(),
        ..logs.clone()
    };
    assert_eq!(
        server.client.logs(wrong).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let missing = v1::LogsRequest {
        pod: "nope".to_owned(),
        ..logs.clone()
    };
    assert_eq!(
        server.client.logs(missing).await.unwrap_err().code(),
        Code::NotFound
    );
    answering.abort();
    n1.kill();
    // The stream's end is noticed, and then no node is asked.
    loop {
        let refused = server.client.logs(logs.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        if refused.message().contains("is not connected") {
            break;
        }
    }
}

fn ready_status(node: &Value) -> String {
    let ready = control_api::condition::get(node, "Ready");
    ready.map_or(String::new(), |c| text(c, "/status").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_follows_heartbeats_in_both_directions() {
    // Longer than a busy machine delays a heartbeat: these agents do not reconnect.
    let mut server = server_with("node_lost_after_seconds = 5").await;
    let silent = |from| Options {
        from,
        beats: false,
        ..Options::default()
    };
    let mut n1 = server.agent_with("n1", silent(Told::default())).await;
    // When no node is heard of, it is the control plane that was cut off.
    let n2 = server.agent("n2").await;
    let others = tokio::spawn(beat(n2.up.clone()));
    let mut beats = tokio::spawn(beat(n1.up.clone()));
    let mut on_n1 = pod("p");
    on_n1["spec"]["nodeName"] = json!("n1");
    server.apply(&on_n1).await;
    let is = |wanted: &'static str| move |nodes: &[Value]| ready_status(&nodes[0]) == wanted;
    // What it says first when it is heard of again.
    let status = node_status("n1", 4000);
    for first in [
        node_up::Up::Heartbeat(v1::Heartbeat {}),
        node_up::Up::NodeStatus(status),
    ] {
        server
            .until("pods", "", "a ready pod", |p| all_ready(p, 1))
            .await;
        beats.abort();
        // Its stream is open, but it says nothing.
        server
            .until("nodes", "", "a lost node", is("Unknown"))
            .await;
        server
            .until("pods", "", "a pod that is not ready", |p| !all_ready(p, 1))
            .await;
        n1.up.send(up(first)).await.unwrap();
        let again = tokio::spawn(beat(n1.up.clone()));
        let nodes = server.until("nodes", "", "a ready node", is("True")).await;
        // As it said of itself when it connected.
        let ready = control_api::condition::get(&nodes[0], "Ready").unwrap();
        assert_eq!(text(ready, "/reason"), "AgentReady");
        // It is to tell of its pods again, which it does in the next session.
        let from = n1.until("a goodbye", |told| told.goodbye).await;
        again.abort();
        n1.kill();
        n1 = server.agent_with("n1", silent(from)).await;
        beats = tokio::spawn(beat(n1.up.clone()));
    }
    beats.abort();
    others.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_node_is_told_and_its_pods_are_collected() {
    let mut server = server_with("node_lost_after_seconds = 5").await;
    let mut n1 = server.agent("n1").await;
    let beats = tokio::spawn(beat(n1.up.clone()));
    server.apply(&service("web")).await;
    server.apply(&deployment("web", 2, "a")).await;
    server
        .until("pods", "", "2 ready pods", |p| all_ready(p, 2))
        .await;
    let mut n2 = server.agent("n2").await;
    let _beats = tokio::spawn(beat(n2.up.clone()));
    let backends = |count: usize| {
        move |told: &Told| {
            let web = told.services.get("default/web");
            web.is_some_and(|s| s.ports[0].backends.len() == count)
        }
    };
    n2.until("2 backends", backends(2)).await;
    server.delete("node", "n1").await;
    n1.until("a goodbye", |told| told.goodbye).await;
    beats.abort();
    // They take no more connections, but stay for a while: the node may be registered
    // again.
    n2.until("no backends", backends(0)).await;
    assert!(all_ready(&server.list("pods", "").await, 2));
    // Its agent runs still, and is not let in by what it has.
    let mut client = server.node_client("n1").await;
    let hello = v1::Hello {
        node_name: "n1".to_owned(),
        ..v1::Hello::default()
    };
    let stream = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
    let refused = client.session(stream).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("needs a new join token"),
        "{refused}"
    );
    let on_n2 =
        |p: &[Value]| all_ready(p, 2) && p.iter().all(|p| text(p, "/spec/nodeName") == "n2");
    server.until("pods", "", "2 pods on n2", on_n2).await;
    assert_eq!(server.list("nodes", "").await.len(), 1);
    // With a new token it is a new node, without pods.
    let before = n1.told.borrow().clone();
    assert_eq!(before.pods.len(), 2);
    let from = Options {
        from: before,
        ..Options::default()
    };
    server.forget_identity("n1").await;
    let mut again = server.agent_with("n1", from).await;
    let _beats = tokio::spawn(beat(again.up.clone()));
    let told = again.until("its range", |told| told.config.is_some()).await;
    assert!(told.pods.is_empty());
    let ready =
        |nodes: &[Value]| nodes.len() == 2 && nodes.iter().all(|n| ready_status(n) == "True");
    server.until("nodes", "", "2 ready nodes", ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_come_to_its_end_does_not_run_again() {
    let mut server = server().await;
    let n1 = server.agent("n1").await;
    server.apply(&pod("p")).await;
    let pods = server
        .until("pods", "", "a ready pod", |p| all_ready(p, 1))
        .await;
    let say = |phase: &str| {
        up(node_up::Up::PodStatus(v1::PodStatus {
            uid: text(&pods[0], "/metadata/uid").to_owned(),
            namespace: "default".to_owned(),
            name: "p".to_owned(),
            phase: phase.to_owned(),
            ..v1::PodStatus::default()
        }))
    };
    n1.up.send(say("Succeeded")).await.unwrap();
    let is = |wanted: &'static str| move |p: &[Value]| text(&p[0], "/status/phase") == wanted;
    server.until("pods", "", "its end", is("Succeeded")).await;
    n1.up.send(say("Running")).await.unwrap();
    // What is said of the next pod comes after it.
    server.apply(&pod("q")).await;
    let second = |p: &[Value]| p.len() == 2 && is_ready(&p[1]);
    let pods = server.until("pods", "", "the next pod", second).await;
    assert_eq!(text(&pods[0], "/status/phase"), "Succeeded");
}

/// Many pods that fit nowhere; the next pod has its turn, and they have theirs when a node
/// comes that is large enough. That more than one pass takes starve no other is proved in
/// `control/plan/src/schedule.rs`, without a server that stores each of them.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_fit_nowhere_hold_up_no_other() {
    let mut server = server().await;
    let _n1 = server.agent("n1").await;
    let with_cpu = |name: &str, cpu: &str| {
        let mut value = pod(name);
        value["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
        value["metadata"]["namespace"] = json!("default");
        value
    };
    let creates = (0..100).map(|n| {
        let json = with_cpu(&format!("big-{n}"), "50").to_string().into_bytes();
        let mut client = server.client.clone();
        let request = v1::CreateRequest {
            json,
            ..v1::CreateRequest::default()
        };
        async move { client.create(request).await.unwrap() }
    });
    futures::future::join_all(creates).await;
    let told = |pod: &Value| {
        let scheduled = control_api::condition::get(pod, "PodScheduled");
        scheduled.is_some_and(|c| text(c, "/reason") == "Unschedulable")
    };
    server
        .until_one("pods", "big-99", "that it fits nowhere", told)
        .await;
    server.apply(&with_cpu("small", "1")).await;
    server
        .until_one("pods", "small", "the next pod", is_ready)
        .await;
    let large = Options {
        cpu_millis: 120_000,
        ..Options::default()
    };
    let mut n2 = server.agent_with("n2", large).await;
    n2.until("two of them", |told| told.pods.len() == 2).await;
}
