//! The dependency table of ARCHITECTURE.md against the manifests.
//!
//! Two fenced blocks below "Dependency table": edges between our crates, which must be
//! complete in both directions, and external crates with the crates that may name them.
//! Called by `tidy`.

use crate::command;
use anyhow::Context as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// `name: a b c` lines as a map.
type Table = BTreeMap<String, BTreeSet<String>>;

/// A crate of the workspace as its manifest tells it.
pub(crate) struct Member {
    pub(crate) name: String,
    /// Relative to the root: "agent/plan".
    pub(crate) folder: String,
    pub(crate) dependencies: BTreeSet<String>,
}

/// All members, by `cargo metadata`.
pub(crate) fn members(root: &Path) -> anyhow::Result<Vec<Member>> {
    let args = ["metadata", "--no-deps", "--locked", "--format-version", "1"];
    let text = command::read(&mut command::cargo(root, &args))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let mut members = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest
            .parent()
            .and_then(|folder| folder.strip_prefix(root).ok());
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        members.push(Member {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            folder: folder.unwrap_or(manifest).display().to_string(),
            dependencies: dependencies
                .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
                .collect(),
        });
    }
    Ok(members)
}

/// Differences between the tables and the manifests, a line each.
pub(crate) fn check(architecture: &str, members: &[Member]) -> Vec<String> {
    let blocks = tables(architecture);
    let [edges, externals, ..] = blocks.as_slice() else {
        return vec![
            "ARCHITECTURE.md: below a heading with \"Dependency table\" are two fenced blocks, \
             of our crates and of external ones"
                .to_owned(),
        ];
    };
    let mut wrong = Vec::new();
    let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    for member in members {
        let ours: BTreeSet<String> = member
            .dependencies
            .iter()
            .filter(|name| names.contains(name.as_str()))
            .cloned()
            .collect();
        match edges.get(&member.name) {
            None => wrong.push(format!("dependency table: no line for {}", member.name)),
            Some(allowed) => {
                for name in ours.difference(allowed) {
                    wrong.push(format!(
                        "{}: depends on {name}, not in the table",
                        member.name
                    ));
                }
                for name in allowed.difference(&ours) {
                    wrong.push(format!(
                        "{}: does not depend on {name}, as the table says",
                        member.name
                    ));
                }
            }
        }
        for (external, allowed) in externals {
            if member.dependencies.contains(external) && !allowed.contains(&member.name) {
                wrong.push(format!("{}: may not name {external}", member.name));
            }
        }
    }
    for name in edges.keys().filter(|name| !names.contains(name.as_str())) {
        wrong.push(format!("dependency table: {name} is not a workspace crate"));
    }
    for (external, allowed) in externals {
        for name in allowed {
            let uses =
                |member: &Member| member.name == *name && member.dependencies.contains(external);
            if !members.iter().any(uses) {
                wrong.push(format!("dependency table: {name} does not use {external}"));
            }
        }
    }
    wrong
}

/// Fenced blocks of `name: a b` lines after the heading, up to the next heading.
fn tables(architecture: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut inside = false;
    let mut current: Option<Table> = None;
    for line in architecture.lines() {
        if let Some(table) = &mut current {
            if line.starts_with("```") {
                tables.push(std::mem::take(table));
                current = None;
            } else if let Some((name, rest)) = line.split_once(':') {
                let names = rest.split_whitespace().map(str::to_owned).collect();
                table.insert(name.trim().to_owned(), names);
            }
        } else if line.starts_with('#') {
            inside = line.to_lowercase().contains("dependency table");
        } else if inside && line.starts_with("```") {
            current = Some(Table::new());
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, dependencies: &[&str]) -> Member {
        Member {
            name: name.to_owned(),
            folder: name.replace('-', "/"),
            dependencies: dependencies.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    const TEXT: &str = "# A\n```text\nx: y\n```\n## 6. Dependency table\n```text\nagent-plan: proto\n\
                        proto:\n```\nexternal\n```text\ntonic: proto\n```\n## 7. B\n```\nz: z\n```\n";

    #[test]
    fn the_table_as_it_is() {
        let members = [
            member("agent-plan", &["proto", "serde"]),
            member("proto", &["tonic"]),
        ];
        assert_eq!(check(TEXT, &members), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_told() {
        let members = [
            member("agent-plan", &["tonic"]),
            member("proto", &["agent-plan"]),
        ];
        assert_eq!(
            check(TEXT, &members),
            [
                "agent-plan: does not depend on proto, as the table says",
                "agent-plan: may not name tonic",
                "proto: depends on agent-plan, not in the table",
                "dependency table: proto does not use tonic",
            ]
        );
    }
}
