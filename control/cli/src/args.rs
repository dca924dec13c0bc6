//! The list of commands, and what runs each of them.
//!
//! Each command's own options are beside its code in `command/`; those of all commands are in
//! `options.rs`.

use std::io::Write;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::command;
use crate::error::CommandError;
use crate::options::Global;
use crate::session::Session;

/// Controls a Hydrofoil cluster.
///
/// Manifests, commands and options are those of Kubernetes and kubectl.
/// `foil COMMAND --help` explains a command by examples.
#[derive(Debug, Parser)]
#[command(
    name = "foil",
    version = env!("HYDROFOIL_VERSION"),
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = "\
First steps:
  foil config get-contexts             known control planes, and the one in use
  foil get nodes                       nodes and their state
  foil apply -f web.yaml               create or update what the file describes
  foil get pods -o wide -w             pods, and each change
  foil describe pod/web-5f6d7          one object in detail, with its events
  foil logs -f deploy/web              output of a container
  foil bpf service list                services in the kernel of this node

The context file is that of --config, else $FOIL_CONFIG, else ~/.foil/config; the
control plane writes one to data/admin.conf when it is first started."
)]
pub(crate) struct Foil {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
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
    Cordon(command::cordon::Cordon),
    Uncordon(command::cordon::Uncordon),
    Drain(command::drain::Args),
    Wait(command::wait::Args),
    Events(command::events::Args),
    Image(command::image::Args),
    Bpf(command::bpf::Args),
    Config(command::config::Args),
    ApiResources(command::api_resources::Args),
    Version(command::version::Args),
    Completion(command::completion::Args),
}

impl Command {
    /// Runs the command to its end.
    pub(crate) async fn run(
        self,
        session: &Session,
        out: &mut dyn Write,
    ) -> Result<(), CommandError> {
        match self {
            Self::Apply(args) => command::apply::run(args, session, out).await,
            Self::Create(args) => command::create::run(args, session, out).await,
            Self::Get(args) => command::get::run(args, session, out).await,
            Self::Describe(args) => command::describe::run(args, session, out).await,
            Self::Delete(args) => command::delete::run(args, session, out).await,
            Self::Scale(args) => command::scale::run(args, session, out).await,
            Self::Rollout(args) => command::rollout::run(args, session, out).await,
            Self::Logs(args) => command::logs::run(args, session, out).await,
            Self::Exec(args) => command::exec::run(args, session).await,
            Self::Label(args) => command::label::run(args, session, out).await,
            Self::Annotate(args) => command::annotate::run(args, session, out).await,
            Self::Patch(args) => command::patch::run(args, session, out).await,
            Self::Cordon(args) => command::cordon::cordon(args, session, out).await,
            Self::Uncordon(args) => command::cordon::uncordon(args, session, out).await,
            Self::Drain(args) => command::drain::run(args, session, out).await,
            Self::Wait(args) => command::wait::run(args, session, out).await,
            Self::Events(args) => command::events::run(args, session, out).await,
            Self::Image(args) => command::image::run(args, out).await,
            Self::Bpf(args) => command::bpf::run(args, out),
            Self::Config(args) => command::config::run(args, session, out),
            Self::ApiResources(args) => command::api_resources::run(args, session, out).await,
            Self::Version(args) => command::version::run(args, session, out).await,
            Self::Completion(args) => command::completion::run(args, Foil::command(), out),
        }
    }
}
