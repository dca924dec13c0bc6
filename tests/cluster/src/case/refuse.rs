//! Bad input: refused by name before it is stored, or told in the pod's status and events.

use super::{apply, delete_pod};
use crate::objects;
use std::collections::BTreeSet;
use std::fs;
use tests_harness::{Cluster, image, registry, wait_until};

/// Each file of tests/manifests/bad says in its first lines what `foil` must say of it, and
/// which manifest must have been applied before.
pub(super) fn bad_manifests_by_file_document_and_field(cluster: &mut Cluster) {
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
    super::web(cluster);
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
        let before = names(cluster);
        let path = format!("tests/manifests/bad/{file}");
        let out = cluster.foil(&["apply", "-f", &path]);
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
        let stored: Vec<String> = names(cluster).difference(&before).cloned().collect();
        // Documents without a mistake may be through, and are said to be.
        if stored.is_empty() == out.stderr.contains(" through") {
            wrong.push(format!(
                "{path}: stored {stored:?}, but said {}",
                out.stderr
            ));
        }
        for name in stored {
            cluster.foil(&["delete", &name]).success();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn names(cluster: &Cluster) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for kind in ["deployments", "services", "configmaps", "secrets"] {
        for object in cluster.list(kind, "") {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            names.insert(format!("{kind}/{name}"));
        }
    }
    names
}

pub(super) fn missing_image_is_told_and_tried_again(cluster: &mut Cluster) {
    apply(cluster, "failing/image-missing");
    objects::with_reason(
        cluster,
        "image-missing",
        &["ErrImagePull", "ImagePullBackOff"],
    );
    let pod = objects::with_reason(cluster, "image-missing", &["ImagePullBackOff"]);
    assert_eq!((pod.phase.as_str(), pod.ready), ("Pending", false));
    let events = objects::events(cluster, "image-missing");
    assert!(
        events.contains("Failed") && events.contains("does-not-exist"),
        "{events}"
    );
    delete_pod(cluster, "image-missing");
}

pub(super) fn wrong_digest_is_never_run(cluster: &mut Cluster) {
    let layout = image::unique_layout(cluster.root(), cluster.name());
    image::push(
        cluster.wire(),
        &layout,
        &format!("{}/foil/corrupt:1", registry::address()),
    );
    image::corrupt(&cluster.root().join("registry"), &layout);
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: corrupt}\nspec:\n  containers:\n  \
                    - {name: main, image: 'foil/corrupt:1', command: [sleep, infinity]}\n";
    cluster
        .foil_with_input(&["apply", "-f", "-"], manifest)
        .success();
    let pod = objects::with_reason(cluster, "corrupt", &["ErrImagePull", "ImagePullBackOff"]);
    assert!(!pod.ready);
    let events = wait_until("an event that speaks of the digest", || {
        let events = objects::events(cluster, "corrupt");
        if events.to_lowercase().contains("digest") {
            Ok(events)
        } else {
            Err(events)
        }
    });
    assert!(!events.contains("Started"), "{events}");
    delete_pod(cluster, "corrupt");
}

pub(super) fn missing_command_is_told(cluster: &mut Cluster) {
    apply(cluster, "failing/command-missing");
    let reasons = [
        "CreateContainerError",
        "RunContainerError",
        "StartError",
        "CrashLoopBackOff",
    ];
    objects::with_reason(cluster, "command-missing", &reasons);
    let events = wait_until("an event that names the program", || {
        let events = objects::events(cluster, "command-missing");
        if events.contains("/bin/does-not-exist") {
            Ok(events)
        } else {
            Err(events)
        }
    });
    assert!(events.contains("Warning"), "{events}");
    delete_pod(cluster, "command-missing");
}

pub(super) fn failing_container_is_backed_off(cluster: &mut Cluster) {
    apply(cluster, "failing/exits");
    let pod = objects::with_reason(cluster, "exits", &["CrashLoopBackOff"]);
    assert!(pod.reasons.contains("Error"), "{pod:?}");
    let object = cluster
        .get("pods", objects::NAMESPACE, "exits")
        .expect("the pod");
    let code = &object["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"];
    assert_eq!(code.as_i64(), Some(3), "{object}");
    let logs = cluster.foil(&["logs", "exits", "--previous"]).success();
    assert_eq!(logs.trim(), "no database");
    delete_pod(cluster, "exits");
}

pub(super) fn too_small_a_limit_is_an_oom_kill(cluster: &mut Cluster) {
    apply(cluster, "failing/limit-too-small");
    objects::with_reason(cluster, "limit-too-small", &["OOMKilled"]);
    // The first restart is immediate, so it may be running again: what counts is how it ended.
    let object = cluster.get("pods", objects::NAMESPACE, "limit-too-small");
    let object = object.expect("the pod");
    let status = &object["status"]["containerStatuses"][0];
    let killed = ["state", "lastState"].map(|state| &status[state]["terminated"]);
    let killed = killed.iter().find(|end| end["reason"] == "OOMKilled");
    let code = killed.and_then(|end| end["exitCode"].as_i64());
    assert_eq!(code, Some(137), "{status}");
    objects::with_reason(cluster, "limit-too-small", &["CrashLoopBackOff"]);
    delete_pod(cluster, "limit-too-small");
}

pub(super) fn wrong_token_is_refused_and_logged_on_both_sides(cluster: &mut Cluster) {
    let good = cluster.join_token();
    let hash = good
        .lines()
        .find(|line| line.starts_with("ca_hash"))
        .expect("a ca_hash");
    let bad = format!("token = \"aaaaaa.0123456789abcdef\"\n{hash}");
    let node = cluster.spare_agent(2, &bad);
    wait_until("the agent's word", || {
        let log = node.log().to_lowercase();
        if log.contains("token") {
            Ok(())
        } else {
            Err(log)
        }
    });
    wait_until("the control plane's word", || {
        let log = cluster.control_log_text();
        let told = log
            .lines()
            .any(|line| line.contains("n3") && line.to_lowercase().contains("token"));
        if told { Ok(()) } else { Err(log) }
    });
    assert!(
        cluster.get("nodes", "", "n3").is_none(),
        "the node was let in"
    );
}

pub(super) fn wrong_ca_hash_is_not_trusted(cluster: &mut Cluster) {
    let good = cluster.join_token();
    let token = good
        .lines()
        .find(|line| line.starts_with("token"))
        .expect("a token");
    let bad = format!("{token}\nca_hash = \"sha256:{}\"", "0".repeat(64));
    let node = cluster.spare_agent(2, &bad);
    wait_until("the agent's word", || {
        let log = node.log().to_lowercase();
        if log.contains("hash") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert!(
        cluster.get("nodes", "", "n3").is_none(),
        "the node was let in"
    );
}
