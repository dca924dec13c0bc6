//! `foil bpf`: what is in the kernel's maps on this node, as a person reads it.
//!
//! Reads the pinned maps, so it works when agent and control plane are dead.
//! What a row looks like is in `bpf_rows.rs`; how a map is read, in `agent-sys`.

use std::io::Write;
use std::path::PathBuf;

use agent_sys::maps::{Maps, MapsError};
use serde_json::{Map, Value};

use super::bpf_rows::{self, Names, Row};
use crate::error::CommandError;
use crate::output;
use crate::output::table::Table;

/// The maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    #[error("{0}\n  Is this the agent's `bpffs` folder (--bpffs), on this node, and are you root?")]
    Open(#[source] MapsError),
    #[error(transparent)]
    Read(#[from] MapsError),
}

/// Print what the kernel's maps hold on this node
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Needs root on the node, and nothing else: not the agent, not the control plane.
The same maps are readable by `bpftool map dump pinned FOLDER/NAME`.

Examples:
  foil bpf service list                    addresses, and the backends behind them
  foil bpf backend list                    and what went to each
  foil bpf endpoint list                   the pods of this node
  foil bpf flow list -o json               connections, both directions
  foil bpf counter list                    why packets were dropped, and where
  foil bpf --bpffs /run/n1/bpf config list another folder")]
pub(crate) struct Args {
    /// Folder of the pinned maps (`bpffs` in the agent's config)
    #[arg(
        long,
        global = true,
        env = "FOIL_BPFFS",
        alias = "pins",
        default_value = "/sys/fs/bpf/hydrofoil",
        value_name = "FOLDER"
    )]
    bpffs: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Service addresses, and the backends behind them
    #[command(visible_alias = "services")]
    Service(Verb),
    /// Backends, their state, and what went to them
    #[command(visible_alias = "backends")]
    Backend(Verb),
    /// The pods of this node
    #[command(visible_alias = "endpoints")]
    Endpoint(Verb),
    /// Flows, both directions of each
    #[command(visible_alias = "flows")]
    Flow(Verb),
    /// Packets and bytes by reason and hook
    #[command(visible_alias = "counters")]
    Counter(Verb),
    /// Version of the layout, address blocks, how full the maps are
    Config(Verb),
}

#[derive(Debug, clap::Args)]
struct Verb {
    #[command(subcommand)]
    verb: List,
}

#[derive(Debug, clap::Subcommand)]
enum List {
    /// Print all of it
    #[command(visible_alias = "ls")]
    List {
        /// table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
        /// Without the line of column names
        #[arg(long)]
        no_headers: bool,
    },
}

pub(crate) fn run(args: Args, out: &mut dyn Write) -> Result<(), CommandError> {
    let maps = Maps::open(&args.bpffs).map_err(BpfError::Open)?;
    let names = Names::new(maps.names().map_err(BpfError::from)?);
    let (rows, verb) = match args.what {
        What::Service(verb) => (services(&maps, &names)?, verb),
        What::Backend(verb) => (backends(&maps, &names)?, verb),
        What::Endpoint(verb) => (
            bpf_rows::endpoints(maps.endpoints().map_err(BpfError::from)?, &names),
            verb,
        ),
        What::Flow(verb) => {
            let endpoints = maps.endpoints().map_err(BpfError::from)?;
            (
                bpf_rows::flows(maps.flows().map_err(BpfError::from)?, &endpoints, &names),
                verb,
            )
        }
        What::Counter(verb) => (
            bpf_rows::counters(&maps.counters().map_err(BpfError::from)?),
            verb,
        ),
        What::Config(verb) => (config(&maps)?, verb),
    };
    let List::List { output, no_headers } = verb.verb;
    print(rows, &output, no_headers, out)
}

fn services(maps: &Maps, names: &Names) -> Result<Vec<Row>, BpfError> {
    Ok(bpf_rows::services(
        maps.frontends()?,
        &maps.choices()?,
        &maps.backends()?,
        names,
    ))
}

fn backends(maps: &Maps, names: &Names) -> Result<Vec<Row>, BpfError> {
    let mut all = Vec::new();
    for (id, backend) in maps.backends()? {
        all.push((id, backend, maps.backend_stats(id)?));
    }
    Ok(bpf_rows::backends(all, names))
}

fn config(maps: &Maps) -> Result<Vec<Row>, BpfError> {
    use ebpf_common::maps::{MAX_BACKENDS, MAX_ENDPOINTS, MAX_FLOWS, MAX_FRONTENDS};
    let full = [
        ("endpoints", maps.endpoints()?.len(), MAX_ENDPOINTS),
        ("frontends", maps.frontends()?.len(), MAX_FRONTENDS),
        ("backends", maps.backends()?.len(), MAX_BACKENDS),
        ("flows", maps.flows()?.len(), MAX_FLOWS),
    ];
    Ok(bpf_rows::config(&maps.networks()?, &full))
}

fn print(
    rows: Vec<Row>,
    format: &str,
    no_headers: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if format == "json" {
        let object = |row: Row| -> Value {
            row.cells
                .into_iter()
                .map(|cell| (cell.key.to_string(), cell.value))
                .collect::<Map<_, _>>()
                .into()
        };
        let all: Vec<Value> = rows.into_iter().map(object).collect();
        return Ok(writeln!(out, "{}", output::pretty(&Value::Array(all)))?);
    }
    let mut table = Table::default();
    let Some(first) = rows.first() else {
        out.flush()?;
        eprintln!("Nothing is in this map.");
        return Ok(());
    };
    if !no_headers {
        table.row(
            first
                .cells
                .iter()
                .map(|cell| cell.key.to_uppercase().replace('_', "-"))
                .collect(),
        );
    }
    for row in rows {
        table.row(row.cells.into_iter().map(|cell| cell.text).collect());
    }
    Ok(table.flush(out)?)
}
