//! Who a container runs as: what the spec asks for, then the ids, once the image's
//! own passwd and group files have been read.
//!
//! Called by `container.rs` ([`wanted`]) and the daemon's `workload.rs` ([`entry`],
//! [`set`]).

use proto::v1;

use crate::world::ImageFacts;

/// Who a container shall run as, before the image's own user is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The image's `User`, to be looked up in its passwd and group files.
    pub image: String,
    /// runAsUser.
    pub uid: Option<i64>,
    /// runAsGroup.
    pub gid: Option<i64>,
    /// runAsNonRoot.
    pub non_root: bool,
    /// supplementalGroupsPolicy Strict: the groups of the image's group file do not count.
    pub strict: bool,
}

/// Which entry of the image's passwd file describes the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The one with this user id: runAsUser.
    Number(u32),
    /// That of the image's `User`.
    Image(String),
}

/// A user, as the image's passwd and group files have it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
}

/// What the spec and the image say of it.
pub fn wanted(pod: &v1::PodSpec, container: &v1::ContainerSpec, image: &ImageFacts) -> User {
    let security = container.security.as_ref();
    let of_pod = pod.security.as_ref();
    User {
        image: image.user.clone(),
        uid: security
            .and_then(|s| s.run_as_user)
            .or(of_pod.and_then(|s| s.run_as_user)),
        gid: security
            .and_then(|s| s.run_as_group)
            .or(of_pod.and_then(|s| s.run_as_group)),
        non_root: security
            .and_then(|s| s.run_as_non_root)
            .unwrap_or(of_pod.is_some_and(|s| s.run_as_non_root)),
        strict: of_pod.is_some_and(|s| s.strict_groups),
    }
}

/// Why a container cannot run as it shall: CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not a user or group id of Linux.
    #[error("{field} {value} is not an id")]
    NotAnId {
        /// "runAsUser" or "runAsGroup"
        field: &'static str,
        /// As in the manifest.
        value: i64,
    },
    /// runAsNonRoot, and runAsUser is 0.
    #[error("container's runAsUser breaks non-root policy")]
    RootByRequest,
    /// runAsNonRoot, and the image's user is root.
    #[error("container has runAsNonRoot and image will run as root")]
    RootByImage,
}

fn id(value: i64, field: &'static str) -> Result<u32, UserError> {
    u32::try_from(value)
        .ok()
        .ok_or(UserError::NotAnId { field, value })
}

/// Which entry to look up: runAsUser replaces the image's user, and its group and groups
/// with it.
pub fn entry(user: &User) -> Result<Entry, UserError> {
    Ok(match user.uid {
        Some(uid) => Entry::Number(id(uid, "runAsUser")?),
        None => Entry::Image(user.image.clone()),
    })
}

/// Writes the user and its groups into the request to the shim; `account` is that of
/// [`entry`]. The groups of the image's group file are merged with supplementalGroups and
/// fsGroup, which are there already, unless supplementalGroupsPolicy is Strict; the primary
/// group is one of them, as containerd has it.
pub fn set(create: &mut v1::ShimCreate, user: &User, account: &Account) -> Result<(), UserError> {
    create.uid = account.uid;
    create.gid = match user.gid {
        Some(group) => id(group, "runAsGroup")?,
        None => account.gid,
    };
    if user.non_root && create.uid == 0 {
        return Err(match user.uid {
            Some(_) => UserError::RootByRequest,
            None => UserError::RootByImage,
        });
    }
    if !user.strict {
        create.additional_gids.extend(&account.groups);
    }
    create.additional_gids.push(create.gid);
    create.additional_gids.sort_unstable();
    create.additional_gids.dedup();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let account = |uid, gid, groups: &[u32]| Account {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let seven = account(7, 8, &[9]);
        let root = Account::default();
        // (runAsUser, runAsGroup, runAsNonRoot, what was looked up, expected)
        let rows = [
            (None, None, false, &seven, Some((7, 8, vec![4, 8, 9]))),
            (Some(7), None, false, &seven, Some((7, 8, vec![4, 8, 9]))),
            (Some(7), Some(6), false, &seven, Some((7, 6, vec![4, 6, 9]))),
            (None, Some(9), false, &seven, Some((7, 9, vec![4, 9]))),
            (None, None, true, &seven, Some((7, 8, vec![4, 8, 9]))),
            (None, None, true, &root, None),
            (Some(0), None, true, &root, None),
            (None, Some(-1), false, &seven, None),
        ];
        for (uid, gid, non_root, account, expected) in rows {
            let user = User {
                uid,
                gid,
                non_root,
                ..User::default()
            };
            let mut create = v1::ShimCreate {
                // supplementalGroups
                additional_gids: vec![4],
                ..v1::ShimCreate::default()
            };
            let set = set(&mut create, &user, account);
            assert_eq!(
                set.ok()
                    .map(|()| (create.uid, create.gid, create.additional_gids)),
                expected,
                "{user:?}"
            );
        }
    }

    #[test]
    fn strict_groups_are_those_of_the_manifest() {
        let mut pod = v1::PodSpec::default();
        for (strict_groups, groups) in [(false, vec![4, 8, 9]), (true, vec![4, 8])] {
            pod.security = Some(v1::PodSecurity {
                strict_groups,
                ..v1::PodSecurity::default()
            });
            let user = wanted(&pod, &v1::ContainerSpec::default(), &ImageFacts::default());
            let account = Account {
                uid: 7,
                gid: 8,
                groups: vec![9],
            };
            let mut create = v1::ShimCreate {
                additional_gids: vec![4],
                ..v1::ShimCreate::default()
            };
            set(&mut create, &user, &account).unwrap();
            assert_eq!(create.additional_gids, groups, "{strict_groups}");
        }
    }

    #[test]
    fn run_as_user_is_looked_up_by_number() {
        let user = |uid| User {
            image: "www".into(),
            uid,
            ..User::default()
        };
        assert_eq!(entry(&user(None)), Ok(Entry::Image("www".into())));
        assert_eq!(entry(&user(Some(33))), Ok(Entry::Number(33)));
        assert!(entry(&user(Some(-1))).is_err());
    }
}
