//! Layer archives to folders in the form that overlayfs stacks.
//!
//! One layer at a time, into a folder of its own: OCI whiteouts
//! (image-spec, layer.md) become overlayfs's (a character device 0/0, and the
//! attribute `trusted.overlay.opaque`). An archive is not trusted: nothing is
//! written outside the folder, regardless of its names and links.
//! The caller is `store.rs`, which gives it an unfinished folder and renames it
//! when all is well.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
    makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use sha2::{Digest, Sha256};

use super::archive::{Archive, Entry, Kind};
use super::attributes::{self, set_xattr, time};
use crate::beneath::{Beneath, Links};
use crate::removal::{self, Most};

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("entry {entry:?} leads out of the layer")]
    Escapes { entry: String },
    #[error("entry {entry:?} is an absolute path")]
    Absolute { entry: String },
    #[error("whiteout {entry:?} names nothing")]
    Whiteout { entry: String },
    #[error("entry {entry:?} has type {kind:?}, which is not supported")]
    Type { entry: String, kind: char },
    #[error("hard link {entry:?} to {target:?}: {source}")]
    HardLink {
        entry: String,
        target: String,
        source: io::Error,
    },
    #[error("archive is damaged: {source}")]
    Archive { source: io::Error },
    #[error("{verb} {entry:?}: {source}")]
    Entry {
        verb: &'static str,
        entry: String,
        source: io::Error,
    },
}

impl UnpackError {
    /// The disk is full (or the quota spent).
    pub(crate) fn is_disk_full(&self) -> bool {
        let source = match self {
            Self::Entry { source, .. } | Self::HardLink { source, .. } => source,
            Self::Escapes { .. }
            | Self::Absolute { .. }
            | Self::Whiteout { .. }
            | Self::Type { .. }
            | Self::Archive { .. } => return false,
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
const DIR: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_RDONLY)
    .union(OFlag::O_CLOEXEC);

/// Unpacks `archive` (plain, gzip or zstd) into the empty folder `dir`.
/// `lowers`: the layers below, the topmost first; folders that the archive
/// implies but does not hold take owner and mode from there. Returns the digest
/// of the uncompressed archive, `sha256:...`.
///
/// # Errors
/// [`UnpackError`]; `dir` is left as it was then.
pub(crate) fn unpack(archive: File, dir: &Path, lowers: &[PathBuf]) -> Result<String, UnpackError> {
    let at_dir = |verb| {
        move |source| UnpackError::Entry {
            verb,
            entry: dir.display().to_string(),
            source,
        }
    };
    let root = Beneath::open(dir).map_err(at_dir("open"))?;
    let lowers = lowers
        .iter()
        .map(|lower| Beneath::open(lower).map_err(at_dir("open a layer below")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut layer = Layer {
        root,
        lowers,
        parent: None,
        times: Vec::new(),
        devices: BTreeSet::new(),
        buffer: vec![0; 128 << 10],
    };
    layer
        .copy_attributes(Path::new("."), layer.root.fd())
        .map_err(at_dir("set attributes of"))?;

    let broken = |source| UnpackError::Archive { source };
    let stream = decompress(archive).map_err(broken)?;
    let mut archive = Archive::new(Hashing {
        stream,
        hash: Sha256::new(),
    });
    while let Some(entry) = archive.next().map_err(broken)? {
        layer.add(&entry, &mut archive)?;
    }
    // Folders' times last: each entry in them would have changed them.
    for (path, time) in layer.times.iter().rev() {
        layer
            .set_dir_time(path, *time)
            .map_err(|source| failed("set time of", path, source))?;
    }
    // The digest is over the whole stream, padding after the end included.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    Ok(format!("sha256:{}", hex::encode(rest.hash.finalize())))
}

/// The stream inside, by its first bytes: media types are often wrong.
pub(crate) fn decompress(file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(128 << 10, file);
    let magic = reader.fill_buf()?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

struct Hashing<R> {
    stream: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

struct Layer {
    root: Beneath,
    lowers: Vec<Beneath>,
    /// The folder of the last entry; entries of a folder follow each other.
    parent: Option<(PathBuf, OwnedFd)>,
    times: Vec<(PathBuf, TimeSpec)>,
    /// Device files, which are not made.
    devices: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
}

impl Layer {
    fn add(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        let path = inside(&entry.path)?;
        let Some(name) = path.file_name() else {
            // "./": the root of the layer.
            return self.dir_attributes(entry, &path, self.root.fd().try_clone_to_owned());
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let parent = self
            .parent_of(folder)
            .map_err(|source| failed("make the folder of", &path, source))?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.white_out(&path, name, parent.as_fd());
        }
        self.devices.remove(&path);
        let hidden = self.clear(&path, name, parent.as_fd(), entry.kind == Kind::Directory)?;
        self.create(entry, &path, name, parent.as_fd(), data)?;
        if hidden && entry.kind == Kind::Directory {
            // The whiteout came first in the archive: what is below stays hidden.
            self.make_opaque(&path)?;
        }
        Ok(())
    }

    fn create(
        &mut self,
        entry: &Entry,
        path: &Path,
        name: &OsStr,
        parent: BorrowedFd<'_>,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let error = |verb| move |source: io::Error| failed(verb, path, source);
        let errno = |verb| move |errno: nix::errno::Errno| failed(verb, path, errno.into());
        match entry.kind {
            Kind::Directory => {
                match mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(source) => return Err(errno("make folder")(source)),
                }
                let fd = openat(parent, name, DIR | OFlag::O_NOFOLLOW, Mode::empty());
                return self.dir_attributes(entry, path, fd.map_err(io::Error::from));
            }
            Kind::File => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600))
                    .map_err(errno("create"))?;
                let mut file = File::from(fd);
                self.copy(data, &mut file, path)?;
                return attributes::set(entry, file.as_fd())
                    .and_then(|()| Ok(futimens(&file, &time(entry), &time(entry))?))
                    .map_err(error("set attributes of"));
            }
            Kind::HardLink => return self.hard_link(entry, path, name, parent),
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), parent, name).map_err(errno("link"))?;
            }
            // A whiteout in overlayfs's own form.
            Kind::CharDevice if entry.device == (0, 0) => {
                return make_whiteout(parent, name).map_err(error("white out"));
            }
            Kind::CharDevice | Kind::BlockDevice => {
                return self.leave_out(path, name, parent);
            }
            Kind::Fifo => {
                let mode = Mode::from_bits_truncate(0o600);
                mknodat(parent, name, SFlag::S_IFIFO, mode, 0).map_err(errno("make fifo"))?;
            }
            Kind::Unknown(kind) => {
                return Err(UnpackError::Type {
                    entry: path.display().to_string(),
                    kind: kind.into(),
                });
            }
        }
        let owner = (
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        );
        fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(errno("own"))?;
        if entry.kind != Kind::Symlink {
            // The name was made just now and is no link.
            let mode = Mode::from_bits_truncate(entry.mode);
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)
                .map_err(errno("set mode of"))?;
        }
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(parent, name, &time(entry), &time(entry), flags).map_err(errno("set time of"))
    }

    /// A device file of an image would be the node's device, so it is not made. What it
    /// replaces is gone nevertheless.
    fn leave_out(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        if self.is_below(path) {
            make_whiteout(parent, name).map_err(|source| failed("white out", path, source))?;
        }
        self.devices.insert(path.to_owned());
        Ok(())
    }

    /// Whether a layer below has something of this path, which would show through.
    fn is_below(&self, path: &Path) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let mut lowers = self.lowers.iter();
        lowers.any(|lower| lower.open_at(path, flags, Links::Inside).is_ok())
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        path: &Path,
        name: &OsStr,
        parent: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        // Some builders write the target with its slash: it is the image's root.
        let target = below(&entry.link)?;
        if self.devices.contains(&target) {
            return self.leave_out(path, name, parent);
        }
        let error = |source| UnpackError::HardLink {
            entry: path.display().to_string(),
            target: target.display().to_string(),
            source,
        };
        let folder = target.parent().unwrap_or(Path::new(""));
        let from = self
            .root
            .open_at(folder, DIR, Links::Inside)
            .map_err(error)?;
        // Without AT_SYMLINK_FOLLOW a link is linked itself.
        let target_name = target.file_name().unwrap_or_default();
        linkat(from, target_name, parent, name, AtFlags::empty())
            .map_err(|errno| error(errno.into()))
    }

    fn white_out(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        let name = name.as_bytes();
        if name == OPAQUE_MARK {
            return set_xattr(parent, b"trusted.overlay.opaque", b"y")
                .map_err(|source| failed("make opaque the folder of", path, source));
        }
        if name.starts_with(RESERVED) {
            // aufs's own bookkeeping.
            return Ok(());
        }
        let target = OsStr::from_bytes(&name[WHITEOUT.len()..]);
        if matches!(target.as_bytes(), b"" | b"." | b"..") {
            return Err(UnpackError::Whiteout {
                entry: path.display().to_string(),
            });
        }
        let hidden = path.with_file_name(target);
        // The layer's folder was empty: what is there, this archive brought. A
        // whiteout hides what is below, never its own layer's entries.
        match fstatat(parent, target, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => self.make_opaque(&hidden),
            Ok(_) => Ok(()),
            Err(_) => {
                make_whiteout(parent, target).map_err(|source| failed("white out", path, source))
            }
        }
    }

    /// Removes what an entry replaces (a folder that stays one is kept).
    /// True if that was a whiteout.
    fn clear(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: BorrowedFd<'_>,
        keep_dir: bool,
    ) -> Result<bool, UnpackError> {
        let Ok(stat) = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
            return Ok(false);
        };
        let kind = stat.st_mode & libc::S_IFMT;
        let error = |source| failed("replace", path, source);
        if kind == libc::S_IFDIR {
            if !keep_dir {
                self.parent = None;
                let removed = CString::new(name.as_bytes())
                    .map_err(io::Error::from)
                    .and_then(|name| removal::remove_at(parent, &name, Most::All));
                removed.map_err(error)?;
                self.times.retain(|(made, _)| !made.starts_with(path));
            }
            return Ok(false);
        }
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(|errno| error(errno.into()))?;
        Ok(kind == libc::S_IFCHR && stat.st_rdev == 0)
    }

    /// The folder of that path in the layer, made with its parents where missing.
    fn parent_of(&mut self, folder: &Path) -> io::Result<OwnedFd> {
        if let Some((path, fd)) = &self.parent
            && path == folder
        {
            return fd.try_clone();
        }
        let fd = match self.root.open_at(folder, DIR, Links::Inside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let copied = |fd: BorrowedFd<'_>, path: &Path| self.copy_attributes(path, fd);
                self.root.make_dirs(folder, Links::Inside, copied)?
            }
            result => result?,
        };
        self.parent = Some((folder.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    /// Owner and mode of the same folder in the layers below, so that an entry
    /// in it does not change them.
    fn copy_attributes(&self, path: &Path, fd: BorrowedFd<'_>) -> io::Result<()> {
        for lower in &self.lowers {
            let Ok(below) = lower.open_at(path, DIR, Links::Refused) else {
                continue;
            };
            let stat = fstat(below)?;
            fchown(
                fd,
                Some(Uid::from_raw(stat.st_uid)),
                Some(Gid::from_raw(stat.st_gid)),
            )?;
            return Ok(fchmod(fd, Mode::from_bits_truncate(stat.st_mode & 0o7777))?);
        }
        Ok(fchmod(fd, Mode::from_bits_truncate(0o755))?)
    }

    fn dir_attributes(
        &mut self,
        entry: &Entry,
        path: &Path,
        fd: io::Result<OwnedFd>,
    ) -> Result<(), UnpackError> {
        fd.and_then(|fd| attributes::set(entry, fd.as_fd()))
            .map_err(|source| failed("set attributes of", path, source))?;
        self.times.push((path.to_owned(), time(entry)));
        Ok(())
    }

    fn set_dir_time(&self, path: &Path, time: TimeSpec) -> io::Result<()> {
        let fd = self.root.open_at(path, DIR, Links::Refused)?;
        Ok(futimens(&fd, &time, &time)?)
    }

    fn make_opaque(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.root
            .open_at(path, DIR, Links::Inside)
            .and_then(|fd| set_xattr(fd.as_fd(), b"trusted.overlay.opaque", b"y"))
            .map_err(|source| failed("make opaque", path, source))
    }

    fn copy(
        &mut self,
        data: &mut impl Read,
        file: &mut File,
        path: &Path,
    ) -> Result<(), UnpackError> {
        loop {
            let count = match data.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(UnpackError::Archive { source }),
            };
            file.write_all(&self.buffer[..count])
                .map_err(|source| failed("write", path, source))?;
        }
    }
}

/// What hides a name of the layers below.
fn make_whiteout(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let device = makedev(0, 0);
    Ok(mknodat(
        parent,
        name,
        SFlag::S_IFCHR,
        Mode::empty(),
        device,
    )?)
}

/// A path of an archive, relative to the layer's root.
fn inside(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let path = below(bytes)?;
    // "/" alone is the root, and harmless.
    if bytes.starts_with(b"/") && path.file_name().is_some() {
        let entry = String::from_utf8_lossy(bytes).into_owned();
        return Err(UnpackError::Absolute { entry });
    }
    Ok(path)
}

/// A path of an archive, relative to the layer's root also where it is absolute.
fn below(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let entry = || String::from_utf8_lossy(bytes).into_owned();
    let mut path = PathBuf::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(UnpackError::Escapes { entry: entry() }),
            name => path.push(OsStr::from_bytes(name)),
        }
    }
    Ok(path)
}

fn failed(verb: &'static str, path: &Path, source: io::Error) -> UnpackError {
    UnpackError::Entry {
        verb,
        entry: path.display().to_string(),
        source,
    }
}
