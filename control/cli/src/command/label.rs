//! `foil label` and `foil annotate`: keys on objects.
//!
//! Both are a merge patch of one map in the metadata; `annotate.rs` brings its
//! own help and calls `change`.

use std::io::Write;

use serde_json::{Map, Value, json};

use crate::client::Patch;
use crate::error::{CommandError, RequestError};
use crate::output::{self, Format};
use crate::select::{Object, Request};
use crate::session::Session;

/// Set or remove labels
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil label pod busybox tier=front
  foil label pods -l app=web release-       remove the label `release`
  foil label node/n1 disk=ssd --overwrite")]
pub(crate) struct Args {
    #[command(flatten)]
    change: Change,
}

/// What both commands take.
#[derive(Debug, clap::Args)]
pub(crate) struct Change {
    /// Objects: KIND NAME... or KIND/NAME..., then KEY=VALUE to set or KEY- to remove
    #[arg(value_name = "WHAT KEY=VALUE...", required = true)]
    words: Vec<String>,
    /// Replace existing values
    #[arg(long)]
    overwrite: bool,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Select all objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Output format: name, yaml, json or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let what = What {
        field: "labels",
        words: ["labeled", "unlabeled", "not labeled"],
        manager: "foil-label",
    };
    change(args.change, what, session, out).await
}

/// What is changed.
pub(crate) struct What {
    /// Map in the metadata.
    pub(crate) field: &'static str,
    /// Reported when keys were set, were removed, or were as they should be.
    pub(crate) words: [&'static str; 3],
    /// Owner of the keys that are set.
    pub(crate) manager: &'static str,
}

/// Sets and removes keys.
pub(crate) async fn change(
    args: Change,
    what: What,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let What {
        field,
        words,
        manager,
    } = what;
    let (what, pairs) = split(&args.words)?;
    let request = Request {
        words: &what,
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
        let object = client.get(&kind, &namespace, &name).await?;
        let before = object
            .pointer(&format!("/metadata/{field}"))
            .cloned()
            .unwrap_or_default();
        let patch = patch(&pairs, &before, args.overwrite)?;
        let word = match (
            patch.is_empty(),
            pairs.iter().all(|(_, value)| value.is_none()),
        ) {
            (true, _) => words[2],
            (false, true) => words[1],
            (false, false) => words[0],
        };
        let after = if patch.is_empty() {
            object
        } else {
            let patch = json!({"metadata": {field: patch}});
            client
                .patch(
                    &kind,
                    &namespace,
                    control_api::meta::name(&object),
                    Patch::Merge(&patch),
                    manager,
                    false,
                )
                .await?
        };
        output::report(out, args.output.as_ref(), &kind, &after, word)?;
    }
    Ok(())
}

type Pair = (String, Option<String>);

/// Objects first, then KEY=VALUE and KEY-.
fn split(words: &[String]) -> Result<(Vec<String>, Vec<Pair>), RequestError> {
    let is_pair = |word: &String| word.contains('=') || word.ends_with('-');
    let at = words.iter().position(is_pair).unwrap_or(words.len());
    let (what, rest) = words.split_at(at);
    let pair = |word: &String| match (word.split_once('='), word.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => {
            Ok((key.to_string(), Some(value.to_string())))
        }
        (None, Some(key)) if !key.is_empty() => Ok((key.to_string(), None)),
        _ => Err(RequestError::Pair { word: word.clone() }),
    };
    let pairs = rest.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    if pairs.is_empty() {
        return Err(RequestError::Pair {
            word: words.last().cloned().unwrap_or_default(),
        });
    }
    Ok((what.to_vec(), pairs))
}

/// Only what changes; a value that is there is replaced only if that is wanted.
fn patch(
    pairs: &[Pair],
    before: &Value,
    overwrite: bool,
) -> Result<Map<String, Value>, RequestError> {
    let mut patch = Map::new();
    for (key, value) in pairs {
        let now = before.get(key).and_then(Value::as_str);
        match (now, value) {
            (None, None) => {}
            (Some(now), Some(value)) if now == value => {}
            (Some(now), Some(_)) if !overwrite => {
                return Err(RequestError::AlreadySet {
                    key: key.clone(),
                    value: now.to_string(),
                });
            }
            (_, value) => drop(patch.insert(key.clone(), json!(value))),
        }
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_objects_then_pairs() {
        let words = |text: &str| text.split(' ').map(ToString::to_string).collect::<Vec<_>>();
        let (what, pairs) = split(&words("pods a b x=1 y- z=")).unwrap();
        assert_eq!(what, ["pods", "a", "b"]);
        assert_eq!(
            pairs,
            [
                ("x".into(), Some("1".into())),
                ("y".into(), None),
                ("z".into(), Some(String::new()))
            ]
        );
        for bad in ["pods a", "pods a =1", "pods a x=1 b"] {
            assert!(split(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn patches_hold_changes_only() {
        let before = json!({"a": "1", "b": "2"});
        let set = |key: &str, value: Option<&str>| {
            vec![(key.to_string(), value.map(ToString::to_string))]
        };
        for (pairs, overwrite, want) in [
            (set("a", Some("1")), false, Ok(json!({}))),
            (set("a", Some("9")), true, Ok(json!({"a": "9"}))),
            (
                set("a", Some("9")),
                false,
                Err(RequestError::AlreadySet {
                    key: "a".into(),
                    value: "1".into(),
                }),
            ),
            (set("b", None), false, Ok(json!({"b": null}))),
            (set("c", None), false, Ok(json!({}))),
            (set("c", Some("3")), false, Ok(json!({"c": "3"}))),
        ] {
            assert_eq!(
                patch(&pairs, &before, overwrite).map(Value::Object),
                want,
                "{pairs:?}"
            );
        }
    }
}
