//! The host's firewall, as far as it stops pods: chains at the hooks input and forward that
//! drop or reject what no rule accepts.
//!
//! Read by the firewall's own programs, and never changed: iptables' older tables are asked for
//! only if they are in use, as a question would make them. Called by `preflight.rs`.

use std::fs;
use std::io;
use std::process::Command;

use proto::error::chain;
use serde::Deserialize;

/// Chains through which packets of pods pass: to another host, and to the node's DNS.
const HOOKS: [&str; 2] = ["forward", "input"];
/// Names of the older tables in use, in this network namespace.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

/// A program that shows rules.
type Program = (&'static str, &'static [&'static str], Parser);

type Parser = fn(&str) -> Result<Closed, FirewallError>;

/// Chains that let nothing else pass: "forward of table ip filter".
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Closed {
    /// By their policy.
    pub(crate) dropping: Vec<String>,
    /// By a last rule for all packets.
    pub(crate) refusing: Vec<String>,
}

impl Closed {
    /// In words; `None`: there are none.
    pub(crate) fn text(&self) -> Option<String> {
        let kinds = [
            ("policy drop in", &self.dropping),
            ("all other packets are refused in", &self.refusing),
        ];
        let kinds = kinds.iter().filter(|(_, chains)| !chains.is_empty());
        let texts: Vec<String> = kinds
            .map(|(how, chains)| format!("{how} {}", chains.join(", ")))
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

const NFT: Program = ("nft", &["-j", "list", "ruleset"], nft);
const NFT_SAVE: Program = ("iptables-nft-save", &["-t", "filter"], iptables);
const SAVE: Program = ("iptables-save", &["-t", "filter"], iptables);
const LEGACY_SAVE: Program = ("iptables-legacy-save", &["-t", "filter"], iptables);

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    /// Of all programs.
    pub(crate) closed: Closed,
    /// Programs that were asked.
    pub(crate) asked: Vec<&'static str>,
    /// Why others said nothing.
    pub(crate) failed: Vec<String>,
}

/// Why a program's rules are not known.
#[derive(Debug, thiserror::Error)]
enum FirewallError {
    #[error("{program}: {source}")]
    Run {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program}: {status}: {text}")]
    Failed {
        program: &'static str,
        status: std::process::ExitStatus,
        text: String,
    },
    #[error("nft: {0}")]
    Json(#[from] serde_json::Error),
}

/// Asks the programs that are there.
pub(crate) fn read() -> Firewall {
    let mut firewall = Firewall::default();
    let legacy = fs::read_to_string(LEGACY_TABLES)
        .is_ok_and(|tables| tables.lines().any(|table| table == "filter"));
    // It shows the tables of the newer iptables as well.
    if !firewall.ask(NFT) {
        firewall.ask(NFT_SAVE);
    }
    // Where the older one is the only one, it has the plain name.
    if legacy && !firewall.ask(LEGACY_SAVE) {
        firewall.ask(SAVE);
    }
    firewall
}

impl Firewall {
    /// False if nothing came of it.
    fn ask(&mut self, (program, arguments, parse): Program) -> bool {
        match run(program, arguments).and_then(|text| parse(&text)) {
            Ok(chains) => {
                self.asked.push(program);
                self.closed.dropping.extend(chains.dropping);
                self.closed.refusing.extend(chains.refusing);
                true
            }
            Err(error) => {
                self.failed.push(chain(&error));
                false
            }
        }
    }
}

fn run(program: &'static str, arguments: &[&str]) -> Result<String, FirewallError> {
    let ran = Command::new(program).args(arguments).output();
    let out = ran.map_err(|source| FirewallError::Run { program, source })?;
    if !out.status.success() {
        return Err(FirewallError::Failed {
            program,
            status: out.status,
            text: String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// libnftables-json(5).
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    expr: Vec<serde_json::Value>,
}

impl Rule {
    /// Drops or rejects every packet.
    fn is_end(&self) -> bool {
        let has = |expression: &serde_json::Value, names: &[&str]| {
            names.iter().any(|name| expression.get(name).is_some())
        };
        let end = |e: &serde_json::Value| {
            // iptables' own kind of expression.
            has(e, &["drop", "reject"]) || e["xt"]["name"] == "REJECT"
        };
        let silent = |e: &serde_json::Value| has(e, &["counter", "log"]);
        self.expr.iter().any(end) && self.expr.iter().all(|e| end(e) || silent(e))
    }
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn nft(text: &str) -> Result<Closed, FirewallError> {
    let listing: Listing = serde_json::from_str(text)?;
    let entries = &listing.nftables;
    let mut closed = Closed::default();
    for chain in entries.iter().filter_map(|entry| entry.chain.as_ref()) {
        let hook = chain.hook.as_deref().unwrap_or_default();
        if !HOOKS.contains(&hook) || !["ip", "inet"].contains(&chain.family.as_str()) {
            continue;
        }
        let name = format!("{} of table {} {}", chain.name, chain.family, chain.table);
        let mut rules = entries.iter().rev().filter_map(|entry| entry.rule.as_ref());
        let last = rules.find(|rule| {
            (&rule.family, &rule.table, &rule.chain) == (&chain.family, &chain.table, &chain.name)
        });
        if chain.policy.as_deref() == Some("drop") {
            closed.dropping.push(name);
        } else if last.is_some_and(Rule::is_end) {
            closed.refusing.push(name);
        }
    }
    Ok(closed)
}

/// iptables-save(8): ":FORWARD DROP [0:0]", "-A FORWARD -j REJECT --reject-with ...".
fn iptables(text: &str) -> Result<Closed, FirewallError> {
    let mut closed = Closed::default();
    let passed = |name: &str| HOOKS.iter().any(|hook| hook.eq_ignore_ascii_case(name));
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(chain) = words.next().and_then(|word| word.strip_prefix(':')) else {
            continue;
        };
        if !passed(chain) {
            continue;
        }
        let begin = format!("-A {chain} ");
        let last = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(&begin));
        let name = format!("{chain} of iptables' table filter");
        let ends = |rule: &str| {
            ["-j REJECT", "-j DROP"]
                .iter()
                .any(|end| rule.starts_with(end))
        };
        if words.next() == Some("DROP") {
            closed.dropping.push(name);
        } else if last.is_some_and(ends) {
            closed.refusing.push(name);
        }
    }
    Ok(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_are_found() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.1.3", "json_schema_version": 1}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1,
                "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "handle": 1,
                "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "out", "handle": 2,
                "type": "filter", "hook": "output", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1,
                "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "through", "handle": 3,
                "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}]}"#;
        let found = nft(text).unwrap();
        let dropping = ["FORWARD of table ip filter", "in of table inet fw"];
        assert_eq!(found.dropping, dropping);
        assert_eq!(found.refusing, [""; 0]);
        nft("").unwrap_err();

        let text = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [12:34]\n\
                    :OUTPUT DROP [0:0]\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n";
        let found = iptables(text).unwrap();
        assert_eq!(found.dropping, ["FORWARD of iptables' table filter"]);
        assert_eq!(found.refusing, [""; 0]);
    }

    /// As firewalld and the service iptables of Red Hat have it.
    #[test]
    fn a_last_rule_for_all_packets_is_found() {
        let listing = |last: &str| {
            format!(
                r#"{{"nftables": [
                {{"chain": {{"family": "inet", "table": "firewalld", "name": "filter_FORWARD",
                    "handle": 1, "type": "filter", "hook": "forward", "prio": 10,
                    "policy": "accept"}}}},
                {{"chain": {{"family": "inet", "table": "firewalld", "name": "zone", "handle": 2}}}},
                {{"rule": {{"family": "inet", "table": "firewalld", "chain": "filter_FORWARD",
                    "handle": 3, "expr": [{{"match": {{"op": "in", "left": {{"ct": {{"key":
                    "state"}}}}, "right": "established"}}}}, {{"accept": null}}]}}}},
                {{"rule": {{"family": "inet", "table": "firewalld", "chain": "filter_FORWARD",
                    "handle": 4, "expr": [{last}]}}}},
                {{"rule": {{"family": "inet", "table": "firewalld", "chain": "zone",
                    "handle": 5, "expr": [{{"drop": null}}]}}}}]}}"#
            )
        };
        let reject = r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#;
        let some = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "a"}}"#;
        for (last, refuses) in [
            (reject.to_owned(), true),
            (
                r#"{"counter": {"packets": 1, "bytes": 2}}, {"drop": null}"#.to_owned(),
                true,
            ),
            (
                r#"{"xt": {"type": "target", "name": "REJECT"}}"#.to_owned(),
                true,
            ),
            (format!("{some}, {reject}"), false),
            (r#"{"accept": null}"#.to_owned(), false),
        ] {
            let found = nft(&listing(&last)).unwrap();
            let wanted: &[&str] = match refuses {
                true => &["filter_FORWARD of table inet firewalld"],
                false => &[],
            };
            assert_eq!(found.refusing, wanted, "{last}");
            assert_eq!(found.dropping, [""; 0]);
        }
        let text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n\
                    -A INPUT -i lo -j REJECT\n-A FORWARD -i lo -j ACCEPT\n\
                    -A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n";
        let found = iptables(text).unwrap();
        assert_eq!(found.refusing, ["FORWARD of iptables' table filter"]);
        assert_eq!(found.dropping, [""; 0]);
    }
}
