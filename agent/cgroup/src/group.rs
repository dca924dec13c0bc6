//! One group in all hierarchies: made, limited, joined, emptied, removed.
//!
//! Called by the agent for pods, by the shim for containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proto::v1::ShimResources;

use crate::hierarchy::Hierarchy;
use crate::path::uid_of;
use crate::setting::{Setting, settings};
use crate::{GroupError, GroupPath, Hierarchies, Parent, Version};

/// What limits need on version 2, where a group offers its children only the
/// controllers that are enabled in it.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// A group, and where it may be found.
#[derive(Debug, Clone)]
pub struct Group {
    hierarchies: Arc<Hierarchies>,
    path: GroupPath,
}

impl Group {
    /// Names a group; makes nothing.
    pub fn new(hierarchies: &Arc<Hierarchies>, path: GroupPath) -> Self {
        Self {
            hierarchies: hierarchies.clone(),
            path,
        }
    }

    /// Its path.
    pub fn path(&self) -> &GroupPath {
        &self.path
    }

    /// The hierarchies that it is in.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Makes the group with its limits; one that is there gets them too.
    ///
    /// # Errors
    /// [`GroupError`]; the group may have been made in part.
    pub fn create(&self, resources: &ShimResources) -> Result<(), GroupError> {
        self.make()?;
        set(&self.hierarchies, self.path.relative(), resources, Age::Any)
    }

    /// Makes the group with its limits; one that an attempt that failed has left is
    /// replaced. One with processes or groups in it is an error.
    ///
    /// # Errors
    /// [`GroupError`]; the group may have been made in part.
    pub fn create_new(&self, resources: &ShimResources) -> Result<(), GroupError> {
        for folder in self.folders() {
            remove_one(&folder, &mut Tries(0))?;
        }
        self.make()?;
        set(&self.hierarchies, self.path.relative(), resources, Age::New)
    }

    fn make(&self) -> Result<(), GroupError> {
        for hierarchy in &self.hierarchies.all {
            make(&self.hierarchies, hierarchy, self.path.relative())?;
        }
        Ok(())
    }

    /// Moves the calling process into the group in all hierarchies of version 1.
    ///
    /// # Errors
    /// [`GroupError::Write`].
    pub fn join_version_1(&self) -> Result<(), GroupError> {
        let legacy = self.hierarchies.all.iter();
        for hierarchy in legacy.filter(|h| h.version() == Version::V1) {
            let folder = hierarchy.point.join(self.path.relative());
            write(folder.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// The group's folder in the hierarchy of a controller of version 1.
    pub fn version_1_folder(&self, controller: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.all.iter().find(|h| h.has(controller))?;
        Some(hierarchy.point.join(self.path.relative()))
    }

    /// The group's folder in version 2.
    pub fn version_2_folder(&self) -> Option<PathBuf> {
        let mut all = self.hierarchies.all.iter();
        let hierarchy = all.find(|h| h.version() == Version::V2)?;
        Some(hierarchy.point.join(self.path.relative()))
    }

    /// Processes in the group and in groups below it, in any hierarchy; none when it is
    /// gone. Also none when the calling process is one of them: the group is then not
    /// one to be killed.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for folder in self.folders() {
            collect(&folder, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        if found.contains(&std::process::id()) {
            found.clear();
        }
        found
    }

    /// How many of its processes the kernel has killed because memory ran out.
    pub fn oom_kills(&self) -> u64 {
        let file = match self.hierarchies.version() {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let Some(hierarchy) = self.hierarchies.of("memory") else {
            return 0;
        };
        let path = hierarchy.point.join(self.path.relative()).join(file);
        // A group that is gone has no kills to tell of.
        oom_kill(&fs::read_to_string(path).unwrap_or_default())
    }

    /// Removes the group and what is below it, in all hierarchies; it need not be there.
    /// Waits up to a second for processes that are just ending. Blocking.
    ///
    /// # Errors
    /// [`GroupError::Remove`], when processes are left.
    pub fn remove(&self) -> Result<(), GroupError> {
        let mut tries = Tries(1000);
        for folder in self.folders() {
            remove_tree(&folder, &mut tries)?;
        }
        Ok(())
    }

    fn folders(&self) -> Vec<PathBuf> {
        folders(&self.hierarchies, self.path.relative())
    }
}

impl Hierarchies {
    /// Makes the parent of all pods' groups, with the limits of all pods together; it may
    /// be there.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn create_parent(
        &self,
        parent: &Parent,
        resources: &ShimResources,
    ) -> Result<(), GroupError> {
        for hierarchy in &self.all {
            make(self, hierarchy, parent.relative())?;
        }
        set(self, parent.relative(), resources, Age::Any)
    }

    /// Makes the parent group as it is, without limits, in the first hierarchy.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn make_parent(&self, parent: &Parent) -> Result<(), GroupError> {
        match self.all.first() {
            Some(hierarchy) => make(self, hierarchy, parent.relative()),
            None => Err(GroupError::NoHierarchy),
        }
    }

    /// The parent's folder in the first hierarchy, the same for all who name this group;
    /// it need not be there.
    ///
    /// # Errors
    /// [`GroupError::NoHierarchy`].
    pub fn parent_folder(&self, parent: &Parent) -> Result<PathBuf, GroupError> {
        let hierarchy = self.all.first().ok_or(GroupError::NoHierarchy)?;
        Ok(hierarchy.point.join(parent.relative()))
    }

    /// Uids of the pods that have a group in any hierarchy, sorted.
    ///
    /// # Errors
    /// [`GroupError::Read`].
    pub fn pods(&self, parent: &Parent) -> Result<Vec<String>, GroupError> {
        let mut uids = Vec::new();
        for path in folders(self, parent.relative()) {
            let names = children(&path).map_err(|source| GroupError::Read { path, source })?;
            uids.extend(
                names
                    .iter()
                    .filter_map(|name| Some(uid_of(name.to_str()?)?.to_owned())),
            );
        }
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    /// The parent's folder in version 2, where that is mounted.
    pub fn parent_in_version_2(&self, parent: &Parent) -> Option<PathBuf> {
        let hierarchy = self.all.iter().find(|h| h.version() == Version::V2)?;
        Some(hierarchy.point.join(parent.relative()))
    }

    /// Removes the parent, which must have no groups any more; it need not be there.
    ///
    /// # Errors
    /// [`GroupError::Remove`].
    pub fn remove_parent(&self, parent: &Parent) -> Result<(), GroupError> {
        let mut tries = Tries(1000);
        for folder in folders(self, parent.relative()) {
            remove_one(&folder, &mut tries)?;
        }
        Ok(())
    }
}

/// A group's folders in those hierarchies where it is.
fn folders(hierarchies: &Hierarchies, relative: &str) -> Vec<PathBuf> {
    let all = hierarchies.all.iter();
    all.map(|h| h.point.join(relative))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Makes a group and those above it in one hierarchy.
fn make(hierarchies: &Hierarchies, within: &Hierarchy, relative: &str) -> Result<(), GroupError> {
    let mut folder = within.point.clone();
    for part in Path::new(relative) {
        if within.version() == Version::V2 && hierarchies.version() == Version::V2 {
            enable_controllers(&folder)?;
        }
        let above = folder.clone();
        folder.push(part);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(GroupError::Create {
                    path: folder,
                    source,
                });
            }
        }
        if within.has("cpuset") {
            inherit_cpuset(&above, &folder)?;
        }
    }
    Ok(())
}

/// Lets a group's children have the controllers that it has itself.
fn enable_controllers(folder: &Path) -> Result<(), GroupError> {
    let enabled_path = folder.join("cgroup.subtree_control");
    let available = read(folder.join("cgroup.controllers"))?;
    let enabled = read(enabled_path.clone())?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|one| one == name);
    for name in CONTROLLERS {
        if has(&available, name) && !has(&enabled, name) {
            write(enabled_path.clone(), &format!("+{name}"))?;
        }
    }
    Ok(())
}

/// A new group has no CPUs and no memory nodes, and takes no process until it has.
fn inherit_cpuset(above: &Path, folder: &Path) -> Result<(), GroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(folder.join(file))?.trim().is_empty() {
            let value = read(above.join(file))?;
            write(folder.join(file), value.trim())?;
        }
    }
    Ok(())
}

/// Whether a group can have other values than a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Any,
}

fn set(
    hierarchies: &Hierarchies,
    relative: &str,
    resources: &ShimResources,
    age: Age,
) -> Result<(), GroupError> {
    for setting in settings(resources, hierarchies.version()) {
        if setting.is_default && age == Age::New {
            continue;
        }
        let Setting {
            controller, file, ..
        } = setting;
        let Some(hierarchy) = hierarchies.of(controller) else {
            if setting.may_lack() {
                continue;
            }
            return Err(GroupError::NoController { controller, file });
        };
        setting.write(&hierarchy.point.join(relative), hierarchies.version())?;
    }
    Ok(())
}

fn collect(folder: &Path, found: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(folder).unwrap_or_default() {
        collect(&folder.join(child), found);
    }
}

/// Names of the groups directly below one; none when it is gone.
fn children(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

/// How often a busy group is tried again, a millisecond later each time.
struct Tries(u32);

fn remove_tree(folder: &Path, tries: &mut Tries) -> Result<(), GroupError> {
    let names = children(folder).map_err(|source| GroupError::Remove {
        path: folder.to_owned(),
        source,
    })?;
    for name in names {
        remove_tree(&folder.join(name), tries)?;
    }
    remove_one(folder, tries)
}

fn remove_one(folder: &Path, tries: &mut Tries) -> Result<(), GroupError> {
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel is not quite done with a process that was killed or reaped.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && tries.0 > 0 => {
                tries.0 -= 1;
                thread::sleep(Duration::from_millis(1));
            }
            Err(source) => {
                return Err(GroupError::Remove {
                    path: folder.to_owned(),
                    source,
                });
            }
        }
    }
}

/// The count of a flat keyed file of either version.
fn oom_kill(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn read(path: PathBuf) -> Result<String, GroupError> {
    fs::read_to_string(&path).map_err(|source| GroupError::Read { path, source })
}

fn write(path: PathBuf, value: &str) -> Result<(), GroupError> {
    fs::write(&path, value).map_err(|source| GroupError::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders that look like hierarchies to what only reads.
    fn pretended(folder: &Path, names: &[&str]) -> Arc<Hierarchies> {
        let hierarchy = |name: &&str| Hierarchy {
            point: folder.join(name),
            options: Some(format!("rw,{name}")),
        };
        let all = names.iter().map(hierarchy).collect();
        Arc::new(Hierarchies { all })
    }

    fn put(folder: &Path, group: &str, pids: &[u32]) {
        let group = folder.join(group);
        fs::create_dir_all(&group).unwrap();
        let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(group.join("cgroup.procs"), lines).unwrap();
    }

    #[test]
    fn processes_are_found_below_and_in_any_hierarchy() {
        let folder = tempfile::tempdir().unwrap();
        let hierarchies = pretended(folder.path(), &["memory", "pids"]);
        let group = Group::new(&hierarchies, GroupPath::parse("/p/pod-u").unwrap());
        assert_eq!(group.processes(), Vec::<u32>::new());
        put(folder.path(), "memory/p/pod-u/web_0", &[4_000_001]);
        put(folder.path(), "pids/p/pod-u/web_0", &[4_000_001, 4_000_002]);
        put(folder.path(), "pids/p/pod-u/web_0/inner", &[4_000_003]);
        put(folder.path(), "pids/p/pod-other", &[4_000_004]);
        assert_eq!(group.processes(), [4_000_001, 4_000_002, 4_000_003]);
        assert_eq!(
            hierarchies.pods(&Parent::parse("/p").unwrap()).unwrap(),
            ["other", "u"]
        );
        // As if the shim had been put into a container's group.
        put(
            folder.path(),
            "pids/p/pod-u/web_0/inner",
            &[std::process::id()],
        );
        assert_eq!(group.processes(), Vec::<u32>::new(), "nothing to kill");
    }

    #[test]
    fn a_group_that_is_not_there_is_empty_and_removed() {
        let hierarchies = Arc::new(Hierarchies::mounted().unwrap());
        let parent = Parent::parse("/foil-not-there").unwrap();
        let group = Group::new(&hierarchies, parent.pod("uid").unwrap());
        assert_eq!(group.processes(), Vec::<u32>::new());
        assert_eq!(group.oom_kills(), 0);
        group.remove().unwrap();
        assert_eq!(hierarchies.pods(&parent).unwrap(), Vec::<String>::new());
        hierarchies.remove_parent(&parent).unwrap();
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(
            oom_kill("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(oom_kill(""), 0);
    }
}
