//! Change under load: what dies comes back, what goes is missed by nobody.

use super::{apply, web, web_and_client};
use crate::{limits, objects, traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests_harness::{Cluster, wait_until};

pub(super) fn killed_container_is_restarted_with_back_off(cluster: &mut Cluster) {
    apply(cluster, "busybox-loop");
    let before = objects::ready(cluster, "busybox-loop");
    for round in 1..=2 {
        let pid = limits::init_pid(cluster, &objects::ready(cluster, "busybox-loop"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill a container's process");
        wait_until("a counted restart", || {
            match objects::pod(cluster, "busybox-loop") {
                Some(pod) if pod.restarts == before.restarts + round => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    let after = objects::ready(cluster, "busybox-loop");
    assert_eq!((after.uid, after.ip), (before.uid, before.ip));
    assert_ne!(after.containers, before.containers);
    assert!(after.reasons.contains("Error"), "{:?}", after.reasons);
    let events = objects::events(cluster, "busybox-loop");
    assert!(events.contains("BackOff"), "{events}");
    let previous = cluster
        .foil(&["logs", "busybox-loop", "--previous"])
        .success();
    assert!(previous.starts_with('.'), "{previous}");
}

pub(super) fn deleted_pod_leaves_the_maps_and_nobody_waits(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let (hold, backend) = traffic::Hold::start(cluster, "client", &target);
    let load = traffic::Load::start(cluster, "load-delete", "n2", &target);
    cluster.foil(&["delete", "pod", &backend]).success();
    objects::gone(cluster, &backend);
    let pods = objects::ready_count(cluster, "web", 3);
    assert!(pods.iter().all(|pod| pod.name != backend));
    objects::backends_are(cluster, "web", &pods);
    let (code, line) = hold.end();
    assert_eq!(code, 0, "{line}");
    let calls = load.stop(cluster);
    assert_eq!(calls.failed, 0, "{calls:?}");
}

pub(super) fn scaling_and_rolling_fail_no_request(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let load = traffic::Load::start(cluster, "load-roll", "n1", &target);
    cluster
        .foil(&["scale", "deployment", "web", "--replicas", "5"])
        .success();
    let pods = objects::ready_count(cluster, "web", 5);
    objects::backends_are(cluster, "web", &pods);
    // The manifest wants 3 replicas again, and they are owned by `foil scale` now.
    let roll = "tests/manifests/web-v2.yaml";
    let refused = cluster.foil(&["apply", "-f", roll]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let conflict = "spec.replicas: conflict with \"foil-scale\" with subresource \"scale\"";
    assert!(refused.stderr.contains(conflict), "{}", refused.stderr);
    cluster
        .foil(&["apply", "--force-conflicts", "-f", roll])
        .success();
    cluster
        .foil(&["rollout", "status", "deployment/web"])
        .success();
    let pods = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &pods);
    let calls = load.wait_more(cluster, 200);
    assert!(
        calls.backends.keys().any(|name| name.ends_with(" 2")),
        "{calls:?}"
    );
    // And back, still under the same load.
    web(cluster);
    cluster
        .foil(&["rollout", "status", "deployment/web"])
        .success();
    let calls = load.stop(cluster);
    assert_eq!(calls.failed, 0, "{calls:?}");
}
