//! The arithmetic of a rollout: how many pods each replica set of a Deployment
//! is to have next, so that never too few are available and never too many exist.
//!
//! Numbers only; `deployment.rs` reads the sets and writes the outcome.

use std::collections::BTreeMap;

use control_api::deployment::scaled;
use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::member::{DESIRED, MAXIMUM, Member};
use crate::object;

/// How far a rollout may go from the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Wanted pods.
    pub(crate) replicas: i32,
    /// Pods above it.
    pub(crate) surge: i32,
    /// Pods below it that may be unavailable.
    pub(crate) unavailable: i32,
    /// All old pods go before the first new one comes.
    pub(crate) recreate: bool,
    /// With `recreate`: there are pods besides those of the sets.
    pub(crate) held: bool,
}

/// New replica counts, by name of the set; sets that keep theirs are left out.
type Counts = BTreeMap<String, i32>;

impl Limits {
    pub(crate) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or_default().max(0);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self {
                replicas,
                surge: 0,
                unavailable: replicas,
                recreate: true,
                held: false,
            };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let pods = |value: Option<&IntOrString>, round_up| {
            let pods = value.map(|value| scaled(value, replicas, round_up));
            pods.unwrap_or_default().max(0)
        };
        let surge = pods(rolling.and_then(|r| r.max_surge.as_ref()), true);
        let mut unavailable = pods(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
        if surge == 0 && unavailable == 0 {
            // Percentages may both round to nothing; then nothing would move.
            unavailable = 1;
        }
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
            recreate: false,
            held: false,
        }
    }

    /// Pods at most.
    pub(crate) fn most(&self) -> i32 {
        self.replicas + self.surge
    }

    /// With `recreate`: all old pods are gone.
    fn may_recreate(&self, old: &[Member]) -> bool {
        !self.held && old.iter().all(Member::is_gone)
    }

    /// Available pods at least.
    pub(crate) fn least(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

fn total(sets: &[Member]) -> i32 {
    sets.iter().map(|m| m.replicas).sum()
}

/// Pods that there are or will be: a set that was scaled down has its pods until
/// its controller has deleted them.
fn existing(sets: &[Member]) -> i32 {
    sets.iter().map(|m| m.replicas.max(m.current)).sum()
}

/// Replicas of a set that has just been made.
pub(crate) fn first(limits: &Limits, old: &[Member]) -> i32 {
    if limits.recreate {
        return if limits.may_recreate(old) {
            limits.replicas
        } else {
            0
        };
    }
    (limits.most() - existing(old)).clamp(0, limits.replicas)
}

/// The next step towards all pods being of the new set.
pub(crate) fn step(limits: &Limits, new: &Member, old: &[Member]) -> Counts {
    let grown = if limits.recreate {
        if limits.may_recreate(old) {
            limits.replicas
        } else {
            new.replicas
        }
    } else {
        let room = (limits.most() - existing(old) - new.replicas.max(new.current)).max(0);
        (new.replicas + room).min(limits.replicas)
    };
    if grown != new.replicas {
        return Counts::from([(new.name().to_owned(), grown)]);
    }
    if limits.recreate {
        let down = old.iter().filter(|m| m.replicas > 0);
        return down.map(|m| (m.name().to_owned(), 0)).collect();
    }
    shrink(limits, new, old)
}

fn shrink(limits: &Limits, new: &Member, old: &[Member]) -> Counts {
    let unavailable = (new.replicas - new.available).max(0);
    let mut may_go = total(old) + new.replicas - limits.least() - unavailable;
    let mut left: Vec<(&Member, i32)> = old.iter().map(|m| (m, m.replicas)).collect();
    // First those that serve no requests.
    for (member, replicas) in &mut left {
        let broken = (*replicas - member.available).clamp(0, may_go.max(0));
        *replicas -= broken;
        may_go -= broken;
    }
    // Then as many as are available above the least.
    let available = new.available + old.iter().map(|m| m.available).sum::<i32>();
    let mut spare = (available - limits.least()).min(may_go).max(0);
    for (_, replicas) in &mut left {
        let go = (*replicas).min(spare);
        *replicas -= go;
        spare -= go;
    }
    let changed = left
        .into_iter()
        .filter(|(member, replicas)| member.replicas != *replicas);
    changed
        .map(|(member, replicas)| (member.name().to_owned(), replicas))
        .collect()
}

fn noted(member: &Member, annotation: &str) -> Option<i32> {
    object::annotation(&member.set.metadata, annotation)?
        .parse()
        .ok()
}

/// When the Deployment was scaled: the sets' new counts, each in
/// proportion to what it had. `None`: none had any.
pub(crate) fn rescale(limits: &Limits, new: Option<&Member>, old: &[Member]) -> Option<Counts> {
    let active: Vec<&Member> = new
        .into_iter()
        .chain(old)
        .filter(|m| m.replicas > 0)
        .collect();
    let scaled = active
        .iter()
        .any(|m| noted(m, DESIRED).is_some_and(|d| d != limits.replicas));
    if !scaled {
        return None;
    }
    if let [only] = active.as_slice() {
        let is_newest = new.is_none_or(|n| n.name() == only.name());
        if is_newest || new.is_some_and(|n| n.replicas == 0) {
            return Some(Counts::from([(only.name().to_owned(), limits.replicas)]));
        }
    }
    if limits.recreate {
        // Only one set at a time is to have pods.
        return None;
    }
    let allowed = if limits.replicas > 0 {
        limits.most()
    } else {
        0
    };
    let sum: i32 = active.iter().map(|m| m.replicas).sum();
    let mut to_add = allowed - sum;
    // Largest first, newest first among equals.
    let mut order = active;
    order.sort_by_key(|m| {
        let created = m.set.metadata.creation_timestamp.as_ref().map(|t| t.0);
        std::cmp::Reverse((m.replicas, created))
    });
    let mut counts = Counts::new();
    for member in &order {
        let most = noted(member, MAXIMUM).unwrap_or(sum).max(1);
        let exact = i64::from(member.replicas) * i64::from(allowed);
        let most = i64::from(most);
        let target = (exact + most / 2).div_euclid(most);
        let fraction = i32::try_from(target)
            .unwrap_or(i32::MAX)
            .saturating_sub(member.replicas);
        let part = if to_add >= 0 {
            fraction.clamp(0, to_add)
        } else {
            fraction.clamp(to_add, 0)
        };
        let part = part.max(-member.replicas);
        to_add -= part;
        counts.insert(member.name().to_owned(), member.replicas + part);
    }
    // What rounding left over goes to the largest.
    if let Some(largest) = order.first()
        && let Some(count) = counts.get_mut(largest.name())
    {
        *count = (*count + to_add).max(0);
    }
    Some(counts)
}

/// True when every pod is of the new set, and available.
pub(crate) fn complete(limits: &Limits, new: &Member, old: &[Member]) -> bool {
    new.replicas == limits.replicas
        && new.current == limits.replicas
        && new.available >= limits.replicas
        && old.iter().all(|m| m.current == 0 && m.replicas == 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;
    use crate::for_tests::typed;

    fn member(name: &str, replicas: i32, available: i32) -> Member {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(name.to_owned());
        let pods = usize::try_from(replicas).unwrap();
        Member {
            set: Arc::new(set),
            replicas,
            available,
            current: replicas,
            pods,
            settled: true,
        }
    }

    fn noting(mut member: Member, desired: i32, most: i32) -> Member {
        let set = Arc::make_mut(&mut member.set);
        set.metadata.annotations = Some(BTreeMap::from([
            (DESIRED.to_owned(), desired.to_string()),
            (MAXIMUM.to_owned(), most.to_string()),
        ]));
        member
    }

    fn limits(replicas: i32, surge: i32, unavailable: i32) -> Limits {
        Limits {
            replicas,
            surge,
            unavailable,
            recreate: false,
            held: false,
        }
    }

    #[test]
    fn steps_of_a_rolling_update() {
        // (limits, new (replicas, available), old, expected)
        type Row = (
            Limits,
            (i32, i32),
            (i32, i32),
            &'static [(&'static str, i32)],
        );
        let rows: [Row; 8] = [
            (limits(3, 1, 0), (0, 0), (3, 3), &[("new", 1)]),
            // The new pod is not available yet: nothing old goes.
            (limits(3, 1, 0), (1, 0), (3, 3), &[]),
            (limits(3, 1, 0), (1, 1), (3, 3), &[("old", 2)]),
            (limits(3, 1, 0), (1, 1), (2, 2), &[("new", 2)]),
            (limits(3, 0, 1), (0, 0), (3, 3), &[("old", 2)]),
            // Broken old pods go first, also while the new one is not ready.
            (limits(3, 1, 1), (2, 0), (2, 1), &[]),
            (limits(4, 1, 2), (1, 0), (4, 2), &[("old", 2)]),
            (limits(3, 1, 0), (3, 3), (0, 0), &[]),
        ];
        for (limits, new, old, expected) in rows {
            let got = step(
                &limits,
                &member("new", new.0, new.1),
                &[member("old", old.0, old.1)],
            );
            let expected: Counts = expected
                .iter()
                .map(|(n, c)| ((*n).to_owned(), *c))
                .collect();
            assert_eq!(got, expected, "{limits:?} new {new:?} old {old:?}");
        }
    }

    #[test]
    fn recreate_waits_for_the_last_old_pod() {
        let limits = Limits {
            replicas: 2,
            surge: 0,
            unavailable: 2,
            recreate: true,
            held: false,
        };
        let mut old = member("old", 2, 2);
        assert_eq!(first(&limits, std::slice::from_ref(&old)), 0);
        let got = step(&limits, &member("new", 0, 0), std::slice::from_ref(&old));
        assert_eq!(got, Counts::from([("old".to_owned(), 0)]));
        old.replicas = 0;
        // Scaled to nothing, but its pods are still terminating.
        assert!(step(&limits, &member("new", 0, 0), std::slice::from_ref(&old)).is_empty());
        old.pods = 0;
        // Its controller may be making pods, as it has not seen that it is to have none.
        old.settled = false;
        assert!(step(&limits, &member("new", 0, 0), std::slice::from_ref(&old)).is_empty());
        old.settled = true;
        let got = step(&limits, &member("new", 0, 0), std::slice::from_ref(&old));
        assert_eq!(got, Counts::from([("new".to_owned(), 2)]));
    }

    #[test]
    fn percentages_round_as_kubernetes_does() {
        // (replicas, surge, unavailable, in pods)
        let rows = [
            (3, json!("25%"), json!("25%"), (1, 0)),
            (10, json!("25%"), json!("25%"), (3, 2)),
            (7, json!("100%"), json!("100%"), (7, 7)),
            (7, json!(2), json!(9), (2, 7)),
            // Percentages may both round to nothing.
            (3, json!(0), json!("25%"), (0, 1)),
        ];
        for (replicas, surge, unavailable, expected) in rows {
            let spec: DeploymentSpec = typed(json!({
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            }));
            let limits = Limits::of(&spec);
            let got = (limits.surge, limits.unavailable);
            assert_eq!(got, expected, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn scaling_in_a_rollout_is_proportional() {
        let limits_10 = limits(10, 3, 2);
        let old = noting(member("old", 8, 8), 10, 13);
        let new = noting(member("new", 5, 5), 10, 13);
        assert_eq!(
            rescale(&limits_10, Some(&new), std::slice::from_ref(&old)),
            None
        );
        let counts = rescale(&limits(15, 4, 3), Some(&new), &[old]).unwrap();
        assert_eq!(counts.values().sum::<i32>(), 19, "{counts:?}");
        assert!(counts["old"] > counts["new"], "{counts:?}");
        let alone = noting(member("new", 3, 3), 3, 4);
        let counts = rescale(&limits(5, 2, 1), Some(&alone), &[]).unwrap();
        assert_eq!(counts, Counts::from([("new".to_owned(), 5)]));
        // Scaled to nothing: everything goes.
        let new = noting(member("new", 5, 5), 10, 13);
        let old = noting(member("old", 8, 8), 10, 13);
        let counts = rescale(&limits(0, 0, 0), Some(&new), &[old]).unwrap();
        assert!(counts.values().all(|c| *c == 0), "{counts:?}");
    }
}
