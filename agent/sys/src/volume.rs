//! The files of a pod's volumes, and what else a pod's folder holds.
//!
//! A pod's folder is `pods/UID`: `volumes/NAME` here, `etc/` with hosts,
//! hostname and resolv.conf, `subpaths/`, and `CONTAINER-ATTEMPT/` with each
//! container's root (see `image/rootfs.rs`). Nothing here reads a ConfigMap or a
//! Secret: the control plane sends their files. Called by `apply.rs`.
//!
//! A pod's containers write to some of these folders while they are made and removed
//! here, and a pod with a hostPath may reach all of them: below a pod's folder
//! everything is resolved by the kernel from descriptors, and no link is followed.
//! Reading order: `files`, `ownership`, `sub_path`, `host_path`, `etc`.

pub mod etc;
mod files;
mod host_path;
mod ownership;
pub mod sub_path;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, renameat};
use proto::v1;
use proto::v1::volume::Source;

use crate::beneath::{Beneath, Links};
use crate::image::rootfs::{RootfsError, unmount_below};
use crate::removal::{self, Most};
use crate::tmpfs::Tmpfs;
use ownership::{Access, Kind};

/// Folder of the volumes in a pod's folder.
const VOLUMES: &str = "volumes";

/// What kept a volume from being ready; event `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {volume:?}: {why}")]
    Unresolved { volume: String, why: String },
    #[error("volume {volume:?}: hostPath type check failed: {path:?} is not a {kind}")]
    HostPathType {
        volume: String,
        path: PathBuf,
        kind: String,
    },
    #[error("volume {volume:?}: unknown hostPath type {kind:?}")]
    UnknownHostPathType { volume: String, kind: String },
    #[error("invalid volume name {volume:?}")]
    InvalidName { volume: String },
    #[error("volume {volume:?}: {path:?} is not a path inside the volume")]
    InvalidFile { volume: String, path: String },
    #[error("subPath {sub_path:?} leaves the volume")]
    Escapes { sub_path: String },
    #[error("{path:?} still holds mounts: {mounts:?}")]
    Busy { path: PathBuf, mounts: Vec<PathBuf> },
    #[error("{verb} {path:?}: {source}")]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl VolumeError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

impl From<RootfsError> for VolumeError {
    fn from(error: RootfsError) -> Self {
        match error {
            RootfsError::Io { verb, path, source } => Self::Io { verb, path, source },
            RootfsError::Busy { path, mounts } => Self::Busy { path, mounts },
        }
    }
}

/// Makes a volume and returns the path to bind into containers:
/// `pod_dir/volumes/NAME`, or the host's own path. Again for a volume that is
/// there: files (configMap and so on) are brought up to date, atomically;
/// others are left as they are. `fs_group` owns what is made here, never a
/// host path, for which it may block as long as the file system there does.
///
/// # Errors
/// [`VolumeError`].
pub fn make(
    pod_dir: &Path,
    volume: &v1::Volume,
    fs_group: Option<u32>,
) -> Result<PathBuf, VolumeError> {
    let name = &volume.name;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(VolumeError::InvalidName {
            volume: name.clone(),
        });
    }
    let path = path(pod_dir, volume);
    let failed = |verb| VolumeError::io(verb, &path);
    match &volume.source {
        None => {
            return Err(VolumeError::Unresolved {
                volume: name.clone(),
                why: "it has no source that this node knows".to_owned(),
            });
        }
        Some(Source::HostPath(host)) => host_path::check(name, host)?,
        Some(Source::EmptyDir(empty)) => {
            let volumes = folder(pod_dir)?;
            make_empty_dir(&volumes, name, fs_group).map_err(failed("make"))?;
            if empty.memory {
                let tmpfs = Tmpfs {
                    size: empty.size_limit_bytes,
                    mode: ownership::mode(0o777, Kind::Folder, fs_group, Access::ReadWrite),
                    group: fs_group,
                    swap: true,
                };
                mount_once(&volumes, name, &tmpfs).map_err(failed("mount tmpfs at"))?;
            }
        }
        Some(Source::Files(files)) => {
            if !files.error.is_empty() {
                return Err(VolumeError::Unresolved {
                    volume: name.clone(),
                    why: files.error.clone(),
                });
            }
            files::check(name, files)?;
            let volumes = folder(pod_dir)?;
            match volumes.make_child(name.as_str(), 0o755) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => drop(made.map_err(failed("make"))?),
            }
            if files.tmpfs {
                let tmpfs = Tmpfs {
                    size: 0,
                    mode: 0o755,
                    group: None,
                    swap: false,
                };
                mount_once(&volumes, name, &tmpfs).map_err(failed("mount tmpfs at"))?;
            }
            let volume = volumes
                .open_at(Path::new(name), OFlag::O_DIRECTORY, Links::Refused)
                .map_err(failed("open"))?;
            files::write(&volume.into(), &files.files, fs_group).map_err(failed("update"))?;
        }
    }
    Ok(path)
}

/// The folder of a pod's volumes, made where it is missing.
fn folder(pod_dir: &Path) -> Result<Beneath, VolumeError> {
    let failed = |verb| VolumeError::io(verb, pod_dir);
    fs::create_dir_all(pod_dir).map_err(failed("make"))?;
    let pod = Beneath::open(pod_dir).map_err(failed("open"))?;
    pod.make_dirs(Path::new(VOLUMES), Links::Refused, |_, _| Ok(()))
        .map(Beneath::from)
        .map_err(failed("make volumes in"))
}

/// Where [`make`] puts a volume, without making it.
pub fn path(pod_dir: &Path, volume: &v1::Volume) -> PathBuf {
    if let Some(Source::HostPath(host)) = &volume.source {
        PathBuf::from(&host.path)
    } else {
        pod_dir.join(VOLUMES).join(&volume.name)
    }
}

/// Names of the volumes that are made in this pod's folder, sorted.
pub fn list(pod_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pod_dir.join(VOLUMES)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// Unmounts everything below `pod_dir`, then removes it. Nothing there is
/// success. While a mount is left nothing is removed, as it might be the
/// host's data.
///
/// # Errors
/// All that failed.
pub fn remove_pod_dir(pod_dir: &Path) -> Result<(), Vec<VolumeError>> {
    if !pod_dir.exists() {
        return Ok(());
    }
    unmount_below(pod_dir).map_err(|error| vec![error.into()])?;
    removal::remove(pod_dir, Most::All).map_err(|e| vec![VolumeError::io("remove", pod_dir)(e)])
}

/// Any user may write, as in Kubernetes: which users the containers have is not known
/// here. One that is there is left as it is.
fn make_empty_dir(volumes: &Beneath, name: &str, group: Option<u32>) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match volumes.open_at(Path::new(name), flags, Links::Refused) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map(drop),
    }
    // Under a name of its own first: a folder with the final name is complete.
    let unfinished = format!(".{name}.unfinished");
    let made = match volumes.make_child(unfinished.as_str(), 0o777) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            volumes.child(unfinished.as_str())?
        }
        made => made?,
    };
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o777);
    nix::sys::stat::fchmod(made.fd(), mode)?;
    ownership::share(made.fd(), Kind::Folder, group, Access::ReadWrite)?;
    let (from, to) = (OsStr::new(&unfinished), OsStr::new(name));
    Ok(renameat(volumes.fd(), from, volumes.fd(), to)?)
}

/// Mounts at a folder, unless something is mounted there.
fn mount_once(volumes: &Beneath, name: &str, tmpfs: &Tmpfs) -> io::Result<()> {
    match volumes.child(name) {
        Ok(folder) => tmpfs.mount(folder.fd()),
        Err(error) if is_mounted(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a folder could not be held because something is mounted there.
fn is_mounted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::CrossesDevices
}

/// A path that leads to an open file or folder, also after a rename.
fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests;
