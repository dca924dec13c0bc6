//! `foil describe`: one object and what belongs to it, for a person.
//!
//! Finds the objects; what is said about each kind is in `describe/`.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;

use crate::client::Selection;
use crate::describe;
use crate::error::CommandError;
use crate::kinds::{Kind, Target};
use crate::session::{Session, absent_is_none};

/// Explain objects: what they are, what they do, what happened to them
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil describe pod/web-5f6d7              why is it not ready? the end says what happened
  foil describe svc web                    with its endpoints
  foil describe node n1                    with its pods
  foil describe pods -l app=web
  foil describe pod web                    all whose names begin so, if none is named so")]
pub(crate) struct Args {
    /// KIND [NAME...], or KIND/NAME...
    #[arg(value_name = "WHAT", required = true)]
    words: Vec<String>,
    /// By labels
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Without the events at the end
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    show_events: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let namespace = if args.all_namespaces {
        String::new()
    } else {
        session.namespace(&client)
    };
    let mut failed = false;
    let mut first = true;
    for Target { kind, name } in session.targets(&mut client, &args.words).await? {
        let found = match &name {
            Some(name) => match absent_is_none(client.get(&kind, &namespace, name).await)? {
                Some(object) => vec![object],
                None => by_prefix(&mut client, &kind, &namespace, name).await?,
            },
            None => {
                let selection = Selection {
                    namespace: namespace.clone(),
                    labels: args.selector.clone(),
                    ..Selection::default()
                };
                client.list(&kind, &selection).await?.items
            }
        };
        match &name {
            Some(name) if found.is_empty() => {
                eprintln!(
                    "Error from server (NotFound): {} \"{name}\" not found",
                    kind.resource()
                );
                failed = true;
            }
            None if found.is_empty() => eprintln!("No resources found in {namespace} namespace."),
            Some(_) | None => {}
        }
        for object in found {
            if !std::mem::replace(&mut first, false) {
                writeln!(out, "\n")?;
            }
            let text = describe::object(
                &mut client,
                &kind,
                &object,
                args.show_events,
                Timestamp::now(),
            )
            .await?;
            out.write_all(text.as_bytes())?;
        }
    }
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

/// Nobody types the end of a pod's name.
async fn by_prefix(
    client: &mut crate::client::Client,
    kind: &Kind,
    namespace: &str,
    prefix: &str,
) -> Result<Vec<serde_json::Value>, CommandError> {
    let selection = Selection {
        namespace: namespace.to_string(),
        ..Selection::default()
    };
    let mut found = client.list(kind, &selection).await?.items;
    found.retain(|object| control_api::meta::name(object).starts_with(prefix));
    Ok(found)
}
