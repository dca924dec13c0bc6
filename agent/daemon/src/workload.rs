//! Containers: made, started, signalled and deleted through their pod's shim.
//! Each function spawns a task; those that plans wait for end with one event.
//!
//! Called by `apply.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_plan::action::Instance;
use agent_plan::create::set_home;
use agent_plan::outcome::{Call, Outcome, Refusal};
use agent_plan::time::Moment;
use agent_plan::user::{self as runs_as, Account, Entry, User};
use agent_plan::volume::{Mount, Source};
use agent_plan::world::{Pod, container_id};
use agent_sys::image::{rootfs, user};
use agent_sys::shim::{Client, ShimError};
use agent_sys::volume::sub_path::Part;
use agent_sys::volume::{self as volumes, VolumeError};
use proto::v1;
use proto::v1::shim_error::Kind;

use crate::clock;
use crate::images;
use crate::last_words;
use crate::log_file;
use crate::sandbox::HOST_PATH;
use crate::shims;
use crate::startup::Sys;

/// A container to be made.
#[derive(Debug)]
pub(crate) struct Make {
    /// Which.
    pub(crate) instance: Instance,
    /// Of its image.
    pub(crate) digest: String,
    /// What the shim is told, but for paths and user.
    pub(crate) create: v1::ShimCreate,
    /// Who it runs as.
    pub(crate) user: User,
    /// What is mounted into it.
    pub(crate) mounts: Vec<Mount>,
    /// Logs of instances before this one are removed.
    pub(crate) oldest_log: u32,
}

fn id(instance: &Instance) -> String {
    container_id(&instance.uid, &instance.container, instance.attempt)
}

/// Makes a container: root, mounts, user, then the shim's part.
pub(crate) fn create(sys: &Arc<Sys>, make: Make, pod: Option<&Pod>) {
    let Some(spec) = pod.map(|p| p.spec.clone()) else {
        return;
    };
    let sys = sys.clone();
    tokio::spawn(async move {
        let instance = make.instance.clone();
        let prepared = match host_parts(&sys, &make.mounts).await {
            Ok(parts) => {
                let work = sys.blocking(move |sys| Ok(prepare(sys, make, parts, &spec)));
                work.await.map_err(Refusal::Runtime).flatten()
            }
            Err(refusal) => Err(refusal),
        };
        let result = match prepared {
            Ok(create) => ask(&sys, &instance.uid, create).await,
            Err(refusal) => Err(refusal),
        };
        // What there is of one that was not made is removed by the plan.
        sys.tell(Outcome::Created { instance, result }).await;
    });
}

/// The parts of host paths that are mounted, by the index of the mount: opened here, as
/// their file system may not answer.
async fn host_parts(sys: &Sys, mounts: &[Mount]) -> Result<HashMap<usize, Part>, Refusal> {
    let mut parts = HashMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        if let Source::Host { path, sub_path } = &mount.source
            && !sub_path.is_empty()
        {
            let (volume, sub_path) = (PathBuf::from(path), sub_path.clone());
            let find = move || volumes::sub_path::find(&volume, &sub_path);
            let asked = sys.host.run(Path::new(path), HOST_PATH, find).await;
            let found = asked.map_err(|e| Refusal::Config(e.to_string()))?;
            parts.insert(index, found.map_err(|e| Refusal::Config(e.to_string()))?);
        }
    }
    Ok(parts)
}

async fn ask(sys: &Sys, uid: &str, create: v1::ShimCreate) -> Result<Vec<String>, Refusal> {
    let made = match Client::connect(&sys.layout, uid).await {
        // The shim writes what it is told below `run`.
        Ok(mut client) => match sys.in_memory() {
            Ok(()) => client.create(create).await,
            Err(lost) => Err(lost.into()),
        },
        Err(error) => Err(error),
    };
    made.map_err(refusal)
}

fn refusal(error: ShimError) -> Refusal {
    let message = proto::error::chain(&error);
    match error {
        ShimError::Refused {
            kind: Kind::OutOfMemory,
            ..
        } => Refusal::Memory(message),
        ShimError::Refused {
            kind: Kind::Command,
            ..
        } => Refusal::Command(message),
        ShimError::Refused {
            kind: Kind::Unspecified | Kind::Invalid | Kind::NotFound | Kind::Runtime | Kind::Version,
            ..
        }
        | ShimError::Version(_) => Refusal::Runtime(message),
        ShimError::State(_)
        | ShimError::Prepare { .. }
        | ShimError::Spawn { .. }
        | ShimError::Ended { .. }
        | ShimError::Connect { .. }
        | ShimError::Timeout { .. }
        | ShimError::Frame(_)
        | ShimError::Closed
        | ShimError::Unexpected => Refusal::Unanswered(message),
    }
}

fn prepare(
    sys: &Sys,
    make: Make,
    parts: HashMap<usize, Part>,
    spec: &v1::PodSpec,
) -> Result<v1::ShimCreate, Refusal> {
    let runtime = |error: &dyn std::fmt::Display| Refusal::Runtime(error.to_string());
    let instance = &make.instance;
    let uid = instance.uid.as_str();
    let image = images::found(sys, &make.digest)
        .ok_or_else(|| Refusal::Runtime(format!("image {} is not known any more", make.digest)))?;
    let bundle = sys.layout.bundle(uid, &id(instance));
    let root = rootfs::mount(&bundle, &image).map_err(|e| runtime(&e))?;
    let entry = runs_as::entry(&make.user).map_err(|e| Refusal::Config(e.to_string()))?;
    let account = match entry {
        Entry::Number(uid) => user::by_number(&root, uid),
        Entry::Image(name) => user::resolve(&root, &name),
    };
    let account = account.map_err(|e| Refusal::Config(e.to_string()))?;
    let mut create = make.create;
    let found = Account {
        uid: account.uid,
        gid: account.gid,
        groups: account.additional_gids,
    };
    runs_as::set(&mut create, &make.user, &found).map_err(|e| Refusal::Config(e.to_string()))?;
    set_home(&mut create, &account.home);
    rootfs::make_working_dir(&root, &create.cwd, create.uid, create.gid)
        .map_err(|e| runtime(&e))?;

    let log = sys.layout.log(
        &spec.namespace,
        &spec.name,
        uid,
        &instance.container,
        instance.attempt,
    );
    if let Some(folder) = log.parent()
        && let Err(error) = log_file::remove_before(folder, make.oldest_log)
    {
        // The next instance tries again.
        tracing::warn!(container = id(instance), %error, "cannot remove old logs");
    }
    let container = spec
        .init_containers
        .iter()
        .chain(&spec.containers)
        .find(|c| c.name == instance.container);
    let falls_back =
        container.is_some_and(|c| c.termination_message_policy == "FallbackToLogsOnError");
    last_words::prepare(sys, instance, falls_back.then_some(log.as_path()))
        .map_err(|e| runtime(&e))?;

    let namespace = |kind: &str| {
        sys.layout
            .namespace(uid)
            .join(kind)
            .to_string_lossy()
            .into_owned()
    };
    create.net_ns = if spec.host_network {
        "/proc/self/ns/net".into()
    } else {
        namespace("net")
    };
    create.ipc_ns = if spec.host_ipc {
        "/proc/self/ns/ipc".into()
    } else {
        namespace("ipc")
    };
    create.uts_ns = if spec.host_network {
        "/proc/self/ns/uts".into()
    } else {
        namespace("uts")
    };
    let group = sys
        .groups
        .container_path(uid, &instance.container, instance.attempt);
    create.cgroup = group.map_err(|e| runtime(&e))?.to_string();
    create.rootfs = root.to_string_lossy().into_owned();
    create.log_path = log.to_string_lossy().into_owned();
    create
        .mounts
        .extend(mounts(sys, spec, instance, &make.mounts, parts)?);
    Ok(create)
}

fn mounts(
    sys: &Sys,
    spec: &v1::PodSpec,
    instance: &Instance,
    wanted: &[Mount],
    mut parts: HashMap<usize, Part>,
) -> Result<Vec<v1::ShimMount>, Refusal> {
    let folder = sys.layout.pod(&instance.uid);
    let etc = volumes::etc::paths(&folder);
    let mut mounts = Vec::with_capacity(wanted.len());
    for (index, mount) in wanted.iter().enumerate() {
        let config = |e: VolumeError| Refusal::Config(e.to_string());
        let bind = |volume: &str, part: &Part| {
            let container = format!("{}_{}", instance.container, instance.attempt);
            volumes::sub_path::bind(&folder, volume, part, &container, index).map_err(config)
        };
        let source = match &mount.source {
            Source::Volume { volume, sub_path } => {
                let path = sys.layout.volume(&instance.uid, volume);
                if sub_path.is_empty() {
                    path
                } else {
                    let part = volumes::sub_path::find(&path, sub_path).map_err(config)?;
                    bind(volume, &part)?
                }
            }
            Source::Host { path, .. } => match parts.remove(&index) {
                Some(part) => bind("host", &part)?,
                None => path.into(),
            },
            Source::File("hosts") => etc.hosts.clone(),
            Source::File("hostname") => etc.hostname.clone(),
            Source::File(_) => etc.resolv_conf.clone(),
            Source::TerminationLog => last_words::path(sys, instance),
        };
        mounts.push(v1::ShimMount {
            source: source.to_string_lossy().into_owned(),
            destination: mount.destination.clone(),
            r#type: "bind".into(),
            options: mount.options.clone(),
        });
    }
    tracing::trace!(pod = spec.name, mounts = mounts.len(), "mounts resolved");
    Ok(mounts)
}

/// Starts a container.
pub(crate) fn start(sys: &Arc<Sys>, instance: &Instance) {
    let (sys, instance) = (sys.clone(), instance.clone());
    tokio::spawn(async move {
        let result = match started(&sys, &instance).await {
            Ok(started) => Ok(started),
            Err(ShimError::Refused {
                kind: Kind::Invalid,
                message,
            }) => Err(Refusal::Begun(message)),
            Err(error) => Err(refusal(error)),
        };
        sys.tell(Outcome::Started { instance, result }).await;
    });
}

/// When it was started: the shim's own word, which an adoption will hear again.
async fn started(sys: &Sys, instance: &Instance) -> Result<Moment, ShimError> {
    let mut client = Client::connect(&sys.layout, &instance.uid).await?;
    let id = id(instance);
    client.start(&id).await?;
    let (containers, _) = client.list().await?;
    let found = containers.iter().find(|c| c.id == id);
    Ok(found.map_or_else(clock::moment, shims::started))
}

/// Sends a signal. How it ends is told by the shim's watch.
pub(crate) fn signal(sys: &Arc<Sys>, instance: &Instance, signal: i32, all: bool) {
    let (sys, instance) = (sys.clone(), instance.clone());
    tokio::spawn(async move {
        let sent = match Client::connect(&sys.layout, &instance.uid).await {
            Ok(mut client) => client.kill(&id(&instance), signal, all).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => {}
            // It may have ended by itself in between.
            Err(error) if error.is_answer() => {
                tracing::debug!(container = id(&instance), signal, %error, "signal");
            }
            Err(_) => unanswered(&sys, instance, Call::Signal(signal)).await,
        }
    });
}

/// A shim did not answer a call.
async fn unanswered(sys: &Sys, instance: Instance, call: Call) {
    sys.tell(Outcome::Unanswered { instance, call }).await;
}

fn unmount(sys: &Sys, instance: &Instance) -> Result<(), String> {
    let bundle = sys.layout.bundle(&instance.uid, &id(instance));
    rootfs::unmount(&bundle).map_err(|e| e.to_string())
}

/// Removes what is left of an ended container.
pub(crate) fn delete(sys: &Arc<Sys>, instance: &Instance) {
    let (sys, instance) = (sys.clone(), instance.clone());
    tokio::spawn(async move {
        let deleted = match Client::connect(&sys.layout, &instance.uid).await {
            Ok(mut client) => client.delete(&id(&instance)).await,
            Err(error) => Err(error),
        };
        let result = match deleted {
            Err(error) if !error.is_answer() => {
                return unanswered(&sys, instance, Call::Delete).await;
            }
            Ok(())
            | Err(ShimError::Refused {
                kind: Kind::NotFound,
                ..
            }) => {
                let of = instance.clone();
                sys.blocking(move |sys| unmount(sys, &of)).await
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &result {
            tracing::warn!(
                container = id(&instance),
                error,
                "cannot remove a container; retrying"
            );
        }
        sys.tell(Outcome::Deleted { instance, result }).await;
    });
}
