//! A container's root: an overlay of its image's layers, and our mounts.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{Gid, Uid, fchown};

use super::Image;
use crate::beneath::{Beneath, Links};
use crate::removal::{self, Most};

/// mount(2) takes one page of options.
const MAX_OPTIONS: usize = 4000;

/// What went wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("{verb} {path:?}: {source}")]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path:?} still holds mounts: {mounts:?}")]
    Busy { path: PathBuf, mounts: Vec<PathBuf> },
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// "overlay", "tmpfs", ...
    pub fs_type: String,
}

/// Mounts a container's root at `dir/rootfs`, with `dir/upper` and `dir/work`
/// beside it, `dir` being `pods/UID/NAME-ATTEMPT`. What an earlier, unmounted
/// attempt left in `dir` is removed: a container starts from its image.
/// Returns `dir/rootfs`.
///
/// # Errors
/// [`RootfsError`]; then nothing is left mounted.
pub fn mount(dir: &Path, image: &Image) -> Result<PathBuf, RootfsError> {
    unmount(dir)?;
    let (rootfs, upper, work) = (dir.join("rootfs"), dir.join("upper"), dir.join("work"));
    for path in [&rootfs, &upper, &work] {
        fs::create_dir_all(path).map_err(failed("make", path))?;
    }
    // The overlay's root takes owner and mode from the uppermost folder.
    if let Some(top) = image.layers.last() {
        let metadata = fs::metadata(top).map_err(failed("read", top))?;
        chown(&upper, Some(metadata.uid()), Some(metadata.gid()))
            .and_then(|()| fs::set_permissions(&upper, fs::Permissions::from_mode(metadata.mode())))
            .map_err(failed("set attributes of", &upper))?;
    }
    let note = dir.join("image");
    fs::write(&note, &image.digest).map_err(failed("write", &note))?;
    overlay(image, dir, &rootfs)?;
    Ok(rootfs)
}

fn overlay(image: &Image, dir: &Path, rootfs: &Path) -> Result<(), RootfsError> {
    // An image without layers still has a root.
    let empty = dir.join("empty");
    let mut lowers: Vec<PathBuf> = image.layers.iter().rev().cloned().collect();
    if lowers.is_empty() {
        fs::create_dir_all(&empty).map_err(failed("make", &empty))?;
        lowers.push(empty);
    }
    // `volatile`: no sync of the disk at each unmount. A root does not outlive
    // its container, and none outlives the machine.
    let options = |lowers: &[PathBuf]| {
        let mut options = b"volatile,index=off,metacopy=off,lowerdir=".to_vec();
        for (at, lower) in lowers.iter().enumerate() {
            if at > 0 {
                options.push(b':');
            }
            escape(&mut options, lower);
        }
        for (name, folder) in [("upperdir", "upper"), ("workdir", "work")] {
            options.extend_from_slice(format!(",{name}=").as_bytes());
            escape(&mut options, &dir.join(folder));
        }
        options
    };
    let mut data = options(&lowers);
    let mut open = Vec::new();
    if data.len() > MAX_OPTIONS {
        // Many layers: by descriptors of this process, which have short names.
        let mut short = Vec::new();
        for lower in &lowers {
            let file = File::open(lower).map_err(failed("open", lower))?;
            short.push(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
            open.push(file);
        }
        data = options(&short);
    }
    nix::mount::mount(
        Some("overlay"),
        rootfs,
        Some("overlay"),
        // Device files in the image or made by the container open nothing; those in
        // /dev are on a file system of their own.
        MsFlags::MS_NODEV,
        Some(data.as_slice()),
    )
    .map_err(|errno| failed("mount overlay at", rootfs)(errno.into()))
}

/// Overlayfs splits at colons and commas.
fn escape(options: &mut Vec<u8>, path: &Path) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
}

/// Unmounts what is at and below `dir` and removes `dir`; nothing there is success.
///
/// # Errors
/// [`RootfsError`]; while a mount is left nothing is removed.
pub fn unmount(dir: &Path) -> Result<(), RootfsError> {
    if !dir.exists() {
        return Ok(());
    }
    unmount_below(dir)?;
    removal::remove(dir, Most::All).map_err(failed("remove", dir))
}

/// Unmounts everything at and below `dir`, the latest mount first.
///
/// # Errors
/// [`RootfsError::Busy`] with what is still mounted.
pub fn unmount_below(dir: &Path) -> Result<(), RootfsError> {
    for mount in list_mounts(dir)?.iter().rev() {
        // Lazily: a process that still looks at it keeps its view, and no
        // other finds it. Failures show in the second look.
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        if let Err(error) = umount2(&mount.path, flags) {
            tracing::debug!(path = ?mount.path, %error, "unmount");
        }
    }
    let left: Vec<PathBuf> = list_mounts(dir)?
        .into_iter()
        .map(|mount| mount.path)
        .collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(RootfsError::Busy {
            path: dir.to_owned(),
            mounts: left,
        })
    }
}

/// Digest of the image that `dir/rootfs` was mounted from.
pub fn image_of(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join("image")).ok()
}

/// The mounts at and below `root` in this process' mount namespace, in the
/// order in which they were made.
///
/// # Errors
/// [`RootfsError::Io`] when /proc cannot be read.
pub fn list_mounts(root: &Path) -> Result<Vec<Mount>, RootfsError> {
    let table = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read(table).map_err(failed("read", table))?;
    // The kernel tells of paths without links.
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_mount)
        .filter(|mount| mount.path.starts_with(&root))
        .collect())
}

/// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": proc_pid_mountinfo(5).
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        path,
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes are "\\ooo" there.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if first == b'\\' => {
                bytes.push(
                    digits
                        .iter()
                        .fold(0_u8, |sum, d| sum.wrapping_mul(8).wrapping_add(d - b'0')),
                );
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// Makes a working directory (absolute, inside the container) in `rootfs` if it
/// is missing, without following links out of it. New folders belong to `uid:gid`.
///
/// # Errors
/// [`RootfsError::Io`], also when something else is in its place.
pub fn make_working_dir(rootfs: &Path, dir: &str, uid: u32, gid: u32) -> Result<(), RootfsError> {
    let path = Path::new(dir);
    let own = |fd: std::os::fd::BorrowedFd<'_>, _: &Path| {
        Ok(fchown(
            fd,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
        )?)
    };
    Beneath::open(rootfs)
        .and_then(|root| root.make_dirs(path, Links::Inside, own))
        .map(drop)
        .map_err(failed("make working directory", path))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError + use<> {
    let path = path.to_owned();
    move |source| RootfsError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_as_the_kernel_writes_it() {
        let line = br"36 35 0:40 / /var/lib/a\040b/root\134fs rw,noatime shared:1 master:2 - overlay overlay rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.path, Path::new(r"/var/lib/a b/root\fs"));
        assert_eq!(mount.fs_type, "overlay");
        assert_eq!(parse_mount(b""), None);
        assert!(
            list_mounts(Path::new("/"))
                .unwrap()
                .iter()
                .any(|mount| mount.path == Path::new("/"))
        );
    }

    #[test]
    fn option_characters_in_paths_are_escaped() {
        let mut options = Vec::new();
        escape(&mut options, Path::new("/a:b,c\\d"));
        assert_eq!(options, br"/a\:b\,c\\d");
    }
}
