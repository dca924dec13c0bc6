//! The rules that no lint checks: names, sizes, where unsafe code may be, the two tables.
//!
//! Each rule is a function from the tree's files to one line for each violation, with its place.
//! Called by `cargo xtask tidy` and as one check of `cargo xtask test`.

use crate::deps::{self, Member};
use crate::source::{self, Source};
use crate::{circles, command};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Lines in a file, tests not counted.
const MAX_LINES: usize = 500;

/// What the root folder holds, and nothing else.
const ROOT: [&str; 22] = [
    ".cargo",
    ".ci",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "agent",
    "clippy.toml",
    "control",
    "deny.toml",
    "ebpf",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
    "xtask",
];

/// File names that do not describe the contents.
const NAMES: [&str; 9] = [
    "utils", "util", "helpers", "helper", "common", "manager", "misc", "v2", "types",
];

/// Where the lint on unsafe code may be lifted: by one attribute, for the file and the modules
/// below it.
const UNSAFE: [&str; 5] = [
    "ebpf/programs/src/main.rs",
    "ebpf/common/src/abi.rs",
    "agent/sys/src/lib.rs",
    "agent/shim/src/main.rs",
    "tests/node/src/bin/guest-init.rs",
];

/// Crates that decide and do nothing else.
const PURE: [&str; 3] = ["agent-plan", "control-plan", "ebpf-logic"];
/// What a pure crate's manifest never names.
const IMPURE: [&str; 9] = [
    "tokio",
    "aya",
    "libc",
    "tonic",
    "nix",
    "rtnetlink",
    "rand",
    "redb",
    "tracing",
];

/// The units that are installed.
const UNITS: [&str; 2] = [
    "agent/daemon/foil-agent.service",
    "control/server/foil-control.service",
];
/// Lines of each unit with their section: systemd gives a program up after five starts in ten
/// seconds unless the limit is lifted, and a cause such as a late uplink lasts longer.
const UNIT: [(&str, &str); 2] = [
    ("[Unit]", "StartLimitIntervalSec=0"),
    ("[Service]", "Restart=always"),
];

/// Prints violations; true if there are none.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let members = deps::members(root)?;
    let mut sources = Vec::new();
    for member in &members {
        source::collect(root, &member.folder, &mut sources)?;
    }
    let read =
        |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let mut wrong = Vec::new();
    for source in &sources {
        wrong.extend(file(source));
    }
    for member in &members {
        wrong.extend(manifest(member));
    }
    wrong.extend(deps::check(&read("ARCHITECTURE.md")?, &members));
    wrong.extend(actions(&sources));
    wrong.extend(circles::check(&sources));
    wrong.extend(root_folder(root)?);
    for path in UNITS {
        wrong.extend(unit(path, &read(path)?));
    }
    let readme = read("README.md").unwrap_or_default();
    for command in ["cargo xtask demo", "cargo xtask test"] {
        if !readme.contains(command) {
            wrong.push(format!("README.md: does not name `{command}`"));
        }
    }
    for line in &wrong {
        println!("tidy: {line}");
    }
    Ok(wrong.is_empty())
}

/// A unit has its program started again for as long as it takes.
fn unit(path: &str, text: &str) -> Vec<String> {
    let has = |(section, line): &(&str, &str)| {
        let after = text
            .split_once(&format!("{section}\n"))
            .map(|(_, after)| after);
        let mut lines = after.into_iter().flat_map(str::lines);
        lines
            .by_ref()
            .take_while(|line| !line.starts_with('['))
            .any(|found| found == *line)
    };
    let missing = UNIT.iter().filter(|row| !has(row));
    let told = |(section, line): &(&str, &str)| format!("{path}: {section} has no {line}");
    missing.map(told).collect()
}

/// The rules of a single file.
fn file(source: &Source) -> Vec<String> {
    let Source { path, text } = source;
    let mut wrong = Vec::new();
    if !text.trim_start().starts_with("//!") {
        wrong.push(format!("{path}: begins with no `//!` that says what it is"));
    }
    let lines = source.product().count();
    let tests = path.ends_with("/tests.rs") || path.contains("/tests/");
    if lines > MAX_LINES && !tests {
        wrong.push(format!("{path}: {lines} lines, the limit is {MAX_LINES}"));
    }
    let stem = path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches(".rs");
    let vague = NAMES
        .iter()
        .any(|name| stem == *name || stem.ends_with(&format!("_{name}")));
    if vague || stem.starts_with("new_") || stem.ends_with("_new") {
        wrong.push(format!("{path}: the name does not describe the contents"));
    }
    if path
        .split("/src/")
        .nth(1)
        .is_some_and(|inner| inner.matches('/').count() > 1)
    {
        wrong.push(format!("{path}: folders below src are one level deep"));
    }
    let dense: String = text.split_whitespace().collect();
    if dense.contains(concat!("[exp", "ect(unsafe_code")) && !UNSAFE.contains(&path.as_str()) {
        wrong.push(format!("{path}: unsafe code is not for this file"));
    }
    let pure = |name: &&str| path.starts_with(&format!("{}/", name.replacen('-', "/", 1)));
    if !PURE.iter().any(pure) {
        return wrong;
    }
    for (at, line) in source.product() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for word in [
            "Instant::now",
            "SystemTime::now",
            "Timestamp::now",
            "async fn",
            "std::fs",
        ] {
            if line.contains(word) {
                wrong.push(format!(
                    "{path}:{at}: `{word}` in a crate that only decides"
                ));
            }
        }
    }
    wrong
}

fn manifest(member: &Member) -> Vec<String> {
    let Member {
        name,
        folder,
        dependencies,
    } = member;
    let mut wrong = Vec::new();
    if *name != folder.replace('/', "-") {
        wrong.push(format!(
            "{folder}: the crate's name is {name}, not its path"
        ));
    }
    if PURE.contains(&name.as_str()) {
        for word in IMPURE.iter().filter(|word| dependencies.contains(**word)) {
            wrong.push(format!(
                "{folder}/Cargo.toml: {word} in a crate that only decides"
            ));
        }
    }
    wrong
}

/// Every action is in the model and in the one interpreter.
fn actions(sources: &[Source]) -> Vec<String> {
    let Some(declared) = sources
        .iter()
        .find(|source| source.path == "agent/plan/src/action.rs")
    else {
        return vec!["agent/plan/src/action.rs: missing".to_owned()];
    };
    let mut wrong = Vec::new();
    for variant in variants(&declared.text) {
        for place in ["agent/plan/src/simulate", "agent/daemon/src/apply"] {
            let named = |source: &&Source| {
                let text = &source.text;
                let word = format!("Action::{variant}");
                text.match_indices(&word).any(|(at, _)| {
                    !text[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            };
            let mut there = sources
                .iter()
                .filter(|source| source.path.starts_with(place));
            if there.find(named).is_none() {
                wrong.push(format!("{place}.rs: no arm for Action::{variant}"));
            }
        }
    }
    wrong
}

/// Names of the variants of `pub enum Action`.
fn variants(text: &str) -> BTreeSet<String> {
    let body = text.split("pub enum Action {").nth(1).unwrap_or_default();
    let body = body.split("\n}").next().unwrap_or_default();
    body.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect()
}

/// What git knows of; untracked files of the user are not checked.
fn root_folder(root: &Path) -> anyhow::Result<Vec<String>> {
    let files = command::read(Command::new("git").args(["ls-files"]).current_dir(root))?;
    let names: BTreeSet<&str> = files
        .lines()
        .filter_map(|path| path.split('/').next())
        .collect();
    let stray = names.into_iter().filter(|name| !ROOT.contains(name));
    Ok(stray
        .map(|name| format!("{name}: the root folder is closed"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(file(&source), expected, "{path}");
    }

    #[test]
    fn a_unit_is_started_again_without_a_limit() {
        let good = "[Unit]\nA=b\nStartLimitIntervalSec=0\n\n[Service]\nRestart=always\n";
        assert_eq!(unit("u", good), Vec::<String>::new());
        let elsewhere = "[Unit]\nA=b\n[Service]\nRestart=always\nStartLimitIntervalSec=0\n";
        let wrong = unit("u", elsewhere);
        assert_eq!(wrong, ["u: [Unit] has no StartLimitIntervalSec=0"]);
    }

    #[test]
    fn rules_of_a_file() {
        check("agent/plan/src/pod.rs", "//! Pods.\nfn f() {}\n", &[]);
        check(
            "agent/plan/src/pod.rs",
            "fn f() {}\n",
            &["agent/plan/src/pod.rs: begins with no `//!` that says what it is"],
        );
        check(
            "agent/sys/src/pod_utils.rs",
            "//! x\n",
            &["agent/sys/src/pod_utils.rs: the name does not describe the contents"],
        );
        let text = format!("//! x\n{}", "x\n".repeat(500));
        check(
            "agent/sys/src/a.rs",
            &text,
            &["agent/sys/src/a.rs: 501 lines, the limit is 500"],
        );
        let text = format!(
            "//! x\n\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "x\n".repeat(500)
        );
        check("agent/sys/src/a.rs", &text, &[]);
        check(
            "agent/plan/src/a.rs",
            "//! x\nlet a = Instant::now();\n",
            &["agent/plan/src/a.rs:2: `Instant::now` in a crate that only decides"],
        );
        check(
            "agent/sys/src/a.rs",
            "//! x\nlet a = Instant::now();\n",
            &[],
        );
    }

    #[test]
    fn unsafe_code_has_its_files() {
        let text = format!(
            "//! x\n#![{}(\n    unsafe_code,\n    reason = \"x\"\n)]\n",
            "expect"
        );
        check("agent/sys/src/lib.rs", &text, &[]);
        check(
            "agent/plan/src/link.rs",
            &text,
            &["agent/plan/src/link.rs: unsafe code is not for this file"],
        );
    }

    #[test]
    fn variants_of_the_enum() {
        let text = "/// x\npub enum Action {\n    /// Makes.\n    CreateLink { name: String },\n    PutBackend(Backend),\n    \
                    Stop,\n        Inner,\n}\npub enum Other {\n    Not,\n}\n";
        assert_eq!(
            variants(text).into_iter().collect::<Vec<_>>(),
            ["CreateLink", "PutBackend", "Stop"]
        );
    }
}
