//! Limits as values of cgroup files, for version 1 and version 2. Pure.
//!
//! Called by `group.rs`, which writes them.

use proto::v1::ShimResources;

use crate::Version;

/// `cpu.cfs_period_us` where none is given, microseconds; the kernel's own.
const PERIOD_US: u64 = 100_000;

/// Version 1's limit of both together; not there when the kernel accounts no swap.
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

/// One value of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) value: String,
    /// It is what a new group has anyway: written to take off an earlier limit only.
    pub(crate) is_default: bool,
    /// Kernels and machines differ in whether they have it; without it there is nothing
    /// to limit.
    pub(crate) is_optional: bool,
}

impl Setting {
    fn new(controller: &'static str, file: &'static str, value: String, is_default: bool) -> Self {
        Self {
            controller,
            file,
            value,
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
}

/// The files to write, in this order. Values that are not given are the kernel's
/// defaults.
pub(crate) fn settings(resources: &ShimResources, version: Version) -> Vec<Setting> {
    let quota = u64::try_from(resources.cpu_quota).unwrap_or(0);
    let memory = u64::try_from(resources.memory_limit).unwrap_or(0);
    let pids = u64::try_from(resources.pids_limit).unwrap_or(0);
    let shares = resources.cpu_shares;
    let period = match resources.cpu_period {
        0 => PERIOD_US,
        period => period,
    };
    let or = |limit: u64, none: &str| match limit {
        0 => none.to_owned(),
        limit => limit.to_string(),
    };
    let setting = Setting::new;
    let swap = u64::try_from(resources.swap_limit).ok();
    let oom_group = resources.oom_group;
    let processes = setting("pids", "pids.max", or(pids, "max"), pids == 0);
    match version {
        Version::V1 => vec![
            setting("cpu", "cpu.shares", or(shares, "1024"), shares == 0),
            setting("cpu", "cpu.cfs_period_us", period.to_string(), quota == 0),
            setting("cpu", "cpu.cfs_quota_us", or(quota, "-1"), quota == 0),
            // Memory with swap must never be less than memory: off before, on after.
            setting("memory", MEMORY_AND_SWAP, "-1".to_owned(), true),
            setting(
                "memory",
                "memory.limit_in_bytes",
                or(memory, "-1"),
                memory == 0,
            ),
            match swap {
                Some(swap) if memory > 0 => {
                    let both = memory.saturating_add(swap).to_string();
                    setting("memory", MEMORY_AND_SWAP, both, false).optional()
                }
                _ => setting("memory", MEMORY_AND_SWAP, "-1".to_owned(), true),
            },
            processes,
        ],
        Version::V2 => vec![
            setting("cpu", "cpu.weight", weight(shares).to_string(), shares == 0),
            setting(
                "cpu",
                "cpu.max",
                format!("{} {period}", or(quota, "max")),
                quota == 0,
            ),
            setting("memory", "memory.max", or(memory, "max"), memory == 0),
            setting(
                "memory",
                "memory.swap.max",
                swap.map_or("max".to_owned(), |swap| swap.to_string()),
                swap.is_none(),
            )
            .optional(),
            setting(
                "memory",
                "memory.oom.group",
                u8::from(oom_group).to_string(),
                !oom_group,
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

    fn files(resources: ShimResources, version: Version) -> Vec<(&'static str, String, bool)> {
        settings(&resources, version)
            .into_iter()
            .map(|s| (s.file, s.value, s.is_default))
            .collect()
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
