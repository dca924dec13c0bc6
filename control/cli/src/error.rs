//! What a command ends with when it does not succeed, and the exit code for it.
//!
//! Each module has errors of its own; this gathers them for `main`, which prints
//! them. Usage errors do not come here: clap ends the process with 2.

use std::io;

use crate::client::CallError;
use crate::config::ConfigError;
use crate::kinds::TargetError;
use crate::manifest::SourceError;
use crate::output::{FormatError, PrintError};
use crate::select::SelectError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("write output: {0}")]
    Output(#[from] io::Error),
    #[error("{object} is not what was expected: {source}")]
    Shape {
        object: String,
        source: serde_json::Error,
    },
    #[error("timed out waiting for {what}")]
    TimedOut { what: String },
    #[error("a {kind} has no {what}")]
    NotForKind { kind: String, what: &'static str },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Image(#[from] agent_sys::image::ImageError),
    #[error(transparent)]
    Bpf(#[from] crate::command::bpf_error::BpfError),
    #[error("no home directory: name the context file with --config or FOIL_CONFIG")]
    NoHome,
    /// The errors have been printed already, one by one.
    #[error("")]
    Reported,
    /// The exit code of a process that was run in a container.
    #[error("command terminated with exit code {0}")]
    Exit(u8),
}

/// What was asked for makes no sense, in ways that clap cannot see.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum RequestError {
    #[error("name one object: KIND NAME or KIND/NAME")]
    OneObject,
    #[error("--watch takes one kind or object, not several")]
    WatchOne,
    #[error("\"{word}\" is neither KEY=VALUE nor KEY-")]
    Pair { word: String },
    #[error("'{key}' already has a value ({value}), and --overwrite is false")]
    AlreadySet { key: String, value: String },
    #[error("no matching resources found")]
    NothingMatches,
    #[error("no nodes found")]
    NoNodes,
    #[error("no pods found for {what}")]
    NoPods { what: String },
    #[error("container {container} is not valid for pod {pod}; choose one of: {has}")]
    NoContainer {
        pod: String,
        container: String,
        has: String,
    },
    #[error(
        "-f with a selector follows at most {most} pods, and {found} match; narrow the selector or raise --max-log-requests"
    )]
    TooManyPods { most: usize, found: usize },
    #[error("a {kind} cannot be {verb}")]
    Verb { kind: String, verb: &'static str },
    #[error("deployment \"{name}\" is paused; `foil rollout resume deployment/{name}` first")]
    Paused { name: String },
    #[error("deployment \"{name}\" has no revision {revision}; it has: {has}")]
    NoRevision {
        name: String,
        revision: i64,
        has: String,
    },
    #[error("deployment \"{name}\" has no earlier revision to go back to")]
    NoEarlier { name: String },
    #[error("deployment \"{name}\" exceeded its progress deadline")]
    Deadline { name: String },
    #[error("invalid duration \"{text}\": use 30s, 5m, 1h30m or a number of seconds")]
    Duration { text: String },
    #[error(
        "unrecognized condition \"{text}\": use condition=NAME[=VALUE], jsonpath='{{PATH}}'[=VALUE], create or delete"
    )]
    WaitFor { text: String },
    #[error("-t needs a terminal as standard input")]
    NotATerminal,
    #[error("{what}: {message}")]
    Field { what: String, message: String },
}

impl From<PrintError> for CommandError {
    fn from(error: PrintError) -> Self {
        match error {
            PrintError::Format(error) => Self::Format(error),
            PrintError::Output(error) => Self::Output(error),
        }
    }
}

impl CommandError {
    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        if let Self::Exit(code) = self {
            *code
        } else {
            1
        }
    }

    /// Is it the server's word, or a process', to be printed without "error:"?
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { .. }) | Self::Exit(_))
    }

    /// The reader of our output has closed the pipe.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
