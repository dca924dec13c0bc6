//! `foil scale`: how many replicas.

use std::io::Write;

use crate::error::{CommandError, RequestError};
use crate::session::Session;

/// Set the number of replicas
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil scale deploy/web --replicas=5
  foil scale deploy web api --replicas=2
  foil scale deploy/web --current-replicas=3 --replicas=5   only if it is 3 now
  foil scale deploy -l tier=front --replicas=0")]
pub(crate) struct Args {
    /// KIND NAME..., KIND/NAME..., or KIND with -l or --all
    #[arg(value_name = "WHAT", required = true)]
    words: Vec<String>,
    /// How many
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    replicas: i32,
    /// Refuse unless there are so many now
    #[arg(long)]
    current_replicas: Option<i64>,
    /// By labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All of the kind, in the namespace
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let namespace = session.namespace(&client);
    let objects = session
        .objects(&mut client, &args.words, args.selector.as_deref(), args.all)
        .await?;
    for (kind, name) in objects {
        if let Some(wanted) = args.current_replicas {
            let object = client.get(&kind, &namespace, &name).await?;
            let now = object
                .pointer("/spec/replicas")
                .and_then(serde_json::Value::as_i64)
                .unwrap_or(1);
            if now != wanted {
                let message = format!("expected {wanted} replicas, and there are {now}");
                return Err(RequestError::Field {
                    what: kind.object(&name),
                    message,
                }
                .into());
            }
        }
        client
            .scale(&kind, &namespace, &name, args.replicas, "foil-scale")
            .await?;
        writeln!(out, "{} scaled", kind.object(&name))?;
    }
    Ok(())
}
