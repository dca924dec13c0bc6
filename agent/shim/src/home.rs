//! A user's home in a container's root file system, from its /etc/passwd.
//!
//! libcontainer would ask the C library, inside the container, which may load code
//! from there: so HOME is always set before. Called by `create.rs`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// What is read of the file; a longer one is cut.
const MOST: u64 = 1 << 20;

/// The home of a user, or "/" as other runtimes have it.
pub(crate) fn of(uid: u32, rootfs: &Path) -> String {
    passwd(rootfs)
        .and_then(|text| field(&text, uid))
        .unwrap_or_else(|| "/".to_owned())
}

/// Symbolic links lead to places inside the root file system only.
fn passwd(rootfs: &Path) -> Option<String> {
    let folder = File::open(rootfs).ok()?;
    let how = OpenHow::new()
        // A FIFO there must not stop us.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&folder, "etc/passwd", how).ok()?);
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// name:password:UID:gid:comment:HOME:shell
fn field(text: &str, uid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let same = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (same && home.starts_with('/')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbad line\napp:x:1000:1000:An app:/home/app:\nodd:x:7:7::relative:\n";

    #[test]
    fn homes() {
        for (uid, home) in [
            (0, Some("/root")),
            (1000, Some("/home/app")),
            (7, None),
            (8, None),
        ] {
            assert_eq!(field(PASSWD, uid).as_deref(), home, "{uid}");
        }
    }

    #[test]
    fn links_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let rootfs = folder.path().join("rootfs");
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        assert_eq!(of(0, &rootfs), "/");
        fs::write(folder.path().join("secret"), PASSWD).unwrap();
        symlink("../../secret", rootfs.join("etc/passwd")).unwrap();
        assert_eq!(of(0, &rootfs), "/");
        fs::write(rootfs.join("secret"), PASSWD).unwrap();
        assert_eq!(of(0, &rootfs), "/root");
    }
}
