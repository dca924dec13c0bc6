//! The hierarchies that the machine has mounted, from the table of mounts.
//!
//! Read once: the table is as long as the node has pods.

use std::fs;
use std::path::{Path, PathBuf};

use crate::GroupError;

/// Where hierarchies are mounted: this folder itself on version 2, folders in it else.
pub const MOUNTED: &str = "/sys/fs/cgroup";

/// The interface that has the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Version 2 only.
    Unified,
    /// Controllers in version 1, and a version 2 without controllers beside it.
    Hybrid,
    /// Version 1 only.
    Legacy,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) point: PathBuf,
    /// Version 1's controllers, among other mount options; `None` for version 2.
    pub(crate) options: Option<String>,
}

impl Hierarchy {
    pub(crate) fn version(&self) -> Version {
        match self.options {
            Some(_) => Version::V1,
            None => Version::V2,
        }
    }

    /// Whether version 1's controller is here.
    pub(crate) fn has(&self, controller: &str) -> bool {
        let options = self.options.as_deref().unwrap_or_default();
        options.split(',').any(|option| option == controller)
    }
}

/// All of the machine's hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    pub(crate) all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads the mounts of the calling thread.
    ///
    /// # Errors
    /// [`GroupError::NoHierarchy`], [`GroupError::Read`].
    pub fn mounted() -> Result<Self, GroupError> {
        let path = Path::new("/proc/thread-self/mountinfo");
        let table = fs::read_to_string(path).map_err(|source| GroupError::Read {
            path: path.to_owned(),
            source,
        })?;
        let all = parse(&table);
        if all.is_empty() {
            return Err(GroupError::NoHierarchy);
        }
        Ok(Self { all })
    }

    /// What is mounted.
    pub fn setup(&self) -> Setup {
        let has = |version| self.all.iter().any(|h| h.version() == version);
        match (has(Version::V1), has(Version::V2)) {
            (false, _) => Setup::Unified,
            (true, true) => Setup::Hybrid,
            (true, false) => Setup::Legacy,
        }
    }

    /// Which version has the controllers.
    pub fn version(&self) -> Version {
        match self.setup() {
            Setup::Unified => Version::V2,
            Setup::Hybrid | Setup::Legacy => Version::V1,
        }
    }

    /// The hierarchy of a controller; on version 2 the only one.
    pub(crate) fn of(&self, controller: &str) -> Option<&Hierarchy> {
        match self.version() {
            Version::V1 => self.all.iter().find(|h| h.has(controller)),
            Version::V2 => self.all.first(),
        }
    }
}

/// See proc_pid_mountinfo(5). Left out: hierarchies with a name instead of controllers
/// (some program's accounts of processes, no limits), and second mounts of one.
fn parse(table: &str) -> Vec<Hierarchy> {
    let mut all: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut after = after.split(' ');
        let (Some(kind), Some(options)) = (after.next(), after.nth(1)) else {
            continue;
        };
        let Some(point) = before.split(' ').nth(4).map(Path::new) else {
            continue;
        };
        if point == Path::new(MOUNTED) {
            // It hides what was mounted there and below before.
            all.clear();
        }
        if !point.starts_with(MOUNTED) {
            continue;
        }
        let options = match kind {
            "cgroup2" => None,
            "cgroup" if !options.split(',').any(|o| o.starts_with("name=")) => {
                Some(options.to_owned())
            }
            _ => continue,
        };
        if !all.iter().any(|h| h.options == options) {
            all.push(Hierarchy {
                point: point.to_owned(),
                options,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        36 31 0:32 / /srv/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        37 31 0:32 / /sys/fs/cgroup/again rw,relatime - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn points(table: &str) -> Vec<String> {
        let point = |h: &Hierarchy| h.point.display().to_string();
        parse(table).iter().map(point).collect()
    }

    #[test]
    fn controllers_beside_version_2() {
        let found = Hierarchies { all: parse(HYBRID) };
        assert_eq!(
            points(HYBRID),
            [
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/unified"
            ]
        );
        assert_eq!(
            (found.setup(), found.version()),
            (Setup::Hybrid, Version::V1)
        );
        let point = |controller| found.of(controller).map(|h| h.point.as_path());
        assert_eq!(
            point("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(point("pids"), None);
    }

    #[test]
    fn version_1_alone() {
        let table: Vec<&str> = HYBRID.lines().filter(|l| !l.contains("cgroup2")).collect();
        let found = Hierarchies {
            all: parse(&table.join("\n")),
        };
        assert_eq!(
            (found.setup(), found.version()),
            (Setup::Legacy, Version::V1)
        );
    }

    #[test]
    fn version_2_alone() {
        let table = "24 31 0:22 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let found = Hierarchies { all: parse(table) };
        assert_eq!(
            (found.setup(), found.version()),
            (Setup::Unified, Version::V2)
        );
        let point = found.of("pids").map(|h| h.point.as_path());
        assert_eq!(point, Some(Path::new(MOUNTED)));
        // Mounted over the others, it hides them.
        assert_eq!(points(&format!("{HYBRID}{table}")), [MOUNTED]);
        assert_eq!(parse("29 1 0:26 / /run rw - tmpfs tmpfs rw\n"), []);
    }
}
