//! Records on disk: one per pod, and one of all else that was last pushed.
//!
//! What is in them is `agent-plan`'s (`record.rs` there); here are the files.
//! Written without waiting for the disk: they have to survive the agent, and the
//! page cache does; after a power cut nothing runs that they would speak of.

use std::fs;
use std::io;

use agent_plan::record;
use agent_plan::time::Moment;
use agent_plan::world::{Desired, Pod};
use agent_sys::state::Layout;
use proto::Message;
use proto::file::replace;
use proto::v1;

use crate::startup::Sys;

/// Name of a pod's record in its folder.
const POD: &str = "record";
/// Name of the node's record in the state folder.
const NODE: &str = "pushed";

/// Writes the record of a pod; its folder is made with it. Why not, in words.
pub(crate) fn write(sys: &Sys, pod: Option<&Pod>) -> Result<(), String> {
    let Some(pod) = pod else { return Ok(()) };
    let folder = sys.layout.pod(&pod.spec.uid);
    let path = folder.join(POD);
    let bytes = record::of(pod, &sys.boot_id).encode_to_vec();
    fs::DirBuilder::new()
        .recursive(true)
        .create(&folder)
        .and_then(|()| replace(&path, &bytes, 0o600))
        .map_err(|e| format!("write {}: {e}", path.display()))
}

/// All pods that have a record. One that cannot be read is passed over, loudly:
/// the control plane will send it again.
pub(crate) fn pods(layout: &Layout, boot_id: &str, now: Moment) -> Vec<Pod> {
    let uids = agent_sys::state::list(&layout.pods()).unwrap_or_else(|error| {
        tracing::error!(%error, "pods' records cannot be listed");
        Vec::new()
    });
    let mut pods = Vec::new();
    for uid in uids {
        let path = layout.pod(&uid).join(POD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // A folder without a record was being removed, or never got one.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a pod's record cannot be read");
                continue;
            }
        };
        match v1::PodRecord::decode(&bytes[..]) {
            Ok(record) => match record::restore(record, boot_id, now) {
                Some(pod) if pod.spec.uid == uid => pods.push(pod),
                Some(_) | None => {
                    tracing::error!(path = %path.display(), "not the record of this pod");
                }
            },
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a pod's record does not parse");
            }
        }
    }
    pods
}

/// What was last pushed, but for pods: ready to be written.
pub(crate) fn node(desired: &Desired, cluster_id: &str, revision: u64) -> Vec<u8> {
    v1::NodeRecord {
        cluster_id: cluster_id.into(),
        revision,
        config: Some(desired.config.clone()),
        services: desired.services.values().cloned().collect(),
        routes: desired.routes.values().cloned().collect(),
        pods: desired.pods.keys().cloned().collect(),
    }
    .encode_to_vec()
}

/// Writes the bytes of [`node`]. Blocking.
pub(crate) fn write_node(layout: &Layout, bytes: &[u8]) -> Result<(), String> {
    let path = layout.state(NODE);
    replace(&path, bytes, 0o600).map_err(|e| format!("write {}: {e}", path.display()))
}

/// What was last pushed; `None` when nothing ever was, or when it cannot be read.
pub(crate) fn read_node(layout: &Layout) -> Option<v1::NodeRecord> {
    let path = layout.state(NODE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "what was last pushed cannot be read");
            return None;
        }
    };
    v1::NodeRecord::decode(&bytes[..])
        .inspect_err(|error| {
            tracing::error!(path = %path.display(), %error, "what was last pushed does not parse");
        })
        .ok()
}
