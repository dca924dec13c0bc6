//! Packets: pod to pod, and through the ClusterIP, counted in the maps.

use crate::fixture::web_and_client;
use crate::objects::node_index;
use crate::scene::Scene;
use crate::{counters, objects, traffic};
use std::collections::BTreeSet;
use std::process::Command;
use tests_harness::wait_until;

const CALLS: u32 = 300;

pub(crate) fn pods_reach_each_other_directly(scene: &mut Scene<'_>) {
    let (web, _) = web_and_client(scene);
    for pod in &web {
        let target = format!("{}:8080", pod.ip);
        let calls = traffic::call_from_pod(scene.cluster, "client", &target, 50);
        assert_eq!((calls.ok, calls.failed), (50, 0), "{pod:?}: {calls:?}");
        assert_eq!(calls.by_pod().keys().collect::<Vec<_>>(), [&pod.name]);
    }
}

pub(crate) fn cluster_ip_reaches_every_backend_and_counts_it(scene: &mut Scene<'_>) {
    let (web, target) = web_and_client(scene);
    let client = objects::ready(scene.cluster, "client");
    let node = node_index(scene.cluster, &client.node);
    let before = counters::connections(scene.cluster, node, "web");
    scene.say(format!("From the pod client on {}:", client.node));
    scene
        .narrator
        .command(format!("foil exec client -- app call {target} -n {CALLS}"));
    let calls = traffic::call_from_pod(scene.cluster, "client", &target, CALLS);
    scene.narrator.output(&format!("{calls:#?}"));
    scene.check(
        &format!("all {CALLS} were answered"),
        calls.ok == u64::from(CALLS) && calls.failed == 0,
        format!("{calls:?}"),
    );
    let answered = calls.by_pod();
    let all = web
        .iter()
        .all(|pod| answered.get(&pod.name).is_some_and(|&count| count > 0));
    scene.check("every backend answered", all, format!("{calls:?}"));
    let nodes: BTreeSet<&str> = web.iter().map(|pod| pod.node.as_str()).collect();
    scene.check(
        "they are on both nodes",
        nodes.len() == 2,
        format!("{nodes:?}"),
    );
    let after = counters::connections(scene.cluster, node, "web");
    for pod in &web {
        let counted = after.get(&pod.ip).unwrap_or(&0) - before.get(&pod.ip).unwrap_or(&0);
        let answered = answered.get(&pod.name).copied().unwrap_or_default();
        scene.check(
            &format!(
                "{} answered {answered}, and its backend's map entry counts as many",
                pod.name
            ),
            counted == answered,
            format!("{counted} in the map: {before:?} {after:?}"),
        );
    }
}

pub(crate) fn cluster_ip_answers_the_nodes_themselves(scene: &mut Scene<'_>) {
    let (web, target) = web_and_client(scene);
    for index in 0..scene.cluster.nodes().len() {
        let name = scene.cluster.nodes()[index].name.clone();
        scene.narrator.command(format!(
            "nsenter --net=/run/netns/...-{name} app call {target} -n {CALLS}"
        ));
        let calls = traffic::call_from_node(scene.cluster, index, &target, CALLS);
        scene.narrator.output(&format!("{:?}", calls.backends));
        let good = (calls.ok, calls.failed) == (u64::from(CALLS), 0);
        scene.check(
            &format!("{CALLS} calls from the node {name} itself, to each backend"),
            good && calls.backends.len() == web.len(),
            format!("{calls:?}"),
        );
    }
}

pub(crate) fn service_without_backends_refuses_at_once(scene: &mut Scene<'_>) {
    web_and_client(scene);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec:\n  \
                   selector: {app: nobody}\n  ports: [{port: 80}]\n";
    scene
        .apply_text(service, "a Service that selects no pod")
        .success();
    let target = format!("{}:80", objects::cluster_ip(scene.cluster, "empty"));
    // Until the service has come to the node there is no answer at all: wait for the first.
    wait_until("a refusal", || {
        let calls = traffic::call_from_pod(scene.cluster, "client", &target, 1);
        let refused = calls.errors.iter().any(|error| error.contains("refused"));
        if refused {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    let calls = traffic::call_from_pod(scene.cluster, "client", &target, 20);
    assert_eq!((calls.ok, calls.failed), (0, 20), "{calls:?}");
    assert!(
        calls.errors.iter().all(|error| error.contains("refused")),
        "{calls:?}"
    );
    scene.foil(&["delete", "service", "empty"]);
}

/// Calls until only these pods answer, as the node comes to know of a change later.
fn answered_by(scene: &Scene<'_>, node: usize, target: &str, expected: &BTreeSet<&str>) {
    wait_until("the backends that are asked for", || {
        let calls = traffic::call_from_node(scene.cluster, node, target, 40);
        let by_pod = calls.by_pod();
        let pods: BTreeSet<&str> = by_pod.keys().map(String::as_str).collect();
        if calls.failed == 0 && pods == *expected {
            Ok(())
        } else {
            Err(format!("node {node}: {calls:?}, not {expected:?}"))
        }
    });
}

pub(crate) fn traffic_stays_on_its_node_where_that_is_asked_for(scene: &mut Scene<'_>) {
    let (web, _) = web_and_client(scene);
    let spec = "apiVersion: v1\nkind: Service\nmetadata: {name: near}\nspec:\n  \
                selector: {app: web}\n  ports: [{port: 80, targetPort: http}]\n";
    let all: BTreeSet<&str> = web.iter().map(|pod| pod.name.as_str()).collect();
    let on = |scene: &Scene<'_>, node: usize| -> BTreeSet<String> {
        let node = &scene.cluster.nodes()[node].name;
        let pods = web.iter().filter(|pod| pod.node == *node);
        pods.map(|pod| pod.name.clone()).collect()
    };
    let zone = |scene: &mut Scene<'_>, node: usize, zone: &str| {
        let name = scene.cluster.nodes()[node].name.clone();
        let label = format!("topology.kubernetes.io/zone{zone}");
        scene.foil(&["label", "--overwrite", "node", &name, &label]);
    };
    zone(scene, 0, "=a");
    zone(scene, 1, "=b");
    for (line, near) in [
        ("  internalTrafficPolicy: Local\n", true),
        ("  internalTrafficPolicy: Cluster\n", false),
        ("  trafficDistribution: PreferSameNode\n", true),
        ("", false),
        ("  trafficDistribution: PreferSameZone\n", true),
        // The same, and both nodes are in one zone now.
        ("  trafficDistribution: PreferSameZone\n", false),
    ] {
        if line.contains("Zone") && !near {
            zone(scene, 1, "=a");
        }
        let text = format!("{spec}{line}");
        scene.apply_text(&text, "the Service near").success();
        let target = format!("{}:80", objects::cluster_ip(scene.cluster, "near"));
        for node in 0..2 {
            let local = on(scene, node);
            assert!(!local.is_empty(), "{web:?}");
            let local = local.iter().map(String::as_str).collect();
            let expected = if near { &local } else { &all };
            answered_by(scene, node, &target, expected);
        }
        scene.check(&format!("near {near}:{line}"), true, "");
    }
    zone(scene, 0, "-");
    zone(scene, 1, "-");
    // The only endpoint is on the node of the client: the other node has none.
    let lone = "apiVersion: v1\nkind: Service\nmetadata: {name: lone}\nspec:\n  \
                internalTrafficPolicy: Local\n  selector: {app: client}\n  \
                ports: [{port: 80, targetPort: 8080}]\n";
    scene.apply_text(lone, "the Service lone").success();
    let target = format!("{}:80", objects::cluster_ip(scene.cluster, "lone"));
    let home = node_index(scene.cluster, &objects::ready(scene.cluster, "client").node);
    answered_by(scene, home, &target, &BTreeSet::from(["client"]));
    wait_until("a refusal", || {
        let calls = traffic::call_from_node(scene.cluster, 1 - home, &target, 5);
        let refused = calls.errors.iter().any(|error| error.contains("refused"));
        if refused && calls.ok == 0 {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    scene.foil(&["delete", "service", "near", "lone"]);
}

pub(crate) fn the_control_plane_is_a_service(scene: &mut Scene<'_>) {
    web_and_client(scene);
    let env = scene.foil(&["exec", "client", "--", "env"]);
    let named = env
        .lines()
        .any(|line| line == "KUBERNETES_SERVICE_HOST=10.96.0.1");
    scene.check("each pod has KUBERNETES_SERVICE_HOST", named, &env);
    // The control plane's host reaches pods as a router would: by a route to their node.
    let client = objects::ready(scene.cluster, "client");
    let node = node_index(scene.cluster, &client.node);
    let node_ip = scene.cluster.nodes()[node].ip.clone();
    let route = [client.ip.as_str(), "via", node_ip.as_str()];
    scene
        .cluster
        .wire()
        .ip(&[&["route", "replace"], &route[..]].concat());
    let script = "exec 3<>/dev/tcp/10.96.0.1/443 && echo connected";
    wait_until("the control plane at its ClusterIP", || {
        let from_node = scene.cluster.node_netns(node).command("bash");
        let from_node = run_script(from_node, script);
        let out = scene.cluster.foil(&[
            "exec",
            "client",
            "--",
            "sh",
            "-c",
            "echo | nc -w 5 kubernetes.default 443",
        ]);
        if from_node.contains("connected") && out.code == 0 {
            Ok(())
        } else {
            Err(format!("{from_node} {out:?}"))
        }
    });
    scene
        .cluster
        .wire()
        .ip(&[&["route", "del"], &route[..1]].concat());
    scene.check("a node and a pod connect to the control plane", true, "");
}

fn run_script(mut shell: Command, script: &str) -> String {
    let out = tests_harness::process::run(shell.args(["-c", script]));
    out.stdout + &out.stderr
}

pub(crate) fn maps_are_read_by_bpftool_and_foil(scene: &mut Scene<'_>) {
    let (web, target) = web_and_client(scene);
    traffic::call_from_pod(scene.cluster, "client", &target, 20);
    let node = node_index(scene.cluster, &objects::ready(scene.cluster, "client").node);
    let pins = scene.cluster.nodes()[node].pins.display().to_string();
    let ip = web[0].ip.as_str();
    for (args, word) in [
        (&["service", "list"][..], "web"),
        (&["backend", "list"], ip),
        (&["endpoint", "list"], "client"),
        // The calls are over, so their flows are in TIME-WAIT.
        (&["flow", "list", "--all", "--service", "web"], ip),
    ] {
        let mut line = vec!["bpf", "--bpffs", pins.as_str()];
        line.extend(args);
        let text = scene.foil(&line);
        let what = args.join(" ");
        scene.check(
            &format!("foil bpf {what} shows {word}"),
            text.contains(word),
            text,
        );
        line.extend(["-o", "json"]);
        let json = scene.cluster.foil(&line).success();
        let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(
            rows.as_array().is_some_and(|rows| !rows.is_empty()),
            "{what}: {json}"
        );
    }
    let pin = format!("{pins}/frontends");
    let text = scene
        .narrator
        .run(Command::new("bpftool").args(["map", "dump", "pinned", &pin]))
        .success();
    for field in ["\"addr\"", "\"port\"", "\"service_port\""] {
        scene.check(
            &format!("bpftool prints the field {field}"),
            text.contains(field),
            &text,
        );
    }
    for (map, field) in [
        ("backends", "\"service_port\""),
        ("endpoints", "\"id\""),
        ("flows", "\"key\""),
    ] {
        let text = counters::dump(scene.cluster, node, map);
        assert!(
            text.contains(field),
            "{field} in the dump of {map}:\n{text:.2000}"
        );
    }
}
