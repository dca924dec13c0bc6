//! `foil get`: objects, as tables or as they are.
//!
//! Fetching and following is here; columns are in `printer/`, formats in `output`.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;
use proto::v1::watch_event::Type;
use serde_json::Value;

use crate::client::{Client, Selection};
use crate::error::{CommandError, RequestError};
use crate::kinds::{Kind, Target};
use crate::manifest;
use crate::output::jsonpath::Template;
use crate::output::table::Table;
use crate::output::{self, Format};
use crate::printer::{self, Extras};
use crate::session::{Session, absent_is_none, list_of};

/// Print objects
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "g",
    after_long_help = "\
Examples:
  foil get pods                            of the context's namespace
  foil get pods -A -o wide                 of all namespaces, with addresses and nodes
  foil get deploy,svc,pods                 several kinds
  foil get po/web-5f6d7 -o yaml            one object, whole
  foil get pods -l app=web,tier!=cache     by labels
  foil get pods --field-selector=status.phase!=Running
  foil get pods -w                         and what happens to them
  foil get pods -o name                    for scripts
  foil get svc web -o jsonpath='{.spec.clusterIP}'
  foil get pods -o jsonpath='{range .items[*]}{.metadata.name}{\"\\t\"}{.status.podIP}{\"\\n\"}{end}'
  foil get pods -o custom-columns=NAME:.metadata.name,IMAGE:.spec.containers[*].image
  foil get all                             the usual kinds"
)]
pub(crate) struct Args {
    /// KIND[,KIND] [NAME...], or KIND/NAME...
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// wide, yaml, json, name, jsonpath=TEMPLATE, custom-columns=HEADER:PATH,...
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Go on with changes as they happen
    #[arg(short, long)]
    watch: bool,
    /// Only changes, not what is there already
    #[arg(long)]
    watch_only: bool,
    /// By labels: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// By fields: metadata.name=x, status.phase!=Running, spec.nodeName=n
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// A column with all labels
    #[arg(long)]
    show_labels: bool,
    /// A column for each of these labels
    #[arg(short = 'L', long, value_name = "KEY", value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Without the line of column names
    #[arg(long)]
    no_headers: bool,
    /// Order by the value at this path: .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", value_parser = SortKey::parse)]
    sort_by: Option<SortKey>,
    /// The objects that these manifests name
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "words"
    )]
    files: Vec<String>,
    /// With -f: look into folders below as well
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,
    /// Exit code 0 also when a named object is not there
    #[arg(long)]
    ignore_not_found: bool,
}

/// A path to order by.
#[derive(Debug, Clone)]
struct SortKey(std::sync::Arc<Template>);

impl SortKey {
    fn parse(text: &str) -> Result<Self, output::jsonpath::JsonPathError> {
        Ok(Self(Template::parse_path(text)?.into()))
    }

    /// Numbers by value, times and texts by letter.
    fn sort(&self, items: &mut [Value]) {
        let key = |object: &Value| {
            let found = self
                .0
                .find(object)
                .first()
                .map(|value| (*value).clone())
                .unwrap_or_default();
            (found.as_f64(), output::jsonpath_eval::text_of(&found))
        };
        items.sort_by(|a, b| {
            key(a)
                .partial_cmp(&key(b))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
    }
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let (targets, namespace) = wanted(&args, session, &mut client).await?;
    if args.watch || args.watch_only {
        return follow(&args, &mut client, &targets, &namespace, out).await;
    }
    let mut failed = false;
    let mut groups: Vec<(Kind, Vec<Value>)> = Vec::new();
    for Target { kind, name } in &targets {
        let mut found = match name {
            Some(name) => match client.get(kind, &namespace, name).await {
                Ok(object) => vec![object],
                Err(error) if error.is_not_found() => {
                    if !args.ignore_not_found {
                        eprintln!("{error}");
                        failed = true;
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            None => {
                client
                    .list(kind, &args.selection(kind, &namespace))
                    .await?
                    .items
            }
        };
        match groups.last_mut().filter(|(last, _)| last == kind) {
            Some((_, objects)) => objects.append(&mut found),
            None => groups.push((kind.clone(), found)),
        }
    }
    for (_, objects) in &mut groups {
        if let Some(key) = &args.sort_by {
            key.sort(objects);
        }
    }
    let single = targets.len() == 1 && targets.iter().all(|target| target.name.is_some());
    print(&args, groups, single, &namespace, out)?;
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

impl Args {
    fn selection(&self, kind: &Kind, namespace: &str) -> Selection {
        let namespace = if kind.namespaced { namespace } else { "" };
        Selection {
            namespace: namespace.to_string(),
            labels: self.selector.clone(),
            fields: self.field_selector.clone(),
        }
    }

    fn extras(&self, kind: &Kind, with_kind: bool) -> Extras {
        Extras {
            wide: matches!(self.output, Some(Format::Table { wide: true })),
            namespace: self.all_namespaces && kind.namespaced,
            show_labels: self.show_labels,
            label_columns: self.label_columns.clone(),
            with_kind,
        }
    }
}

/// What was asked for, and in which namespace ("": all).
async fn wanted(
    args: &Args,
    session: &Session,
    client: &mut Client,
) -> Result<(Vec<Target>, String), CommandError> {
    let namespace = if args.all_namespaces {
        String::new()
    } else {
        session.namespace(client)
    };
    if args.files.is_empty() {
        let targets = session.targets(client, &args.words).await?;
        if let Some(named) = targets.iter().find(|target| target.name.is_some()) {
            if !args.selector.is_empty() || !args.field_selector.is_empty() {
                return Err(RequestError::NameAndSelector.into());
            }
            if args.all_namespaces && named.kind.namespaced {
                return Err(RequestError::NameInAllNamespaces {
                    kind: named.kind.singular.clone(),
                }
                .into());
            }
        }
        return Ok((targets, namespace));
    }
    let mut targets = Vec::new();
    for document in manifest::read(&args.files, args.recursive)? {
        let objects = document.objects.map_err(|error| RequestError::Field {
            what: document.place.to_string(),
            message: error.to_string(),
        })?;
        for object in objects {
            let kind = session.kind_of(client, &object).await?;
            targets.push(Target {
                kind,
                name: Some(control_api::meta::name(&object).to_string()),
            });
        }
    }
    Ok((targets, namespace))
}

fn print(
    args: &Args,
    groups: Vec<(Kind, Vec<Value>)>,
    single: bool,
    namespace: &str,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    match &args.output {
        None | Some(Format::Table { .. }) => tables(args, &groups, namespace, out),
        Some(Format::Columns(columns)) => {
            let mut table = Table::default();
            if !args.no_headers {
                columns.header(&mut table);
            }
            for object in groups.iter().flat_map(|(_, objects)| objects) {
                columns.row(&mut table, object);
            }
            Ok(table.flush(out)?)
        }
        Some(format @ Format::Name) => {
            for (kind, objects) in &groups {
                for object in objects {
                    output::print_value(out, format, kind, object)?;
                }
            }
            Ok(())
        }
        Some(format @ (Format::Yaml | Format::Json | Format::JsonPath(_))) => {
            let Some((kind, _)) = groups.first() else {
                return Ok(());
            };
            let kind = kind.clone();
            let mut all: Vec<Value> = groups
                .into_iter()
                .flat_map(|(_, objects)| objects)
                .collect();
            let value = if single && all.len() == 1 {
                all.remove(0)
            } else {
                list_of(all)
            };
            Ok(output::print_value(out, format, &kind, &value)?)
        }
    }
}

fn tables(
    args: &Args,
    groups: &[(Kind, Vec<Value>)],
    namespace: &str,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let now = Timestamp::now();
    let with_kind = groups.len() > 1;
    let mut printed = false;
    for (kind, objects) in groups.iter().filter(|(_, objects)| !objects.is_empty()) {
        if printed {
            writeln!(out)?;
        }
        printed = true;
        let (printer, extras) = (printer::of(kind), args.extras(kind, with_kind));
        let mut table = Table::default();
        if !args.no_headers {
            table.row(printer.header(&extras));
        }
        for object in objects {
            table.row(
                printer
                    .row(kind, object, &extras, now)
                    .map_err(|source| shape(kind, object, source))?,
            );
        }
        table.flush(out)?;
    }
    let named = groups.iter().any(|(kind, _)| kind.namespaced);
    if !printed && !groups.is_empty() {
        out.flush()?;
        if named && !namespace.is_empty() {
            eprintln!("No resources found in {namespace} namespace.");
        } else {
            eprintln!("No resources found");
        }
    }
    Ok(())
}

fn shape(kind: &Kind, object: &Value, source: serde_json::Error) -> CommandError {
    CommandError::Shape {
        object: kind.object(control_api::meta::name(object)),
        source,
    }
}

/// `-w`: what is there, then each change as a row or an object.
async fn follow(
    args: &Args,
    client: &mut Client,
    targets: &[Target],
    namespace: &str,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let [Target { kind, name }] = targets else {
        return Err(RequestError::WatchOne.into());
    };
    let mut selection = args.selection(kind, namespace);
    if let Some(name) = name {
        selection.fields = format!("metadata.name={name}");
        // A name that is not there is an error, as without -w; one that comes later is not waited for.
        if absent_is_none(client.get(kind, namespace, name).await)?.is_none()
            && !args.ignore_not_found
        {
            client.get(kind, namespace, name).await?;
        }
    }
    let listed = client.list(kind, &selection).await?;
    let mut rows = Rows {
        args,
        kind,
        extras: args.extras(kind, false),
        table: Table::default(),
        begun: false,
    };
    if !args.watch_only {
        for object in &listed.items {
            rows.add(object, out)?;
        }
        rows.flush(out)?;
    }
    let mut watch = client
        .watch(kind, &selection, &listed.resource_version)
        .await?;
    while let Some(change) = watch.next().await? {
        if matches!(change.kind, Type::Bookmark | Type::Unspecified) {
            continue;
        }
        if let Some(object) = &change.object {
            rows.add(object, out)?;
            rows.flush(out)?;
        }
    }
    Ok(())
}

/// Rows of a table that grows, or objects one after the other.
struct Rows<'a> {
    args: &'a Args,
    kind: &'a Kind,
    extras: Extras,
    table: Table,
    begun: bool,
}

impl Rows<'_> {
    fn add(&mut self, object: &Value, out: &mut dyn Write) -> Result<(), CommandError> {
        let first = !std::mem::replace(&mut self.begun, true);
        let header = first && !self.args.no_headers;
        match &self.args.output {
            None | Some(Format::Table { .. }) => {
                let printer = printer::of(self.kind);
                if header {
                    self.table.row(printer.header(&self.extras));
                }
                let row = printer.row(self.kind, object, &self.extras, Timestamp::now());
                self.table
                    .row(row.map_err(|source| shape(self.kind, object, source))?);
            }
            Some(Format::Columns(columns)) => {
                if header {
                    columns.header(&mut self.table);
                }
                columns.row(&mut self.table, object);
            }
            Some(format @ (Format::Yaml | Format::Json | Format::Name | Format::JsonPath(_))) => {
                if matches!(format, Format::Yaml) && !first {
                    writeln!(out, "---")?;
                }
                output::print_value(out, format, self.kind, object)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut dyn Write) -> Result<(), CommandError> {
        self.table.flush(out)?;
        Ok(out.flush()?)
    }
}
