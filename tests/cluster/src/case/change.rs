//! Change under load: a container dies, a pod goes, replicas come, an image changes.

use crate::fixture::{web, web_and_client};
use crate::scene::Scene;
use crate::{limits, objects, traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests_harness::wait_until;

pub(crate) fn killed_container_is_restarted_with_back_off(scene: &mut Scene<'_>) {
    scene.apply("busybox-loop");
    let before = objects::ready(scene.cluster, "busybox-loop");
    scene.say("The main process of busybox-loop is killed, twice.");
    for round in 1..=2 {
        let pod = objects::ready(scene.cluster, "busybox-loop");
        let pid = limits::init_pid(scene.cluster, &pod);
        scene.narrator.command(format!("kill -9 {pid}"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill a container's process");
        wait_until("a counted restart", || {
            match objects::pod(scene.cluster, "busybox-loop") {
                Some(pod) if pod.restarts == before.restarts + round => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    let after = objects::ready(scene.cluster, "busybox-loop");
    scene.foil(&["get", "pod", "busybox-loop"]);
    scene.check(
        "it runs again, with 2 restarts more",
        after.restarts == before.restarts + 2,
        format!("{after:?}"),
    );
    scene.check(
        "it is the same pod with the same address, and another container",
        after.uid == before.uid && after.ip == before.ip && after.containers != before.containers,
        format!("{after:?}"),
    );
    assert!(after.reasons.contains("Error"), "{:?}", after.reasons);
    let events = objects::events(scene.cluster, "busybox-loop");
    scene.narrator.output(&events);
    scene.check(
        "the second time after a back-off",
        events.contains("BackOff"),
        &events,
    );
    let previous = scene.foil(&["logs", "busybox-loop", "--previous"]);
    scene.check(
        "the log of the container before it is kept",
        previous.starts_with('.'),
        &previous,
    );
}

pub(crate) fn deleted_pod_leaves_the_maps_and_connections_end(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let (hold, backend) = traffic::Hold::start(scene.cluster, "client", &target);
    scene.say(format!(
        "A long connection of the client is with {backend}, which is deleted now."
    ));
    let load = traffic::Load::start(scene.cluster, "load-delete", "n2", &target);
    scene.foil(&["delete", "pod", &backend]);
    objects::gone(scene.cluster, &backend);
    let pods = objects::ready_count(scene.cluster, "web", 3);
    let replaced = pods.iter().all(|pod| pod.name != backend);
    scene.check(
        "the Deployment has 3 ready replicas again",
        replaced,
        format!("{pods:?}"),
    );
    objects::backends_are(scene.cluster, "web", &pods);
    scene.check("its backend is gone from the maps of both nodes", true, "");
    let (code, line) = hold.end();
    scene.narrator.output(&line);
    scene.check(
        "the long connection ended, without a time-out",
        code == 0,
        line,
    );
    let calls = load.stop(scene.cluster);
    scene.narrator.output(&format!("{calls:?}"));
    scene.check(
        "no request of the load failed",
        calls.failed == 0,
        format!("{calls:?}"),
    );
}

pub(crate) fn scaling_and_rolling_fail_no_request(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let load = traffic::Load::start(scene.cluster, "load-roll", "n1", &target);
    scene.foil(&["scale", "deployment", "web", "--replicas", "5"]);
    scene.foil(&["rollout", "status", "deployment/web"]);
    let pods = objects::ready_count(scene.cluster, "web", 5);
    objects::backends_are(scene.cluster, "web", &pods);
    let calls = load.wait_more(scene.cluster, 500);
    let answered = calls.by_pod();
    let all = pods.iter().all(|pod| answered.contains_key(&pod.name));
    scene.check("all 5 replicas answer", all, format!("{calls:?}"));
    scene.say("Roll to the next image. Its manifest wants 3 replicas, which are foil scale's now:");
    let roll = "tests/manifests/web-v2.yaml";
    let refused = scene.foil_may_fail(&["apply", "-f", roll]);
    let conflict = "spec.replicas: conflict with \"foil-scale\" with subresource \"scale\"";
    scene.check(
        "the conflict is told, with field and manager",
        refused.code == 1 && refused.stderr.contains(conflict),
        format!("{refused:?}"),
    );
    scene.foil(&["apply", "--force-conflicts", "-f", roll]);
    scene.foil(&["rollout", "status", "deployment/web"]);
    let pods = objects::ready_count(scene.cluster, "web", 3);
    objects::backends_are(scene.cluster, "web", &pods);
    let calls = load.wait_more(scene.cluster, 200);
    let second = |calls: &traffic::Calls| {
        let names = calls.backends.keys();
        names.filter(|name| name.ends_with(" 2")).count()
    };
    scene.check(
        "the new image answered",
        second(&calls) > 0,
        format!("{calls:?}"),
    );
    let now = traffic::call_from_pod(scene.cluster, "client", &target, 100);
    scene.check(
        "only the new image answers now",
        second(&now) == now.backends.len() && now.failed == 0,
        format!("{now:?}"),
    );
    scene.say("And back, under the same load.");
    web(scene);
    scene.foil(&["rollout", "status", "deployment/web"]);
    let calls = load.stop(scene.cluster);
    scene.narrator.output(&format!("{calls:?}"));
    scene.check(
        "no request failed from the scaling to the end of the second roll",
        calls.failed == 0,
        format!("{calls:?}"),
    );
}
