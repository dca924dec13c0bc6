//! Pressure on the node's memory, disks and process numbers, as kubelet's eviction
//! manager tells it (pkg/kubelet/eviction): a condition holds while something is
//! below its threshold, and for a while after, so that it does not flap.
//!
//! What is there is measured by the daemon. Nothing is remembered over a restart of
//! the agent; kubelet's neither.

use proto::v1;

use crate::time::{Moment, Monotonic, Wall};

/// How much of something must be available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// Bytes, or pieces.
    Amount(u64),
    /// Of the capacity.
    Percent(u8),
}

impl Threshold {
    /// "10%", "100Mi", "2G", "5000"; `None` if it is none of them.
    pub fn parse(text: &str) -> Option<Threshold> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|p| *p <= 100)?;
            return Some(Threshold::Percent(percent));
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return None,
        };
        let number: u64 = digits.parse().ok()?;
        number.checked_mul(unit).map(Threshold::Amount)
    }

    /// As an amount of this capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Threshold::Amount(amount) => amount,
            Threshold::Percent(percent) => {
                let part = u128::from(capacity) * u128::from(percent) / 100;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        }
    }
}

/// How much of each must be available; a threshold of 0 is never met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thresholds {
    /// Memory.
    pub memory: Threshold,
    /// Bytes of the file system with the state and logs.
    pub disk: Threshold,
    /// Inodes of it.
    pub disk_inodes: Threshold,
    /// Bytes of the file system with the images.
    pub images: Threshold,
    /// Inodes of it.
    pub images_inodes: Threshold,
    /// Numbers of processes and threads.
    pub pids: Threshold,
    /// How long a condition stays after the last moment below a threshold,
    /// milliseconds.
    pub transition_ms: i64,
}

/// What is there of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Free, or to be had without harm.
    pub available: u64,
    /// In all.
    pub capacity: u64,
}

/// What was measured; `None`: it could not be, or the file system has no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Memory, bytes.
    pub memory: Option<Amount>,
    /// File system with the state and logs, bytes.
    pub disk: Option<Amount>,
    /// Inodes of it.
    pub disk_inodes: Option<Amount>,
    /// File system with the images, bytes.
    pub images: Option<Amount>,
    /// Inodes of it.
    pub images_inodes: Option<Amount>,
    /// Numbers of processes and threads.
    pub pids: Option<Amount>,
}

/// An event about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNote {
    /// kubelet's reason: "NodeHasDiskPressure".
    pub reason: &'static str,
    /// A condition holds that keeps pods away.
    pub warning: bool,
    /// In words.
    pub message: String,
}

/// One condition.
#[derive(Debug, Clone)]
struct Pressure {
    /// "MemoryPressure"
    kind: &'static str,
    /// kubelet's reason while it holds, and while it does not.
    reasons: (&'static str, &'static str),
    /// kubelet's reasons of the events that it begins to hold, and ceases to.
    events: (&'static str, &'static str),
    /// What is said while it does not hold.
    relief: &'static str,
    /// What is below its threshold, or was last; empty: the condition does not hold.
    low: Vec<&'static str>,
    /// When it was last below.
    seen: Monotonic,
    /// When the condition began to hold, or ceased to.
    since: Wall,
}

/// The three conditions.
#[derive(Debug, Clone)]
pub struct Pressures {
    thresholds: Thresholds,
    memory: Pressure,
    disk: Pressure,
    pids: Pressure,
}

impl Pressures {
    /// Conditions that do not hold, as far as is known.
    pub fn new(thresholds: Thresholds, now: Wall) -> Pressures {
        let pressure = |kind, reasons, events, relief| Pressure {
            kind,
            reasons,
            events,
            relief,
            low: Vec::new(),
            seen: Monotonic::default(),
            since: now,
        };
        Pressures {
            thresholds,
            memory: pressure(
                "MemoryPressure",
                ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
                "sufficient memory is available",
            ),
            disk: pressure(
                "DiskPressure",
                ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
                "sufficient disk space is available",
            ),
            pids: pressure(
                "PIDPressure",
                ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
                ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
                "sufficient PIDs are available",
            ),
        }
    }

    /// Records what was measured; true when a condition changed.
    pub fn take(&mut self, measured: &Measured, now: Moment) -> bool {
        let limits = &self.thresholds;
        let wait_ms = limits.transition_ms;
        let changes = [
            self.memory.take(
                &[("memory.available", measured.memory, limits.memory)],
                wait_ms,
                now,
            ),
            self.disk.take(
                &[
                    ("nodefs.available", measured.disk, limits.disk),
                    (
                        "nodefs.inodesFree",
                        measured.disk_inodes,
                        limits.disk_inodes,
                    ),
                    ("imagefs.available", measured.images, limits.images),
                    (
                        "imagefs.inodesFree",
                        measured.images_inodes,
                        limits.images_inodes,
                    ),
                ],
                wait_ms,
                now,
            ),
            self.pids.take(
                &[("pid.available", measured.pids, limits.pids)],
                wait_ms,
                now,
            ),
        ];
        changes.contains(&true)
    }

    /// What changed since `before`: conditions that began to hold, or ceased to.
    pub fn notes(&self, before: &Pressures) -> Vec<NodeNote> {
        let pairs = [
            (&self.memory, &before.memory),
            (&self.disk, &before.disk),
            (&self.pids, &before.pids),
        ];
        let changed = pairs
            .iter()
            .filter(|(now, before)| now.holds() != before.holds());
        changed.map(|(now, _)| now.note()).collect()
    }

    /// As status has them.
    pub fn conditions(&self) -> Vec<v1::Condition> {
        [&self.memory, &self.disk, &self.pids]
            .map(Pressure::condition)
            .into()
    }
}

impl Pressure {
    fn take(
        &mut self,
        signals: &[(&'static str, Option<Amount>, Threshold)],
        wait_ms: i64,
        now: Moment,
    ) -> bool {
        let below = |(_, amount, threshold): &&(_, Option<Amount>, Threshold)| {
            amount.is_some_and(|a| a.available < threshold.of(a.capacity))
        };
        let low: Vec<&'static str> = signals.iter().filter(below).map(|s| s.0).collect();
        let held = !self.low.is_empty();
        if !low.is_empty() {
            self.seen = now.monotonic;
        } else {
            let unknown =
                |s: &(&str, Option<Amount>, Threshold)| s.1.is_none() && self.low.contains(&s.0);
            let waits = now.monotonic - self.seen < wait_ms;
            if !held || waits || signals.iter().any(unknown) {
                return false;
            }
        }
        let changed = low != self.low;
        if held == low.is_empty() {
            self.since = now.wall;
        }
        self.low = low;
        changed
    }

    fn holds(&self) -> bool {
        !self.low.is_empty()
    }

    fn message(&self) -> String {
        if self.holds() {
            format!("below the threshold: {}", self.low.join(", "))
        } else {
            self.relief.to_owned()
        }
    }

    fn note(&self) -> NodeNote {
        let (begun, ended) = self.events;
        NodeNote {
            reason: if self.holds() { begun } else { ended },
            warning: self.holds(),
            message: format!("{}: {}", self.kind, self.message()),
        }
    }

    fn condition(&self) -> v1::Condition {
        let (status, reason) = if self.holds() {
            ("True", self.reasons.0)
        } else {
            ("False", self.reasons.1)
        };
        let message = self.message();
        v1::Condition {
            r#type: self.kind.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            last_transition_ms: self.since.ms(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GI: u64 = 1 << 30;

    fn pressures() -> Pressures {
        let thresholds = Thresholds {
            memory: Threshold::Amount(100 << 20),
            disk: Threshold::Percent(10),
            disk_inodes: Threshold::Percent(5),
            images: Threshold::Percent(15),
            images_inodes: Threshold::Percent(5),
            pids: Threshold::Percent(5),
            transition_ms: 300_000,
        };
        Pressures::new(thresholds, Wall::from_ms(1))
    }

    fn of(available: u64, capacity: u64) -> Option<Amount> {
        Some(Amount {
            available,
            capacity,
        })
    }

    fn plenty() -> Measured {
        Measured {
            memory: of(GI, 4 * GI),
            disk: of(50 * GI, 100 * GI),
            disk_inodes: of(50, 100),
            images: of(50 * GI, 100 * GI),
            images_inodes: of(50, 100),
            pids: of(30_000, 32_768),
        }
    }

    /// Types of the conditions that hold.
    fn holds(pressures: &Pressures) -> Vec<String> {
        let conditions = pressures.conditions();
        let true_ones = conditions.into_iter().filter(|c| c.status == "True");
        true_ones.map(|c| c.r#type).collect()
    }

    #[test]
    fn a_change_of_a_condition_is_an_event() {
        let mut now = pressures();
        let mut take = |measured: &Measured, monotonic: i64| {
            let before = now.clone();
            let at = Moment {
                monotonic: Monotonic::from_ms(monotonic),
                wall: Wall::from_ms(monotonic),
            };
            now.take(measured, at);
            let notes = now.notes(&before);
            notes
                .iter()
                .map(|note| (note.reason, note.warning))
                .collect::<Vec<_>>()
        };
        assert_eq!(take(&plenty(), 0), []);
        let low = Measured {
            disk: of(GI, 100 * GI),
            ..plenty()
        };
        assert_eq!(take(&low, 10), [("NodeHasDiskPressure", true)]);
        let lower = Measured {
            images: of(GI, 100 * GI),
            ..low
        };
        // Another signal of the same condition, and relief that has not lasted.
        assert_eq!(take(&lower, 20), []);
        assert_eq!(take(&plenty(), 30), []);
        assert_eq!(
            take(&plenty(), 20 + 300_000),
            [("NodeHasNoDiskPressure", false)]
        );
    }

    #[test]
    fn each_signal_makes_its_condition() {
        let rows = [
            (plenty(), None),
            (
                Measured {
                    memory: of((100 << 20) - 1, 4 * GI),
                    ..plenty()
                },
                Some("MemoryPressure"),
            ),
            (
                Measured {
                    disk: of(10 * GI - 1, 100 * GI),
                    ..plenty()
                },
                Some("DiskPressure"),
            ),
            (
                Measured {
                    disk_inodes: of(4, 100),
                    ..plenty()
                },
                Some("DiskPressure"),
            ),
            (
                Measured {
                    images: of(14 * GI, 100 * GI),
                    ..plenty()
                },
                Some("DiskPressure"),
            ),
            (
                Measured {
                    images_inodes: of(4, 100),
                    ..plenty()
                },
                Some("DiskPressure"),
            ),
            (
                Measured {
                    pids: of(1_000, 32_768),
                    ..plenty()
                },
                Some("PIDPressure"),
            ),
            // A file system that counts no inodes, and what could not be measured.
            (Measured::default(), None),
        ];
        for (measured, expected) in rows {
            let mut pressures = pressures();
            let changed = pressures.take(&measured, Moment::from_ms(5, 5));
            assert_eq!(changed, expected.is_some(), "{measured:?}");
            assert_eq!(holds(&pressures), Vec::from_iter(expected), "{measured:?}");
        }
    }

    #[test]
    fn a_condition_stays_for_its_transition_period() {
        let mut pressures = pressures();
        let low = Measured {
            memory: of(1, 4 * GI),
            ..plenty()
        };
        // (second, measured, changed, holds, since)
        let rows = [
            (0, plenty(), false, false, 1),
            (10, low, true, true, 10_000),
            (20, low, false, true, 10_000),
            (30, plenty(), false, true, 10_000),
            (319, plenty(), false, true, 10_000),
            (320, plenty(), true, false, 320_000),
            (330, plenty(), false, false, 320_000),
            // What cannot be measured changes nothing.
            (340, low, true, true, 340_000),
            (350, Measured::default(), false, true, 340_000),
            (900, Measured::default(), false, true, 340_000),
            (910, plenty(), true, false, 910_000),
        ];
        for (second, measured, changed, held, since) in rows {
            let now = Moment::from_ms(second * 1000, second * 1000);
            assert_eq!(pressures.take(&measured, now), changed, "at {second}");
            assert_eq!(!holds(&pressures).is_empty(), held, "at {second}");
            let memory = &pressures.conditions()[0];
            assert_eq!(memory.last_transition_ms, since, "at {second}");
        }
    }

    #[test]
    fn thresholds_as_they_are_written() {
        let rows = [
            ("100Mi", Some(Threshold::Amount(100 << 20))),
            ("10%", Some(Threshold::Percent(10))),
            ("0", Some(Threshold::Amount(0))),
            ("2G", Some(Threshold::Amount(2_000_000_000))),
            ("101%", None),
            ("-1", None),
            ("1.5Gi", None),
            ("Mi", None),
            ("1Zi", None),
            ("18446744073709551615Ki", None),
        ];
        for (text, expected) in rows {
            assert_eq!(Threshold::parse(text), expected, "{text}");
        }
        assert_eq!(Threshold::Percent(15).of(200), 30);
        assert_eq!(Threshold::Amount(7).of(200), 7);
    }
}
