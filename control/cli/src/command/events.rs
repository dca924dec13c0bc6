//! `foil events`: what happened lately, oldest first.

use std::io::Write;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use proto::v1::watch_event::Type;
use serde_json::Value;

use crate::client::{Client, Selection};
use crate::error::CommandError;
use crate::follow::Changes;
use crate::kinds;
use crate::output::table::Table;
use crate::printer::{Extras, event};
use crate::session::{Session, typed};
use crate::view;

/// Print events, oldest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil events                          of the namespace
  foil events --for pod/busybox        of one object
  foil events --types=Warning -A
  foil events -w                       and those that come")]
pub(crate) struct Args {
    /// Only events about this object: KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
    /// Only these types: Normal, Warning
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    types: Vec<String>,
    /// Continue with new events as they happen
    #[arg(short, long)]
    watch: bool,
    /// Look in all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Leave out the line of column names
    #[arg(long)]
    no_headers: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let about = match &args.about {
        Some(word) => Some(session.named(&mut client, word).await?),
        None => None,
    };
    let mut namespace = if args.all_namespaces {
        String::new()
    } else {
        session.namespace(&client)
    };
    // Events of nodes and the like are kept in the default namespace, whichever is asked for.
    if about.as_ref().is_some_and(|(kind, _)| !kind.namespaced) {
        namespace = "default".into();
    }
    let wanted = |event: &Event| {
        let object = &event.involved_object;
        about.as_ref().is_none_or(|(kind, name)| {
            object.kind.as_deref() == Some(kind.kind.as_str())
                && object.name.as_deref() == Some(name.as_str())
        }) && (args.types.is_empty()
            || args.types.iter().any(|word| {
                event
                    .type_
                    .as_deref()
                    .is_some_and(|of| of.eq_ignore_ascii_case(word))
            }))
    };
    let fields = about
        .as_ref()
        .map(|(kind, name)| about_fields(&kind.kind, name))
        .unwrap_or_default();
    let selection = Selection {
        namespace: namespace.clone(),
        fields,
        ..Selection::default()
    };
    let (mut found, resource_version) = list(&mut client, &selection, &wanted).await?;
    found.sort_by_key(|(event, _)| event::order(event));
    let kind = kinds::by_word(&kinds::known(), "events")?;
    let (printer, extras) = (
        view::of(&kind).printer,
        Extras {
            namespace: args.all_namespaces,
            ..Extras::default()
        },
    );
    let mut table = Table::default();
    let shape = |source| CommandError::Shape {
        object: "event".into(),
        source,
    };
    if found.is_empty() && !args.watch {
        out.flush()?;
        eprintln!(
            "No events found{}.",
            if namespace.is_empty() {
                String::new()
            } else {
                format!(" in {namespace} namespace")
            }
        );
        return Ok(());
    }
    if !args.no_headers {
        table.row(printer.header(&extras));
    }
    for (_, object) in &found {
        table.row(
            printer
                .row(&kind, object, &extras, Timestamp::now())
                .map_err(shape)?,
        );
    }
    table.flush(out)?;
    out.flush()?;
    if !args.watch {
        return Ok(());
    }
    let mut changes = Changes::after(session, &mut client, &kind, &selection, resource_version);
    loop {
        let change = changes.next().await?;
        let Some(object) = change
            .object
            .filter(|_| matches!(change.kind, Type::Added | Type::Modified))
        else {
            continue;
        };
        if wanted(&typed(&object)?) {
            table.row(
                printer
                    .row(&kind, &object, &extras, Timestamp::now())
                    .map_err(shape)?,
            );
            table.flush(out)?;
            out.flush()?;
        }
    }
}

/// The events that are wanted, typed and as they are, and where to watch from.
async fn list(
    client: &mut Client,
    selection: &Selection,
    wanted: &dyn Fn(&Event) -> bool,
) -> Result<(Vec<(Event, Value)>, String), CommandError> {
    let kind = kinds::by_word(&kinds::known(), "events")?;
    let listed = client.list(&kind, selection).await?;
    let mut found = Vec::new();
    for object in listed.items {
        let event: Event = typed(&object)?;
        if wanted(&event) {
            found.push((event, object));
        }
    }
    Ok((found, listed.resource_version))
}

/// Lets the server leave out what is about other objects.
fn about_fields(kind: &str, name: &str) -> String {
    format!("involvedObject.kind={kind},involvedObject.name={name}")
}

/// Events about one object, oldest first: what `describe` ends with.
pub(crate) async fn about(client: &mut Client, object: &Value) -> Result<Vec<Event>, CommandError> {
    let namespace = match crate::session::namespace_of(object) {
        "" => "default",
        named => named,
    };
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let (name, uid) = (
        control_api::meta::name(object),
        control_api::meta::uid(object),
    );
    let wanted = |event: &Event| {
        let of = &event.involved_object;
        of.kind.as_deref() == Some(kind)
            && of.name.as_deref() == Some(name)
            // An earlier object of the same name has a uid of its own.
            && of.uid.as_deref().is_none_or(|found| uid.is_empty() || found.is_empty() || found == uid || found == name)
    };
    let fields = about_fields(kind, name);
    let selection = Selection {
        namespace: namespace.to_string(),
        fields,
        ..Selection::default()
    };
    let (mut found, _) = list(client, &selection, &wanted).await?;
    found.sort_by_key(|(event, _)| event::order(event));
    Ok(found.into_iter().map(|(event, _)| event).collect())
}
