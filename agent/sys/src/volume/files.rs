//! Resolved files of a volume, replaced atomically as kubelet does.
//!
//! The files lie in a folder named by time; `..data` is a link to it, and each
//! name that the application sees is a link through `..data`. A new version is
//! written beside the old one, and one rename of `..data` changes all files at
//! once; a reader that holds the old folder keeps a consistent view.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use proto::v1;

use super::VolumeError;
use super::ownership::{self, Access};
use crate::clock;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

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
    volume: &Path,
    files: &[v1::File],
    fs_group: Option<u32>,
) -> Result<bool, VolumeError> {
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    let changed = !old
        .as_ref()
        .is_some_and(|old| is_same(&volume.join(old), files, fs_group));
    if changed {
        let new = version_name();
        let folder = volume.join(&new);
        write_version(&folder, files)?;
        ownership::share(&folder, fs_group, Access::Read)?;
        ownership::share_dir(volume, fs_group, Access::Read)?;
        let next = volume.join(DATA_NEXT);
        remove(&next)?;
        symlink(&new, &next).map_err(VolumeError::io("link", &next))?;
        fs::rename(&next, &data).map_err(VolumeError::io("replace", &data))?;
    }
    // Also without a change: whoever was here before may have been stopped
    // between the steps.
    let current = fs::read_link(&data).unwrap_or_default();
    link_names(volume, files)?;
    clean_up(volume, files, &current)?;
    Ok(changed)
}

/// "..2026_11_21_05_30_00.123456789", as kubelet names it.
fn version_name() -> PathBuf {
    let now = clock::unix();
    let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    PathBuf::from(format!(
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

fn write_version(folder: &Path, files: &[v1::File]) -> Result<(), VolumeError> {
    fs::create_dir(folder).map_err(VolumeError::io("make", folder))?;
    set_mode(folder, 0o755)?;
    for file in files {
        let path = folder.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(VolumeError::io("make", parent))?;
        }
        // Nobody else may read it before it has its own mode.
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut handle| handle.write_all(&file.data))
            .map_err(VolumeError::io("write", &path))?;
        set_mode(&path, file.mode)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
        .map_err(VolumeError::io("set mode of", path))
}

/// Whether a version holds exactly these files; fsGroup has added to their modes.
fn is_same(version: &Path, files: &[v1::File], fs_group: Option<u32>) -> bool {
    let added = if fs_group.is_some() { 0o440 } else { 0 };
    let mut found = BTreeSet::new();
    if list_files(version, Path::new(""), &mut found).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|file| {
        let path = version.join(&file.path);
        let mode = |path| fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o7777);
        found.contains(Path::new(&file.path))
            && mode(&path).is_ok_and(|mode| mode == file.mode & 0o7777 | added)
            && fs::read(&path).is_ok_and(|data| data == file.data)
    })
}

fn list_files(version: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(version.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_files(version, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// First components of the files' paths: what the application sees.
fn names(files: &[v1::File]) -> BTreeSet<PathBuf> {
    files
        .iter()
        .filter_map(|file| Path::new(&file.path).components().next())
        .map(|first| PathBuf::from(first.as_os_str()))
        .collect()
}

fn link_names(volume: &Path, files: &[v1::File]) -> Result<(), VolumeError> {
    for name in names(files) {
        let (link, target) = (volume.join(&name), Path::new(DATA).join(&name));
        if fs::read_link(&link).is_ok_and(|existing| existing == target) {
            continue;
        }
        remove(&link)?;
        symlink(&target, &link).map_err(VolumeError::io("link", &link))?;
    }
    Ok(())
}

/// Removes names that are no longer wanted, and all versions but the current one.
fn clean_up(volume: &Path, files: &[v1::File], current: &Path) -> Result<(), VolumeError> {
    let wanted = names(files);
    for entry in fs::read_dir(volume)
        .map_err(VolumeError::io("list", volume))?
        .flatten()
    {
        let name = PathBuf::from(entry.file_name());
        if name != Path::new(DATA) && name != current && !wanted.contains(&name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(VolumeError::io("remove", path))
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
}
