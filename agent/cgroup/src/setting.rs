//! Limits of a group as values of its controllers, for version 1 and version 2. What the
//! limits are is pure; [`Limit::write`] hands one to the controller of `cgroups-rs`.
//!
//! That crate's hierarchies and groups are not used: it finds no hybrid setup, takes an
//! empty path for the root group, and enables all controllers on the path to a group.
//! Called by `group.rs`.

use std::error::Error as _;
use std::fs;
use std::io;
use std::path::Path;

use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::error::{Error, ErrorKind};
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use proto::v1::ShimResources;

use crate::{GroupError, Version};

/// `cpu.cfs_period_us` where none is given, microseconds; the kernel's own.
const PERIOD_US: u64 = 100_000;

/// Version 1's limit of both together; not there when the kernel accounts no swap.
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

/// The value of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// CPU time beside other groups: shares of version 1, weight of version 2.
    Shares(u64),
    /// Microseconds; version 1.
    Period(u64),
    /// Microseconds, -1: none; version 1.
    Quota(i64),
    /// Quota and period, microseconds, -1: no quota; version 2.
    Bandwidth(i64, u64),
    /// Bytes, -1: none.
    Memory(i64),
    /// Bytes, -1: none; of memory and swap together on version 1, of swap on version 2.
    Swap(i64),
    /// Whether the kernel ends all processes together; version 2.
    OomGroup(bool),
    /// Processes and threads; `None`: no limit.
    Processes(Option<i64>),
}

impl Limit {
    /// Writes it to a group's folder in the hierarchy of its controller.
    fn write(self, folder: &Path, version: Version) -> Result<(), Error> {
        let unified = version == Version::V2;
        let cpu = || CpuController::new(folder.to_owned(), unified);
        let memory = || MemController::new(folder.to_owned(), unified);
        match self {
            Self::Shares(shares) => cpu().set_shares(shares),
            Self::Period(us) => cpu().set_cfs_period(us),
            Self::Quota(us) => cpu().set_cfs_quota(us),
            Self::Bandwidth(quota, period) => {
                cpu().set_cfs_quota_and_period(Some(quota), Some(period))
            }
            Self::Memory(bytes) => memory().set_limit(bytes),
            Self::Swap(bytes) => memory().set_memswap_limit(bytes),
            // The crate has no call for it.
            Self::OomGroup(_) => Ok(()),
            Self::Processes(most) => {
                let most = most.map_or(MaxValue::Max, MaxValue::Value);
                PidController::new(folder.to_owned(), unified).set_pid_max(most)
            }
        }
    }
}

/// One limit of a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) limit: Limit,
    /// It is what a new group has anyway: written to take off an earlier limit only.
    pub(crate) is_default: bool,
    /// Kernels and machines differ in whether they have it; without it there is nothing
    /// to limit.
    pub(crate) is_optional: bool,
}

impl Setting {
    fn new(controller: &'static str, file: &'static str, limit: Limit, is_default: bool) -> Self {
        Self {
            controller,
            file,
            limit,
            is_default,
            is_optional: false,
        }
    }

    fn optional(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    /// Whether the kernel may lack the file: where nothing is asked for, nothing is missing.
    pub(crate) fn may_lack(&self) -> bool {
        self.is_default || self.is_optional
    }

    /// Writes it to a group's folder in the hierarchy of its controller.
    ///
    /// # Errors
    /// [`GroupError::Write`].
    pub(crate) fn write(&self, folder: &Path, version: Version) -> Result<(), GroupError> {
        let path = folder.join(self.file);
        if self.may_lack() && !path.exists() {
            return Ok(());
        }
        if let Limit::OomGroup(together) = self.limit {
            let value = u8::from(together).to_string();
            return fs::write(&path, &value).map_err(|source| GroupError::Write {
                path,
                value,
                source,
            });
        }
        let written = self.limit.write(folder, version);
        written.map_err(|error| GroupError::Write {
            path,
            value: if let ErrorKind::WriteFailed(_, value) = error.kind() {
                value.clone()
            } else {
                format!("{:?}", self.limit)
            },
            source: cause(&error),
        })
    }
}

/// What the kernel said.
fn cause(error: &Error) -> io::Error {
    let cause = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}

/// The limits to write, in this order. Values that are not given are the kernel's
/// defaults.
pub(crate) fn settings(resources: &ShimResources, version: Version) -> Vec<Setting> {
    let setting = Setting::new;
    let shares = resources.cpu_shares;
    let period = match resources.cpu_period {
        0 => PERIOD_US,
        period => period,
    };
    let or_none = |limit: i64| if limit > 0 { limit } else { -1 };
    let quota = or_none(resources.cpu_quota);
    let memory = or_none(resources.memory_limit);
    let pids = Some(resources.pids_limit).filter(|pids| *pids > 0);
    let swap = Some(resources.swap_limit).filter(|swap| *swap >= 0);
    let processes = setting("pids", "pids.max", Limit::Processes(pids), pids.is_none());
    match version {
        Version::V1 => vec![
            setting(
                "cpu",
                "cpu.shares",
                Limit::Shares(if shares == 0 { 1024 } else { shares }),
                shares == 0,
            ),
            setting("cpu", "cpu.cfs_period_us", Limit::Period(period), quota < 0),
            setting("cpu", "cpu.cfs_quota_us", Limit::Quota(quota), quota < 0),
            // Memory with swap must never be less than memory: off before, on after.
            setting("memory", MEMORY_AND_SWAP, Limit::Swap(-1), true),
            setting(
                "memory",
                "memory.limit_in_bytes",
                Limit::Memory(memory),
                memory < 0,
            ),
            match swap {
                Some(swap) if memory > 0 => {
                    let both = Limit::Swap(memory.saturating_add(swap));
                    setting("memory", MEMORY_AND_SWAP, both, false).optional()
                }
                _ => setting("memory", MEMORY_AND_SWAP, Limit::Swap(-1), true),
            },
            processes,
        ],
        Version::V2 => vec![
            setting(
                "cpu",
                "cpu.weight",
                Limit::Shares(weight(shares)),
                shares == 0,
            ),
            setting("cpu", "cpu.max", Limit::Bandwidth(quota, period), quota < 0),
            setting("memory", "memory.max", Limit::Memory(memory), memory < 0),
            setting(
                "memory",
                "memory.swap.max",
                Limit::Swap(swap.unwrap_or(-1)),
                swap.is_none(),
            )
            .optional(),
            setting(
                "memory",
                "memory.oom.group",
                Limit::OomGroup(resources.oom_group),
                !resources.oom_group,
            ),
            processes,
        ],
    }
}

/// cpu.weight for cpu.shares: a curve through (2, 1), (1,024, 100), (262,144, 10,000),
/// as runc and crun have it since 2025, so that both versions share alike.
fn weight(shares: u64) -> u64 {
    match shares {
        0 => 100,
        1 | 2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written to which file, in order, and whether it is the default.
    fn files(resources: ShimResources, version: Version) -> Vec<(&'static str, String, bool)> {
        let folder = tempfile::tempdir().unwrap();
        let written = |setting: Setting| {
            let path = folder.path().join(setting.file);
            // As the kernel has it in a new group; read before it is written.
            fs::write(&path, "max 100000\n").unwrap();
            setting.write(folder.path(), version).unwrap();
            let value = fs::read_to_string(&path).unwrap();
            (setting.file, value, setting.is_default)
        };
        let settings = settings(&resources, version);
        settings.into_iter().map(written).collect()
    }

    #[test]
    fn what_the_kernel_lacks_or_refuses_is_told_by_file() {
        for version in [Version::V1, Version::V2] {
            let folder = tempfile::tempdir().unwrap();
            for setting in settings(&limited(), version) {
                let path = folder.path().join(setting.file);
                if setting.may_lack() {
                    setting.write(folder.path(), version).unwrap();
                    assert!(!path.exists(), "{}", setting.file);
                    continue;
                }
                fs::create_dir(&path).unwrap();
                let error = setting.write(folder.path(), version).unwrap_err();
                let GroupError::Write {
                    path: of, source, ..
                } = error
                else {
                    panic!("{error}");
                };
                assert_eq!((of, source.kind()), (path, io::ErrorKind::IsADirectory));
            }
        }
    }

    fn limited() -> ShimResources {
        ShimResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 0,
            memory_limit: 64 << 20,
            pids_limit: 100,
            swap_limit: 1 << 20,
            oom_group: true,
        }
    }

    #[test]
    fn version_1() {
        assert_eq!(
            files(limited(), Version::V1),
            [
                ("cpu.shares", "512".into(), false),
                ("cpu.cfs_period_us", "100000".into(), false),
                ("cpu.cfs_quota_us", "50000".into(), false),
                ("memory.memsw.limit_in_bytes", "-1".into(), true),
                ("memory.limit_in_bytes", "67108864".into(), false),
                ("memory.memsw.limit_in_bytes", "68157440".into(), false),
                ("pids.max", "100".into(), false),
            ]
        );
    }

    #[test]
    fn version_2() {
        assert_eq!(
            files(limited(), Version::V2),
            [
                ("cpu.weight", "59".into(), false),
                ("cpu.max", "50000 100000".into(), false),
                ("memory.max", "67108864".into(), false),
                ("memory.swap.max", "1048576".into(), false),
                ("memory.oom.group", "1".into(), false),
                ("pids.max", "100".into(), false),
            ]
        );
    }

    #[test]
    fn no_limits_are_the_kernels_defaults() {
        let none = ShimResources {
            swap_limit: -1,
            ..ShimResources::default()
        };
        assert_eq!(
            files(none, Version::V2),
            [
                ("cpu.weight", "100".into(), true),
                ("cpu.max", "max 100000".into(), true),
                ("memory.max", "max".into(), true),
                ("memory.swap.max", "max".into(), true),
                ("memory.oom.group", "0".into(), true),
                ("pids.max", "max".into(), true),
            ]
        );
        let swap = |memory_limit, swap_limit| {
            let resources = ShimResources {
                memory_limit,
                swap_limit,
                ..none
            };
            let all = files(resources, Version::V1);
            all.into_iter()
                .nth(5)
                .map(|(_, value, default)| (value, default))
        };
        // Without a limit of memory there is none of swap, on version 1.
        assert_eq!(swap(0, 0), Some(("-1".into(), true)));
        assert_eq!(swap(4096, 0), Some(("4096".into(), false)));
        assert_eq!(swap(4096, -1), Some(("-1".into(), true)));
        let legacy = files(none, Version::V1);
        assert!(legacy.iter().all(|(_, _, default)| *default), "{legacy:?}");
    }

    #[test]
    fn weights() {
        for (shares, expected) in [(0, 100), (2, 1), (1_024, 100), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
        let mut last = 0;
        for shares in (2..=262_144).step_by(97) {
            assert!(weight(shares) >= last, "falls at {shares}");
            last = weight(shares);
        }
    }
}
