//! What was last pushed, on the disk: a journal (`agent-sys`'s `journal.rs`) of changes as
//! they came, so that a change costs what it is large, not what the cluster is.
//!
//! | key | value |
//! | --- | --- |
//! | (empty) | `NodeRecord`: cluster and revision |
//! | `config`, `service/NAMESPACE/NAME`, `route/NODE` | the `Change` |
//! | `pod/UID` | a `Change` with the uid alone: the specs, which hold secrets, have records of their own (`record.rs`) |
//!
//! A kind of object that is pushed has an arm in [`kept`] and a line in [`entries`].
//! Called by `pushed.rs`, and by `observe.rs` at the start.

use std::sync::{Arc, Mutex, PoisonError};

use agent_plan::world::Desired;
use agent_sys::journal::{Changes, Entries, Journal};
use agent_sys::state::{Layout, StateError};
use proto::Message;
use proto::v1;
use proto::v1::change::Change;

/// Name of the file in the state folder.
const FILE: &str = "pushed";
/// Key of the revision.
const HEAD: &str = "";

/// Key of the facts of the cluster.
const CONFIG: &str = "config";

/// The journal, for the loop and for the thread that writes it, one at a time.
pub(crate) type Shared = Arc<Mutex<Journal>>;

/// What was found on the disk.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Cluster and revision.
    pub(crate) head: v1::NodeRecord,
    /// All that was pushed; pods with their uid alone.
    pub(crate) changes: Vec<Change>,
}

/// Opens the file. `None`: nothing was kept, or nothing that can be used.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn open(layout: &Layout) -> Result<(Shared, Option<Kept>), StateError> {
    let (journal, mut entries) = Journal::open(&layout.state(FILE))?;
    let head = entries.remove(HEAD);
    let head = head.and_then(|bytes| v1::NodeRecord::decode(&bytes[..]).ok());
    let kept = head.map(|head| Kept {
        head,
        changes: entries.iter().filter_map(decoded).collect(),
    });
    Ok((Arc::new(Mutex::new(journal)), kept))
}

/// The facts of the cluster that were pushed last, for a process beside the agent.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn config(layout: &Layout) -> Result<Option<v1::ClusterConfig>, StateError> {
    let entries = agent_sys::journal::read(&layout.state(FILE))?;
    let change = entries.get_key_value(CONFIG).and_then(decoded);
    let Some(Change::Config(config)) = change else {
        return Ok(None);
    };
    Ok(Some(config))
}

fn decoded((key, value): (&String, &Vec<u8>)) -> Option<Change> {
    match v1::Change::decode(&value[..]) {
        Ok(change) => {
            if change.change.is_none() {
                tracing::warn!(key, "a kind of object that this agent does not know");
            }
            change.change
        }
        Err(error) => {
            tracing::error!(key, %error, "cannot parse the last pushed state");
            None
        }
    }
}

/// Key and value of a change; no value: the key is removed.
pub(crate) fn kept(change: &Change) -> (String, Option<Vec<u8>>) {
    let whole = || Some(encoded(change.clone()));
    match change {
        Change::Config(_) => (CONFIG.into(), whole()),
        Change::Pod(spec) => (format!("pod/{}", spec.uid), Some(of_pod(&spec.uid))),
        Change::PodRemoved(uid) => (format!("pod/{uid}"), None),
        Change::Service(service) => {
            let key = format!("service/{}/{}", service.namespace, service.name);
            (key, whole())
        }
        Change::ServiceRemoved(name) => (format!("service/{name}"), None),
        Change::Route(route) => (format!("route/{}", route.node), whole()),
        Change::RouteRemoved(node) => (format!("route/{node}"), None),
    }
}

fn encoded(change: Change) -> Vec<u8> {
    v1::Change {
        change: Some(change),
    }
    .encode_to_vec()
}

fn of_pod(uid: &str) -> Vec<u8> {
    encoded(Change::Pod(v1::PodSpec {
        uid: uid.to_owned(),
        ..v1::PodSpec::default()
    }))
}

/// Key and value of cluster and revision.
pub(crate) fn head(head: &v1::NodeRecord) -> (String, Vec<u8>) {
    (HEAD.to_owned(), head.encode_to_vec())
}

/// All of it, for a file that is written anew.
pub(crate) fn entries(desired: &Desired, record: &v1::NodeRecord) -> Entries {
    let Desired {
        config,
        pods,
        services,
        routes,
        complete: _,
    } = desired;
    let pods = pods.keys().map(|uid| (format!("pod/{uid}"), of_pod(uid)));
    let others = std::iter::once(Change::Config(config.clone()))
        .chain(services.values().cloned().map(Change::Service))
        .chain(routes.values().cloned().map(Change::Route));
    let others = others.filter_map(|change| {
        let (key, value) = kept(&change);
        Some((key, value?))
    });
    let head = head(record);
    std::iter::once(head).chain(pods).chain(others).collect()
}

/// What is to be written.
#[derive(Debug)]
pub(crate) enum Work {
    /// What has changed since the last time.
    Append(Changes),
    /// Everything, in place of the file.
    Rewrite(Entries),
}

/// Work that was not done.
#[derive(Debug)]
pub(crate) struct NotSaved {
    /// Why.
    pub(crate) error: String,
    /// The changes that are to be written still; `None`: everything is.
    pub(crate) changes: Option<Changes>,
}

/// Whether the next work must be a [`Work::Rewrite`].
pub(crate) fn wants_rewrite(journal: &Shared) -> bool {
    let journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    journal.wants_rewrite()
}

/// Does the work. Blocking.
pub(crate) fn write(journal: &Shared, work: Work) -> Result<(), NotSaved> {
    let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    match work {
        Work::Append(changes) => journal.append(&changes).map_err(|error| NotSaved {
            error: error.to_string(),
            changes: Some(changes),
        }),
        Work::Rewrite(entries) => journal.rewrite(entries).map_err(|error| NotSaved {
            error: error.to_string(),
            changes: None,
        }),
    }
}
