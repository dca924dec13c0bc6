//! The program `foil-control`: reads its configuration, serves until a signal.
//!
//! Everything else is in the library beside it.

#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use control_server::pki::Pki;
use control_server::token::{Scope, Tokens};
use control_server::{Config, start};
use jiff::{SignedDuration, Timestamp};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The control plane of a Hydrofoil cluster: keeps its objects, decides, and
/// pushes to the nodes' agents.
#[derive(Parser)]
#[command(version = env!("HYDROFOIL_VERSION"))]
struct Arguments {
    /// Configuration, TOML. Only `data`, a folder, has to be in it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Make a join token, and print the lines of an agent's [join] section.
    ///
    /// The token is for one node: the first that uses it, or the one that --node
    /// names. It does not replace a node that is there: delete its Node object
    /// first.
    JoinToken {
        /// Only the node of this name can use the token, as often as it asks
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// How long the token is valid: 30m, 24h
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        ttl: SignedDuration,
    },
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
    let arguments = Arguments::parse();
    let path = arguments.config.display();
    let text = std::fs::read_to_string(&arguments.config).with_context(|| path.to_string())?;
    let config = Config::parse(&text).with_context(|| path.to_string())?;
    if let Some(Command::JoinToken { node, ttl }) = arguments.command {
        anyhow::ensure!(ttl.is_positive(), "--ttl must be positive");
        let now = Timestamp::now();
        let pki = Pki::open(&config.data, now)?;
        let scope = node.map_or(Scope::Once, Scope::Node);
        let token = Tokens::new(pki.folder()).make(&scope, ttl, now)?;
        println!("token = \"{token}\"\nca_hash = \"{}\"", pki.ca_hash());
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    tracing::info!("configuration: {config:?}");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut running = start(&config).await?;
    tokio::select! {
        ended = running.wait() => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending on a signal");
    Ok(running.stop().await?)
}
