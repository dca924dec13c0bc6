//! The manifests under `tests/manifests`: the good ones pass, the bad ones fail as they say.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::run::Bench;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/manifests")
        .join(name)
        .canonicalize()
        .unwrap()
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "yaml"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{name}");
    found
}

#[test]
fn good_ones_are_applied() {
    let bench = Bench::new();
    for path in files("").into_iter().chain(files("failing")) {
        let out = bench.foil(&["apply", "-f", path.to_str().unwrap()]).ok();
        assert!(!out.is_empty());
        for line in out.lines() {
            assert!(
                line.ends_with(" created") || line.ends_with(" configured"),
                "{}: {line}",
                path.display()
            );
        }
    }
}

/// What `foil` owns of each object: controllers write at any time.
fn written(bench: &Bench) -> Vec<Value> {
    let kinds = ["pods", "deployments", "services", "configmaps", "secrets"];
    let objects = kinds.iter().flat_map(|kind| bench.list(kind));
    let metadata = objects.map(|object| {
        let owners = object["metadata"]["managedFields"].as_array().cloned();
        let mut owners = owners.unwrap_or_default();
        owners.retain(|owner| owner["manager"] == "foil");
        json!([object["kind"], object["metadata"]["name"], owners])
    });
    metadata.filter(|row| row[2] != json!([])).collect()
}

/// The first lines of each say `# error: TEXT`, once for each line that is printed.
/// A file that needs something there already says `# after: FILE`.
#[test]
fn bad_ones_are_refused() {
    for path in files("bad") {
        let text = std::fs::read_to_string(&path).unwrap();
        let said = |mark: &str| -> Vec<String> {
            let lines = text.lines().take_while(|line| line.starts_with('#'));
            lines
                .filter_map(|line| line.strip_prefix(mark))
                .map(|rest| rest.trim().to_string())
                .collect()
        };
        let bench = Bench::new();
        for before in said("# after:") {
            bench
                .foil(&["apply", "-f", folder(&before).to_str().unwrap()])
                .ok();
        }
        let objects_before = written(&bench);
        let name = path.file_name().unwrap().to_str().unwrap();
        bench.write(name, &text);
        let ended = bench.foil(&["apply", "-f", name]);
        let expected: String = said("# error:")
            .iter()
            .map(|line| format!("error: {name}: {line}\n"))
            .collect();
        assert!(!expected.is_empty(), "{name} says no error");
        assert_eq!(ended.code, 1, "{name}: {ended:?}");
        let found: Vec<&str> = ended
            .err
            .lines()
            .filter(|line| !line.starts_with("error: not applied"))
            .collect();
        assert_eq!(found, expected.lines().collect::<Vec<_>>(), "{name}");
        if ended.out.is_empty() {
            assert_eq!(written(&bench), objects_before, "{name}");
        }
    }
}
