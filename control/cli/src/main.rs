//! `foil`: the operator's command line.
//!
//! Reads the arguments, runs one command on one thread, prints its error. What
//! commands there are is in `args.rs`; each is a file in `command/`.

#![forbid(unsafe_code)]

mod args;
mod client;
mod command;
mod config;
mod describe;
mod duration;
mod error;
mod follow;
mod hint;
mod kinds;
mod manifest;
mod options;
mod output;
mod printer;
mod reach;
mod select;
mod session;
mod status;
mod terminal;
mod view;
mod yaml;

use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use error::CommandError;

fn main() -> anyhow::Result<ExitCode> {
    // Usage errors end the process here, with exit code 2.
    let args = args::Foil::try_parse().unwrap_or_else(|error| {
        let words: Vec<String> = std::env::args().skip(1).collect();
        match hint::of(&words).filter(|_| error.exit_code() != 0) {
            Some(hint) => {
                eprintln!("error: {hint}");
                std::process::exit(error.exit_code());
            }
            None => error.exit(),
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let mut out = BufWriter::new(std::io::stdout());
    let session = session::Session::new(args.global);
    let result = runtime.block_on(args.command.run(&session, &mut out));
    // A read of standard input may still be waiting: do not wait for it.
    runtime.shutdown_background();
    let result = result.and_then(|()| Ok(out.flush()?));
    let Err(error) = result else {
        return Ok(ExitCode::SUCCESS);
    };
    if error.is_broken_pipe() {
        // `foil get pods | head -1`: the reader has what it wanted. What is still in the buffer goes nowhere.
        std::mem::forget(out);
        return Ok(ExitCode::SUCCESS);
    }
    // What was printed before the error comes first, if anybody still reads it.
    let printed = out.flush();
    if error.is_plain() {
        eprintln!("{error}");
    } else if !matches!(error, CommandError::Reported) {
        eprintln!("error: {error}");
    }
    if printed.is_err() {
        std::mem::forget(out);
    }
    Ok(ExitCode::from(error.exit_code()))
}
