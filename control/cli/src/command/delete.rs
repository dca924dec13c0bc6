//! `foil delete`: objects go, gracefully unless told otherwise.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::client::{CallError, Client, Deletion, Selection};
use crate::error::{CommandError, RequestError};
use crate::follow::{self, Wanted};
use crate::kinds::{Kind, Target};
use crate::manifest;
use crate::session::{Session, namespace_of};
use crate::{command, duration};

/// Delete objects, and wait until they are gone
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A pod gets its grace period to end; --grace-period=1 shortens it, and
--grace-period=0 --force kills it at once.

Examples:
  foil delete -f web.yaml                  all that the manifest names
  foil delete pod busybox
  foil delete deploy/web svc/web
  foil delete pods -l app=web
  foil delete pods --all --wait=false
  foil delete deploy web --cascade=orphan  its pods stay")]
pub(crate) struct Args {
    /// KIND NAME..., KIND/NAME..., or KIND with -l or --all
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// The objects that these manifests name
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "words",
        value_delimiter = ','
    )]
    files: Vec<String>,
    /// With -f: look into folders below as well
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,
    /// By labels: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// By fields
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// All of the kind, in the namespace
    #[arg(long)]
    all: bool,
    /// In all namespaces, with -l, --field-selector or --all
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Seconds that a pod has to end; -1: its own figure
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// With --grace-period=0: do not wait for the node to confirm
    #[arg(long)]
    force: bool,
    /// Only ask, and do not wait until they are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// The same as --grace-period=1
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// How long to wait; 0: as long as it takes
    #[arg(long, value_parser = duration::parse, default_value = "0s")]
    timeout: Duration,
    /// What becomes of objects that this one made
    #[arg(long, value_enum, default_value = "background", num_args = 0..=1, default_missing_value = "background", require_equals = true)]
    cascade: Cascade,
    /// Exit code 0 also when an object is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Judge only, at the server
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: command::apply::DryRun,
    /// Only "name": print KIND/NAME
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name"])]
    output: Option<String>,
}

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Cascade {
    /// They go afterwards
    Background,
    /// They go first
    Foreground,
    /// They stay
    Orphan,
}

/// One object that is to go.
#[derive(Debug)]
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let deletion = deletion(&args);
    let mut client = session.connect().await?;
    let mut failed = false;
    let mut going = Vec::new();
    for doomed in doomed(&args, session, &mut client, &mut failed).await? {
        match client
            .delete(&doomed.kind, &doomed.namespace, &doomed.name, &deletion)
            .await
        {
            Ok((last, gone)) => {
                report(&args, &doomed, out)?;
                if !gone {
                    let uid = last
                        .as_ref()
                        .map(control_api::meta::uid)
                        .unwrap_or_default()
                        .to_string();
                    going.push((doomed, uid));
                }
            }
            Err(error)
                if error.is_not_found()
                    && (args.ignore_not_found || args.all || !args.selector.is_empty()) => {}
            Err(error @ CallError::Refused { .. }) => {
                eprintln!("{error}");
                failed = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.wait && args.dry_run == command::apply::DryRun::None {
        for (doomed, uid) in &going {
            gone(session, &mut client, doomed, uid, deadline).await?;
        }
    }
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

fn deletion(args: &Args) -> Deletion {
    if args.force && args.grace_period == 0 {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    let grace = if args.now {
        Some(1)
    } else {
        Some(args.grace_period).filter(|seconds| *seconds >= 0)
    };
    Deletion {
        // Without --force nought means "at once", and that is confirmed by the node.
        grace_period_seconds: grace.map(|seconds| {
            if seconds == 0 && !args.force {
                1
            } else {
                seconds
            }
        }),
        propagation_policy: match args.cascade {
            Cascade::Background => "Background".into(),
            Cascade::Foreground => "Foreground".into(),
            Cascade::Orphan => "Orphan".into(),
        },
        uid: String::new(),
        dry_run: args.dry_run != command::apply::DryRun::None,
    }
}

fn report(args: &Args, doomed: &Doomed, out: &mut dyn Write) -> Result<(), CommandError> {
    if args.output.is_some() {
        writeln!(out, "{}", doomed.kind.object(&doomed.name))?;
    } else {
        let what = if doomed.kind.group.is_empty() {
            doomed.kind.singular.clone()
        } else {
            format!("{}.{}", doomed.kind.singular, doomed.kind.group)
        };
        let how = if args.force && args.grace_period == 0 {
            "force deleted"
        } else {
            "deleted"
        };
        writeln!(
            out,
            "{what} \"{}\" {how}{}",
            doomed.name,
            args.dry_run.suffix()
        )?;
    }
    Ok(out.flush()?)
}

/// All that was named, in its order.
async fn doomed(
    args: &Args,
    session: &Session,
    client: &mut Client,
    failed: &mut bool,
) -> Result<Vec<Doomed>, CommandError> {
    let namespace = if args.all_namespaces {
        String::new()
    } else {
        session.namespace(client)
    };
    if !args.files.is_empty() {
        return of_files(args, session, client, &session.namespace(client), failed).await;
    }
    let by_selector = args.all || !args.selector.is_empty() || !args.field_selector.is_empty();
    let targets = match session.targets(client, &args.words).await {
        Err(CommandError::Target(crate::kinds::TargetError::Nothing)) => {
            return Err(RequestError::NothingToDelete.into());
        }
        other => other?,
    };
    let mut found = Vec::new();
    for Target { kind, name } in targets {
        match name {
            Some(_) if by_selector => return Err(RequestError::NameAndSelector.into()),
            Some(name) => found.push(Doomed {
                kind,
                namespace: namespace.clone(),
                name,
            }),
            None if !by_selector => return Err(RequestError::NothingToDelete.into()),
            None => {
                let selection = Selection {
                    namespace: namespace.clone(),
                    labels: args.selector.clone(),
                    fields: args.field_selector.clone(),
                };
                let listed = client.list(&kind, &selection).await?;
                found.extend(
                    listed
                        .items
                        .iter()
                        .map(|object| named(kind.clone(), object, &namespace)),
                );
            }
        }
    }
    if found.is_empty() {
        eprintln!("No resources found");
    }
    Ok(found)
}

fn named(kind: Kind, object: &Value, namespace: &str) -> Doomed {
    let namespace = match namespace_of(object) {
        "" => namespace,
        own => own,
    };
    Doomed {
        kind,
        namespace: namespace.to_string(),
        name: control_api::meta::name(object).to_string(),
    }
}

async fn of_files(
    args: &Args,
    session: &Session,
    client: &mut Client,
    namespace: &str,
    failed: &mut bool,
) -> Result<Vec<Doomed>, CommandError> {
    let mut found = Vec::new();
    for document in manifest::read(&args.files, args.recursive)? {
        match document.objects {
            Ok(objects) => {
                for object in &objects {
                    let kind = session.kind_of(client, object).await?;
                    found.push(named(kind, object, namespace));
                }
            }
            Err(error) => {
                eprintln!("error: {}: {error}", document.place);
                *failed = true;
            }
        }
    }
    Ok(found)
}

/// Waits until that object is gone; one of the same name that came after it does not count.
async fn gone(
    session: &Session,
    client: &mut Client,
    doomed: &Doomed,
    uid: &str,
    deadline: Option<Instant>,
) -> Result<(), CommandError> {
    let wanted = Wanted {
        kind: &doomed.kind,
        namespace: &doomed.namespace,
        name: &doomed.name,
        deadline,
        what: format!("{}/{} to be deleted", doomed.kind.resource(), doomed.name),
    };
    follow::until(session, client, &wanted, &mut |object| {
        let there =
            object.is_some_and(|object| uid.is_empty() || control_api::meta::uid(object) == uid);
        Ok((!there).then_some(()))
    })
    .await
}
