//! When each task is planned: at once when it is due, when its writes show if they
//! are under way, later when it asked for a time or its writes failed.
//!
//! Decides nothing about objects. Used by `run.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use control_plan::Task;
use tokio::time::Instant;

/// Pause after the first failure; it doubles with each, as in Kubernetes'
/// controllers.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Pause at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A task whose writes are under way.
enum Busy {
    /// Being written.
    Writing,
    /// Written; the world shows it from this revision on.
    Until(u64),
}

/// Tasks that are not to be planned yet.
#[derive(Default)]
pub(crate) struct Agenda {
    busy: BTreeMap<Task, Busy>,
    /// Due, but busy.
    held: BTreeSet<Task>,
    /// When to plan which task although nothing changes; one time for each.
    later: BTreeSet<(Instant, Task)>,
    timers: BTreeMap<Task, Instant>,
    /// Failures of each task since its last success.
    failures: HashMap<Task, u32>,
}

fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE)
}

impl Agenda {
    /// The tasks to plan now, of those that are `due` and those that were to be
    /// planned later. The world shows what was written up to `revision`.
    pub(crate) fn ready(&mut self, due: BTreeSet<Task>, revision: u64, now: Instant) -> Vec<Task> {
        let mut due = due;
        due.append(&mut self.held);
        while self.later.first().is_some_and(|(when, _)| *when <= now) {
            if let Some((_, task)) = self.later.pop_first() {
                self.timers.remove(&task);
                due.insert(task);
            }
        }
        let shown = |busy: &Busy| matches!(busy, Busy::Until(at) if *at <= revision);
        self.busy.retain(|_, busy| !shown(busy));
        let busy = &self.busy;
        let is_busy = |task: &Task| busy.contains_key(task);
        let (held, ready): (BTreeSet<Task>, BTreeSet<Task>) = due.into_iter().partition(is_busy);
        self.held = held;
        ready.into_iter().collect()
    }

    /// True while the task's writes are under way, or do not show yet.
    pub(crate) fn is_busy(&self, task: &Task) -> bool {
        self.busy.contains_key(task)
    }

    /// Plan the task then, also if nothing changes.
    pub(crate) fn at(&mut self, when: Instant, task: Task) {
        if let Some(known) = self.timers.get(&task).copied() {
            if known <= when {
                // It is planned then, and says again when it wants to be.
                return;
            }
            self.later.remove(&(known, task.clone()));
        }
        self.timers.insert(task.clone(), when);
        self.later.insert((when, task));
    }

    /// When a task is to be planned although nothing changes.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.later.first().map(|(when, _)| *when)
    }

    /// The task's writes begin.
    pub(crate) fn begin(&mut self, task: Task) {
        self.busy.insert(task, Busy::Writing);
    }

    /// The task's writes are done and show from this revision on.
    pub(crate) fn succeeded(&mut self, task: Task, revision: u64) {
        self.failures.remove(&task);
        self.busy.insert(task, Busy::Until(revision));
    }

    /// The task was planned, and nothing is to be written.
    pub(crate) fn idle(&mut self, task: &Task) {
        self.failures.remove(task);
    }

    /// Some of the task's writes failed: it is planned again when the world shows
    /// this revision and a pause has passed.
    pub(crate) fn failed(&mut self, task: Task, revision: u64, now: Instant) {
        let failures = self.failures.entry(task.clone()).or_default();
        *failures = failures.saturating_add(1);
        let pause = pause(*failures);
        self.at(now + pause, task.clone());
        self.busy.insert(task, Busy::Until(revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_task_waits_for_its_writes_to_show() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        let due = || BTreeSet::from([Task::Schedule, Task::Events]);
        agenda.begin(Task::Schedule);
        assert_eq!(agenda.ready(due(), 5, now), [Task::Events]);
        agenda.succeeded(Task::Schedule, 7);
        assert!(agenda.ready(BTreeSet::new(), 6, now).is_empty());
        assert_eq!(agenda.ready(BTreeSet::new(), 7, now), [Task::Schedule]);
        assert!(!agenda.is_busy(&Task::Schedule));
        assert!(agenda.ready(BTreeSet::new(), 7, now).is_empty());
    }

    #[test]
    fn the_earliest_time_counts() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut agenda = Agenda::default();
        agenda.at(now + 3 * second, Task::Events);
        agenda.at(now + 2 * second, Task::Events);
        agenda.at(now + 4 * second, Task::Events);
        assert_eq!(agenda.next(), Some(now + 2 * second));
        assert!(agenda.ready(BTreeSet::new(), 0, now + second).is_empty());
        let later = now + 2 * second;
        assert_eq!(agenda.ready(BTreeSet::new(), 0, later), [Task::Events]);
        assert_eq!(agenda.next(), None);
    }

    #[test]
    fn failures_are_tried_again_more_and_more_rarely() {
        let mut now = Instant::now();
        let mut agenda = Agenda::default();
        let mut pauses = Vec::new();
        for _ in 0..15 {
            agenda.begin(Task::Events);
            agenda.failed(Task::Events, 1, now);
            assert!(agenda.ready(BTreeSet::new(), 1, now).is_empty());
            let next = agenda.next().unwrap();
            pauses.push((next - now).as_millis());
            now = next;
            assert_eq!(agenda.ready(BTreeSet::new(), 1, now), [Task::Events]);
        }
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[13..], [30_000, 30_000]);
        // A success makes it as it was before.
        agenda.succeeded(Task::Events, 1);
        agenda.failed(Task::Events, 1, now);
        assert_eq!(agenda.next(), Some(now + FIRST_PAUSE));
        // So does a plan with nothing to write.
        agenda.idle(&Task::Events);
        assert!(agenda.failures.is_empty());
        now += FIRST_PAUSE;
        assert_eq!(agenda.ready(BTreeSet::new(), 1, now), [Task::Events]);
        agenda.failed(Task::Events, 1, now);
        assert_eq!(agenda.next(), Some(now + FIRST_PAUSE));
    }
}
