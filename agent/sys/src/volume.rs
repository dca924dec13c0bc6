//! The files of a pod's volumes, and what else a pod's folder holds.
//!
//! A pod's folder is `pods/UID`: `volumes/NAME` here, `etc/` with hosts,
//! hostname and resolv.conf, `subpaths/`, and `CONTAINER-ATTEMPT/` with each
//! container's root (see `image/rootfs.rs`). Nothing here reads a ConfigMap or a
//! Secret: the control plane sends their files. Called by `apply.rs`.
//! Reading order: `files`, `ownership`, `sub_path`, `etc`.

pub mod etc;
mod files;
mod ownership;
pub mod sub_path;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use proto::v1;
use proto::v1::volume::Source;

use crate::image::rootfs::{RootfsError, list_mounts, unmount_below};

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
    #[error("volume {volume:?}: hostPath type {kind:?} is not known")]
    UnknownHostPathType { volume: String, kind: String },
    #[error("volume name {volume:?} is not a name")]
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
/// host path.
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
    match &volume.source {
        None => {
            return Err(VolumeError::Unresolved {
                volume: name.clone(),
                why: "it has no source that this node knows".to_owned(),
            });
        }
        Some(Source::HostPath(host)) => check_host_path(name, host)?,
        Some(Source::EmptyDir(empty)) => {
            let fresh = !path.is_dir();
            if fresh {
                make_empty_dir(&path)?;
            }
            let mount = empty.memory && !is_mounted(&path)?;
            if mount {
                mount_tmpfs(&path, empty.size_limit_bytes, 0o777)?;
            }
            if fresh || mount {
                ownership::share(&path, fs_group, ownership::Access::ReadWrite)?;
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
            fs::create_dir_all(&path).map_err(VolumeError::io("make", &path))?;
            if files.tmpfs && !is_mounted(&path)? {
                mount_tmpfs(&path, 0, 0o755)?;
            }
            files::write(&path, &files.files, fs_group)?;
        }
    }
    Ok(path)
}

/// Where [`make`] puts a volume, without making it.
pub fn path(pod_dir: &Path, volume: &v1::Volume) -> PathBuf {
    if let Some(Source::HostPath(host)) = &volume.source {
        PathBuf::from(&host.path)
    } else {
        pod_dir.join("volumes").join(&volume.name)
    }
}

/// Names of the volumes that are made in this pod's folder, sorted.
pub fn list(pod_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pod_dir.join("volumes")) else {
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
    let entries = fs::read_dir(pod_dir).map_err(|e| vec![VolumeError::io("list", pod_dir)(e)])?;
    let mut failures = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|t| t.is_dir()) {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            failures.push(VolumeError::io("remove", &path)(error));
        }
    }
    if let Err(error) = fs::remove_dir(pod_dir)
        && failures.is_empty()
    {
        failures.push(VolumeError::io("remove", pod_dir)(error));
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

/// Anybody may write, as in Kubernetes: which user the containers are is not known here.
fn make_empty_dir(path: &Path) -> Result<(), VolumeError> {
    // Under a name of its own first: a folder with the final name is complete.
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(VolumeError::io("make", parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = parent.join(format!(".{name}.unfinished"));
    fs::create_dir_all(&unfinished)
        .and_then(|()| fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o777)))
        .map_err(VolumeError::io("make", &unfinished))?;
    fs::rename(&unfinished, path).map_err(VolumeError::io("name", path))
}

/// `size`: bytes, 0 for half of the memory (the kernel's default).
fn mount_tmpfs(path: &Path, size: u64, mode: u32) -> Result<(), VolumeError> {
    let mut options = format!("mode={mode:o}");
    if size > 0 {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(
        Some("foil"),
        path,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| VolumeError::io("mount tmpfs at", path)(errno.into()))
}

fn is_mounted(path: &Path) -> Result<bool, VolumeError> {
    let path = fs::canonicalize(path).map_err(VolumeError::io("find", path))?;
    Ok(list_mounts(&path)?.iter().any(|mount| mount.path == path))
}

/// Kubernetes' `hostPath.type`: what has to be there, or is made.
fn check_host_path(volume: &str, host: &v1::volume::HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err(VolumeError::InvalidFile {
            volume: volume.to_owned(),
            path: host.path.clone(),
        });
    }
    let kind = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    let fine = match host.r#type.as_str() {
        // The bind mount itself fails when there is nothing, or the runtime makes a folder.
        "" => {
            if kind.is_none() {
                make_host_dir(path)?;
            }
            true
        }
        "DirectoryOrCreate" => {
            if kind.is_none() {
                make_host_dir(path)?;
            }
            kind.is_none() || is(fs::FileType::is_dir)
        }
        "Directory" => is(fs::FileType::is_dir),
        "FileOrCreate" => {
            if kind.is_none() {
                fs::File::create_new(path)
                    .and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
                    .map_err(VolumeError::io("make", path))?;
            }
            kind.is_none() || is(fs::FileType::is_file)
        }
        "File" => is(fs::FileType::is_file),
        "Socket" => is(FileTypeExt::is_socket),
        "CharDevice" => is(FileTypeExt::is_char_device),
        "BlockDevice" => is(FileTypeExt::is_block_device),
        other => {
            return Err(VolumeError::UnknownHostPathType {
                volume: volume.to_owned(),
                kind: other.to_owned(),
            });
        }
    };
    if fine {
        Ok(())
    } else {
        Err(VolumeError::HostPathType {
            volume: volume.to_owned(),
            path: path.to_owned(),
            kind: host.r#type.clone(),
        })
    }
}

fn make_host_dir(path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(VolumeError::io("make", path))
}

#[cfg(test)]
mod tests;
