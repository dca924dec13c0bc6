//! Bad input: refused by name before it is stored, or told in the pod's status and events.

use crate::fixture::{delete_pod, web};
use crate::objects;
use crate::scene::Scene;
use std::collections::BTreeSet;
use std::fs;
use tests_harness::{Cluster, image, registry, wait_until};

pub(crate) fn a_mistake_is_refused_by_its_field(scene: &mut Scene<'_>) {
    scene.say("A manifest with a mistake is refused as a whole, by file, document and field.");
    let bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers:\n  \
               - {name: a, image: busybox, imagePulPolicy: Always}\n";
    let out = scene.apply_text(bad, "a Pod with the field imagePulPolicy");
    scene.check(
        "exit code 1, and the field is named",
        out.code == 1 && out.stderr.contains("imagePulPolicy"),
        format!("{out:?}"),
    );
    scene.check(
        "nothing of it was applied",
        objects::pod(scene.cluster, "bad").is_none(),
        "a pod named bad",
    );
}

/// Each file of tests/manifests/bad says in its first lines what `foil` must say of it, and
/// which manifest must have been applied before.
pub(crate) fn bad_manifests_by_file_document_and_field(scene: &mut Scene<'_>) {
    let folder = tests_harness::workspace().join("tests/manifests/bad");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("tests/manifests/bad")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    web(scene);
    let mut wrong = Vec::new();
    for file in &files {
        let text = fs::read_to_string(folder.join(file)).expect("a manifest");
        let expected: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# error: "))
            .collect();
        assert!(!expected.is_empty(), "{file}: no `# error: `");
        let after = text.lines().find_map(|line| line.strip_prefix("# after: "));
        assert!(
            after.is_none_or(|after| after == "web.yaml"),
            "{file}: after {after:?}"
        );
        let before = names(scene.cluster);
        let path = format!("tests/manifests/bad/{file}");
        let out = scene.cluster.foil(&["apply", "-f", &path]);
        // Each message begins with the file; a duplicate names it twice.
        let said = out.stderr.replace(&format!("{path}: "), "");
        let told = expected
            .iter()
            .all(|text| said.contains(&format!("error: {text}")));
        if out.code != 1 || !told || !out.stderr.contains(&format!("error: {path}: ")) {
            wrong.push(format!(
                "{path}: wanted {expected:?}, got {} {}",
                out.code, out.stderr
            ));
        }
        let stored: Vec<String> = names(scene.cluster).difference(&before).cloned().collect();
        // Documents without a mistake may be applied, and are said to be.
        let told = out.stderr.contains(" was applied") || out.stderr.contains(" were applied");
        if stored.is_empty() == told {
            wrong.push(format!(
                "{path}: stored {stored:?}, but said {}",
                out.stderr
            ));
        }
        for name in stored {
            scene.cluster.foil(&["delete", &name]).success();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn names(cluster: &Cluster) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for kind in ["deployments", "services", "configmaps", "secrets"] {
        for object in cluster.list_all(kind) {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            names.insert(format!("{kind}/{name}"));
        }
    }
    names
}

pub(crate) fn missing_image_is_told_and_tried_again(scene: &mut Scene<'_>) {
    scene.apply("failing/image-missing");
    objects::with_reason(
        scene.cluster,
        "image-missing",
        &["ErrImagePull", "ImagePullBackOff"],
    );
    let pod = objects::with_reason(scene.cluster, "image-missing", &["ImagePullBackOff"]);
    assert_eq!((pod.phase.as_str(), pod.ready), ("Pending", false));
    let events = objects::events(scene.cluster, "image-missing");
    assert!(
        events.contains("Failed") && events.contains("does-not-exist"),
        "{events}"
    );
    delete_pod(scene, "image-missing");
}

pub(crate) fn wrong_digest_is_never_run(scene: &mut Scene<'_>) {
    let layout = image::unique_layout(scene.cluster.root(), scene.cluster.name());
    image::push(
        scene.cluster.wire(),
        &layout,
        &format!("{}/foil/corrupt:1", registry::address()),
    );
    image::corrupt(&scene.cluster.root().join("registry"), &layout);
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: corrupt}\nspec:\n  containers:\n  \
                    - {name: main, image: 'foil/corrupt:1', command: [sleep, infinity]}\n";
    scene
        .cluster
        .foil_with_input(&["apply", "-f", "-"], manifest)
        .success();
    let pod = objects::with_reason(
        scene.cluster,
        "corrupt",
        &["ErrImagePull", "ImagePullBackOff"],
    );
    assert!(!pod.ready);
    let events = wait_until("an event that speaks of the digest", || {
        let events = objects::events(scene.cluster, "corrupt");
        if events.to_lowercase().contains("digest") {
            Ok(events)
        } else {
            Err(events)
        }
    });
    assert!(!events.contains("Started"), "{events}");
    delete_pod(scene, "corrupt");
}

pub(crate) fn missing_command_is_told(scene: &mut Scene<'_>) {
    scene.apply("failing/command-missing");
    let reasons = [
        "CreateContainerError",
        "RunContainerError",
        "StartError",
        "CrashLoopBackOff",
    ];
    objects::with_reason(scene.cluster, "command-missing", &reasons);
    let events = wait_until("an event that names the program", || {
        let events = objects::events(scene.cluster, "command-missing");
        if events.contains("/bin/does-not-exist") {
            Ok(events)
        } else {
            Err(events)
        }
    });
    assert!(events.contains("Warning"), "{events}");
    delete_pod(scene, "command-missing");
}

pub(crate) fn failing_container_is_backed_off(scene: &mut Scene<'_>) {
    scene.apply("failing/exits");
    let pod = objects::with_reason(scene.cluster, "exits", &["CrashLoopBackOff"]);
    assert!(pod.reasons.contains("Error"), "{pod:?}");
    let object = scene.cluster.get("pods", "exits").expect("the pod");
    let code = &object["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"];
    assert_eq!(code.as_i64(), Some(3), "{object}");
    let logs = scene
        .cluster
        .foil(&["logs", "exits", "--previous"])
        .success();
    assert_eq!(logs.trim(), "no database");
    delete_pod(scene, "exits");
}

pub(crate) fn too_small_a_limit_is_an_oom_kill(scene: &mut Scene<'_>) {
    scene.apply("failing/limit-too-small");
    objects::with_reason(scene.cluster, "limit-too-small", &["OOMKilled"]);
    // The first restart is immediate, so it may be running again: what counts is how it ended.
    let object = scene.cluster.get("pods", "limit-too-small");
    let object = object.expect("the pod");
    let status = &object["status"]["containerStatuses"][0];
    let killed = ["state", "lastState"].map(|state| &status[state]["terminated"]);
    let killed = killed.iter().find(|end| end["reason"] == "OOMKilled");
    let code = killed.and_then(|end| end["exitCode"].as_i64());
    assert_eq!(code, Some(137), "{status}");
    objects::with_reason(scene.cluster, "limit-too-small", &["CrashLoopBackOff"]);
    delete_pod(scene, "limit-too-small");
}

pub(crate) fn wrong_token_is_refused_and_logged_on_both_sides(scene: &mut Scene<'_>) {
    let good = scene.cluster.join_token();
    let hash = good
        .lines()
        .find(|line| line.starts_with("ca_hash"))
        .expect("a ca_hash");
    let bad = format!("token = \"aaaaaa.0123456789abcdef\"\n{hash}");
    let node = scene.cluster.spare_agent(2, &bad);
    wait_until("the agent's word", || {
        let log = node.log().to_lowercase();
        if log.contains("token") {
            Ok(())
        } else {
            Err(log)
        }
    });
    wait_until("the control plane's word", || {
        let log = scene.cluster.control_log_text();
        let told = log
            .lines()
            .any(|line| line.contains("n3") && line.to_lowercase().contains("token"));
        if told { Ok(()) } else { Err(log) }
    });
    assert!(
        scene.cluster.get("nodes", "n3").is_none(),
        "the node was let in"
    );
}

pub(crate) fn wrong_ca_hash_is_not_trusted(scene: &mut Scene<'_>) {
    let good = scene.cluster.join_token();
    let token = good
        .lines()
        .find(|line| line.starts_with("token"))
        .expect("a token");
    let bad = format!("{token}\nca_hash = \"sha256:{}\"", "0".repeat(64));
    let node = scene.cluster.spare_agent(2, &bad);
    wait_until("the agent's word", || {
        let log = node.log().to_lowercase();
        if log.contains("hash") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert!(
        scene.cluster.get("nodes", "n3").is_none(),
        "the node was let in"
    );
}
