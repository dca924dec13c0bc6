//! `foil-agent cleanup`: removes everything that Hydrofoil made on this node, for an operator
//! who takes it out of a cluster. The agent must not be running.
//!
//! Ours is what the agent of this configuration made: another agent's links and routes, and
//! the operator's files and mounts, stay. Does all that it can, says what it removed, and
//! returns what it could not.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};

use agent_plan::link::SERVICE_LINK;
use agent_sys::cgroup::Groups;
use agent_sys::image::{ImageStore, rootfs};
use agent_sys::link::{Hop, Link, Netlink};
use agent_sys::state::{self, Layout};
use agent_sys::{bpf, mounts, netns, volume};
use tokio::sync::{Semaphore, mpsc};

use crate::alone::{self, AloneError};
use crate::config::Config;
use crate::join;
use crate::shims;
use crate::startup::{DISK_CHECK, Sys};

/// What went, and what did not.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Things that are gone, in words.
    pub(crate) done: Vec<String>,
    /// Things that are not ours and in our way, in words.
    pub(crate) left: Vec<String>,
    /// Things that are still there, and why.
    pub(crate) failed: Vec<String>,
}

impl Removed {
    fn note(&mut self, what: impl Into<String>, result: Result<(), impl std::fmt::Display>) {
        let what = what.into();
        match result {
            Ok(()) => self.done.push(what),
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

/// Removes all of it.
///
/// # Errors
/// When another agent runs in this network namespace; nothing is removed then.
pub(crate) async fn run(config: &Config) -> Result<Removed, AloneError> {
    let netlink = Netlink::open()?;
    let other = alone::in_namespace(&netlink, &config.run).await?;
    let mut removed = Removed::default();
    let layout = Layout::new(&config.root, &config.run);
    let groups = match Groups::open(&config.cgroup) {
        Ok(groups) => groups,
        Err(error) => {
            removed
                .failed
                .push(format!("cgroup {}: {error}", config.cgroup));
            return Ok(removed);
        }
    };
    pods(&layout, &groups, &netlink, &mut removed).await;
    if config.bpffs.exists() {
        let what = format!("pins in {}", config.bpffs.display());
        removed.note(what, bpf::remove(&config.bpffs));
    }
    match other {
        None => links(&netlink, &mut removed).await,
        Some(run) => removed.left.push(format!(
            "links and routes: they are of the agent with run = {run:?}"
        )),
    }
    match groups.list() {
        Ok(uids) => {
            for uid in uids {
                removed.note(format!("cgroup of pod {uid}"), groups.remove(&uid));
            }
        }
        Err(error) => removed
            .failed
            .push(format!("cgroup {}: {error}", config.cgroup)),
    }
    removed.note(format!("cgroup {}", config.cgroup), groups.remove_parent());
    for part in layout.parts().iter().chain([&join::folder(config)]) {
        remove_part(part, &mut removed);
    }
    for folder in [&config.run, &config.root] {
        remove_folder(folder, &mut removed);
    }
    Ok(removed)
}

/// Shims with their containers, namespaces, volumes.
async fn pods(layout: &Layout, groups: &Groups, netlink: &Netlink, removed: &mut Removed) {
    let mut uids: BTreeSet<String> = BTreeSet::new();
    for folder in [layout.pods(), layout.shims(), layout.namespaces()] {
        uids.extend(state::uids(&folder).unwrap_or_default());
    }
    uids.extend(groups.list().unwrap_or_default());
    if uids.is_empty() {
        return;
    }
    let images = match ImageStore::open(&layout.images()) {
        Ok(images) => images,
        Err(error) => {
            removed.failed.push(format!("images: {error}"));
            return;
        }
    };
    let (events, _unread) = mpsc::channel(1);
    let sys = Arc::new(Sys {
        layout: layout.clone(),
        run: None,
        groups: groups.clone(),
        netlink: netlink.clone(),
        images,
        host: Default::default(),
        pulls: Default::default(),
        endpoints: Vec::new(),
        shim: Default::default(),
        resolv_conf: Default::default(),
        settings: unused_settings(),
        found: Mutex::default(),
        asks: Semaphore::new(1),
        boot_id: String::new(),
        owner: String::new(),
        records: Default::default(),
        events,
    });
    for uid in uids {
        removed.note(
            format!("containers of pod {uid}"),
            shims::end(&sys, &uid).await,
        );
        let bundles = layout.bundles(&uid);
        removed.note(format!("roots of pod {uid}"), rootfs::unmount(&bundles));
        let namespaces = netns::remove(&layout.namespace(&uid));
        removed.note(format!("namespaces of pod {uid}"), namespaces);
        let folder = volume::remove_pod_dir(&layout.pod(&uid)).map_err(|errors| {
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        });
        removed.note(format!("volumes of pod {uid}"), folder);
    }
}

/// Settings that no plan is called with.
fn unused_settings() -> agent_plan::settings::Settings {
    agent_plan::settings::Settings {
        node_name: String::new(),
        node_ip: std::net::Ipv4Addr::UNSPECIFIED,
        uplink: String::new(),
        uplinks: Vec::new(),
        service: Default::default(),
        mtu: 0,
        capacity: Default::default(),
        reserved: Default::default(),
        restart_backoff_base_ms: 0,
        restart_backoff_max_ms: 0,
        image_backoff_base_ms: 0,
        image_backoff_max_ms: 0,
        log_max_bytes: 0,
        pod_pids_limit: 0,
        swap_bytes: 0,
    }
}

/// Links, with them their routes and neighbours; then the routes over uplinks.
async fn links(netlink: &Netlink, removed: &mut Removed) {
    let observed = match netlink.observe().await {
        Ok(observed) => observed,
        Err(error) => {
            removed.failed.push(error.to_string());
            return;
        }
    };
    for link in &observed.links {
        let name = &link.name;
        // The other side of the service link goes with it.
        if name.starts_with(SERVICE_LINK) && name != SERVICE_LINK {
            continue;
        }
        removed.note(format!("link {name}"), netlink.delete_link(name).await);
    }
    for route in &observed.routes {
        // Those of our own links went with them.
        let over = |link: &Link| matches!(&route.hop, Hop::Link { name, .. } | Hop::Local { name } if *name == link.name);
        if observed.links.iter().any(over) {
            continue;
        }
        let what = format!("route {route}");
        removed.note(what, netlink.delete_route(route).await);
    }
}

/// Removes a folder of the agent's. On one that the operator mounted something on, that stays,
/// and is emptied.
fn remove_part(part: &Path, removed: &mut Removed) {
    if !part.exists() {
        return;
    }
    let what = format!("folder {}", part.display());
    match mounts::at(part) {
        Ok(None) => removed.note(what, state::remove_folder(part)),
        Ok(Some(_)) => {
            for name in state::list(part).unwrap_or_default() {
                let inside = part.join(name);
                let what = format!("folder {}", inside.display());
                removed.note(what, state::remove_folder(&inside));
            }
            removed
                .left
                .push(format!("the mount on {}", part.display()));
        }
        Err(error) => removed.note(what, Err(error)),
    }
}

/// Removes one of the two top folders, unless it has something that is not ours.
fn remove_folder(folder: &Path, removed: &mut Removed) {
    if !folder.exists() {
        return;
    }
    remove_files(folder, removed);
    let what = format!("folder {}", folder.display());
    // The tmpfs that the agent mounted on `run`.
    let mount = mounts::at(folder).ok().flatten();
    if mount.is_some_and(|mount| mount.source == mounts::OURS)
        && let Err(error) = mounts::detach(folder)
    {
        removed.note(what, Err(error));
        return;
    }
    // A lock may lie below the tmpfs as well.
    remove_files(folder, removed);
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            let names = state::list(folder).unwrap_or_default().join(", ");
            removed
                .left
                .push(format!("{what}, for what is not ours: {names}"));
        }
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            removed
                .left
                .push(format!("{what}: something is mounted there"));
        }
        other => removed.note(what, other),
    }
}

/// The agent's own files in a top folder.
fn remove_files(folder: &Path, removed: &mut Removed) {
    for file in [alone::LOCK, DISK_CHECK] {
        match std::fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                removed.note(format!("{file} in {}", folder.display()), Err(error));
            }
            _ => {}
        }
    }
}
