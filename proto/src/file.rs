//! Files replaced as a whole: after a crash, or a power cut, there is the old content
//! or the new one.
//!
//! The only place that does this, for all our processes. Folders and links that
//! are swapped by a rename, and blobs that are hashed while they are written, are not
//! here. Blocking: callers with an event loop call it on a thread for that.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces `path` with these bytes, or makes it, with the permission bits `mode`.
/// Returns once content and name are on the disk. Several processes may replace the
/// same file: one of them is the last.
///
/// # Errors
/// The kernel's error; the old content is kept.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let beside = beside(folder, path)?;
    let written = write(&beside, content, mode).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // Most likely the disk is full: what was written makes it worse.
        drop(fs::remove_file(&beside));
        return Err(error);
    }
    // Without this the name may be lost with the power, and with it the content.
    File::open(folder)?.sync_all()
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A name in the same folder that no other writer uses: process and count.
fn beside(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut unique = OsString::from(".");
    unique.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    unique.push(format!(".{}-{count}.new", std::process::id()));
    let path = folder.join(unique);
    match fs::remove_file(&path) {
        // Left by an earlier process of the same number.
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name()).collect()
    }

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pushed");
        replace(&path, b"old", 0o644).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["pushed"]);
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"new", 0o600).is_err());
        assert!(path.is_dir());
        assert_eq!(names(folder.path()), ["taken"]);
        let missing = folder.path().join("missing").join("file");
        assert!(replace(&missing, b"new", 0o600).is_err());
        assert!(replace(Path::new("/"), b"new", 0o600).is_err());
    }

    #[test]
    fn writers_at_the_same_time_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::thread::scope(|scope| {
            for letter in b'a'..b'e' {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace(path, &[letter; 5000], 0o600).unwrap();
                    }
                });
            }
        });
        let content = fs::read(&path).unwrap();
        assert_eq!(content, vec![content[0]; 5000]);
        assert_eq!(names(folder.path()), ["file"]);
    }
}
