//! `foil cordon` and `foil uncordon`: whether the scheduler uses a node.

use std::io::Write;

use serde_json::{Value, json};

use crate::client::{Client, Patch};
use crate::error::{CommandError, RequestError};
use crate::select::{Object, Request};
use crate::session::Session;

/// Owner of `spec.unschedulable`.
const MANAGER: &str = "foil-cordon";

/// Mark nodes as unschedulable
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
No new pods are scheduled to a cordoned node; those that run there go on.

Examples:
  foil cordon n1
  foil cordon -l rack=7")]
pub(crate) struct Cordon {
    #[command(flatten)]
    nodes: Nodes,
}

/// Mark nodes as schedulable
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil uncordon n1")]
pub(crate) struct Uncordon {
    #[command(flatten)]
    nodes: Nodes,
}

/// Which nodes.
#[derive(Debug, clap::Args)]
pub(super) struct Nodes {
    /// Names of nodes
    #[arg(
        value_name = "NODE",
        required_unless_present = "selector",
        conflicts_with = "selector"
    )]
    names: Vec<String>,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long)]
    selector: Option<String>,
}

impl Nodes {
    /// The nodes that are meant; none is a mistake.
    pub(super) async fn find(
        &self,
        session: &Session,
    ) -> Result<(Client, Vec<Object>), CommandError> {
        let mut words = vec!["nodes".to_owned()];
        // `node/n1` is taken for n1, as kubectl does.
        words.extend(self.names.iter().map(|name| {
            let bare = name
                .strip_prefix("node/")
                .or_else(|| name.strip_prefix("nodes/"));
            bare.unwrap_or(name).to_owned()
        }));
        let request = Request {
            words: &words,
            labels: self.selector.as_deref().unwrap_or_default(),
            ..Request::default()
        };
        let (client, found) = session.objects(&request).await?;
        if found.is_empty() {
            return Err(RequestError::NoNodes.into());
        }
        Ok((client, found))
    }
}

pub(crate) async fn cordon(
    args: Cordon,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    each(&args.nodes, true, session, out).await
}

pub(crate) async fn uncordon(
    args: Uncordon,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    each(&args.nodes, false, session, out).await
}

async fn each(
    nodes: &Nodes,
    unschedulable: bool,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let (mut client, nodes) = nodes.find(session).await?;
    let mut failed = false;
    for node in nodes {
        match set(&mut client, &node, unschedulable, out).await {
            Ok(()) => {}
            Err(CommandError::Call(error)) if error.is_not_found() => {
                eprintln!("{error}");
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    if failed {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

/// Sets `spec.unschedulable`, and says what became of the node.
pub(super) async fn set(
    client: &mut Client,
    node: &Object,
    unschedulable: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let object = client.get(&node.kind, "", &node.name).await?;
    let now = object
        .pointer("/spec/unschedulable")
        .and_then(Value::as_bool);
    let outcome = if unschedulable {
        "cordoned"
    } else {
        "uncordoned"
    };
    let name = node.kind.object(&node.name);
    if now.unwrap_or(false) == unschedulable {
        writeln!(out, "{name} already {outcome}")?;
    } else {
        // As kubectl: the field is removed, not set to false.
        let value = if unschedulable {
            json!(true)
        } else {
            Value::Null
        };
        let patch = json!({"spec": {"unschedulable": value}});
        client
            .patch(
                &node.kind,
                "",
                &node.name,
                Patch::Merge(&patch),
                MANAGER,
                false,
            )
            .await?;
        writeln!(out, "{name} {outcome}")?;
    }
    Ok(out.flush()?)
}
