//! `foil describe`: one object and what belongs to it, for a person.
//!
//! Finds the objects; what is said about each kind is in `describe/`.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;

use serde_json::Value;

use crate::client::{Client, Selection};
use crate::describe;
use crate::describe::text::Text;
use crate::error::CommandError;
use crate::kinds::{self, Kind};
use crate::select::{Bare, Object, Request, Selected};
use crate::session::{Session, absent_is_none, nothing_in};
use crate::view;

/// Show objects in detail, with their events
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil describe pod/web-5f6d7              why is it not ready? the end says what happened
  foil describe svc web                    with its endpoints
  foil describe node n1                    with its pods
  foil describe pods -l app=web
  foil describe pod web                    all whose names begin so, if none is named so")]
pub(crate) struct Args {
    /// Objects: KIND [NAME...] or KIND/NAME...
    #[arg(value_name = "WHAT", required = true)]
    words: Vec<String>,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Look in all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Print the events of each object; --show-events=false leaves them out
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    show_events: bool,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let request = Request {
        words: &args.words,
        labels: &args.selector,
        all_namespaces: args.all_namespaces,
        bare: Bare::Whole,
        ..Request::default()
    };
    let (mut client, selected) = session.select(&request).await?;
    let mut failed = false;
    let mut first = true;
    for selected in selected {
        let (kind, found) = match selected {
            Selected::One(one) => {
                let found = named(&mut client, &one).await?;
                if found.is_empty() {
                    let (resource, name) = (one.kind.resource(), &one.name);
                    eprintln!("Error from server (NotFound): {resource} \"{name}\" not found");
                    failed = true;
                }
                (one.kind, found)
            }
            Selected::Matching(kind, selection) => {
                let found = client.list(&kind, &selection).await?.items;
                if found.is_empty() {
                    eprintln!("{}", nothing_in(&selection.namespace));
                }
                (kind, found)
            }
        };
        for object in found {
            if !std::mem::replace(&mut first, false) {
                writeln!(out, "\n")?;
            }
            let text = description(&mut client, &kind, &object, args.show_events).await?;
            out.write_all(text.as_bytes())?;
        }
    }
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

/// The object of that name, else those whose names begin with it: pods have long names.
async fn named(client: &mut Client, one: &Object) -> Result<Vec<Value>, CommandError> {
    let got = client.get(&one.kind, &one.namespace, &one.name).await;
    if let Some(object) = absent_is_none(got)? {
        return Ok(vec![object]);
    }
    let selection = Selection {
        namespace: one.namespace.clone(),
        ..Selection::default()
    };
    let mut found = client.list(&one.kind, &selection).await?.items;
    found.retain(|object| control_api::meta::name(object).starts_with(&one.name));
    Ok(found)
}

/// All that is said about an object.
async fn description(
    client: &mut Client,
    kind: &Kind,
    object: &Value,
    show_events: bool,
) -> Result<String, CommandError> {
    let describer = &view::of(kind).describer;
    let related = match &describer.related {
        Some(related) => {
            let kind = kinds::by_word(&kinds::known(), related.word)?;
            let selection = (related.selection)(object);
            client.list(&kind, &selection).await?.items
        }
        None => Vec::new(),
    };
    let now = Timestamp::now();
    let mut text = Text::default();
    let described = (describer.text)(&mut text, object, &related, now);
    described.map_err(|source| CommandError::Shape {
        object: kind.object(control_api::meta::name(object)),
        source,
    })?;
    if show_events && kind.kind != "Event" {
        let about = super::events::about(client, object).await?;
        describe::events::describe(&mut text, &about, now);
    }
    Ok(text.finish())
}
