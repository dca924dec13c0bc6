//! The host's firewall, as far as it stops pods: chains at the hooks input and forward that
//! drop what no rule accepts.
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

type Parser = fn(&str) -> Result<Vec<String>, FirewallError>;

const NFT: Program = ("nft", &["-j", "list", "chains"], nft);
const SAVE: Program = ("iptables-save", &["-t", "filter"], iptables);
const LEGACY_SAVE: Program = ("iptables-legacy-save", &["-t", "filter"], iptables);

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    /// Chains that drop: "forward of table ip filter".
    pub(crate) dropping: Vec<String>,
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

impl FirewallError {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Run { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Asks the programs that are there.
pub(crate) fn read() -> Firewall {
    let mut firewall = Firewall::default();
    let legacy = fs::read_to_string(LEGACY_TABLES)
        .is_ok_and(|tables| tables.lines().any(|table| table == "filter"));
    // It shows the tables of the newer iptables as well.
    if !firewall.ask(NFT) || (legacy && !firewall.ask(LEGACY_SAVE)) {
        firewall.ask(SAVE);
    }
    firewall
}

impl Firewall {
    /// False if there is no such program.
    fn ask(&mut self, (program, arguments, parse): Program) -> bool {
        match run(program, arguments).and_then(|text| parse(&text)) {
            Ok(chains) => {
                self.asked.push(program);
                self.dropping.extend(chains);
                true
            }
            Err(error) => {
                self.failed.push(chain(&error));
                !error.is_absent()
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
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn nft(text: &str) -> Result<Vec<String>, FirewallError> {
    let listing: Listing = serde_json::from_str(text)?;
    let chains = listing.nftables.into_iter().filter_map(|entry| entry.chain);
    let dropping = chains.filter(|chain| {
        let hook = chain.hook.as_deref().unwrap_or_default();
        HOOKS.contains(&hook)
            && ["ip", "inet"].contains(&chain.family.as_str())
            && chain.policy.as_deref() == Some("drop")
    });
    Ok(dropping
        .map(|chain| format!("{} of table {} {}", chain.name, chain.family, chain.table))
        .collect())
}

/// iptables-save(8): ":FORWARD DROP [0:0]".
fn iptables(text: &str) -> Result<Vec<String>, FirewallError> {
    let policies = text.lines().filter_map(|line| {
        let mut words = line.strip_prefix(':')?.split(' ');
        let (name, policy) = (words.next()?, words.next()?);
        let passed = HOOKS.iter().any(|hook| hook.eq_ignore_ascii_case(name));
        (passed && policy == "DROP").then(|| format!("{name} of iptables' table filter"))
    });
    Ok(policies.collect())
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
        assert_eq!(found, ["FORWARD of table ip filter", "in of table inet fw"]);
        nft("").unwrap_err();

        let text = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [12:34]\n\
                    :OUTPUT DROP [0:0]\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n";
        let found = iptables(text).unwrap();
        assert_eq!(found, ["FORWARD of iptables' table filter"]);
    }
}
