//! `foil api-resources`: which kinds there are, and what they are called.

use std::io::Write;

use crate::error::CommandError;
use crate::output::table::Table;
use crate::session::Session;

/// Print the kinds that the control plane knows
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil api-resources
  foil api-resources -o name")]
pub(crate) struct Args {
    /// Leave out the line of column names
    #[arg(long)]
    no_headers: bool,
    /// Output format: name (names only)
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name", "wide"])]
    output: Option<String>,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let mut table = Table::default();
    let names = args.output.as_deref() == Some("name");
    if !args.no_headers && !names {
        table.row(
            ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]
                .map(String::from)
                .to_vec(),
        );
    }
    let mut kinds = client.kinds().await?;
    kinds.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
    for kind in kinds {
        table.row(if names {
            vec![kind.resource()]
        } else {
            let (short, version) = (kind.short_names.join(","), kind.api_version());
            vec![
                kind.plural,
                short,
                version,
                kind.namespaced.to_string(),
                kind.kind,
            ]
        });
    }
    Ok(table.flush(out)?)
}
