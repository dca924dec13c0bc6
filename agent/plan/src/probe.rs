//! Startup, liveness and readiness probes: when one is due, and what a result
//! means after thresholds and delays, as kubelet counts them.
//!
//! One thing is quicker than in kubelet: until the first success, startup and
//! readiness probes are repeated after 20 ms, 40 ms, ... up to their period, and
//! failures are counted once a period. So a server that needs 5 ms to bind is
//! ready after 20 ms and not after 10 s, and thresholds mean what they meant.
//! Nothing is sent from here: `container.rs` makes the actions.

use proto::v1;

use crate::time::Monotonic;

/// First repetition of a probe that has not succeeded yet, milliseconds.
const QUICK_MS: i64 = 20;

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Until it succeeds, the others wait.
    Startup,
    /// When it fails, the container is ended.
    Liveness,
    /// While it fails, the pod takes no connections.
    Readiness,
}

impl Kind {
    /// The others wait for the first.
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

    /// As in events: "Readiness probe failed".
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, spec: &v1::ContainerSpec) -> Option<&v1::Probe> {
        match self {
            Kind::Startup => spec.startup.as_ref(),
            Kind::Liveness => spec.liveness.as_ref(),
            Kind::Readiness => spec.readiness.as_ref(),
        }
    }
}

/// The three probes of one instance; reset when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probes {
    /// Until it succeeds, the others wait.
    pub startup: Probe,
    /// When it fails, the container is ended.
    pub liveness: Probe,
    /// While it fails, the pod takes no connections.
    pub readiness: Probe,
}

impl Probes {
    /// The one of this kind.
    pub fn get(&self, kind: Kind) -> &Probe {
        match kind {
            Kind::Startup => &self.startup,
            Kind::Liveness => &self.liveness,
            Kind::Readiness => &self.readiness,
        }
    }

    /// The one of this kind.
    pub fn get_mut(&mut self, kind: Kind) -> &mut Probe {
        match kind {
            Kind::Startup => &mut self.startup,
            Kind::Liveness => &mut self.liveness,
            Kind::Readiness => &mut self.readiness,
        }
    }

    /// status.started: no startup probe, or it has succeeded.
    pub fn started(&self, spec: &v1::ContainerSpec) -> bool {
        spec.startup.is_none() || self.startup.passing
    }

    /// status.ready of a running container.
    pub fn ready(&self, spec: &v1::ContainerSpec) -> bool {
        self.started(spec) && (spec.readiness.is_none() || self.readiness.passing)
    }
}

/// What one probe has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe {
    /// A probe is on its way.
    pub running: bool,
    /// When the last one came back.
    pub last: Option<Monotonic>,
    /// When a failure was counted last.
    pub counted: Option<Monotonic>,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Repetition while it has never succeeded, milliseconds; 0: the first.
    pub quick_ms: i64,
    /// It succeeded once in this instance.
    pub settled: bool,
    /// The verdict: success threshold reached, and not failed since.
    pub passing: bool,
    /// The verdict: failure threshold reached.
    pub failing: bool,
}

fn period_ms(spec: &v1::Probe) -> i64 {
    i64::from(spec.period_seconds.max(1)) * 1000
}

/// When the probe of a container that was started then is due; may lie in the past.
pub fn due(kind: Kind, spec: &v1::Probe, probe: &Probe, started: Monotonic) -> Monotonic {
    let Some(last) = probe.last else {
        return started + i64::from(spec.initial_delay_seconds) * 1000;
    };
    let period = period_ms(spec);
    let quick = match kind {
        Kind::Startup | Kind::Readiness => !probe.settled,
        Kind::Liveness => false,
    };
    let pause = if quick {
        probe.quick_ms.clamp(QUICK_MS, period)
    } else {
        period
    };
    last + pause
}

/// Takes a result in. True when the verdict (`passing`, `failing`) changed.
pub fn record(
    kind: Kind,
    spec: &v1::Probe,
    probe: &mut Probe,
    success: bool,
    now: Monotonic,
) -> bool {
    let before = (probe.passing, probe.failing);
    probe.running = false;
    let first = probe.last.is_none();
    probe.last = Some(now);
    if success {
        probe.settled = true;
        probe.failures = 0;
        probe.successes = probe.successes.saturating_add(1);
        if probe.successes >= spec.success_threshold.max(1) {
            probe.passing = true;
            probe.failing = false;
        }
        return before != (probe.passing, probe.failing);
    }
    probe.quick_ms = if first {
        QUICK_MS
    } else {
        (probe.quick_ms * 2).min(period_ms(spec))
    };
    probe.successes = 0;
    let quick = match kind {
        Kind::Startup | Kind::Readiness => !probe.settled,
        Kind::Liveness => false,
    };
    // Quick repetitions inside one period are one failure.
    let lately = probe.counted.is_some_and(|at| now - at < period_ms(spec));
    if quick && !first && lately {
        return before != (probe.passing, probe.failing);
    }
    probe.counted = Some(now);
    probe.failures = probe.failures.saturating_add(1);
    if probe.failures >= spec.failure_threshold.max(1) {
        probe.passing = false;
        probe.failing = true;
    }
    before != (probe.passing, probe.failing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Monotonic {
        Monotonic::from_ms(ms)
    }

    fn spec(period: u32, success: u32, failure: u32) -> v1::Probe {
        v1::Probe {
            period_seconds: period,
            success_threshold: success,
            failure_threshold: failure,
            initial_delay_seconds: 3,
            ..v1::Probe::default()
        }
    }

    #[test]
    fn initial_delay_then_quick_then_period() {
        let spec = spec(10, 1, 3);
        let mut probe = Probe::default();
        assert_eq!(due(Kind::Readiness, &spec, &probe, at(1_000)), at(4_000));
        let mut now = at(4_000);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            record(Kind::Readiness, &spec, &mut probe, false, now);
            let due = due(Kind::Readiness, &spec, &probe, at(1_000));
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(
            pauses,
            [
                20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_000, 10_000
            ]
        );
        // 10 s after the first one, and again 10 s later: three in all.
        assert_eq!(probe.failures, 3);
        assert!(probe.failing);
        record(Kind::Readiness, &spec, &mut probe, true, now);
        assert!(probe.passing && !probe.failing);
        assert_eq!(due(Kind::Readiness, &spec, &probe, at(1_000)), now + 10_000);
    }

    #[test]
    fn liveness_counts_each_failure_at_its_period() {
        let spec = spec(1, 1, 3);
        let mut probe = Probe::default();
        for (now, changed) in [(1_000, false), (2_000, false), (3_000, true)] {
            assert_eq!(
                record(Kind::Liveness, &spec, &mut probe, false, at(now)),
                changed,
                "{now}"
            );
            assert_eq!(due(Kind::Liveness, &spec, &probe, at(0)), at(now + 1_000));
        }
        assert!(probe.failing);
    }

    #[test]
    fn a_success_between_forgets_failures() {
        let spec = spec(1, 2, 2);
        let mut probe = Probe::default();
        for (now, success) in [(1_000, false), (2_000, true), (3_000, false), (4_000, true)] {
            record(Kind::Readiness, &spec, &mut probe, success, at(now));
            assert!(!probe.passing && !probe.failing, "at {now}");
        }
        record(Kind::Readiness, &spec, &mut probe, true, at(5_000));
        assert!(probe.passing);
        // Ready, then one failure of two: still ready.
        record(Kind::Readiness, &spec, &mut probe, false, at(6_000));
        assert!(probe.passing);
        record(Kind::Readiness, &spec, &mut probe, false, at(7_000));
        assert!(!probe.passing);
    }

    #[test]
    fn startup_gates_readiness() {
        let container = v1::ContainerSpec {
            startup: Some(spec(1, 1, 1)),
            ..v1::ContainerSpec::default()
        };
        let mut probes = Probes::default();
        assert!(!probes.ready(&container));
        probes.startup.passing = true;
        assert!(probes.ready(&container));
    }
}
