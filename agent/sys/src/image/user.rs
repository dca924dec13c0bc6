//! Who a container runs as: the image's `User`, or the pod's runAsUser, looked up in the
//! image's /etc/passwd and /etc/group.

use std::io::{self, Read};
use std::path::Path;

use crate::beneath::{Beneath, Links};

/// A larger passwd or group file is not read: it is the image's, not ours.
const MAX_BYTES: u64 = 4 << 20;

/// A user that does not exist in the image.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser { name: String },
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup { name: String },
    #[error("{file} of the image: {source}")]
    Io {
        file: &'static str,
        source: io::Error,
    },
}

/// Numbers of a user inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Groups that list the user in /etc/group, without `gid`; also when the image's
    /// `User` names a group, as containerd has it for Kubernetes. Sorted.
    pub additional_gids: Vec<u32>,
    /// "/" when /etc/passwd does not know the user.
    pub home: String,
}

/// Looks up `user` ("", "name", "uid", "name:group", "uid:gid") in `rootfs`.
/// "" is root. A number needs no entry.
///
/// # Errors
/// [`UserError`].
pub fn resolve(rootfs: &Path, user: &str) -> Result<Account, UserError> {
    let failed = |source| UserError::Io { file: "/", source };
    let root = Beneath::open(rootfs).map_err(failed)?;
    account(
        &read(&root, "/etc/passwd")?,
        &read(&root, "/etc/group")?,
        user,
    )
}

/// Looks up the user with this number; its group is 0 where /etc/passwd does not know it.
/// For runAsUser, as containerd has it.
///
/// # Errors
/// [`UserError`].
pub fn by_number(rootfs: &Path, uid: u32) -> Result<Account, UserError> {
    let failed = |source| UserError::Io { file: "/", source };
    let root = Beneath::open(rootfs).map_err(failed)?;
    let (passwd, group) = (read(&root, "/etc/passwd")?, read(&root, "/etc/group")?);
    Ok(account_of(&passwd, &group, uid))
}

fn account_of(passwd: &str, group: &str, uid: u32) -> Account {
    let mut entries = passwd.lines().filter_map(entry);
    let (login, _, gid, home) = entries
        .find(|(_, number, _, _)| *number == uid)
        .unwrap_or(("", uid, 0, "/"));
    Account {
        uid,
        gid,
        additional_gids: additional(group, login, gid),
        home: absolute(home),
    }
}

/// Groups that have the user as a member, except the one with its own name.
fn additional(group: &str, login: &str, gid: u32) -> Vec<u32> {
    let is_of = |name: &str, members: &str| {
        !login.is_empty() && name != login && members.split(',').any(|member| member == login)
    };
    let mut gids: Vec<u32> = group
        .lines()
        .filter_map(group_entry)
        .filter(|(name, number, members)| *number != gid && is_of(name, members))
        .map(|(_, number, _)| number)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// Relative, it would depend on the working directory.
fn absolute(home: &str) -> String {
    if home.starts_with('/') { home } else { "/" }.to_owned()
}

fn read(root: &Beneath, file: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::Io { file, source };
    let found = match root.read(Path::new(file), Links::Inside) {
        // Images from scratch have none; then only numbers can be used. So for a FIFO,
        // which nothing would ever write to.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            return Ok(String::new());
        }
        result => result.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    found
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn account(passwd: &str, group: &str, user: &str) -> Result<Account, UserError> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    // A name wins over a number that looks the same, as in Docker.
    let number = name.parse::<u32>().ok();
    let by_name = passwd
        .lines()
        .find_map(|line| entry(line).filter(|entry| entry.0 == name));
    let by_number = || {
        let number = number?;
        passwd
            .lines()
            .find_map(|line| entry(line).filter(|entry| entry.1 == number))
    };
    let (login, uid, gid, home) = match (by_name.or_else(by_number), number) {
        (Some((login, uid, gid, home)), _) => (login, uid, gid, home),
        (None, Some(uid)) => ("", uid, 0, "/"),
        (None, None) => {
            return Err(UserError::NoUser {
                name: name.to_owned(),
            });
        }
    };
    let gid = match group_name {
        Some(wanted) => group
            .lines()
            .filter_map(group_entry)
            .find(|(name, _, _)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| UserError::NoGroup {
                name: wanted.to_owned(),
            })?,
        None => gid,
    };
    Ok(Account {
        uid,
        gid,
        additional_gids: additional(group, login, gid),
        home: absolute(home),
    })
}

/// (name, uid, gid, home) of "name:x:uid:gid:gecos:home:shell".
fn entry(line: &str) -> Option<(&str, u32, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, uid, gid, fields.nth(1).unwrap_or_default()))
}

/// (name, gid, members) of "name:x:gid:member,member".
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # comment\nbroken:x\n\
        www:x:33:33:web:/var/www:/bin/false\n\
        nohome:x:40:41::\n\
        100:x:7:8::/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:www\nlogs:x:50:root,www\nssl:x:60:www\n";

    #[test]
    fn users_of_images_are_found() {
        for (user, uid, gid, groups, home) in [
            ("", 0, 0, &[50][..], "/root"),
            ("root", 0, 0, &[50], "/root"),
            ("www", 33, 33, &[50, 60], "/var/www"),
            ("33", 33, 33, &[50, 60], "/var/www"),
            ("www:logs", 33, 50, &[60], "/var/www"),
            ("33:77", 33, 77, &[50, 60], "/var/www"),
            ("www:", 33, 33, &[50, 60], "/var/www"),
            (":logs", 0, 50, &[], "/root"),
            ("1234", 1234, 0, &[], "/"),
            ("1234:5678", 1234, 5678, &[], "/"),
            ("nohome", 40, 41, &[], "/"),
            ("100", 7, 8, &[], "/seven"),
        ] {
            let expected = Account {
                uid,
                gid,
                additional_gids: groups.to_vec(),
                home: home.to_owned(),
            };
            assert_eq!(account(PASSWD, GROUP, user).unwrap(), expected, "{user}");
        }
        for user in ["nobody", "broken", "-1", "www:nogroup", "4294967296"] {
            assert!(account(PASSWD, GROUP, user).is_err(), "{user}");
        }
    }

    #[test]
    fn users_by_number_have_their_groups_too() {
        for (uid, gid, groups, home) in [
            (0, 0, &[50][..], "/root"),
            (33, 33, &[50, 60], "/var/www"),
            (40, 41, &[], "/"),
            // A number, never the name that looks the same.
            (100, 0, &[], "/"),
            (1234, 0, &[], "/"),
        ] {
            let expected = Account {
                uid,
                gid,
                additional_gids: groups.to_vec(),
                home: home.to_owned(),
            };
            assert_eq!(account_of(PASSWD, GROUP, uid), expected, "{uid}");
        }
        assert_eq!(account_of("odd:x:7:7::relative:\n", "", 7).home, "/");
    }

    #[test]
    fn a_link_to_the_hosts_passwd_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, host) = (dir.path().join("rootfs"), dir.path().join("passwd"));
        std::fs::create_dir_all(rootfs.join("etc")).unwrap();
        std::fs::write(&host, "hostuser:x:5:5::/:\n").unwrap();
        std::os::unix::fs::symlink(&host, rootfs.join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve(&rootfs, "hostuser"),
            Err(UserError::NoUser { .. })
        ));
        assert_eq!(resolve(&rootfs, "5").unwrap().gid, 0);
    }

    #[test]
    fn a_fifo_in_place_of_passwd_does_not_stop_us() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), mode).unwrap();
        assert_eq!(resolve(dir.path(), "5").unwrap().uid, 5);
    }
}
