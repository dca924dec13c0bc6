//! One file per command: its options, its help, its code.
//!
//! `run` is the only place that knows all of them. A command gets the session
//! and somewhere to print; it returns an error for `main` to print.

pub(crate) mod annotate;
pub(crate) mod api_resources;
pub(crate) mod apply;
pub(crate) mod bpf;
mod bpf_rows;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod label;
pub(crate) mod logs;
pub(crate) mod patch;
pub(crate) mod rollout;
mod rollout_status;
pub(crate) mod scale;
pub(crate) mod version;
pub(crate) mod wait;

use std::io::Write;

use crate::args::Command;
use crate::error::CommandError;
use crate::session::Session;

/// Runs one command to its end.
pub(crate) async fn run(
    command: Command,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    match command {
        Command::Apply(args) => apply::run(args, session, out).await,
        Command::Create(args) => create::run(args, session, out).await,
        Command::Get(args) => get::run(args, session, out).await,
        Command::Describe(args) => describe::run(args, session, out).await,
        Command::Delete(args) => delete::run(args, session, out).await,
        Command::Scale(args) => scale::run(args, session, out).await,
        Command::Rollout(args) => rollout::run(args, session, out).await,
        Command::Logs(args) => logs::run(args, session, out).await,
        Command::Exec(args) => exec::run(args, session).await,
        Command::Label(args) => label::run(args, session, out).await,
        Command::Annotate(args) => annotate::run(args, session, out).await,
        Command::Patch(args) => patch::run(args, session, out).await,
        Command::Wait(args) => wait::run(args, session, out).await,
        Command::Events(args) => events::run(args, session, out).await,
        Command::Image(args) => image::run(args, out).await,
        Command::Bpf(args) => bpf::run(args, out),
        Command::Config(args) => config::run(args, session, out),
        Command::ApiResources(args) => api_resources::run(args, session, out).await,
        Command::Version(args) => version::run(args, session, out).await,
        Command::Completion(args) => completion::run(args, out),
    }
}
