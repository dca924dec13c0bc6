//! The mount table of this process, as `proc_pid_mountinfo(5)` has it.
//!
//! Called by what unmounts and removes folders: `image/rootfs.rs`, `state.rs`, `bpf/bpffs.rs`,
//! and the daemon's `cleanup.rs`.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{self, Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// The file that is read: of the calling thread, which may have a mount namespace of its own.
pub const TABLE: &str = "/proc/thread-self/mountinfo";

/// Source of the file systems that we mount, where the kernel leaves it to us: what is mounted
/// by another name is not ours to unmount.
pub const OURS: &str = "foil";

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// "overlay", "tmpfs", ...
    pub fs_type: String,
    /// What was mounted, as whoever did it called it.
    pub source: String,
    /// The file system's own options: "rw,size=1024k,noswap".
    pub options: String,
}

/// The mounts at and below `root`, in the order in which they were made: unmount from the end.
///
/// # Errors
/// When [`TABLE`] cannot be read.
pub fn list(root: &Path) -> io::Result<Vec<Mount>> {
    let text = fs::read(TABLE)?;
    // The kernel tells of paths without links.
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .filter(|mount| mount.path.starts_with(&root))
        .collect())
}

/// The mount that an existing path is in, the uppermost if several hide each other.
///
/// # Errors
/// When [`TABLE`] or the path cannot be read.
pub fn of(path: &Path) -> io::Result<Option<Mount>> {
    let path = fs::canonicalize(path)?;
    let mut mounts = list(Path::new("/"))?;
    mounts.retain(|mount| path.starts_with(&mount.path));
    // Of several as long the last one made is the uppermost.
    Ok(mounts
        .into_iter()
        .max_by_key(|mount| mount.path.as_os_str().len()))
}

/// What is mounted at `path` itself, the uppermost if several are.
///
/// # Errors
/// When [`TABLE`] cannot be read.
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    let at = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut mounts = list(path)?;
    mounts.retain(|mount| mount.path == at);
    Ok(mounts.pop())
}

/// Links that are followed on the way to a path, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Where the file system is mounted that a path leads to. Asks no file system but that of
/// `/`, so that one that does not answer holds nothing up: links in others are not followed.
///
/// # Errors
/// When [`TABLE`] cannot be read.
pub fn holding(path: &Path) -> io::Result<PathBuf> {
    let points = list(Path::new("/"))?.into_iter().map(|mount| mount.path);
    Ok(follow(path, &points.collect(), |link| {
        fs::read_link(link).ok()
    }))
}

fn follow(
    path: &Path,
    points: &HashSet<PathBuf>,
    read_link: impl Fn(&Path) -> Option<PathBuf>,
) -> PathBuf {
    let parts = |path: &Path| -> VecDeque<Component> {
        let parts = path.components().filter_map(|part| match part {
            path::Component::Normal(name) => Some(Component::Down(name.to_owned())),
            path::Component::ParentDir => Some(Component::Up),
            path::Component::RootDir | path::Component::CurDir | path::Component::Prefix(_) => None,
        });
        parts.collect()
    };
    let root = Path::new("/");
    let holding = |at: &Path| {
        let point = at.ancestors().find(|at| points.contains(*at));
        point.unwrap_or(root).to_owned()
    };
    let (mut at, mut rest, mut links) = (root.to_owned(), parts(path), 0);
    while let Some(part) = rest.pop_front() {
        match part {
            Component::Up => {
                at.pop();
                continue;
            }
            Component::Down(name) => at.push(name),
        }
        if links == MOST_LINKS || holding(&at) != root {
            continue;
        }
        if let Some(target) = read_link(&at) {
            links += 1;
            at.pop();
            if target.is_absolute() {
                at = root.to_owned();
            }
            let mut next = parts(&target);
            next.append(&mut rest);
            rest = next;
        }
    }
    holding(&at)
}

/// One step of a path.
enum Component {
    Up,
    Down(OsString),
}

/// Takes a mount out of the tree at once; what still uses it keeps it.
///
/// # Errors
/// When nothing is mounted there, or the caller may not.
pub fn detach(path: &Path) -> io::Result<()> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    Ok(umount2(path, flags)?)
}

/// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw".
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = PathBuf::from(OsStr::from_bytes(&unescape(fields.nth(4)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        path,
        fs_type: text(fields.next()?),
        source: text(fields.next()?),
        options: text(fields.next()?),
    })
}

/// Blanks, tabs, newlines and backslashes are "\\ooo" there.
fn unescape(field: &[u8]) -> Vec<u8> {
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
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_path_is_found_without_asking_it() {
        let points = ["/", "/mnt", "/mnt/nfs", "/srv"].map(PathBuf::from);
        let points = HashSet::from(points);
        let asked = std::cell::RefCell::new(Vec::new());
        let read_link = |path: &Path| {
            asked.borrow_mut().push(path.to_owned());
            let target = match path.to_str()? {
                "/data" => "/mnt/nfs/data",
                "/near" => "home/../srv/x",
                "/round" => "/round",
                _ => return None,
            };
            Some(PathBuf::from(target))
        };
        let rows = [
            ("/", "/"),
            ("/home/a", "/"),
            ("/mnt/nfs/a/b", "/mnt/nfs"),
            ("/mnt/nfsx", "/mnt"),
            ("/mnt//nfs/./a/../b", "/mnt/nfs"),
            ("/data/x", "/mnt/nfs"),
            ("/data/../../y", "/mnt"),
            ("/near", "/srv"),
            ("/round/x", "/"),
        ];
        for (path, expected) in rows {
            let found = follow(Path::new(path), &points, read_link);
            assert_eq!(found, Path::new(expected), "{path}");
        }
        let mounted = |path: &PathBuf| path.starts_with("/mnt") || path.starts_with("/srv");
        assert!(!asked.borrow().iter().any(mounted), "{asked:?}");
        assert_eq!(
            holding(Path::new("/proc/self/x")).unwrap(),
            Path::new("/proc")
        );
    }

    #[test]
    fn the_mount_table_is_read_as_the_kernel_writes_it() {
        let line = br"36 35 0:40 / /var/lib/a\040b/root\134fs rw,noatime shared:1 master:2 - overlay foil rw,noswap";
        let mount = parse(line).unwrap();
        assert_eq!(mount.path, Path::new(r"/var/lib/a b/root\fs"));
        assert_eq!(
            (mount.fs_type.as_str(), mount.source.as_str()),
            ("overlay", "foil")
        );
        assert_eq!(mount.options, "rw,noswap");
        assert_eq!(parse(b""), None);
        let root = at(Path::new("/")).unwrap().unwrap();
        assert_eq!(root.path, Path::new("/"));
        assert!(list(Path::new("/")).unwrap().contains(&root));
        assert_eq!(at(Path::new("/nonexistent")).unwrap(), None);
    }
}
