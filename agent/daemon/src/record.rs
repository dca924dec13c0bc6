//! Records of pods.
//!
//! | file | what | for |
//! | --- | --- | --- |
//! | `run/pods/UID` | the complete record of a pod; memory (a tmpfs) | an agent that restarts |
//! | `root/pods/UID/record` | the same without environment and secrets (`agent-plan`'s `withhold.rs`), synced | a reboot |
//!
//! The first is written before anything of a pod is made; the second follows when the
//! disk has time for it, the newest only. What is in them is `agent-plan`'s
//! (`record.rs` there); what else was pushed is kept by `pushed_file.rs`. No file is written on the loop's thread.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::outcome::{Outcome, Part};
use agent_plan::record::{self, Kept};
use agent_plan::time::Moment;
use agent_plan::withhold;
use agent_plan::world::Pod;
use agent_sys::state::{Layout, StateError};
use proto::Message;
use proto::file::replace;
use proto::v1;

use crate::record_queue::Next;
use crate::startup::Sys;

/// Name of a pod's record in its folder.
const POD: &str = "record";
/// After a write to the disk that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How long the agent's end waits for the disk.
const FLUSH: Duration = Duration::from_secs(5);

/// Writes what waits, for as long as the agent runs.
pub(crate) async fn run(sys: Arc<Sys>) {
    loop {
        let Next {
            uid,
            bytes,
            writing,
        } = sys.records.next().await;
        let id = uid.clone();
        let written = sys.blocking(move |sys| {
            let path = sys.layout.pod(&id).join(POD);
            match replace(&path, &bytes, 0o600) {
                // The pod was removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(())),
                Err(e) => Ok(Err((e.to_string(), bytes))),
                Ok(()) => Ok(Ok(())),
            }
        });
        let (error, bytes) = match written.await {
            Ok(Ok(())) => continue,
            Ok(Err(failed)) => failed,
            Err(error) => (error, Vec::new()),
        };
        drop(writing);
        tracing::error!(pod = uid, error, "cannot write the pod's record; retrying");
        if !bytes.is_empty() {
            sys.records.put_back(uid, bytes);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Waits until all that waits is on the disk, at the agent's end.
pub(crate) async fn flush(sys: &Sys) {
    let written = tokio::time::timeout(FLUSH, sys.records.empty());
    if written.await.is_err() {
        tracing::error!("cannot write pods' records: after a reboot they will be older");
    }
}

/// Writes the record of a pod; its folder is made with it. Ends with one event.
pub(crate) fn write(sys: &Arc<Sys>, pod: Option<&Pod>) {
    let Some(pod) = pod else { return };
    let uid = pod.spec.uid.clone();
    let record = record::of(pod, &sys.boot_id);
    let whole = record.encode_to_vec();
    let sys = sys.clone();
    tokio::spawn(async move {
        let id = uid.clone();
        let written = sys.blocking(move |sys| {
            // The folder of all of them is there, unless `run` was emptied.
            sys.in_memory()
                .and_then(|()| agent_sys::state::create_folder(&sys.layout.records()))
                .and_then(|()| agent_sys::state::create_folder(&sys.layout.pod(&id)))
                .and_then(|()| agent_sys::state::replace(&sys.layout.record(&id), &whole, 0o600))
                .map_err(|e| e.to_string())
        });
        let result = written.await;
        if result.is_ok() {
            let bytes = withhold::for_disk(record).encode_to_vec();
            sys.records.put(uid.clone(), bytes);
        }
        sys.tell(Outcome::Part {
            uid,
            part: Part::Record,
            result,
        })
        .await;
    });
}

/// Removes the complete record of a pod: after all else of it is gone.
pub(crate) fn remove(layout: &Layout, uid: &str) -> Result<(), StateError> {
    let path = layout.record(uid);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StateError::Remove { path, source }),
    }
}

/// All pods that have a record: the complete one, or after a reboot what is on disk.
/// One that cannot be read is passed over, loudly: the control plane will send it again.
pub(crate) fn pods(layout: &Layout, boot_id: &str, now: Moment) -> Vec<Pod> {
    let mut uids = Vec::new();
    for folder in [layout.records(), layout.pods()] {
        match agent_sys::state::uids(&folder) {
            Ok(names) => uids.extend(names),
            Err(error) => tracing::error!(%error, "cannot list pods' records"),
        }
    }
    uids.sort();
    uids.dedup();
    let pod = |uid: &String| {
        let (whole, on_disk) = (layout.record(uid), layout.pod(uid).join(POD));
        // One that is there and cannot be read is not lost.
        let kept = match whole.try_exists() {
            Ok(false) => Kept::OnDisk,
            Ok(true) | Err(_) => Kept::Whole,
        };
        let mut paths = [whole, on_disk].into_iter();
        paths.find_map(|path| restore(&path, uid, kept, boot_id, now))
    };
    uids.iter().filter_map(pod).collect()
}

fn restore(path: &Path, uid: &str, kept: Kept, boot_id: &str, now: Moment) -> Option<Pod> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        // A folder without a record was being removed, or never got one.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read a pod's record");
            return None;
        }
    };
    let record = match v1::PodRecord::decode(&bytes[..]) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot parse a pod's record");
            return None;
        }
    };
    let pod = record::restore(record, kept, boot_id, now).filter(|pod| pod.spec.uid == uid);
    if pod.is_none() {
        tracing::error!(path = %path.display(), "not the record of this pod");
    }
    pod
}
