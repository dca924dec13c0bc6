//! Limits as values of cgroup files, for version 1 and version 2. Pure.
//!
//! Called by `group.rs`, which writes them.

use proto::v1::ShimResources;

use crate::Version;

/// `cpu.cfs_period_us` where none is given, microseconds; the kernel's own.
const PERIOD_US: u64 = 100_000;

/// One value of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) value: String,
    /// It is what a new group has anyway: written to take off an earlier limit only.
    pub(crate) is_default: bool,
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
    let setting = |controller, file, value, is_default| Setting {
        controller,
        file,
        value,
        is_default,
    };
    let processes = setting("pids", "pids.max", or(pids, "max"), pids == 0);
    match version {
        Version::V1 => vec![
            setting("cpu", "cpu.shares", or(shares, "1024"), shares == 0),
            setting("cpu", "cpu.cfs_period_us", period.to_string(), quota == 0),
            setting("cpu", "cpu.cfs_quota_us", or(quota, "-1"), quota == 0),
            setting(
                "memory",
                "memory.limit_in_bytes",
                or(memory, "-1"),
                memory == 0,
            ),
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
                ("memory.limit_in_bytes", "67108864".into(), false),
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
                ("pids.max", "100".into(), false),
            ]
        );
    }

    #[test]
    fn no_limits_are_the_kernels_defaults() {
        let none = ShimResources::default();
        assert_eq!(
            files(none, Version::V2),
            [
                ("cpu.weight", "100".into(), true),
                ("cpu.max", "max 100000".into(), true),
                ("memory.max", "max".into(), true),
                ("pids.max", "max".into(), true),
            ]
        );
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
