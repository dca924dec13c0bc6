//! `foil-agent`: one per node. Reads its configuration, opens what it works with,
//! joins the cluster if it has not yet, adopts what it finds, and runs the loop.
//!
//! Exit codes: 0 ended when asked to, 1 could not start or run, 2 wrong usage.
//! Pods keep running when it ends, also after `kill -9`; `cleanup` ends them.

#![forbid(unsafe_code)]

mod alone;
mod answer;
mod apply;
mod attach;
mod check;
mod cleanup;
mod clock;
mod config;
mod credentials;
mod devices;
mod dns;
mod drops;
mod event;
mod exec;
mod facts;
mod failpoint;
mod firewall;
mod flows;
mod health;
mod health_check;
mod images;
mod join;
mod kernel;
mod last_words;
mod limits;
mod local_ports;
mod log_file;
mod logs;
mod node;
mod observe;
mod preflight;
mod probes;
mod problems;
mod pulls;
mod pushed;
mod pushed_change;
mod pushed_file;
mod record;
mod record_queue;
mod refused;
mod renew;
mod report;
mod sandbox;
mod serve;
mod services;
mod shims;
mod startup;
mod tls;
mod touched;
mod watch;
mod workload;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent_sys::bpf::Datapath;
use agent_sys::link::Monitor;
use agent_sys::notify;
use agent_sys::state::Layout;
use agent_sys::tmpfs::InMemory;
use anyhow::Context;
use clap::{Parser, Subcommand};
use proto::v1;
use tokio::sync::{mpsc, watch as channel};

use crate::alone::{Alone, Missing};
use crate::apply::Apply;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::dns::Dns;
use crate::event::Event;
use crate::health::Health;
use crate::node::Node;
use crate::observe::Found;
use crate::startup::Sys;

/// Runs the pods of one node of a Hydrofoil cluster.
///
/// Without a subcommand it runs until SIGTERM; pods run on without it, and the
/// next start adopts them.
#[derive(Debug, Parser)]
#[command(name = "foil-agent", version = env!("HYDROFOIL_VERSION"))]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ends all pods of this node and removes everything that Hydrofoil made: links, pins,
    /// cgroups, mounts, folders. For a node that leaves its cluster; the agent must
    /// not be running.
    #[command(alias = "clean")]
    Cleanup,
    /// Prints what cluster DNS has done on this node since the agent was started: queries
    /// by type, replies by code, and what the cache and upstream servers had of them.
    Dns,
    /// Checks whether the agent could start here: configuration, folders, cgroups,
    /// network, firewall, kernel, BPF programs, control plane and certificate. Changes
    /// nothing. Prints a line for each, with the cure; exit code 1 if one is not ok. Of
    /// the firewall it warns only.
    Check,
}

/// Events on their way to the loop.
const EVENTS: usize = 4096;
/// Another try to join while the control plane cannot be reached.
const JOIN_PAUSE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let checks = matches!(arguments.command, Some(Command::Check | Command::Dns));
    let level = if checks {
        tracing_subscriber::filter::LevelFilter::ERROR
    } else {
        tracing_subscriber::filter::LevelFilter::INFO
    };
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = proto::error::chain(error.as_ref());
            if checks {
                eprintln!("error: {text}");
            } else {
                tracing::error!("{text}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.config;
    let loaded = config::load(path);
    if let (Some(Command::Check), Err(error)) = (&arguments.command, &loaded) {
        let wrong = proto::error::chain(error);
        println!("not ok  configuration {}: {wrong}", path.display());
        println!("        README.md lists all keys.");
        anyhow::bail!("the other checks need the configuration");
    }
    let config = loaded.with_context(|| format!("configuration {}", path.display()))?;
    // Whoever makes TLS without naming a provider (the registry's client) gets this one.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
    agent_sys::heap::few_arenas();
    // Before any other descriptor is opened.
    let inherited = agent_sys::fdstore::inherited().unwrap_or_else(|error| {
        tracing::warn!(%error, "what the service manager has kept is not used");
        Vec::new()
    });
    // One thread for the loop and what it waits for; slow calls have their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = match &arguments.command {
        Some(Command::Check) => runtime.block_on(check(path, &config)),
        Some(Command::Cleanup) => runtime.block_on(clean(&config)),
        Some(Command::Dns) => dns_status(&config),
        None => runtime.block_on(serve(config, inherited)),
    };
    // Tasks that still wait (a pull, a hook) must not hold back the end.
    runtime.shutdown_background();
    ended
}

async fn check(path: &Path, config: &Config) -> anyhow::Result<()> {
    println!("ok      configuration: {}", path.display());
    let checks = preflight::run(config).await;
    for check in &checks {
        println!("{check}");
    }
    let failed = checks.iter().filter(|check| !check.is_ok()).count();
    anyhow::ensure!(
        failed == 0,
        "{failed} of {} checks failed",
        checks.len() + 1
    );
    Ok(())
}

fn dns_status(config: &Config) -> anyhow::Result<()> {
    let layout = Layout::new(&config.root, &config.run);
    let pushed = pushed_file::config(&layout).context("what was last pushed")?;
    let address = pushed.map(|config| config.dns_address).unwrap_or_default();
    let address = address
        .parse()
        .ok()
        .context("this node does not serve cluster DNS")?;
    for line in agent_dns::status::ask(SocketAddr::new(address, agent_dns::PORT))? {
        println!("{line}");
    }
    Ok(())
}

async fn clean(config: &Config) -> anyhow::Result<()> {
    let alone = alone::in_folders(config).await?;
    let _alone = alone.with_parts(config, Missing::Left).await?;
    let removed = match cleanup::run(config).await {
        Ok(removed) => removed,
        Err(error) => {
            alone::forget(&config.run);
            return Err(error.into());
        }
    };
    for what in &removed.done {
        tracing::info!("removed {what}");
    }
    for what in &removed.left {
        tracing::warn!("left alone: {what}");
    }
    for what in &removed.failed {
        tracing::error!("not removed: {what}");
    }
    anyhow::ensure!(
        removed.failed.is_empty(),
        "{} things could not be removed",
        removed.failed.len()
    );
    Ok(())
}

/// What the loop begins with.
struct Opened {
    alone: Alone,
    sys: Arc<Sys>,
    datapath: Datapath,
    dns: Dns,
    monitor: Monitor,
    found: Found,
    queue: mpsc::Receiver<Event>,
}

/// Opens all that the agent works with, and adopts what it finds.
async fn open(
    config: &Config,
    run: &Arc<InMemory>,
    inherited: Vec<(String, OwnedFd)>,
) -> anyhow::Result<Opened> {
    let alone = alone::in_folders(config).await?;
    let alone = alone.with_parts(config, Missing::Made).await?;
    let layout = Layout::new(&config.root, &config.run);
    let kept = pushed_file::open(&layout).context("what was last pushed")?;
    let dns = Dns::start(config, kept.1.as_ref(), inherited);
    let (events, queue) = mpsc::channel(EVENTS);
    let (sys, datapath) = startup::open(config, run.clone(), events)
        .await
        .context("foil-agent cannot start")?;
    let monitor = kernel::monitor(&sys.settings).context("open an rtnetlink socket")?;
    let found = observe::observe(&sys, &datapath, kept, clock::moment())
        .await
        .context("observe the node")?;
    Ok(Opened {
        alone,
        sys,
        datapath,
        dns,
        monitor,
        found,
        queue,
    })
}

async fn serve(config: Config, inherited: Vec<(String, OwnedFd)>) -> anyhow::Result<()> {
    tracing::info!(?config, "configuration");
    let run = Arc::new(startup::in_memory(&config)?);
    let opened = open(&config, &run, inherited).await;
    if opened.is_err()
        && let Err(error) = run.abandon()
    {
        tracing::error!("{error}");
    }
    let Opened {
        alone: _alone,
        sys,
        datapath,
        dns,
        monitor,
        found,
        queue,
    } = opened?;
    let now = clock::moment();
    tracing::info!(
        pods = found.observed.pods.len(),
        services = found.desired.services.len(),
        revision = found.kept.head.revision,
        "adopted"
    );
    tokio::spawn(record::run(sys.clone()));
    let health = Health::new(&config, &sys, now);
    let hello = v1::Hello {
        node_name: config.node_name.clone(),
        agent_version: pushed::VERSION.into(),
        service_changes: true,
        status: Some(health.status()),
        ..v1::Hello::default()
    };
    let (calls, callable) = channel::channel(None);
    let idle = found.observed.pods.is_empty();
    let node = Node::new(
        Apply {
            sys: sys.clone(),
            datapath: Arc::new(datapath),
        },
        found,
        hello,
        callable,
        (health, dns),
        now.monotonic,
    );
    tokio::spawn(kernel::listen(sys.clone(), monitor));
    let speak = tokio::spawn(speak(config, sys.clone(), calls, idle));
    let run = tokio::spawn(node.run(queue));
    // What was found is adopted, the programs are loaded, DNS is answered. Joining may wait for
    // the control plane, and those that wait for this node for nothing of it.
    tell(notify::ready());
    tokio::select! {
        ended = run => {
            tell(notify::stopping());
            record::flush(&sys).await;
            Ok(ended.context("event loop")??)
        }
        refused = speak => refused.context("connection to the control plane")?,
    }
}

fn tell(told: std::io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Joins if need be, then holds the stream. Returns only when the node is refused.
async fn speak(
    config: Config,
    sys: Arc<Sys>,
    calls: channel::Sender<Option<tonic::transport::Channel>>,
    idle: bool,
) -> anyhow::Result<()> {
    let (identity, is_new) = match join::kept(&config)? {
        // It was away too long for a renewal.
        Some(identity) if config.join.is_some() && renew::is_over(&identity) => {
            tracing::warn!("the node's certificate has expired: joining again");
            (joined(&config).await?, true)
        }
        Some(identity) => (identity, false),
        None => (joined(&config).await?, true),
    };
    let control = config.control.clone();
    let folder = identity.folder.clone();
    let (credentials, tls) = Credentials::new(config, identity, is_new, calls.subscribe())?;
    watch::run(watch::Watch {
        control,
        tls,
        credentials,
        calls,
        folder,
        idle,
        sys,
    })
    .await?;
    Ok(())
}

async fn joined(config: &Config) -> anyhow::Result<tls::Identity> {
    let mut last = String::new();
    loop {
        match join::join(config).await {
            Ok(identity) => {
                tracing::info!(node = config.node_name, "joined the cluster");
                return Ok(identity);
            }
            Err(error) if error.is_temporary() => {
                let text = error.to_string();
                if text != last {
                    tracing::warn!("{text}; retrying");
                }
                last = text;
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(error).context("join the cluster"),
        }
    }
}
