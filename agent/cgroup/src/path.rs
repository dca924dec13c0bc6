//! Paths of groups, relative to the hierarchies' roots. Pure.
//!
//! An empty path would be the caller's own group, and killing a group kills all that is
//! in it: a [`GroupPath`] is always below a parent, so neither the root nor a group that
//! somebody else made at the top can be named by one.

use std::fmt;

/// Before a pod's uid in the name of its group.
const POD: &str = "pod-";

/// A path or a name is not one of our groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not a parent group: the root, relative, or with empty or dotted parts.
    #[error("parent group {0:?} is not of the form /NAME")]
    Parent(String),
    /// Not below a parent group.
    #[error("group {0:?} is not of the form /PARENT/NAME")]
    Group(String),
    /// A pod's uid or a container's name that cannot be the name of a folder.
    #[error("{0:?} cannot be the name of a group")]
    Name(String),
}

/// The parent of all pods' groups: "/hydrofoil".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent(String);

impl Parent {
    /// Takes an absolute path of one or more parts.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        match parts(path) {
            Some((relative, _)) => Ok(Self(relative)),
            None => Err(PathError::Parent(path.to_owned())),
        }
    }

    /// Group of a pod. The uid comes from outside and must not lead elsewhere.
    pub fn pod(&self, uid: &str) -> Result<GroupPath, PathError> {
        Ok(GroupPath(format!("{}/{POD}{}", self.0, plain(uid)?)))
    }

    /// Without the leading slash.
    pub(crate) fn relative(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

/// A group below the parent: of a pod or of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPath(String);

impl GroupPath {
    /// Takes an absolute path of two or more parts: `ShimCreate.cgroup`.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        match parts(path) {
            Some((relative, count)) if count >= 2 => Ok(Self(relative)),
            _ => Err(PathError::Group(path.to_owned())),
        }
    }

    /// Group of one attempt of a container, below its pod's. What an earlier attempt
    /// left, however long the kernel takes to remove it, is in another group.
    pub fn container(&self, name: &str, attempt: u32) -> Result<Self, PathError> {
        Ok(Self(format!("{}/{}_{attempt}", self.0, plain(name)?)))
    }

    /// Without the leading slash.
    pub(crate) fn relative(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

/// The pod whose group has this folder's name; `None` for other folders.
pub(crate) fn uid_of(folder: &str) -> Option<&str> {
    folder.strip_prefix(POD).filter(|uid| plain(uid).is_ok())
}

/// The path without its leading slash, and of how many parts it is.
fn parts(path: &str) -> Option<(String, usize)> {
    let relative = path.strip_prefix('/')?;
    let parts: Vec<&str> = relative.split('/').collect();
    let whole = parts.iter().all(|part| plain(part).is_ok());
    whole.then(|| (relative.to_owned(), parts.len()))
}

fn plain(name: &str) -> Result<&str, PathError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0', '\n']) {
        return Err(PathError::Name(name.to_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_never_a_parent() {
        for path in ["", "/", "hydrofoil", "/..", "/a//b", "/a/../..", "/./a"] {
            let refused = Parent::parse(path);
            assert_eq!(refused, Err(PathError::Parent(path.into())), "{path:?}");
        }
        assert_eq!(Parent::parse("/a/b").unwrap().to_string(), "/a/b");
    }

    #[test]
    fn groups_are_below_a_parent() {
        for path in ["/hydrofoil/pod-uid/web_0", "/hydrofoil/pod-uid"] {
            assert_eq!(GroupPath::parse(path).unwrap().to_string(), path);
        }
        for path in [
            "", "/", "//", "web", "a/b", "/web", "/web/", "/a//b", "/a/../b", "/a/..", "/./b",
            "/../..",
        ] {
            let refused = GroupPath::parse(path);
            assert_eq!(refused, Err(PathError::Group(path.into())), "{path:?}");
        }
    }

    #[test]
    fn names_from_outside_do_not_lead_elsewhere() {
        let parent = Parent::parse("/p").unwrap();
        let pod = parent.pod("uid").unwrap();
        for name in ["", ".", "..", "/", "a/b", "x/../../.."] {
            let refused = PathError::Name(name.into());
            assert_eq!(parent.pod(name), Err(refused.clone()), "{name:?}");
            assert_eq!(pod.container(name, 0), Err(refused), "{name:?}");
        }
    }

    #[test]
    fn each_attempt_has_a_group_of_its_own() {
        let pod = Parent::parse("/hydrofoil").unwrap().pod("u1").unwrap();
        assert_eq!(pod.to_string(), "/hydrofoil/pod-u1");
        for (name, attempt, path) in [
            ("web", 0, "/hydrofoil/pod-u1/web_0"),
            ("web", 12, "/hydrofoil/pod-u1/web_12"),
            ("web-1", 2, "/hydrofoil/pod-u1/web-1_2"),
        ] {
            assert_eq!(pod.container(name, attempt).unwrap().to_string(), path);
        }
        assert_eq!(uid_of("pod-u1"), Some("u1"));
        for other in ["system.slice", "pod-", "pod-.", "pod-.."] {
            assert_eq!(uid_of(other), None, "{other}");
        }
    }
}
