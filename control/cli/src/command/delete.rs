//! `foil delete`: objects go, gracefully unless told otherwise.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{CallError, Client, Deletion};
use crate::error::CommandError;
use crate::follow::{self, Wanted};
use crate::select::{Bare, Object, Request};
use crate::session::Session;
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
    /// Objects: KIND NAME..., KIND/NAME..., or KIND with -l or --all
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// Objects named in this file, folder or "-" (standard input); may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "words",
        value_delimiter = ','
    )]
    files: Vec<String>,
    /// With -f: read subfolders as well
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Field selector: metadata.name=x, status.phase!=Running, spec.nodeName=n
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// Select all objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Look in all namespaces; needs -l, --field-selector or --all
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Grace period of pods in seconds; -1: the pod's own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// With --grace-period=0: remove the object without waiting for its node
    #[arg(long)]
    force: bool,
    /// Wait until the objects are gone; --wait=false returns at once
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// The same as --grace-period=1
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// How long to wait; 0 waits without limit
    #[arg(long, value_parser = duration::parse, default_value = "0s")]
    timeout: Duration,
    /// How to treat dependents: objects that this one owns
    #[arg(long, value_enum, default_value = "background", num_args = 0..=1, default_missing_value = "background", require_equals = true)]
    cascade: Cascade,
    /// Succeed if an object does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Check at the server without deleting anything
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: command::apply::DryRun,
    /// Output format: name (KIND/NAME)
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name"])]
    output: Option<String>,
}

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Cascade {
    /// Delete dependents after the object
    Background,
    /// Delete dependents before the object
    Foreground,
    /// Keep dependents
    Orphan,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let deletion = deletion(&args);
    let request = Request {
        words: &args.words,
        files: &args.files,
        recursive: args.recursive,
        labels: &args.selector,
        fields: &args.field_selector,
        all: args.all,
        all_namespaces: args.all_namespaces,
        bare: Bare::Refused,
    };
    let (mut client, objects) = session.objects(&request).await?;
    if objects.is_empty() {
        eprintln!("No resources found");
    }
    let mut failed = false;
    let mut going = Vec::new();
    for doomed in objects {
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

fn report(args: &Args, doomed: &Object, out: &mut dyn Write) -> Result<(), CommandError> {
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

/// Waits until that object is gone; one of the same name that came after it does not count.
pub(super) async fn gone(
    session: &Session,
    client: &mut Client,
    doomed: &Object,
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
