//! What was last pushed, on the disk: a journal (`agent-sys`'s `journal.rs`) of changes as
//! they came, so that a change costs what it is large, not what the cluster is.
//!
//! | key | value |
//! | --- | --- |
//! | (empty) | `NodeRecord`: cluster and revision |
//! | `config`, `route/NODE` | the `Change` |
//! | `service/NAMESPACE/NAME` | a `Change` with the service, without backends and endpoints |
//! | `service/NAMESPACE/NAME/PORT/ADDRESS/NUMBER`, `.../-/ADDRESS/HOSTNAME` | a `ServiceChange` with one backend of the port at this position, or one endpoint |
//! | `digest/NUMBER` | a `BucketDigest` |
//! | `pod/UID` | a `Change` with the uid alone: the specs, which hold secrets, have records of their own (`record.rs`) |
//!
//! So one backend that changes is all that is written of its service.
//!
//! A kind of object that is pushed has an arm in [`kept`] and a line in [`entries`].
//! Called by `pushed.rs`, and by `observe.rs` at the start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent_plan::world::Desired;
use agent_sys::journal::{Changes, Entries, Journal};
use agent_sys::state::{Layout, StateError};
use proto::Message;
use proto::bucket::{self, Digests};
use proto::service_change;
use proto::v1;
use proto::v1::change::Change;

/// Name of the file in the state folder.
const FILE: &str = "pushed";
/// Key of the revision.
const HEAD: &str = "";

/// What keys of digests begin with.
const DIGEST: &str = "digest/";

/// Key of the facts of the cluster.
const CONFIG: &str = "config";

/// The journal, for the loop and for the thread that writes it, one at a time.
pub(crate) type Shared = Arc<Mutex<Journal>>;

/// Where what was pushed is from.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Cluster and revision.
    pub(crate) head: v1::NodeRecord,
    /// Of its buckets.
    pub(crate) digests: Digests,
}

impl Kept {
    /// What is there is of no revision: all of it is to be sent again.
    pub(crate) fn forget_all(&mut self) {
        (self.head.revision, self.head.source) = (0, 0);
        (0..bucket::COUNT).for_each(|bucket| self.digests.forget(bucket));
    }

    /// All pods are to be sent again.
    pub(crate) fn forget_pods(&mut self) {
        (self.head.revision, self.head.source) = (0, 0);
        let pods = (0..bucket::COUNT).filter(|bucket| bucket::has_pods(*bucket));
        pods.for_each(|bucket| self.digests.forget(bucket));
    }
}

/// What was found on the disk.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it is from.
    pub(crate) kept: Kept,
    /// All that was pushed; pods with their uid alone.
    pub(crate) changes: Vec<Change>,
}

/// Opens the file. `None`: nothing was kept, or nothing that can be used.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn open(layout: &Layout) -> Result<(Shared, Option<Found>), StateError> {
    let (journal, mut entries) = Journal::open(&layout.state(FILE))?;
    let head = entries.remove(HEAD);
    let head = head.and_then(|bytes| v1::NodeRecord::decode(&bytes[..]).ok());
    let found = head.map(|head| together(head, &entries));
    Ok((Arc::new(Mutex::new(journal)), found))
}

/// What the entries are together. Without one that cannot be used the state is of no
/// revision, so that all of it is asked for.
fn together(head: v1::NodeRecord, entries: &Entries) -> Found {
    let (mut changes, mut services) = (Vec::new(), BTreeMap::new());
    let mut parts: BTreeMap<String, Vec<v1::ServiceChange>> = BTreeMap::new();
    let (mut digests, mut whole) = (Digests::default(), true);
    for entry in entries {
        if entry.0.starts_with(DIGEST) {
            match v1::BucketDigest::decode(&entry.1[..]) {
                Ok(digest) => digests.note(digest),
                Err(_) => whole = false,
            }
            continue;
        }
        match decoded(entry) {
            Some(Change::Service(service)) => {
                if has_entries(&service) {
                    tracing::warn!(key = entry.0, "a whole service, of an earlier agent");
                    whole = false;
                }
                services.insert(name(&service.namespace, &service.name), service);
            }
            Some(Change::ServiceChange(part)) => {
                let name = name(&part.namespace, &part.name);
                parts.entry(name).or_default().push(part);
            }
            Some(change) => changes.push(change),
            None => whole = false,
        }
    }
    for (name, parts) in parts {
        let Some(service) = services.get_mut(&name) else {
            tracing::error!(name, "backends of a service that was not kept");
            whole = false;
            continue;
        };
        if let Err(error) = service_change::assemble(service, parts) {
            tracing::error!(name, %error, "cannot use the last pushed state");
            whole = false;
        }
    }
    changes.extend(services.into_values().map(Change::Service));
    let mut kept = Kept { head, digests };
    if !whole {
        kept.forget_all();
    }
    Found { kept, changes }
}

fn has_entries(service: &v1::Service) -> bool {
    !service.endpoints.is_empty() || service.ports.iter().any(|port| !port.backends.is_empty())
}

/// "namespace/name"
pub(crate) fn name(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
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

/// Keys and values of a change; no value: the key is removed. `services` are those before
/// the change.
pub(crate) fn kept(change: &Change, services: &BTreeMap<String, v1::Service>) -> Changes {
    let mut changes = Changes::new();
    let removed = |name: &str| {
        let before = services.get(name).into_iter();
        before.flat_map(service_parts).map(|(key, _)| (key, None))
    };
    match change {
        Change::Service(service) => {
            let name = name(&service.namespace, &service.name);
            changes.extend(removed(&name));
            let mut frame = service_change::frame(service);
            frame.generation = service.generation;
            let frame = encoded(Change::Service(frame));
            changes.insert(format!("service/{name}"), Some(frame));
            changes.extend(values(service_parts(service)));
        }
        Change::ServiceRemoved(name) => {
            changes.extend(removed(name));
            changes.insert(format!("service/{name}"), None);
        }
        Change::ServiceChange(change) => {
            let of = name(&change.namespace, &change.name);
            for port in &change.ports {
                let gone = port.removed.iter();
                let gone = gone.map(|k| backend_key(&of, port.index, &k.address, k.port));
                changes.extend(gone.map(|key| (key, None)));
            }
            let gone = change.endpoints_removed.iter();
            let gone = gone.map(|k| endpoint_key(&of, &k.address, &k.hostname));
            changes.extend(gone.map(|key| (key, None)));
            changes.extend(values(parts(change)));
        }
        Change::Config(_) => drop(changes.insert(CONFIG.into(), Some(encoded(change.clone())))),
        Change::Pod(spec) => {
            changes.insert(format!("pod/{}", spec.uid), Some(of_pod(&spec.uid)));
        }
        Change::PodRemoved(uid) => drop(changes.insert(format!("pod/{uid}"), None)),
        Change::Route(route) => {
            let key = format!("route/{}", route.node);
            changes.insert(key, Some(encoded(change.clone())));
        }
        Change::RouteRemoved(node) => drop(changes.insert(format!("route/{node}"), None)),
    }
    changes
}

fn backend_key(service: &str, port: u32, address: &str, number: u32) -> String {
    format!("service/{service}/{port}/{address}/{number}")
}

fn endpoint_key(service: &str, address: &str, hostname: &str) -> String {
    format!("service/{service}/-/{address}/{hostname}")
}

/// Key and change of each backend and endpoint.
type Parts = Vec<(String, v1::ServiceChange)>;

/// Those of a service.
fn service_parts(service: &v1::Service) -> Parts {
    let ports = (0_u32..).zip(&service.ports);
    let ports = ports.map(|(index, port)| v1::PortChange {
        index,
        backends: port.backends.clone(),
        removed: Vec::new(),
    });
    parts(&v1::ServiceChange {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        generation: service.generation,
        ports: ports.collect(),
        endpoints: service.endpoints.clone(),
        endpoints_removed: Vec::new(),
    })
}

/// Those that a change puts in.
fn parts(change: &v1::ServiceChange) -> Parts {
    let of = name(&change.namespace, &change.name);
    let mut parts = Vec::new();
    let empty = || v1::ServiceChange {
        namespace: change.namespace.clone(),
        name: change.name.clone(),
        generation: change.generation,
        ..v1::ServiceChange::default()
    };
    for port in &change.ports {
        for backend in &port.backends {
            let key = backend_key(&of, port.index, &backend.address, backend.port);
            let port = v1::PortChange {
                index: port.index,
                backends: vec![backend.clone()],
                removed: Vec::new(),
            };
            let ports = vec![port];
            parts.push((key, v1::ServiceChange { ports, ..empty() }));
        }
    }
    for endpoint in &change.endpoints {
        let key = endpoint_key(&of, &endpoint.address, &endpoint.hostname);
        let endpoints = vec![endpoint.clone()];
        parts.push((
            key,
            v1::ServiceChange {
                endpoints,
                ..empty()
            },
        ));
    }
    parts
}

fn values(parts: Parts) -> impl Iterator<Item = (String, Option<Vec<u8>>)> {
    let parts = parts.into_iter();
    parts.map(|(key, part)| (key, Some(encoded(Change::ServiceChange(part)))))
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

/// Key and value of a digest.
pub(crate) fn digest(digest: &v1::BucketDigest) -> (String, Vec<u8>) {
    (format!("{DIGEST}{}", digest.bucket), digest.encode_to_vec())
}

/// All of it, for a file that is written anew.
pub(crate) fn entries(
    desired: &Desired,
    record: &v1::NodeRecord,
    digests: &[v1::BucketDigest],
) -> Entries {
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
    let others = others.flat_map(|change| kept(&change, &BTreeMap::new()));
    let others = others.filter_map(|(key, value)| Some((key, value?)));
    let head = head(record);
    let digests = digests.iter().map(digest);
    let all = std::iter::once(head).chain(digests);
    all.chain(pods).chain(others).collect()
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
