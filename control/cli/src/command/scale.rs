//! `foil scale`: how many replicas.

use std::io::Write;

use crate::error::{CommandError, RequestError};
use crate::select::{Object, Request};
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
    /// Objects: KIND NAME..., KIND/NAME..., or KIND with -l or --all
    #[arg(value_name = "WHAT", required = true)]
    words: Vec<String>,
    /// New number of replicas
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    replicas: i32,
    /// Fail unless this is the current number of replicas
    #[arg(long)]
    current_replicas: Option<i64>,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Select all objects of the kind in the namespace
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let request = Request {
        words: &args.words,
        labels: args.selector.as_deref().unwrap_or_default(),
        all: args.all,
        ..Request::default()
    };
    let (mut client, objects) = session.objects(&request).await?;
    for Object {
        kind,
        namespace,
        name,
    } in objects
    {
        if let Some(wanted) = args.current_replicas {
            let object = client.get(&kind, &namespace, &name).await?;
            let now = object
                .pointer("/spec/replicas")
                .and_then(serde_json::Value::as_i64)
                .unwrap_or(1);
            if now != wanted {
                let message = format!("expected replicas to be {wanted}, was {now}");
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
