//! Resolved files of a volume, replaced atomically as kubelet does.
//!
//! The files lie in a folder named by time; `..data` is a link to it, and each
//! name that the application sees is a link through `..data`. A new version is
//! written beside the old one, and one rename of `..data` changes all files at
//! once; a reader that holds the old folder keeps a consistent view.
//!
//! Containers get the volume read-only, but a privileged one can change that, so
//! it is written as if they could write to it: each step goes from a descriptor that is
//! held, and follows no link. At worst a container spoils its own view, and the next
//! update repairs it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat, renameat};
use nix::unistd::symlinkat;
use proto::v1;

use super::VolumeError;
use super::ownership::{self, Access, Kind};
use crate::beneath::Beneath;
use crate::clock;
use crate::removal::{self, Most};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// More than the agent writes into any volume: a container has added to it.
const MOST_ENTRIES: usize = 100_000;

/// Refuses paths that are not inside the volume, before anything is written.
pub(super) fn check(volume: &str, files: &v1::volume::Files) -> Result<(), VolumeError> {
    for file in &files.files {
        let path = Path::new(&file.path);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        // Names that begin with ".." are this module's own.
        let reserved = path
            .components()
            .next()
            .is_none_or(|first| first.as_os_str().to_string_lossy().starts_with(".."));
        if !plain || reserved || file.path.contains('\0') {
            return Err(VolumeError::InvalidFile {
                volume: volume.to_owned(),
                path: file.path.clone(),
            });
        }
    }
    Ok(())
}

/// Makes the volume's folder hold exactly these files. True if it did not.
pub(super) fn write(
    volume: &Beneath,
    files: &[v1::File],
    fs_group: Option<u32>,
) -> io::Result<bool> {
    let current = current(volume);
    let changed = match &current {
        Some((_, version)) => !is_same(version, files, fs_group).unwrap_or(false),
        None => true,
    };
    let mut name = current.map(|(name, _)| name);
    if changed {
        // What updates that failed have left must not pile up.
        clean_up(volume, |left| {
            Some(left) != name.as_deref() && is_version(left)
        })?;
        ownership::share(volume.fd(), Kind::Folder, fs_group, Access::Read)?;
        let new = version_name();
        let version = volume.make_child(new.as_os_str(), 0o700)?;
        write_version(&version, files, fs_group)?;
        remove(volume, DATA_NEXT.as_ref())?;
        symlinkat(new.as_os_str(), volume.fd(), DATA_NEXT)?;
        replace_data(volume)?;
        name = Some(new);
    }
    // Also without a change: an earlier update may have been stopped between the steps.
    let wanted = link_names(volume, files)?;
    clean_up(volume, |left| {
        left != DATA && Some(left) != name.as_deref() && !wanted.contains(left)
    })?;
    Ok(changed)
}

/// The version that `..data` names, if it is one.
fn current(volume: &Beneath) -> Option<(OsString, Beneath)> {
    let name = readlinkat(volume.fd(), DATA).ok()?;
    // The link may be a container's own.
    if !is_version(&name) {
        return None;
    }
    let version = volume.child(name.as_os_str()).ok()?;
    Some((name, version))
}

/// A name of this module's own for a version: one part, "..2026_11_21_...".
fn is_version(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.strip_prefix(b"..")
        .is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit) && !rest.contains(&b'/'))
}

fn replace_data(volume: &Beneath) -> io::Result<()> {
    let rename = || renameat(volume.fd(), DATA_NEXT, volume.fd(), DATA);
    match rename() {
        // A container has put a folder there.
        Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
            remove(volume, DATA.as_ref())?;
            Ok(rename()?)
        }
        renamed => Ok(renamed?),
    }
}

/// "..2026_11_21_05_30_00.123456789", as kubelet names it.
fn version_name() -> OsString {
    let now = clock::unix();
    let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    OsString::from(format!(
        "..{year:04}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{nanos:09}"
    ))
}

/// Days since 1970-01-01 to year, month, day in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Files of one version, by folder; "" is the version itself.
type Tree<'a> = BTreeMap<PathBuf, Folder<'a>>;

#[derive(Default)]
struct Folder<'a> {
    files: BTreeMap<&'a OsStr, &'a v1::File>,
    folders: BTreeSet<&'a OsStr>,
}

/// In this order parents come before what is in them.
fn tree(files: &[v1::File]) -> Tree<'_> {
    let mut tree = Tree::from([(PathBuf::new(), Folder::default())]);
    for file in files {
        let path = Path::new(&file.path);
        let Some(name) = path.file_name() else {
            continue;
        };
        let mut at = PathBuf::new();
        for part in path.parent().unwrap_or(Path::new("")) {
            tree.entry(at.clone()).or_default().folders.insert(part);
            at.push(part);
        }
        tree.entry(at).or_default().files.insert(name, file);
    }
    tree
}

fn write_version(version: &Beneath, files: &[v1::File], fs_group: Option<u32>) -> io::Result<()> {
    write_folder(version, &tree(files), Path::new(""), fs_group)
}

fn write_folder(
    folder: &Beneath,
    tree: &Tree<'_>,
    path: &Path,
    fs_group: Option<u32>,
) -> io::Result<()> {
    let Some(wanted) = tree.get(path) else {
        return Ok(());
    };
    for (name, file) in &wanted.files {
        // Only root may open it before it has its own mode.
        let mut made = folder.create(*name)?;
        made.write_all(&file.data)?;
        set_mode(made.as_fd(), file.mode)?;
        ownership::share(made.as_fd(), Kind::File, fs_group, Access::Read)?;
    }
    for name in &wanted.folders {
        let child = folder.make_child(*name, 0o700)?;
        write_folder(&child, tree, &path.join(name), fs_group)?;
    }
    set_mode(folder.fd(), 0o755)?;
    ownership::share(folder.fd(), Kind::Folder, fs_group, Access::Read)
}

fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let mode = nix::sys::stat::Mode::from_bits_truncate(mode & 0o7777);
    Ok(nix::sys::stat::fchmod(fd, mode)?)
}

/// Whether a version holds exactly these files, with their modes and group.
fn is_same(version: &Beneath, files: &[v1::File], fs_group: Option<u32>) -> io::Result<bool> {
    is_same_folder(version, &tree(files), Path::new(""), fs_group)
}

fn is_same_folder(
    folder: &Beneath,
    tree: &Tree<'_>,
    path: &Path,
    fs_group: Option<u32>,
) -> io::Result<bool> {
    let Some(wanted) = tree.get(path) else {
        return Ok(false);
    };
    let count = wanted.files.len() + wanted.folders.len();
    if folder.names(count)?.len() != count {
        return Ok(false);
    }
    for (name, file) in &wanted.files {
        if !is_same_file(folder, name, file, fs_group)? {
            return Ok(false);
        }
    }
    for name in &wanted.folders {
        let child = folder.child(*name)?;
        if !is_same_folder(&child, tree, &path.join(name), fs_group)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_same_file(
    folder: &Beneath,
    name: &OsStr,
    file: &v1::File,
    fs_group: Option<u32>,
) -> io::Result<bool> {
    let found = std::fs::File::from(folder.open_held(name, OFlag::O_NONBLOCK)?);
    let metadata = found.metadata()?;
    let mode = ownership::mode(file.mode & 0o7777, Kind::File, fs_group, Access::Read);
    let same = metadata.is_file()
        && metadata.mode() & 0o7777 == mode
        && fs_group.is_none_or(|group| metadata.gid() == group)
        && metadata.len() == file.data.len() as u64;
    if !same {
        return Ok(false);
    }
    let mut data = Vec::with_capacity(file.data.len());
    (&found).take(metadata.len()).read_to_end(&mut data)?;
    Ok(data == file.data)
}

/// Makes the links that the application sees; their names.
fn link_names(volume: &Beneath, files: &[v1::File]) -> io::Result<BTreeSet<OsString>> {
    let mut wanted = BTreeSet::new();
    for file in files {
        if let Some(first) = Path::new(&file.path).components().next() {
            wanted.insert(first.as_os_str().to_owned());
        }
    }
    for name in &wanted {
        let target = Path::new(DATA).join(name);
        let existing = readlinkat(volume.fd(), name.as_os_str());
        if existing.is_ok_and(|existing| existing == target) {
            continue;
        }
        remove(volume, name)?;
        symlinkat(&target, volume.fd(), name.as_os_str())?;
    }
    Ok(wanted)
}

fn clean_up(volume: &Beneath, unwanted: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    for name in volume.names(MOST_ENTRIES)? {
        if unwanted(&name) {
            remove(volume, &name)?;
        }
    }
    Ok(())
}

fn remove(volume: &Beneath, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_encoded_bytes())?;
    removal::remove_at(volume.fd(), &name, Most::Entries(MOST_ENTRIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_as_in_the_calendar() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_778, (2026, 11, 21)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn names_of_versions() {
        assert!(is_version(&version_name()));
        for name in [
            "",
            "..",
            "..data",
            "..2/../../etc",
            "/etc",
            "2026",
            "../2026",
        ] {
            assert!(!is_version(OsStr::new(name)), "{name:?}");
        }
    }
}
