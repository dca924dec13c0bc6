//! Slow work on what a pod's containers live in, and on routes: each function
//! spawns a task that ends with one event.
//!
//! Called by `apply.rs`. The kernel verbs are `agent-sys`'s.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::create;
use agent_plan::link::{Cidr, Hop, PodLink, Route, SERVICE_LINK};
use agent_plan::outcome::{Outcome, Part};
use agent_plan::volume;
use agent_sys::bpf::{Datapath, Role};
use agent_sys::{image, link, netns, shim, state, volume as volumes};
use proto::v1;

use crate::record;
use crate::shims;
use crate::startup::Sys;

/// How long the file system of a hostPath may take to answer; then the pod waits, with an
/// event, and asks again.
pub(crate) const HOST_PATH: Duration = Duration::from_secs(10);

/// Runs something blocking for a part of a pod.
fn part(
    sys: &Arc<Sys>,
    uid: &str,
    part: Part,
    work: impl FnOnce(&Sys) -> Result<(), String> + Send + 'static,
) {
    let (sys, uid) = (sys.clone(), uid.to_owned());
    tokio::spawn(async move {
        let result = sys.blocking(work).await;
        sys.tell(Outcome::Part { uid, part, result }).await;
    });
}

/// Pins the namespaces. Half-made ones of a crash are made anew.
pub(crate) fn pin_namespaces(sys: &Arc<Sys>, uid: &str, hostname: &str) {
    let (id, hostname) = (uid.to_owned(), hostname.to_owned());
    part(sys, uid, Part::Namespaces, move |sys| {
        sys.in_memory().map_err(|e| e.to_string())?;
        let folder = sys.layout.namespace(&id);
        if netns::exists(&folder) {
            return Ok(());
        }
        netns::remove(&folder)
            .and_then(|()| netns::create(&folder, &hostname))
            .map_err(|e| e.to_string())
    });
}

/// Makes the link of a pod. One that is not whole is repaired, or else made anew.
pub(crate) fn create_link(sys: &Arc<Sys>, uid: &str, link: &PodLink) {
    let (sys, uid) = (sys.clone(), uid.to_owned());
    let wanted = link::PodLink {
        name: link.name.clone(),
        host_mac: link.host_mac,
        pod_mac: link.pod_mac,
        mtu: link.mtu,
        addresses: vec![link.address],
        node_ip: link.node_ip,
        netns: sys.layout.namespace(&uid).join("net"),
    };
    tokio::spawn(async move {
        let made = match sys.netlink.add_pod_link(&wanted).await {
            Err(link::LinkError::Link { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                // Half of it is there: of a crash, or because another one changed it.
                match sys.netlink.repair_pod_link(&wanted).await {
                    Ok(index) => Ok(index),
                    // The link is not at fault: the node's address may be gone. Without the
                    // link the pod would lose its connections.
                    Err(error @ link::LinkError::Route { .. }) => Err(error),
                    Err(error) => {
                        tracing::debug!(link = wanted.name, %error, "not to be repaired");
                        match sys.netlink.delete_link(&wanted.name).await {
                            Ok(()) => sys.netlink.add_pod_link(&wanted).await,
                            Err(error) => Err(error),
                        }
                    }
                }
            }
            other => other,
        };
        let result = made.map_err(|e| e.to_string());
        sys.tell(Outcome::Link { uid, result }).await;
    });
}

/// Attaches the programs to the host's end of a pod's link.
pub(crate) fn attach(sys: &Arc<Sys>, datapath: &Arc<Datapath>, uid: &str, ifindex: u32) {
    let datapath = datapath.clone();
    part(sys, uid, Part::Programs, move |_sys| {
        datapath
            .attach(ifindex, Role::Pod)
            .map_err(|e| e.to_string())
    });
}

/// Makes the pod's cgroup.
pub(crate) fn create_cgroup(sys: &Arc<Sys>, uid: &str, limits: v1::ShimResources) {
    let id = uid.to_owned();
    part(sys, uid, Part::Cgroup, move |sys| {
        sys.groups.create(&id, &limits).map_err(|e| e.to_string())
    });
}

/// Starts the shim and listens to it. `again`: there was one before, whose folder may
/// be lost.
pub(crate) fn start_shim(sys: &Arc<Sys>, uid: &str, again: bool) {
    let (sys, uid) = (sys.clone(), uid.to_owned());
    tokio::spawn(async move {
        let id = uid.clone();
        let spawned = sys.blocking(move |sys| {
            // What one before it left running must not run beside its successor, nor
            // may it itself, should its start have taken too long.
            if again || sys.layout.shim(&id).exists() {
                shim::kill(&sys.layout, &id).map_err(|e| format!("end the shim: {e}"))?;
            }
            sys.groups.kill(&id).map_err(|e| e.to_string())?;
            sys.in_memory().map_err(|e| e.to_string())?;
            shim::spawn(&sys.layout, &sys.shim, &id).map_err(|e| e.to_string())
        });
        let result = spawned.await;
        let serves = result.is_ok();
        sys.tell(Outcome::Part {
            uid: uid.clone(),
            part: Part::Shim,
            result,
        })
        .await;
        if !serves {
            return;
        }
        match shims::watch(&sys, &uid).await {
            Ok(states) => shims::listen(sys, uid, states).await,
            Err(error) => {
                tracing::warn!(pod = uid, %error, "no answer from the new shim");
                sys.tell(Outcome::ShimLost { uid }).await;
            }
        }
    });
}

/// Makes the volumes and the node's own files. Host paths come first, as their file
/// systems may not answer: without them nothing else is of use.
pub(crate) fn make_volumes(sys: &Arc<Sys>, uid: &str, spec: &Arc<v1::PodSpec>) {
    let (sys, uid, spec) = (sys.clone(), uid.to_owned(), spec.clone());
    tokio::spawn(async move {
        let result = match check_host_paths(&sys, &spec).await {
            Ok(()) => sys.blocking(move |sys| make_own(sys, &spec)).await,
            Err(error) => Err(error),
        };
        let part = Part::Volumes;
        sys.tell(Outcome::Part { uid, part, result }).await;
    });
}

async fn check_host_paths(sys: &Sys, spec: &v1::PodSpec) -> Result<(), String> {
    let folder = sys.layout.pod(&spec.uid);
    for volume in volume::volumes(spec) {
        if let Some(v1::volume::Source::HostPath(host)) = &volume.source {
            let (path, folder, name) = (PathBuf::from(&host.path), folder.clone(), &volume.name);
            let of = format!("volume {name:?}");
            let check = move || volumes::make(&folder, &volume, None);
            let checked = sys.host.run(&path, HOST_PATH, check).await;
            let made = checked.map_err(|e| format!("{of}: hostPath {e}"))?;
            made.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

fn make_own(sys: &Sys, spec: &v1::PodSpec) -> Result<(), String> {
    let folder = sys.layout.pod(&spec.uid);
    let group = spec.security.as_ref().and_then(|s| s.fs_group);
    let group = group.and_then(|g| u32::try_from(g).ok());
    let is_host = |source: &v1::volume::Source| matches!(source, v1::volume::Source::HostPath(_));
    for volume in volume::volumes(spec) {
        if !volume.source.as_ref().is_some_and(is_host) {
            volumes::make(&folder, &volume, group).map_err(|e| e.to_string())?;
        }
    }
    let hostname = create::hostname(spec, &sys.settings);
    volumes::etc::write(&folder, spec, &hostname, &sys.resolv_conf)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Removes all of a sandbox, for `part` of its pod. Does all that it can and tells all
/// that failed.
pub(crate) fn remove(
    sys: &Arc<Sys>,
    datapath: &Arc<Datapath>,
    (uid, part): (&str, Part),
    link: &str,
    ifindex: Option<u32>,
) {
    let (sys, uid, link) = (sys.clone(), uid.to_owned(), link.to_owned());
    let datapath = datapath.clone();
    tokio::spawn(async move {
        let result = take_down(&sys, datapath, &uid, &link, ifindex).await;
        sys.tell(Outcome::Part { uid, part, result }).await;
    });
}

/// Removes all that is left of a pod that has no record: as [`remove`], and its volumes
/// and logs.
pub(crate) fn remove_stray(sys: &Arc<Sys>, datapath: &Arc<Datapath>, uid: &str, link: &str) {
    let (sys, uid, link) = (sys.clone(), uid.to_owned(), link.to_owned());
    let datapath = datapath.clone();
    tokio::spawn(async move {
        let id = uid.clone();
        let result = match take_down(&sys, datapath, &uid, &link, None).await {
            Ok(()) => {
                sys.blocking(move |sys| remove_stray_folders(sys, &id))
                    .await
            }
            Err(error) => Err(error),
        };
        sys.tell(Outcome::Part {
            uid,
            part: Part::NoStray,
            result,
        })
        .await;
    });
}

fn remove_stray_folders(sys: &Sys, uid: &str) -> Result<(), String> {
    // Namespace and name are not known any more.
    for name in state::list(&sys.layout.logs()).map_err(|e| e.to_string())? {
        if state::uid_of_logs(&name) == Some(uid) {
            state::remove_folder(&sys.layout.logs().join(name)).map_err(|e| e.to_string())?;
        }
    }
    remove_pod(sys, uid)
}

async fn take_down(
    sys: &Arc<Sys>,
    datapath: Arc<Datapath>,
    uid: &str,
    link: &str,
    ifindex: Option<u32>,
) -> Result<(), String> {
    let mut errors = Vec::new();
    errors.extend(shims::end(sys, uid).await.err());
    let unlinked = sys.netlink.delete_link(link).await;
    errors.extend(unlinked.err().map(|e| e.to_string()));
    let id = uid.to_owned();
    let rest = sys.blocking(move |sys| {
        let mut errors = remove_rest(sys, &id);
        // Without its interface a program's link holds nothing; its pin does.
        let detached = ifindex.map_or(Ok(()), |ifindex| datapath.detach(ifindex));
        errors.extend(detached.err().map(|e| e.to_string()));
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join("; "))
        }
    });
    errors.extend(rest.await.err());
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

/// Roots, shim's folder, namespaces, cgroup.
pub(crate) fn remove_rest(sys: &Sys, uid: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let bundles = sys.layout.bundles(uid);
    errors.extend(
        image::rootfs::unmount(&bundles)
            .err()
            .map(|e| e.to_string()),
    );
    errors.extend(shim::remove(&sys.layout, uid).err().map(|e| e.to_string()));
    errors.extend(
        netns::remove(&sys.layout.namespace(uid))
            .err()
            .map(|e| e.to_string()),
    );
    errors.extend(sys.groups.remove(uid).err().map(|e| e.to_string()));
    errors
}

/// Removes a pod's volumes, logs and records: the complete record last, so that a
/// crash between leads here again.
pub(crate) fn remove_folders(sys: &Arc<Sys>, uid: &str, namespace: &str, name: &str) {
    let (sys, uid) = (sys.clone(), uid.to_owned());
    let logs = sys.layout.pod_logs(namespace, name, &uid);
    tokio::spawn(async move {
        sys.records.forget(&uid).await;
        let id = uid.clone();
        let removed = sys.blocking(move |sys| {
            state::remove_folder(&logs).map_err(|e| e.to_string())?;
            remove_pod(sys, &id)
        });
        let result = removed.await;
        sys.tell(Outcome::Part {
            uid,
            part: Part::NoFolders,
            result,
        })
        .await;
    });
}

/// Volumes, then the complete record.
fn remove_pod(sys: &Sys, uid: &str) -> Result<(), String> {
    volumes::remove_pod_dir(&sys.layout.pod(uid)).map_err(|errors| {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        texts.join("; ")
    })?;
    record::remove(&sys.layout, uid).map_err(|e| e.to_string())
}

/// Deletes a link that no pod has.
pub(crate) fn delete_link(sys: &Arc<Sys>, name: &str) {
    let (sys, name) = (sys.clone(), name.to_owned());
    tokio::spawn(async move {
        let result = sys
            .netlink
            .delete_link(&name)
            .await
            .map_err(|e| e.to_string());
        sys.tell(Outcome::LinkDeleted { name, result }).await;
    });
}

fn route_of(route: &Route) -> link::Route {
    let hop = match &route.hop {
        Hop::Unreachable => link::Hop::Unreachable,
        Hop::Local => link::Hop::Local {
            name: SERVICE_LINK.into(),
        },
        Hop::Link { name, via, source } => link::Hop::Link {
            name: name.clone(),
            via: via.map(IpAddr::V4),
            source: source.map(IpAddr::V4),
        },
    };
    let Cidr { address, bits } = route.destination;
    link::Route {
        destination: (IpAddr::V4(address), bits),
        hop,
    }
}

/// Removes the pins of programs whose interface is gone.
pub(crate) fn detach(sys: &Arc<Sys>, datapath: &Arc<Datapath>, ifindex: u32) {
    let (sys, datapath) = (sys.clone(), datapath.clone());
    tokio::spawn(async move {
        let detached =
            sys.blocking(move |_sys| datapath.detach(ifindex).map_err(|e| e.to_string()));
        let result = detached.await;
        sys.tell(Outcome::Detached { ifindex, result }).await;
    });
}

/// Adds or changes a route.
pub(crate) fn put_route(sys: &Arc<Sys>, route: &Route) {
    let (sys, route) = (sys.clone(), route.clone());
    tokio::spawn(async move {
        let result = sys
            .netlink
            .replace_route(&route_of(&route))
            .await
            .map_err(|e| e.to_string());
        sys.tell(Outcome::Route {
            route,
            deleted: false,
            result,
        })
        .await;
    });
}

/// Deletes a route.
pub(crate) fn delete_route(sys: &Arc<Sys>, route: &Route) {
    let (sys, route) = (sys.clone(), route.clone());
    tokio::spawn(async move {
        let result = sys
            .netlink
            .delete_route(&route_of(&route))
            .await
            .map_err(|e| e.to_string());
        sys.tell(Outcome::Route {
            route,
            deleted: true,
            result,
        })
        .await;
    });
}
