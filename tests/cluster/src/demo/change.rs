//! Step 5: a container dies, a pod goes, replicas come, an image changes; nobody notices.
//!
//! Called by `demo::run`.

use super::Show;
use crate::{limits, objects, traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests_harness::{Cluster, wait_until};

/// Step 5.
pub fn run(show: &mut Show, cluster: &Cluster) {
    show.step(5, "change under load");
    let target = format!("{}:80", objects::cluster_ip(cluster, "web"));
    restart(show, cluster);
    delete(show, cluster, &target);
    scale_and_roll(show, cluster, &target);
}

fn restart(show: &mut Show, cluster: &Cluster) {
    let before = objects::ready(cluster, "busybox-loop");
    show.say("The main process of busybox-loop is killed, twice.");
    for round in 1..=2 {
        let pid = limits::init_pid(cluster, &objects::ready(cluster, "busybox-loop"));
        println!("$ kill -9 {pid}");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill a container's process");
        wait_until("the restart is counted", || {
            match objects::pod(cluster, "busybox-loop") {
                Some(pod) if pod.restarts >= before.restarts + round => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    let after = objects::ready(cluster, "busybox-loop");
    show.foil(cluster, &["get", "pod", "busybox-loop"]);
    show.check(
        "it runs again, with 2 restarts more",
        after.restarts == before.restarts + 2,
        format!("{after:?}"),
    );
    show.check(
        "it is the same pod with the same address",
        after.uid == before.uid && after.ip == before.ip,
        format!("{after:?}"),
    );
    let events = objects::events(cluster, "busybox-loop");
    show.print(&events);
    show.check(
        "the second time after a back-off",
        events.contains("BackOff"),
        &events,
    );
}

fn delete(show: &mut Show, cluster: &Cluster, target: &str) {
    let (hold, backend) = traffic::Hold::start(cluster, "client", target);
    show.say(format!(
        "A long connection of the client is with {backend}, which is deleted now."
    ));
    let load = traffic::Load::start(cluster, "load", "n1", target);
    let old = objects::pod(cluster, &backend);
    let old = old.unwrap_or_else(|| panic!("no pod {backend}"));
    show.foil(cluster, &["delete", "pod", &backend]);
    objects::gone(cluster, &backend);
    let web = objects::ready_count(cluster, "web", 3);
    let replaced = web.iter().all(|pod| pod.uid != old.uid);
    show.check(
        "the Deployment has 3 ready replicas again",
        replaced,
        format!("{web:?}"),
    );
    objects::backends_are(cluster, "web", &web);
    show.check("its backend is gone from the maps of both nodes", true, "");
    let (code, line) = hold.end();
    show.print(&line);
    show.check(
        "the long connection ended, without a time-out",
        code == 0,
        line,
    );
    let calls = load.stop(cluster);
    show.print(&format!("{calls:?}"));
    show.check(
        "no request of the load failed",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    show.check(
        "none waited for a time-out",
        calls.slowest_ms < 1000.0,
        format!("{calls:?}"),
    );
}

fn scale_and_roll(show: &mut Show, cluster: &Cluster, target: &str) {
    let load = traffic::Load::start(cluster, "load", "n2", target);
    show.foil(cluster, &["scale", "deployment", "web", "--replicas", "5"]);
    show.foil(cluster, &["rollout", "status", "deployment/web"]);
    let web = objects::ready_count(cluster, "web", 5);
    objects::backends_are(cluster, "web", &web);
    let calls = load.wait_more(cluster, 500);
    let pods = calls.by_pod();
    let all = web.iter().all(|pod| pods.contains_key(&pod.name));
    show.check("all 5 replicas answer", all, format!("{calls:?}"));
    show.say("Roll to the next image; the manifest takes the replicas back from foil scale.");
    let roll = "tests/manifests/web-v2.yaml";
    show.foil(cluster, &["apply", "--force-conflicts", "-f", roll]);
    show.foil(cluster, &["rollout", "status", "deployment/web"]);
    let web = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &web);
    let calls = load.stop(cluster);
    show.print(&format!("{calls:?}"));
    let second = calls
        .backends
        .keys()
        .filter(|name| name.ends_with(" 2"))
        .count();
    show.check("the new image answered", second > 0, format!("{calls:?}"));
    show.check(
        "no request failed from the scaling to the end of the roll",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    let now = traffic::call_from_pod(cluster, "client", target, 100);
    let only = now.backends.keys().all(|name| name.ends_with(" 2"));
    show.check(
        "only the new image answers now",
        only && now.failed == 0,
        format!("{now:?}"),
    );
}
