//! `foil version`: ours, and the control plane's.

use std::io::Write;

use crate::error::CommandError;
use crate::session::Session;

/// Print the version of foil and of the control plane
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil version
  foil version --client          does not contact the control plane")]
pub(crate) struct Args {
    /// Print only the version of foil
    #[arg(long)]
    client: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    writeln!(out, "Client Version: {}", env!("HYDROFOIL_VERSION"))?;
    if !args.client {
        out.flush()?;
        let mut client = session.connect().await?;
        let version = client.version().await?;
        let version_of_server = version.version.trim_start_matches('v');
        writeln!(out, "Server Version: v{version_of_server}")?;
        writeln!(
            out,
            "Cluster: {} at {}",
            version.cluster_id,
            client.server()
        )?;
    }
    Ok(())
}
