//! `foil completion`: what the shell needs to complete our words.

use std::io::Write;

use crate::error::CommandError;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  source <(foil completion bash)
  foil completion bash > /etc/bash_completion.d/foil
  foil completion zsh > \"${fpath[1]}/_foil\"
  foil completion fish > ~/.config/fish/completions/foil.fish")]
pub(crate) struct Args {
    /// Shell to print the script for
    shell: Shell,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `grammar` is the whole command line.
pub(crate) fn run(
    args: Args,
    mut grammar: clap::Command,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // By way of a buffer: the generator panics when its writer fails, and a pipe may be closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar, "foil", &mut script);
    Ok(out.write_all(&script)?)
}
