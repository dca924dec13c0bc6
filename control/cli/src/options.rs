//! Options that every command takes.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};

/// Options of all commands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Context file (default: ~/.foil/config)
    #[arg(
        long,
        env = "FOIL_CONFIG",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
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
