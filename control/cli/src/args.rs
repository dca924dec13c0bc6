//! The command line's grammar: global options and the list of commands.
//!
//! Each command's own options are beside its code in `command/`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::command;

/// Runs and looks into a Hydrofoil cluster.
///
/// Takes the Kubernetes manifests that you have, in the ways that you know from
/// kubectl. `foil COMMAND --help` explains a command by examples.
#[derive(Debug, Parser)]
#[command(
    name = "foil",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = "\
First steps:
  foil config get-contexts             which control planes are known, and which is in use
  foil get nodes                       is everything there?
  foil apply -f web.yaml               create, or change to what the file says
  foil get pods -o wide -w             watch what becomes of it
  foil describe pod/web-5f6d7          why is it not running?
  foil logs -f deploy/web              what does it print?
  foil bpf service list                what does the kernel balance, on this node?

The context file is that of --config, else $FOIL_CONFIG, else ~/.foil/config; the
control plane writes one to data/admin.conf when it is first started."
)]
pub(crate) struct Foil {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Context file (default: ~/.foil/config)
    #[arg(
        long,
        env = "FOIL_CONFIG",
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// Context to use instead of the file's current one
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub(crate) context: Option<String>,
    /// Namespace to work in (default: that of the context, else "default")
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub(crate) namespace: Option<String>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Apply(command::apply::Args),
    Create(command::create::Args),
    Get(command::get::Args),
    Describe(command::describe::Args),
    Delete(command::delete::Args),
    Scale(command::scale::Args),
    Rollout(command::rollout::Args),
    Logs(command::logs::Args),
    Exec(command::exec::Args),
    Label(command::label::Args),
    Annotate(command::annotate::Args),
    Patch(command::patch::Args),
    Wait(command::wait::Args),
    Events(command::events::Args),
    Image(command::image::Args),
    Bpf(command::bpf::Args),
    Config(command::config::Args),
    ApiResources(command::api_resources::Args),
    Version(command::version::Args),
    Completion(command::completion::Args),
}
