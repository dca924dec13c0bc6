//! Packages of Debian suites that this machine does not use: downloaded with lists and sources of
//! their own, and unpacked, never installed. apt's own state is not touched.
//!
//! Called by `machine`.

use crate::command;
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Some suites, and a folder for what apt knows of them.
pub(crate) struct Archive {
    folder: PathBuf,
    /// Whose packages are preferred.
    preferred: String,
}

impl Archive {
    /// Reads the lists of `suites`; the last one is preferred.
    pub(crate) fn open(folder: &Path, suites: &[&str]) -> anyhow::Result<Self> {
        for name in ["lists/partial", "cache/archives/partial", "packages"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=amd64]";
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb {signed} http://deb.debian.org/debian {suite} main\n"))
            .collect();
        fs::write(folder.join("sources.list"), sources).context("write the private sources")?;
        let this = Self {
            folder: folder.to_owned(),
            preferred: suites.last().copied().unwrap_or_default().to_owned(),
        };
        command::run(this.apt("apt-get").args(["-q", "update"]))?;
        Ok(this)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (key, value) in [
            ("Dir::State::lists", self.folder.join("lists")),
            ("Dir::Cache", self.folder.join("cache")),
            ("Dir::Etc::sourcelist", self.folder.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            // Only the lists of packages, which are a third of all.
            ("Acquire::Languages", PathBuf::from("none")),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                PathBuf::from("false"),
            ),
        ] {
            apt.arg("-o").arg(format!("{key}={}", value.display()));
        }
        apt
    }

    /// A package and what it needs that this machine does not have.
    pub(crate) fn with_dependencies(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let mut plan = self.apt("apt-get");
        plan.args(["-q", "-t", &self.preferred, "install", "--simulate"]);
        let plan = command::read(plan.args(["--no-install-recommends", package]))?;
        Ok(plan
            .lines()
            .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
            .map(str::to_owned)
            .collect())
    }

    /// Names of all packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let text = command::read(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Names of the packages that a package depends on.
    pub(crate) fn depends(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let text = command::read(self.apt("apt-cache").args(["depends", package]))?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them into one folder.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> anyhow::Result<()> {
        let folder = self.folder.join("packages");
        let mut download = self.apt("apt-get");
        command::run(
            download
                .args(["-q", "-t", &self.preferred, "download"])
                .args(packages)
                .current_dir(&folder),
        )?;
        for package in fs::read_dir(&folder).context("list the packages")? {
            let package = package.context("list the packages")?.path();
            command::run_quietly(Command::new("dpkg").arg("-x").arg(&package).arg(into))?;
            fs::remove_file(&package).context("remove an unpacked package")?;
        }
        Ok(())
    }

    /// Removes the lists and all that was downloaded.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).context("remove the package lists")
    }
}
