//! The table of what is not supported: each entry names a field that exists, is
//! reported by its path, and lets its exceptions pass.
#![cfg(test)]

use control_api::unsupported::{Effect, UNSUPPORTED};
use control_api::{admit, find_for, kinds};
use serde_json::{Value, json};

/// A manifest with `value` at the path of an entry.
fn manifest(kind: &str, path: &str, value: Value) -> Value {
    let root = match kind {
        "PodSpec" => "Pod",
        own => own,
    };
    let full = if kind == "PodSpec" {
        format!("spec.{path}")
    } else {
        path.to_owned()
    };
    let mut object = json!({"apiVersion": "v1", "kind": root, "metadata": {"name": "x"}});
    let namespaced = kinds().iter().any(|k| k.kind == root && k.namespaced);
    if namespaced {
        object["metadata"]["namespace"] = json!("default");
    }
    let mut at = &mut object;
    for step in full.split('.') {
        match step.strip_suffix("[*]") {
            None => {
                if at.get(step).is_none() {
                    at[step] = json!({});
                }
                at = &mut at[step];
            }
            Some(list) => {
                at[list] = json!([{}]);
                at = &mut at[list][0];
            }
        }
    }
    *at = value;
    if kind == "PodSpec" {
        complete(&mut object["spec"]);
    }
    object
}

/// What a pod needs besides, so that only the entry is wrong with it.
fn complete(spec: &mut Value) {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{}]);
    }
    let container = &mut spec["containers"][0];
    container["name"] = json!("a");
    container["image"] = json!("b");
    if let Some(port) = container.pointer_mut("/ports/0") {
        port["containerPort"] = json!(80);
    }
}

fn reports(object: &Value) -> (Vec<String>, Vec<String>) {
    let kind = find_for(object).unwrap();
    match admit(object, kind, None) {
        Ok((_, warnings)) => (
            Vec::new(),
            warnings.iter().map(ToString::to_string).collect(),
        ),
        Err(invalid) => (
            invalid.causes.iter().map(ToString::to_string).collect(),
            Vec::new(),
        ),
    }
}

#[test]
fn each_entry_is_refused_by_its_path() {
    for entry in UNSUPPORTED {
        let prefix = if entry.kind == "PodSpec" { "spec." } else { "" };
        let path = format!("{prefix}{}", entry.path.replace("[*]", "[0]"));
        // A value of each type: the one that decodes shows whether it is reported.
        let values = [
            json!("odd"),
            json!("SCTP"),
            json!(7),
            json!(true),
            json!(false),
            json!({}),
            json!([{}]),
            json!(["odd"]),
        ];
        let mut reported = false;
        for value in values {
            if entry.except.contains(&value.to_string().trim_matches('"')) {
                continue;
            }
            let (causes, warnings) = reports(&manifest(entry.kind, entry.path, value));
            let hit = |list: &[String]| {
                list.iter().any(|c| {
                    c.starts_with(&format!("{path}: "))
                        && c.contains("not supported by Hydrofoil yet")
                })
            };
            reported |= match entry.effect {
                Effect::Refuse => hit(&causes),
                Effect::Warn => hit(&warnings),
            };
            for cause in &causes {
                assert!(
                    !cause.contains("unknown field"),
                    "{path} does not exist: {cause}"
                );
            }
        }
        assert!(reported, "{path} is not reported");
    }
}

#[test]
fn exceptions_pass() {
    for entry in UNSUPPORTED.iter().filter(|entry| !entry.except.is_empty()) {
        let path = entry.path.replace("[*]", "[0]");
        for text in entry.except {
            let value = match *text {
                "true" => json!(true),
                "false" => json!(false),
                number if number.parse::<i64>().is_ok() => json!(number.parse::<i64>().unwrap()),
                text => json!(text),
            };
            let (causes, warnings) = reports(&manifest(entry.kind, entry.path, value));
            for said in causes.iter().chain(&warnings) {
                let about = said.contains(&format!("{path}: ")) && said.contains("not supported");
                assert!(!about, "{text:?} passes at {path}: {said}");
            }
        }
    }
}

#[test]
fn templates_and_init_containers_are_checked_too() {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "a", "image": "x"}],
                "initContainers": [{"name": "b", "image": "x", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}],
                "affinity": {}, "automountServiceAccountToken": true,
            }},
        },
    });
    let (causes, _) = reports(&deployment);
    assert_eq!(
        causes,
        [
            "spec.template.spec.affinity: not supported by Hydrofoil yet",
            "spec.template.spec.initContainers[0].volumeDevices: not supported by Hydrofoil yet",
        ]
    );
    let mut deployment = deployment;
    let spec = deployment
        .pointer_mut("/spec/template/spec")
        .unwrap()
        .as_object_mut()
        .unwrap();
    spec.shift_remove("affinity");
    spec.shift_remove("initContainers");
    let (causes, warnings) = reports(&deployment);
    assert_eq!(causes, Vec::<String>::new());
    assert_eq!(
        warnings,
        [
            "spec.template.spec.automountServiceAccountToken: \"true\" is not supported by Hydrofoil yet, has no effect"
        ]
    );
}
