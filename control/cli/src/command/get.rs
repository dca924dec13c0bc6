//! `foil get`: objects, as tables or as they are.
//!
//! Fetching and following is here; columns are in `printer/`, formats in `output`.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;
use proto::v1::watch_event::Type;
use serde_json::Value;

use crate::client::{Client, Selection};
use crate::error::{CommandError, RequestError};
use crate::follow::Changes;
use crate::kinds::Kind;
use crate::output::jsonpath::Template;
use crate::output::table::Table;
use crate::output::{self, Format};
use crate::printer::Extras;
use crate::select::{Bare, Request, Selected};
use crate::session::{Session, list_of, nothing_in};
use crate::view;

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
    /// Objects: KIND[,KIND] [NAME...] or KIND/NAME...
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// Output format: wide, yaml, json, name, jsonpath=TEMPLATE, custom-columns=HEADER:PATH,...
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Print the objects, then each change as it happens
    #[arg(short, long)]
    watch: bool,
    /// Print only changes, not the objects that exist already
    #[arg(long)]
    watch_only: bool,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Field selector: metadata.name=x, status.phase!=Running, spec.nodeName=n
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// Look in all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Add a column with all labels
    #[arg(long)]
    show_labels: bool,
    /// Add a column for each of these labels
    #[arg(short = 'L', long, value_name = "KEY", value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Leave out the line of column names
    #[arg(long)]
    no_headers: bool,
    /// With -o yaml or json: keep metadata.managedFields, the owners of fields
    #[arg(long)]
    show_managed_fields: bool,
    /// Sort by the value at this path: .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", value_parser = SortKey::parse)]
    sort_by: Option<SortKey>,
    /// Objects named in this file, folder or "-" (standard input); may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "words"
    )]
    files: Vec<String>,
    /// With -f: read subfolders as well
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,
    /// Succeed if a named object does not exist
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
    let (mut client, selected) = session.select(&args.request()).await?;
    if args.watch || args.watch_only {
        return follow(&args, session, &mut client, selected, out).await;
    }
    let single = matches!(selected.as_slice(), [Selected::One(_)]);
    let mut namespace = String::new();
    let mut failed = false;
    let mut groups: Vec<(Kind, Vec<Value>)> = Vec::new();
    for selected in selected {
        let (kind, mut found) = match selected {
            Selected::One(one) => match client.get(&one.kind, &one.namespace, &one.name).await {
                Ok(object) => (one.kind, vec![object]),
                Err(error) if error.is_not_found() => {
                    if !args.ignore_not_found {
                        eprintln!("{error}");
                        failed = true;
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            Selected::Matching(kind, selection) => {
                let found = client.list(&kind, &selection).await?.items;
                namespace = selection.namespace;
                (kind, found)
            }
        };
        match groups.last_mut().filter(|(last, _)| *last == kind) {
            Some((_, objects)) => objects.append(&mut found),
            None => groups.push((kind, found)),
        }
    }
    for (_, objects) in &mut groups {
        if let Some(key) = &args.sort_by {
            key.sort(objects);
        }
    }
    print(&args, groups, single, &namespace, out)?;
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

impl Args {
    fn request(&self) -> Request<'_> {
        Request {
            words: &self.words,
            files: &self.files,
            recursive: self.recursive,
            labels: &self.selector,
            fields: &self.field_selector,
            all: false,
            all_namespaces: self.all_namespaces,
            bare: Bare::Whole,
        }
    }

    /// As kubectl: YAML and JSON are without them unless asked for, paths see everything.
    fn hide_owners(&self, object: &mut Value) {
        if !self.show_managed_fields && matches!(self.output, Some(Format::Yaml | Format::Json)) {
            output::hide_owners(object);
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
            all.iter_mut().for_each(|object| args.hide_owners(object));
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
        let (printer, extras) = (view::of(kind).printer, args.extras(kind, with_kind));
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
    if !printed && !groups.is_empty() {
        out.flush()?;
        eprintln!("{}", nothing_in(namespace));
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
    session: &Session,
    client: &mut Client,
    mut selected: Vec<Selected>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let (kind, selection) = match (selected.pop(), selected.is_empty()) {
        (Some(Selected::Matching(kind, selection)), true) => (kind, selection),
        (Some(Selected::One(one)), true) => {
            // A name that is not there is an error, as without -w; one that comes later is
            // not waited for.
            let got = client.get(&one.kind, &one.namespace, &one.name).await;
            if !args.ignore_not_found {
                got?;
            }
            let selection = Selection {
                namespace: one.namespace,
                fields: format!("metadata.name={}", one.name),
                ..Selection::default()
            };
            (one.kind, selection)
        }
        _ => return Err(RequestError::WatchOne.into()),
    };
    let kind = &kind;
    let listed = client.list(kind, &selection).await?;
    let mut rows = Rows {
        args,
        kind,
        extras: args.extras(kind, false),
        table: Table::default(),
        begun: false,
    };
    if !args.watch_only {
        for mut object in listed.items {
            args.hide_owners(&mut object);
            rows.add(&object, out)?;
        }
        rows.flush(out)?;
    }
    let mut changes = Changes::after(session, client, kind, &selection, listed.resource_version);
    loop {
        let change = changes.next().await?;
        if matches!(change.kind, Type::Bookmark | Type::Unspecified) {
            continue;
        }
        if let Some(mut object) = change.object {
            args.hide_owners(&mut object);
            rows.add(&object, out)?;
            rows.flush(out)?;
        }
    }
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
                let printer = view::of(self.kind).printer;
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
