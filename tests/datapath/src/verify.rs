//! The verifier's budget: how many instructions it walks for each program.
//!
//! `tests/verify.txt` is the table, with a column for each kernel; a program that grows by more
//! than a twentieth over its entry needs the entry changed in the same commit.

use crate::node::Node;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use tests_harness::workspace;

/// First two numbers of a kernel's release.
type Version = (u32, u32);

fn version(release: &str) -> Version {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The column for a kernel: of its own version, else of the newest one before it, else the first.
fn column(versions: &[Version], running: Version) -> usize {
    versions
        .iter()
        .rposition(|version| *version <= running)
        .unwrap_or(0)
}

/// Budget of each program on the kernel `running`.
fn budget(table: &str, running: Version) -> BTreeMap<&str, u32> {
    let mut lines = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heading = lines.next().unwrap();
    let versions: Vec<Version> = heading[1..].iter().map(|word| version(word)).collect();
    let at = 1 + column(&versions, running);
    lines
        .map(|words| (words[0], words[at].parse().unwrap()))
        .collect()
}

/// The programs of a node against the rows of the table; `both` is behind the name of a program in
/// rows of nodes of both families.
fn stays_within(node: &Node, both: &str) {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap();
    let path = workspace().join("tests/verify.txt");
    let table = std::fs::read_to_string(&path).unwrap();
    let budget = budget(&table, version(release));
    let mut text = String::new();
    let mut over = false;
    let verified = node.datapath.verified();
    for program in verified {
        let found = program.instructions;
        let name = format!("{}{both}", program.name);
        let allowed = budget.get(name.as_str()).copied().unwrap_or(0);
        over |= found > allowed + allowed / 20;
        writeln!(text, "{name} {found}, budget {allowed}").unwrap();
    }
    assert!(!over, "{} on Linux {release}:\n{text}", path.display());
    let rows = budget
        .keys()
        .filter(|name| name.ends_with("+6") != both.is_empty());
    assert_eq!(rows.count(), verified.len(), "rows of other programs");
}

#[test]
fn programs_stay_within_their_budget() {
    stays_within(&Node::new(&[]), "");
}

/// With IPv6 in use its functions are walked as well.
#[test]
fn programs_of_both_families_stay_within_their_budget() {
    stays_within(&Node::dual(Ipv4Addr::new(172, 31, 0, 11), &[]), "+6");
}

#[test]
fn a_kernel_without_a_column_takes_the_one_before_it() {
    let table = "# x\nprogram 6.12 6.18\na 10 20\nb 11 21\n";
    // (running, budget of a)
    for (release, allowed) in [
        ("6.6.0-1-amd64", 10),
        ("6.12.95+deb12-cloud-amd64", 10),
        ("6.17.1", 10),
        ("6.18.44-fc", 20),
        ("7.3.4", 20),
    ] {
        let budget = budget(table, version(release));
        assert_eq!(budget.get("a"), Some(&allowed), "{release}");
    }
}
