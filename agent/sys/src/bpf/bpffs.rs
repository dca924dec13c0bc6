//! The folder of the pins: on a bpffs, which is mounted where there is none.
//!
//! Called by `Datapath::open` and by `remove`.

use super::BpfError;
use crate::mounts;
use ebpf_common::maps::shape_of;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::io;
use std::path::Path;

/// Where distributions mount it; a folder under it cannot be made before it is mounted.
const USUAL: &str = "/sys/fs/bpf";

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::Folder { what, path, source }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_on(path: &Path, source: &str) -> Result<(), BpfError> {
    mount(
        Some(source),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(io::Error::from)
    .map_err(failed("mount a bpf file system on", path))
}

/// Makes the folder, `links` in it, and below them a bpffs.
pub(super) fn ensure(folder: &Path) -> Result<(), BpfError> {
    let usual = Path::new(USUAL);
    if folder.starts_with(usual) && !is_bpffs(usual) {
        // The system's, not ours: it stays.
        mount_on(usual, "bpf")?;
    }
    std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
    if !is_bpffs(folder) {
        mount_on(folder, mounts::OURS)?;
    }
    let links = folder.join("links");
    std::fs::create_dir_all(&links).map_err(failed("create", &links))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Removes all pins, the folder if nothing else is in it, and a bpffs that we mounted on it.
pub(super) fn remove(folder: &Path) -> Result<(), BpfError> {
    if !folder.exists() {
        return Ok(());
    }
    let links = folder.join("links");
    for inside in [links.as_path(), folder] {
        let entries = match std::fs::read_dir(inside) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("list", inside)(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed("list", inside))?.path();
            // The root of a bpffs has entries of the kernel's own, which stay as long as it.
            let ours = inside == links || shape_of(&name_of(&path)).is_some();
            if !ours {
                continue;
            }
            std::fs::remove_file(&path).map_err(failed("unpin", &path))?;
        }
    }
    if links.exists() {
        std::fs::remove_dir(&links).map_err(failed("remove", &links))?;
    }
    let mounted = mounts::at(folder).map_err(failed("look for mounts on", folder))?;
    if let Some(mount) = mounted {
        if mount.source != mounts::OURS {
            // The operator's own mount, for others as well.
            return Ok(());
        }
        // Lazily: a process that was just forked may hold a descriptor of a folder in it until
        // it executes its program, and the mount would stay.
        mounts::detach(folder).map_err(failed("unmount", folder))?;
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.map_err(failed("remove", folder)),
    }
}
