//! The program `foil-control`: reads its configuration, serves until a signal.
//!
//! Everything else is in the library beside it.

#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use control_server::pki::Pki;
use control_server::token::{Scope, Tokens};
use control_server::{Config, start};
use jiff::{SignedDuration, Timestamp};
use sd_notify::NotifyState;
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
        ttl: Ttl,
    },
    /// Make a new context file for an operator, who may do everything, and print it.
    ///
    /// Contexts made before stay valid until their certificates expire.
    AdminConfig {
        /// Name of the operator, which the server's log and audits show
        #[arg(long, value_name = "NAME", default_value = "admin", value_parser = operator_name)]
        user: String,
        /// How long the certificate is valid: 24h, 365d
        #[arg(long, value_name = "DURATION", default_value = "365d")]
        ttl: Ttl,
        /// Address of the control plane; default: the first of `names`, the port of `listen`
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// Write it to this file, readable by its owner only, instead of printing it
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// A positive duration. Days are 24 hours.
#[derive(Debug, Clone, Copy)]
struct Ttl(SignedDuration);

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let days = text.strip_suffix('d').and_then(|days| days.parse().ok());
        let life = match days {
            // As many as fit a certificate, and more than any CA lives.
            Some(days @ 0..=36_500_i64) => SignedDuration::from_hours(24 * days),
            Some(_) => return Err("at most 36500d".to_owned()),
            None => text
                .parse()
                .map_err(|error: jiff::Error| error.to_string())?,
        };
        if life.is_positive() {
            Ok(Self(life))
        } else {
            Err("must be positive".to_owned())
        }
    }
}

/// It becomes part of a YAML file and of a certificate's subject.
fn operator_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._@".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("letters, digits and -._@, a letter first".to_owned())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let logs = arguments.command.is_none();
    if logs {
        log();
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = proto::error::chain(error.as_ref());
            if logs {
                tracing::error!("{text}");
            } else {
                eprintln!("error: {text}");
            }
            ExitCode::FAILURE
        }
    }
}

fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let path = arguments.config.display();
    let text = std::fs::read_to_string(&arguments.config).with_context(|| path.to_string())?;
    let config = Config::parse(&text).with_context(|| path.to_string())?;
    let now = Timestamp::now();
    match arguments.command {
        Some(Command::JoinToken { node, ttl }) => {
            let pki = Pki::open(&config.data, now)?;
            let scope = node.map_or(Scope::Once, Scope::Node);
            let token = Tokens::new(pki.folder()).make(&scope, ttl.0, now)?;
            println!("token = \"{token}\"\nca_hash = \"{}\"", pki.ca_hash());
            return Ok(());
        }
        Some(Command::AdminConfig {
            user,
            ttl,
            server,
            output,
        }) => {
            let pki = Pki::open(&config.data, now)?;
            let signed = pki.operator(&user, ttl.0, now)?;
            let server = server.unwrap_or_else(|| config.url(config.listen.port()));
            let context = pki.context(&server, &user, &signed);
            let Some(path) = output else {
                print!("{context}");
                return Ok(());
            };
            let written = proto::file::replace(&path, context.as_bytes(), 0o600);
            return written.with_context(|| format!("write {}", path.display()));
        }
        None => {}
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
    tell(NotifyState::Ready);
    tokio::select! {
        ended = running.wait() => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending on a signal");
    tell(NotifyState::Stopping);
    Ok(running.stop().await?)
}

/// Tells the service manager, if there is one (sd_notify(3)).
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
