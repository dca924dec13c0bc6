//! The verifier's budget: how many instructions it walks for each program.
//!
//! `tests/verify.txt` is the table; a program that grows by more than a twentieth over its line
//! needs the line changed in the same commit.

use crate::node::Node;
use std::collections::BTreeMap;
use tests_harness::workspace;

#[test]
fn programs_stay_within_their_budget() {
    let node = Node::new(&[]);
    let path = workspace().join("tests/verify.txt");
    let table = std::fs::read_to_string(&path).unwrap();
    let budget: BTreeMap<&str, u32> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, number)| (name, number.trim().parse().unwrap()))
        .collect();
    let mut wrong = String::new();
    for program in node.datapath.verified() {
        let found = program.instructions;
        println!("{} {found}", program.name);
        match budget.get(program.name) {
            Some(allowed) if found <= allowed + allowed / 20 => {}
            other => wrong.push_str(&format!("{} {found}, budget {other:?}\n", program.name)),
        }
    }
    assert_eq!(budget.len(), node.datapath.verified().len());
    assert!(wrong.is_empty(), "{}:\n{wrong}", path.display());
}
