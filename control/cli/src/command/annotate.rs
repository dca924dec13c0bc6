//! `foil annotate`: see `label.rs`, which does the work.

use std::io::Write;

use super::label;
use crate::error::CommandError;
use crate::session::Session;

/// Set or remove annotations
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil annotate deploy/web kubernetes.io/change-cause='image 2'
  foil annotate pods --all note-")]
pub(crate) struct Args {
    #[command(flatten)]
    change: label::Change,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let what = label::What {
        field: "annotations",
        words: ["annotated", "annotated", "annotated (no change)"],
        manager: "foil-annotate",
    };
    label::change(args.change, what, session, out).await
}
