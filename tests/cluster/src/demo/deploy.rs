//! Steps 1 and 2: images into a registry, manifests into the cluster.
//!
//! Called by `demo::run`.

use super::Show;
use crate::objects;
use tests_harness::{Cluster, image, registry};

/// The cluster itself: two nodes on a wire, one control plane.
pub fn start(show: &mut Show) -> Cluster {
    show.say("Two nodes and a control plane, each in a network namespace of its own, on a bridge.");
    let cluster = Cluster::start(2);
    show.say(format!(
        "Everything is named {} and lives in {}.",
        cluster.name(),
        cluster.root().display()
    ));
    let nodes = show.foil(&cluster, &["get", "nodes", "-o", "wide"]);
    let ready = nodes
        .lines()
        .filter(|line| line.contains(" Ready "))
        .count();
    show.check("both nodes are Ready", ready == 2, nodes);
    cluster
}

/// Step 1.
pub fn images(show: &mut Show, cluster: &mut Cluster) {
    show.step(1, "real images, in a real registry");
    show.say("From Debian's busybox-static and a small static server of ours, pushed by skopeo.");
    for reference in image::push_all(cluster.wire(), &registry::address(), cluster.root()) {
        let inspect = format!("docker://{reference}");
        let mut skopeo = cluster.wire().command("skopeo");
        skopeo.args([
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Name}} {{.Digest}}",
            &inspect,
        ]);
        let out = show.run(&mut skopeo);
        show.check(
            &format!("{reference} is in the registry"),
            out.code == 0,
            out.stderr,
        );
    }
}

/// Step 2.
pub fn apply(show: &mut Show, cluster: &Cluster) {
    show.step(2, "manifests as people write them");
    for file in ["web", "busybox", "busybox-loop", "ubuntu", "settings"] {
        let path = format!("tests/manifests/{file}.yaml");
        let out = show.foil(cluster, &["apply", "-f", &path]);
        show.check(
            &format!("{file}.yaml is accepted"),
            out.contains("created"),
            out,
        );
    }
    show.say(
        "The client is applied after the Service, whose variables it finds in its environment.",
    );
    show.foil(cluster, &["apply", "-f", "tests/manifests/client.yaml"]);
    let again = show.foil(cluster, &["apply", "-f", "tests/manifests/web.yaml"]);
    show.check(
        "a second apply changes nothing",
        again.lines().all(|line| line.ends_with("unchanged")),
        again,
    );
    show.foil(cluster, &["rollout", "status", "deployment/web"]);
    for name in ["busybox", "busybox-loop", "ubuntu", "settings", "client"] {
        objects::ready(cluster, name);
    }
    let web = objects::ready_count(cluster, "web", 3);
    show.check(
        "the Deployment has 3 ready replicas",
        web.len() == 3,
        format!("{web:?}"),
    );
    show.say("A manifest with a mistake is refused as a whole, by file, document and field.");
    let mut command = cluster.foil_command(&["apply", "-f", "-"]);
    println!("$ foil apply -f - <<< 'a Pod with the field imagePulPolicy'");
    let bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers:\n  \
               - {name: a, image: busybox, imagePulPolicy: Always}\n";
    let out = tests_harness::process::run_with(
        &mut command,
        Some(bad.as_bytes()),
        tests_harness::wait::GENEROUS,
    );
    show.print(&out.stderr);
    let named = out.code == 1 && out.stderr.contains("imagePulPolicy");
    show.check(
        "exit code 1, and the field is named",
        named,
        format!("{} {}", out.code, out.stderr),
    );
    show.check(
        "nothing of it was applied",
        objects::pod(cluster, "bad").is_none(),
        "a pod named bad",
    );
}
