//! Restart policy and CrashLoopBackOff, with kubelet's arithmetic: the first
//! restart comes at once, the next after the base, then twice as long each time;
//! a container that ran for twice the longest delay begins anew.
//!
//! Called by `container.rs` when an instance has ended.

use proto::v1;

use crate::time::Monotonic;

/// Delays between the instances of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    /// Delay before the next restart, milliseconds; 0: none yet.
    pub delay_ms: i64,
    /// When the last restart was decided.
    pub updated: Monotonic,
}

/// Is it time for the next instance?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Start now; the back-off is then this.
    Now(Backoff),
    /// CrashLoopBackOff until then.
    At(Monotonic),
}

/// What comes after an instance that ended at `finished`. Delays in milliseconds.
pub fn after(
    backoff: Backoff,
    finished: Monotonic,
    base_ms: i64,
    max_ms: i64,
    now: Monotonic,
) -> Restart {
    let expired = finished - backoff.updated > 2 * max_ms;
    if backoff.delay_ms == 0 || expired {
        return Restart::Now(Backoff {
            delay_ms: base_ms.min(max_ms),
            updated: now,
        });
    }
    let due = finished + backoff.delay_ms;
    if now < due {
        return Restart::At(due);
    }
    let delay_ms = backoff.delay_ms.saturating_mul(2).min(max_ms);
    Restart::Now(Backoff {
        delay_ms,
        updated: now,
    })
}

/// What a container is in its pod: it decides what its end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with restartPolicy Always: runs beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// The role of an init container.
pub fn init_role(spec: &v1::ContainerSpec) -> Role {
    if spec.restart_policy == "Always" {
        Role::Sidecar
    } else {
        Role::Init
    }
}

/// Shall an instance that ended with `code` be followed by another one?
///
/// An init container that succeeded is done; one that failed is tried again
/// unless the pod's policy is Never; sidecars always come back.
pub fn wanted(role: Role, policy: &str, code: i32) -> bool {
    match role {
        Role::Sidecar => true,
        Role::Init => code != 0 && policy != "Never",
        Role::Main => match policy {
            "Never" => false,
            "OnFailure" => code != 0,
            // "Always", which is also Kubernetes' default.
            _ => true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instances that each run for `ran_ms`; the delays between end and restart.
    fn delays(ran_ms: i64, count: usize) -> Vec<i64> {
        let (base, max) = (10_000, 300_000);
        let (mut backoff, mut now) = (Backoff::default(), Monotonic::from_ms(1_000_000));
        let mut seen = Vec::new();
        for _ in 0..count {
            now = now + ran_ms;
            let finished = now;
            backoff = loop {
                match after(backoff, finished, base, max, now) {
                    Restart::Now(next) => break next,
                    Restart::At(due) => {
                        assert!(due > now, "a wait that is over is no wait");
                        now = due;
                    }
                }
            };
            seen.push(now - finished);
        }
        seen
    }

    #[test]
    fn delays_are_kubelets() {
        assert_eq!(
            delays(100, 8),
            [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]
        );
    }

    #[test]
    fn ten_good_minutes_forget() {
        assert_eq!(delays(600_001, 3), [0, 0, 0]);
        assert_eq!(delays(590_000, 3), [0, 10_000, 20_000]);
    }

    #[test]
    fn policies() {
        // (role, policy, exit code, restarted)
        let rows = [
            (Role::Main, "Always", 0, true),
            (Role::Main, "Always", 1, true),
            (Role::Main, "OnFailure", 0, false),
            (Role::Main, "OnFailure", 137, true),
            (Role::Main, "Never", 0, false),
            (Role::Main, "Never", 1, false),
            (Role::Init, "Always", 0, false),
            (Role::Init, "Always", 1, true),
            (Role::Init, "OnFailure", 1, true),
            (Role::Init, "Never", 1, false),
            (Role::Sidecar, "Never", 0, true),
            (Role::Sidecar, "OnFailure", 1, true),
        ];
        for (role, policy, code, expected) in rows {
            assert_eq!(
                wanted(role, policy, code),
                expected,
                "{role:?} {policy} {code}"
            );
        }
    }
}
