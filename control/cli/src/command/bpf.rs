//! `foil bpf`: what is in the kernel's maps on this node, as a person reads it.
//!
//! Reads the pinned maps, so it works when agent and control plane are dead.
//! What a row looks like is in `bpf_rows.rs`; how a map is read, in `agent-sys`.

use std::io::Write;
use std::path::PathBuf;

use agent_sys::maps::Maps;
use serde_json::{Map, Value};

use super::bpf_choices;
use super::bpf_error::BpfError;
use super::bpf_flows::{self, Filter};
use super::bpf_rows::{self, BackendUse, Names, Row};
use crate::error::CommandError;
use crate::output;
use crate::output::table::Table;

/// Print the BPF maps of this node
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Needs root on the node, and nothing else: not the agent, not the control plane.
The same maps are readable by `bpftool map dump pinned FOLDER/NAME`.

Examples:
  foil bpf service list                    addresses, and the backends behind them
  foil bpf backend list                    and what went to each
  foil bpf maglev list                     shares of backends in new connections
  foil bpf affinity list                   clients that keep their backend
  foil bpf endpoint list                   the pods of this node
  foil bpf flow list --service web         connections of a service, newest last
  foil bpf flow list --pod client --state estab,syn-sent
  foil bpf flow list --count --all
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
    /// Service addresses and their backends
    #[command(visible_alias = "services")]
    Service(Verb),
    /// Backends with their state, connections, packets and bytes
    #[command(visible_alias = "backends")]
    Backend(Verb),
    /// The pods of this node
    #[command(visible_alias = "endpoints")]
    Endpoint(Verb),
    /// Share of each backend in the choice table of its service port
    #[command(visible_alias = "choices")]
    Maglev(Verb),
    /// Backends that clients of services with session affinity keep
    Affinity(Verb),
    /// Flows: each connection has one for each direction
    #[command(visible_alias = "flows")]
    Flow(FlowVerb),
    /// Packets and bytes by reason and hook
    #[command(visible_alias = "counters")]
    Counter(Verb),
    /// Map layout version, address blocks, and map usage
    Config(Verb),
}

#[derive(Debug, clap::Args)]
struct Verb {
    #[command(subcommand)]
    verb: List,
}

#[derive(Debug, clap::Subcommand)]
enum List {
    /// Print every entry
    #[command(visible_alias = "ls")]
    List(Format),
}

#[derive(Debug, clap::Args)]
struct FlowVerb {
    #[command(subcommand)]
    verb: FlowList,
}

#[derive(Debug, clap::Subcommand)]
enum FlowList {
    /// Print open flows, the most recently active one last
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
struct Format {
    /// Output format: table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Leave out the line of column names
    #[arg(long)]
    no_headers: bool,
}

pub(crate) fn run(args: Args, out: &mut dyn Write) -> Result<(), CommandError> {
    let maps = Maps::open(&args.bpffs).map_err(BpfError::Open)?;
    let names = Names::new(maps.names().map_err(BpfError::from)?);
    let (rows, List::List(format)) = match args.what {
        What::Flow(verb) => {
            let FlowList::List { filter, format } = verb.verb;
            return flows(&maps, &names, &filter, &format, out);
        }
        What::Service(verb) => (services(&maps, &names)?, verb.verb),
        What::Backend(verb) => (backends(&maps, &names)?, verb.verb),
        What::Maglev(verb) => (
            bpf_choices::shares(
                &maps.choices().map_err(BpfError::from)?,
                &maps.backends().map_err(BpfError::from)?,
                &names,
            ),
            verb.verb,
        ),
        What::Affinity(verb) => (affinities(&maps, &names)?, verb.verb),
        What::Endpoint(verb) => (
            bpf_rows::endpoints(maps.endpoints().map_err(BpfError::from)?, &names),
            verb.verb,
        ),
        What::Counter(verb) => (
            bpf_rows::counters(&maps.counters().map_err(BpfError::from)?),
            verb.verb,
        ),
        What::Config(verb) => (config(&maps)?, verb.verb),
    };
    print(rows, &format, out)
}

fn flows(
    maps: &Maps,
    names: &Names,
    filter: &Filter,
    format: &Format,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    filter.check(names)?;
    let endpoints = maps.endpoints().map_err(BpfError::from)?;
    let backends = maps.backends().map_err(BpfError::from)?;
    let context = bpf_flows::Context::new(&endpoints, &backends, names);
    let four = maps.flows().map_err(BpfError::from)?;
    let six = maps.flows6().map_err(BpfError::from)?;
    let found = filter.apply(four, six, &context);
    if filter.count {
        return Ok(writeln!(out, "{}", found.len())?);
    }
    if found.is_empty() && format.output == "table" {
        out.flush()?;
        eprintln!("{}", filter.nothing());
        return Ok(());
    }
    print(bpf_flows::rows(&found, &context), format, out)
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
    let mut open = bpf_flows::Traffic::new();
    bpf_flows::add_open_traffic(&maps.flows()?, &mut open);
    bpf_flows::add_open_traffic(&maps.flows6()?, &mut open);
    let mut all = Vec::new();
    for (id, backend) in maps.backends()? {
        let mut stats = maps.backend_stats(id)?;
        let (packets, bytes) = open.get(&id).copied().unwrap_or_default();
        stats.packets += packets;
        stats.bytes += bytes;
        all.push(BackendUse {
            id,
            backend,
            stats,
            open: maps.open_connections(id)?,
        });
    }
    Ok(bpf_rows::backends(all, names))
}

fn affinities(maps: &Maps, names: &Names) -> Result<Vec<Row>, BpfError> {
    Ok(bpf_choices::affinities(
        maps.affinities()?,
        &maps.frontends()?,
        &maps.backends()?,
        agent_sys::clock::monotonic_ms(),
        names,
    ))
}

fn config(maps: &Maps) -> Result<Vec<Row>, BpfError> {
    use ebpf_common::endpoint::MAX_ENDPOINTS;
    use ebpf_common::maps::{MAX_AFFINITY, MAX_BACKENDS, MAX_FRONTENDS};
    let mut full = vec![
        ("endpoints", maps.endpoints()?.len(), MAX_ENDPOINTS),
        ("frontends", maps.frontends()?.len(), MAX_FRONTENDS),
        ("backends", maps.backends()?.len(), MAX_BACKENDS),
        ("affinity", maps.affinities()?.len(), MAX_AFFINITY),
        ("flows", maps.flows()?.len(), maps.flow_entries()? as usize),
    ];
    if let Some(most) = maps.flow_entries6()? {
        full.push(("flows6", maps.flows6()?.len(), most as usize));
    }
    Ok(bpf_rows::config(&maps.networks()?, &full))
}

fn print(rows: Vec<Row>, format: &Format, out: &mut dyn Write) -> Result<(), CommandError> {
    if format.output == "json" {
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
        eprintln!("No entries found.");
        return Ok(());
    };
    if !format.no_headers {
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
