//! Limits as values of cgroup files, for version 1 and version 2. Pure.
//!
//! Called by `cgroup.rs`, which writes them.

/// Which cgroup interface a machine has; a hybrid one is version 1 to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Limits of a pod's group. 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Version 1's cpu.shares, 2 to 262,144; 1,024 is one CPU.
    pub cpu_shares: u64,
    /// Microseconds of CPU time in each period.
    pub cpu_quota: u64,
    /// Microseconds; 100,000 when 0.
    pub cpu_period: u64,
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// One value of one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) controller: &'static str,
    pub(super) file: &'static str,
    pub(super) value: String,
    /// It is what a new group has anyway.
    pub(super) is_default: bool,
}

impl Limits {
    /// The files to write, in this order.
    pub(super) fn settings(&self, version: Version) -> Vec<Setting> {
        let setting = |controller, file, value: String, is_default| Setting {
            controller,
            file,
            value,
            is_default,
        };
        let or = |limit: u64, none: &str| match limit {
            0 => none.to_owned(),
            limit => limit.to_string(),
        };
        let period = if self.cpu_period == 0 {
            100_000
        } else {
            self.cpu_period
        };
        let pids = setting("pids", "pids.max", or(self.pids, "max"), self.pids == 0);
        match version {
            Version::V1 => vec![
                setting(
                    "cpu",
                    "cpu.shares",
                    or(self.cpu_shares, "1024"),
                    self.cpu_shares == 0,
                ),
                setting(
                    "cpu",
                    "cpu.cfs_period_us",
                    period.to_string(),
                    self.cpu_quota == 0,
                ),
                setting(
                    "cpu",
                    "cpu.cfs_quota_us",
                    or(self.cpu_quota, "-1"),
                    self.cpu_quota == 0,
                ),
                setting(
                    "memory",
                    "memory.limit_in_bytes",
                    or(self.memory_bytes, "-1"),
                    self.memory_bytes == 0,
                ),
                pids,
            ],
            Version::V2 => vec![
                setting(
                    "cpu",
                    "cpu.weight",
                    weight(self.cpu_shares).to_string(),
                    self.cpu_shares == 0,
                ),
                setting(
                    "cpu",
                    "cpu.max",
                    format!("{} {period}", or(self.cpu_quota, "max")),
                    self.cpu_quota == 0,
                ),
                setting(
                    "memory",
                    "memory.max",
                    or(self.memory_bytes, "max"),
                    self.memory_bytes == 0,
                ),
                pids,
            ],
        }
    }
}

/// cpu.weight for cpu.shares: a curve through (2, 1), (1,024, 100), (262,144, 10,000),
/// the one that runc and crun use since 2025, so that both versions share alike.
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

    fn files(limits: Limits, version: Version) -> Vec<(&'static str, String, bool)> {
        limits
            .settings(version)
            .into_iter()
            .map(|s| (s.file, s.value, s.is_default))
            .collect()
    }

    const LIMITED: Limits = Limits {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_bytes: 64 << 20,
        pids: 100,
    };

    #[test]
    fn version_1() {
        assert_eq!(
            files(LIMITED, Version::V1),
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
            files(LIMITED, Version::V2),
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
        let none = Limits::default();
        assert_eq!(
            files(none, Version::V2),
            [
                ("cpu.weight", "100".into(), true),
                ("cpu.max", "max 100000".into(), true),
                ("memory.max", "max".into(), true),
                ("pids.max", "max".into(), true),
            ]
        );
        assert!(
            files(none, Version::V1)
                .iter()
                .all(|(_, _, default)| *default)
        );
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
