//! `foil apply`: objects become what their manifests say.
//!
//! A document is applied whole or not at all: all its objects are judged before
//! the first is sent. Other documents go on; the exit code tells. Several documents
//! are under way at a time (`apply_order.rs` says which), and what became of them is
//! printed in the order of the file.

use std::io::Write;

use futures::StreamExt as _;
use serde_json::Value;

use crate::client::{CallError, Client};
use crate::command::apply_order::Order;
use crate::error::CommandError;
use crate::kinds::Kind;
use crate::manifest::{self, Document, Place};
use crate::output::{self, Format};
use crate::session::Session;
use proto::v1::apply_response::Outcome;

/// Documents that are under way at the same time: the control plane makes their
/// writes durable together.
const IN_FLIGHT: usize = 32;

/// Create or update objects from manifests
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Fields that you applied earlier and that are gone from the manifest are removed;
fields that others own stay (this is what Kubernetes calls server-side apply).
Each write owns the fields that it changes: after `foil scale`, a manifest with
other replicas is refused until it leaves them out or --force-conflicts is given.

A document that is refused changes nothing; the other documents are applied, and
the exit code is 1. Every error names the file, the document, the object and the
field.

Examples:
  foil apply -f web.yaml                  one file, with as many documents as it has
  foil apply -f deploy/ -R                a folder and those below it
  kustomize build . | foil apply -f -     standard input
  foil apply -f web.yaml --dry-run=server would it be accepted, and what would it become?
  foil apply -f web.yaml --dry-run=client the same without a control plane")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Check without storing: client (no control plane needed) or server
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,
    /// Take over fields that another manager owns, instead of failing with a conflict
    #[arg(long)]
    force_conflicts: bool,
    /// Accepted for compatibility: every apply is server-side
    #[arg(long)]
    server_side: bool,
    /// Output format: name, yaml, json or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Where manifests come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Files {
    /// File, folder, or "-" for standard input; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        required = true,
        value_delimiter = ','
    )]
    pub(crate) files: Vec<String>,
    /// Read subfolders as well
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum DryRun {
    /// Store the result
    None,
    /// Check here, without a control plane
    Client,
    /// Check at the control plane, and store nothing
    Server,
}

impl DryRun {
    /// What is added to "pod/x created".
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut documents = manifest::read(&args.files.files, args.files.recursive)?;
    if args.dry_run == DryRun::Client {
        let namespace = session.namespace_offline();
        manifest::refuse_duplicates(&mut documents, &namespace);
        return finish(documents, |place, objects| {
            judge_here(place, objects, &namespace, &args, out)
        });
    }
    let client = session.connect().await?;
    let namespace = session.namespace(&client);
    manifest::refuse_duplicates(&mut documents, &namespace);
    let (order, applying) = (Order::default(), (&args, session, &client));
    let results = documents.into_iter().enumerate().map(|(index, document)| {
        let turn = order.begin(index, document.objects.as_deref().unwrap_or_default());
        async move {
            turn.wait().await;
            Applied::of(document, applying).await
        }
    });
    let mut results = futures::stream::iter(results).buffered(IN_FLIGHT);
    let mut refused = Refused::default();
    while let Some(applied) = results.next().await {
        out.write_all(&applied.printed.out)?;
        out.flush()?;
        std::io::stderr().write_all(&applied.printed.warnings)?;
        match applied.result {
            Ok(()) => refused.applied.push(applied.place),
            Err(Stop::Document(lines)) => refused.report(applied.place, lines),
            Err(Stop::Command(error)) => return Err(error),
        }
    }
    refused.end()
}

/// What became of a document.
struct Applied {
    place: Place,
    printed: Printed,
    result: Result<(), Stop>,
}

/// What is to be printed when the documents before it were.
#[derive(Default)]
struct Printed {
    out: Vec<u8>,
    warnings: Vec<u8>,
}

impl Applied {
    async fn of(document: Document, (args, session, client): (&Args, &Session, &Client)) -> Self {
        let place = document.place;
        let mut printed = Printed::default();
        let result = match document.objects {
            Ok(objects) => {
                let applying = Applying {
                    args,
                    session,
                    place: &place,
                };
                let mut client = client.clone();
                applying.document(&mut client, &objects, &mut printed).await
            }
            Err(error) => Err(Stop::Document(vec![error.to_string()])),
        };
        Self {
            place,
            printed,
            result,
        }
    }
}

/// Why to stop, and how much of it.
enum Stop {
    /// This document, for these reasons.
    Document(Vec<String>),
    /// Everything: the others would fail as well.
    Command(CommandError),
}

impl From<CommandError> for Stop {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

/// What is the same for all objects of a document.
struct Applying<'a> {
    args: &'a Args,
    session: &'a Session,
    place: &'a Place,
}

impl Applying<'_> {
    async fn document(
        &self,
        client: &mut Client,
        objects: &[Value],
        printed: &mut Printed,
    ) -> Result<(), Stop> {
        let mut kinds = Vec::new();
        for object in objects {
            check_name(object)?;
            kinds.push(match self.session.kind_of(client, object).await {
                Ok(kind) => kind,
                Err(CommandError::Target(error)) => {
                    return Err(match control_api::find_for(object) {
                        Err(invalid) => invalid_here(object, &invalid),
                        Ok(_) => {
                            Stop::Document(vec![format!("{}: {error}", manifest::label(object))])
                        }
                    });
                }
                Err(error) => return Err(Stop::Command(error)),
            });
        }
        if objects.len() > 1 && self.args.dry_run == DryRun::None {
            for object in objects {
                self.rehearse(client, object).await?;
            }
        }
        for (object, kind) in objects.iter().zip(&kinds) {
            self.one(client, object, kind, printed).await?;
        }
        Ok(())
    }

    /// Would the server take it? One that needs an earlier object of the same
    /// document (its namespace, say) cannot be told yet.
    async fn rehearse(&self, client: &mut Client, object: &Value) -> Result<(), Stop> {
        let namespace = self.session.namespace_for(client, object);
        match client
            .apply(object, &namespace, self.args.force_conflicts, true)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => check_here(object, &namespace),
            Err(error) => Err(self.stop(object, error)),
        }
    }

    async fn one(
        &self,
        client: &mut Client,
        object: &Value,
        kind: &Kind,
        printed: &mut Printed,
    ) -> Result<(), Stop> {
        let dry_run = self.args.dry_run == DryRun::Server;
        let namespace = self.session.namespace_for(client, object);
        let answer = client
            .apply(object, &namespace, self.args.force_conflicts, dry_run)
            .await
            .map_err(|error| self.stop(object, error))?;
        for warning in &answer.warnings {
            let label = manifest::label(object);
            writeln!(
                printed.warnings,
                "Warning: {}: {label}: {warning}",
                self.place
            )
            .map_err(CommandError::from)?;
        }
        let word = match answer.outcome() {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
            Outcome::Unspecified => "applied",
        };
        let stored = crate::client::value_of(answer.object).map_err(CommandError::from)?;
        let outcome = format!("{word}{}", self.args.dry_run.suffix());
        let out = &mut printed.out;
        let reported = output::report(out, self.args.output.as_ref(), kind, &stored, &outcome);
        Ok(reported.map_err(CommandError::from)?)
    }

    fn stop(&self, object: &Value, error: CallError) -> Stop {
        match &error {
            CallError::Refused { code, causes, .. } => {
                let label = manifest::label(object);
                let mut lines: Vec<String> = error
                    .lines()
                    .iter()
                    .map(|line| format!("{label}: {line}"))
                    .collect();
                // Without fields, it is a resourceVersion that is not the newest.
                if *code == tonic::Code::Aborted && !causes.is_empty() {
                    lines.push(format!(
                        "{label}: leave these fields out to keep their values, or take them over \
                         with --force-conflicts"
                    ));
                }
                Stop::Document(lines)
            }
            CallError::Unreachable(_) | CallError::Json(_) => Stop::Command(error.into()),
        }
    }
}

/// What is applied has a name: it is how it is found again.
fn check_name(object: &Value) -> Result<(), Stop> {
    if control_api::meta::name(object).is_empty() {
        return Err(Stop::Document(vec![format!(
            "{}: metadata.name: Required value",
            manifest::label(object)
        )]));
    }
    Ok(())
}

/// What can be said about an object without a control plane: unknown fields,
/// wrong types, values out of range. It must be whole: parts of an object that
/// is there already are for the server to judge.
fn check_here(object: &Value, namespace: &str) -> Result<(), Stop> {
    // A kind that only the control plane knows is left to it.
    if control_api::find_for(object).is_err() {
        return Ok(());
    }
    manifest::judge(object, namespace)
        .map(drop)
        .map_err(|invalid| invalid_here(object, &invalid))
}

fn invalid_here(object: &Value, invalid: &control_api::Invalid) -> Stop {
    let label = manifest::label(object);
    Stop::Document(
        invalid
            .causes
            .iter()
            .map(|cause| format!("{label}: {cause}"))
            .collect(),
    )
}

/// `--dry-run=client`.
fn judge_here(
    place: &Place,
    document: &[Value],
    namespace: &str,
    args: &Args,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let mut kinds = Vec::new();
    for object in document {
        check_name(object)?;
        let warnings =
            manifest::judge(object, namespace).map_err(|invalid| invalid_here(object, &invalid))?;
        for warning in warnings {
            eprintln!("Warning: {place}: {}: {warning}", manifest::label(object));
        }
        kinds
            .push(control_api::find_for(object).map_err(|invalid| invalid_here(object, &invalid))?);
    }
    let outcome = format!("created{}", DryRun::Client.suffix());
    for (object, kind) in document.iter().zip(kinds) {
        let kind = Kind::from(kind);
        output::report(out, args.output.as_ref(), &kind, object, &outcome)
            .map_err(CommandError::from)?;
    }
    Ok(())
}

/// Goes through all documents with a judge that needs no connection.
fn finish(
    documents: Vec<Document>,
    mut judge: impl FnMut(&Place, &[Value]) -> Result<(), Stop>,
) -> Result<(), CommandError> {
    let mut refused = Refused::default();
    for document in documents {
        let Some((place, objects)) = refused.unless_broken(document) else {
            continue;
        };
        match judge(&place, &objects) {
            Ok(()) => refused.applied.push(place),
            Err(Stop::Document(lines)) => refused.report(place, lines),
            Err(Stop::Command(error)) => return Err(error),
        }
    }
    refused.end()
}

/// Keeps the count of what was and was not applied.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) applied: Vec<Place>,
    refused: Vec<Place>,
}

impl Refused {
    /// The objects of a document that could be read; else its error is printed.
    pub(crate) fn unless_broken(&mut self, document: Document) -> Option<(Place, Vec<Value>)> {
        match document.objects {
            Ok(objects) => Some((document.place, objects)),
            Err(error) => {
                self.report(document.place, vec![error.to_string()]);
                None
            }
        }
    }

    /// Prints what is wrong with a document, a line for each error.
    pub(crate) fn report(&mut self, place: Place, lines: Vec<String>) {
        for line in lines {
            eprintln!("error: {place}: {line}");
        }
        self.refused.push(place);
    }

    /// Says which documents were not applied, if others were.
    pub(crate) fn end(self) -> Result<(), CommandError> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let others = match self.applied.len() {
            0 => return Err(CommandError::Reported),
            1 => "1 other document was applied".to_string(),
            many => format!("{many} other documents were applied"),
        };
        let places: Vec<String> = self.refused.iter().map(Place::to_string).collect();
        eprintln!("error: not applied: {}; {others}", places.join(", "));
        Err(CommandError::Reported)
    }
}
