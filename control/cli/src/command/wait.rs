//! `foil wait`: until objects are as a script needs them.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::duration;
use crate::error::{CommandError, RequestError};
use crate::follow::{self, Wanted};
use crate::kinds::Kind;
use crate::output::jsonpath::Template;
use crate::output::jsonpath_eval::text_of;
use crate::select::{Object, Request};
use crate::session::Session;

/// Wait until objects meet a condition
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Ends with exit code 1 when the time is up. A restart of the control plane in
between does no harm.

Examples:
  foil wait pod/busybox --for=condition=Ready --timeout=60s
  foil wait pods -l app=web --for=condition=Ready
  foil wait deploy/web --for=condition=Available
  foil wait pod/busybox --for=delete
  foil wait pod/job --for=jsonpath='{.status.phase}'=Succeeded
  foil wait svc/web --for=create")]
pub(crate) struct Args {
    /// Objects: KIND NAME..., KIND/NAME..., or KIND with -l or --all
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// condition=NAME[=VALUE], jsonpath='{PATH}'[=VALUE], create or delete
    #[arg(long = "for", value_name = "WHAT", value_parser = For::parse)]
    wanted: For,
    /// How long to wait; 0 checks once
    #[arg(long, value_parser = duration::parse, default_value = "30s")]
    timeout: Duration,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Select all objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Objects named in this file, folder or "-" (standard input); may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "words"
    )]
    files: Vec<String>,
}

/// What to wait for.
#[derive(Debug, Clone)]
enum For {
    Create,
    Delete,
    Condition {
        name: String,
        value: String,
    },
    /// Without a value: that there is anything at the path.
    JsonPath {
        path: std::sync::Arc<Template>,
        value: Option<String>,
    },
}

impl For {
    fn parse(text: &str) -> Result<Self, RequestError> {
        let refused = || RequestError::WaitFor {
            text: text.to_string(),
        };
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, value) = condition.split_once('=').unwrap_or((condition, "True"));
            let (name, value) = (name.to_string(), value.to_string());
            return if name.is_empty() {
                Err(refused())
            } else {
                Ok(Self::Condition { name, value })
            };
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            let end = rest.rfind("}=").map(|at| at + 1).or_else(|| {
                // Without braces, a filter may hold "==".
                (!rest.starts_with('{')).then(|| rest.rfind('=')).flatten()
            });
            let (path, value) = match end {
                Some(at) => (
                    rest.get(..at).unwrap_or_default(),
                    rest.get(at + 1..).map(unquoted),
                ),
                None => (rest, None),
            };
            let path = Template::parse_path(path).map_err(|_error| refused())?;
            return Ok(Self::JsonPath {
                path: path.into(),
                value,
            });
        }
        match text {
            "create" => Ok(Self::Create),
            "delete" => Ok(Self::Delete),
            _ => Err(refused()),
        }
    }

    /// Is it so?
    fn met(&self, object: Option<&Value>) -> bool {
        match self {
            Self::Create => object.is_some(),
            Self::Delete => object.is_none(),
            Self::Condition { name, value } => object
                .and_then(|object| control_api::condition::get(object, name))
                .and_then(|condition| condition.get("status"))
                .and_then(Value::as_str)
                .is_some_and(|status| status.eq_ignore_ascii_case(value)),
            Self::JsonPath { path, value } => object.is_some_and(|object| {
                let found = path.find(object);
                match value {
                    Some(value) => found.iter().any(|found| &text_of(found) == value),
                    None => !found.is_empty(),
                }
            }),
        }
    }

    /// For the message when time is up.
    fn words(&self, kind: &Kind, name: &str) -> String {
        let object = kind.object(name);
        match self {
            Self::Create => format!("{object} to be created"),
            Self::Delete => format!("{object} to be deleted"),
            Self::Condition { name, value } if value == "True" => {
                format!("the condition {name} on {object}")
            }
            Self::Condition { name, value } => format!("the condition {name}={value} on {object}"),
            Self::JsonPath {
                value: Some(value), ..
            } => format!("the value {value} on {object}"),
            Self::JsonPath { value: None, .. } => format!("the field on {object}"),
        }
    }
}

fn unquoted(text: &str) -> String {
    let inner = |quote| {
        text.strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    };
    inner('"')
        .or_else(|| inner('\''))
        .unwrap_or(text)
        .to_string()
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let deadline = Instant::now() + args.timeout;
    let request = Request {
        words: &args.words,
        files: &args.files,
        labels: args.selector.as_deref().unwrap_or_default(),
        all: args.all,
        ..Request::default()
    };
    let (mut client, objects) = session.objects(&request).await?;
    if objects.is_empty() {
        // Nothing is there that would have to go.
        if matches!(args.wanted, For::Delete) {
            return Ok(());
        }
        return Err(RequestError::NothingMatches.into());
    }
    let mut late = false;
    for Object {
        kind,
        namespace,
        name,
    } in objects
    {
        let what = args.wanted.words(&kind, &name);
        let wanted = Wanted {
            kind: &kind,
            namespace: &namespace,
            name: &name,
            deadline: Some(deadline),
            what,
        };
        let mut existed = false;
        let result = follow::until(session, &mut client, &wanted, &mut |object| {
            // One that is not there, or went away, will not get a condition.
            let absent = object.is_none() && !matches!(args.wanted, For::Create | For::Delete);
            if absent {
                let what = kind.object(&name);
                let message = if existed {
                    "deleted while waiting for it"
                } else {
                    "not found"
                };
                return Err(RequestError::Field {
                    what,
                    message: message.into(),
                }
                .into());
            }
            existed |= object.is_some();
            Ok(args.wanted.met(object).then_some(()))
        })
        .await;
        match result {
            Ok(()) => {
                let outcome = match args.wanted {
                    For::Create => "created",
                    For::Delete => "deleted",
                    For::Condition { .. } | For::JsonPath { .. } => "condition met",
                };
                writeln!(out, "{} {outcome}", kind.object(&name))?;
                out.flush()?;
            }
            Err(error @ CommandError::TimedOut { .. }) => {
                eprintln!("error: {error}");
                late = true;
            }
            Err(error) => return Err(error),
        }
    }
    if late {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn met() {
        let pod = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        for (text, of_pod, of_nothing) in [
            ("condition=Ready", true, false),
            ("condition=X", false, false),
            ("condition=X=false", true, false),
            ("condition=Missing", false, false),
            ("delete", false, true),
            ("create", true, false),
            ("jsonpath={.status.phase}=Running", true, false),
            ("jsonpath='{.status.phase}'", false, false),
            ("jsonpath={.status.phase}=\"Running\"", true, false),
            ("jsonpath={.status.phase}=Pending", false, false),
            ("jsonpath={.status.phase}", true, false),
            ("jsonpath=.status.phase=Running", true, false),
            (
                "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True",
                true,
                false,
            ),
        ] {
            let Ok(wanted) = For::parse(text) else {
                assert!(text.contains('\''), "{text}");
                continue;
            };
            assert_eq!(
                (wanted.met(Some(&pod)), wanted.met(None)),
                (of_pod, of_nothing),
                "{text}"
            );
        }
        for text in ["", "ready", "condition=", "jsonpath={.a"] {
            assert!(For::parse(text).is_err(), "{text}");
        }
    }
}
