//! Fields with several owners: what `apply` says of them, and what it writes.

use serde_json::Value;
use tests_control::deployment;

use crate::run::Bench;

/// A deployment that was applied with 3 replicas and scaled to 5.
fn scaled() -> Bench {
    let bench = Bench::new();
    bench.write("web.yaml", &deployment("web", 3, "busybox").to_string());
    bench.foil(&["apply", "-f", "web.yaml"]).ok();
    bench.foil(&["scale", "deploy/web", "--replicas=5"]).ok();
    bench
}

fn replicas(bench: &Bench) -> Value {
    bench.get("deployments", "web")["spec"]["replicas"].clone()
}

#[test]
fn a_scaled_deployment_is_not_scaled_back() {
    let bench = scaled();
    let error = bench.foil(&["apply", "-f", "web.yaml"]).refused();
    assert!(
        error.contains("Deployment/web: spec.replicas: conflict with ")
            && error.contains("\"foil-scale\""),
        "{error}"
    );
    assert!(error.contains("--force-conflicts"), "{error}");
    assert_eq!(replicas(&bench), 5);
    // Without the field, the value of the other owner stays.
    let mut without = deployment("web", 3, "busybox:2");
    without["spec"].as_object_mut().unwrap().remove("replicas");
    assert_eq!(
        bench
            .foil_with(&["apply", "-f", "-"], &without.to_string())
            .ok(),
        "deployment.apps/web configured\n"
    );
    assert_eq!(replicas(&bench), 5);
}

#[test]
fn conflicts_can_be_forced() {
    let bench = scaled();
    let forced = ["apply", "-f", "web.yaml", "--force-conflicts"];
    assert_eq!(bench.foil(&forced).ok(), "deployment.apps/web configured\n");
    assert_eq!(replicas(&bench), 3);
    // The field has one owner again.
    bench.foil(&["apply", "-f", "web.yaml"]).ok();
}

#[test]
fn what_changes_nothing_is_not_written() {
    let bench = Bench::new();
    let mut web = deployment("web", 0, "busybox");
    bench.write("web.yaml", &web.to_string());
    bench.foil(&["apply", "-f", "web.yaml"]).ok();
    bench.until("deployments", "an observed deployment", |found| {
        let conditions = found[0]["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["reason"] == "NewReplicaSetAvailable"))
    });
    let before = bench.get("deployments", "web");
    // The same in another order, and with a default written out.
    web["spec"]["revisionHistoryLimit"] = 10.into();
    let labels = web["metadata"]
        .as_object_mut()
        .unwrap()
        .shift_remove("labels");
    web["metadata"]["labels"] = labels.unwrap();
    for text in [deployment("web", 0, "busybox").to_string(), web.to_string()] {
        let said = bench.foil_with(&["apply", "-f", "-"], &text).ok();
        if text.contains("revisionHistoryLimit") {
            // It owns one more field now, which is a write.
            assert_eq!(said, "deployment.apps/web configured\n");
        } else {
            assert_eq!(said, "deployment.apps/web unchanged\n");
            assert_eq!(bench.get("deployments", "web"), before);
        }
    }
}

#[test]
fn owners_are_shown_when_asked_for() {
    let bench = scaled();
    for format in ["yaml", "json"] {
        let words = ["get", "deploy", "web", "-o", format];
        assert!(!bench.foil(&words).ok().contains("managedFields"));
        let words = ["get", "deploy", "-o", format, "--show-managed-fields"];
        let shown = bench.foil(&words).ok();
        assert!(
            shown.contains("managedFields") && shown.contains("foil-scale"),
            "{shown}"
        );
    }
    // Only the record of owners is left out, not a key that is called so.
    bench
        .foil(&["create", "cm", "c", "--from-literal=managedFields=mine"])
        .ok();
    let yaml = bench.foil(&["get", "cm", "c", "-o", "yaml"]).ok();
    assert!(yaml.contains("managedFields: mine"), "{yaml}");
    assert_eq!(bench.foil(&["get", "cm", "--show-managed-fields"]).code, 0);
}
