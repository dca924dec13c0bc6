//! The scheduler's queue: which pods are to be tried next, and which wait.
//!
//! As in Kubernetes (pkg/scheduler/backend/queue): a pod that fits nowhere is
//! parked until something happens that could help it, is then tried again no
//! sooner than its back-off allows, and is tried again anyway after a long time.
//! A pod that was tried goes behind all others of its priority.
//! Filled by `pod.rs` and `node.rs`; read by `schedule.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use crate::object::Name;
use crate::time::after;

/// Back-off after the first attempt, in seconds; it doubles with each.
const FIRST_BACKOFF: i64 = 1;
/// Back-off at most, in seconds.
const LONGEST_BACKOFF: i64 = 10;
/// Seconds after which a parked pod is tried although nothing happened.
const PARKED_AT_MOST: i64 = 300;

/// Priority, then the order of coming into the queue.
type Rank = (Reverse<i32>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be tried now.
    Ready,
    /// To be tried from then on.
    Backoff(Timestamp),
    /// Fits nowhere since then.
    Parked { since: Timestamp, room: bool },
}

#[derive(Debug)]
struct Entry {
    uid: String,
    rank: Rank,
    attempts: u32,
    stage: Stage,
}

/// Pods that wait for a node.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Name, Entry>,
    ready: BTreeSet<(Rank, Name)>,
    backoff: BTreeSet<(Timestamp, Name)>,
    parked: BTreeSet<(Timestamp, Name)>,
    /// Pods whose bindings are being written: pods that were tried after them may
    /// be parked because of what these bindings take.
    assumed: BTreeSet<Name>,
    /// Number of the next one that comes into the queue.
    coming: u64,
}

/// The pods that are to be tried in one pass.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// First things first.
    pub pods: Vec<Name>,
    /// When there is another turn, if nothing happens before.
    pub next: Option<Timestamp>,
}

fn backoff(attempts: u32) -> i64 {
    let doubled = attempts.saturating_sub(1).min(16);
    (FIRST_BACKOFF << doubled).min(LONGEST_BACKOFF)
}

impl Queue {
    /// Number of pods that wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when no pod waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pod waits. True when it is new here.
    pub fn put(&mut self, name: &Name, uid: &str, priority: i32) -> bool {
        if self.entries.get(name).is_some_and(|e| e.uid == uid) {
            return false;
        }
        self.remove(name);
        let entry = Entry {
            uid: uid.to_owned(),
            rank: self.rank(priority),
            attempts: 0,
            stage: Stage::Ready,
        };
        self.enter(name, entry);
        true
    }

    /// The pod waits no more. True when its binding was being written.
    pub fn remove(&mut self, name: &Name) -> bool {
        self.take(name);
        self.forget(name)
    }

    /// The pod's binding is being written.
    pub fn assume(&mut self, name: &Name, uid: &str) {
        if self.entries.get(name).is_some_and(|e| e.uid == uid) {
            self.assumed.insert(name.clone());
        }
    }

    /// The pod's binding is written no more. True when it was.
    pub fn forget(&mut self, name: &Name) -> bool {
        self.assumed.remove(name)
    }

    /// As [`Self::forget`], for all pods. True when there was any.
    pub fn forget_all(&mut self) -> bool {
        !std::mem::take(&mut self.assumed).is_empty()
    }

    fn take(&mut self, name: &Name) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        match entry.stage {
            Stage::Ready => self.ready.remove(&(entry.rank, name.clone())),
            Stage::Backoff(until) => self.backoff.remove(&(until, name.clone())),
            Stage::Parked { since, .. } => self.parked.remove(&(since, name.clone())),
        };
    }

    fn rank(&mut self, priority: i32) -> Rank {
        self.coming += 1;
        (Reverse(priority), self.coming)
    }

    fn enter(&mut self, name: &Name, entry: Entry) {
        match entry.stage {
            Stage::Ready => self.ready.insert((entry.rank, name.clone())),
            Stage::Backoff(until) => self.backoff.insert((until, name.clone())),
            Stage::Parked { since, .. } => self.parked.insert((since, name.clone())),
        };
        self.entries.insert(name.clone(), entry);
    }

    fn change(&mut self, name: &Name, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let mut next = Entry {
            uid: entry.uid.clone(),
            ..*entry
        };
        self.take(name);
        change(&mut next);
        self.enter(name, next);
    }

    /// Something happened that could help this pod: it is tried again when its
    /// back-off has passed. True when it was parked.
    pub fn wake(&mut self, name: &Name) -> bool {
        let mut woken = false;
        self.change(name, |entry| {
            if let Stage::Parked { since, .. } = entry.stage {
                let until = after(since, backoff(entry.attempts));
                entry.stage = Stage::Backoff(until);
                woken = true;
            }
        });
        woken
    }

    /// Something happened that could help all parked pods (a node changed), or
    /// with `room` those for which a node had too little left. True when there
    /// are any.
    pub fn wake_all(&mut self, room: bool) -> bool {
        let short = |name: &Name| {
            let stage = self.entries.get(name).map(|e| e.stage);
            !room || matches!(stage, Some(Stage::Parked { room: true, .. }))
        };
        let parked = self.parked.iter().map(|(_, name)| name);
        let names: Vec<Name> = parked.filter(|name| short(name)).cloned().collect();
        for name in &names {
            self.wake(name);
        }
        !names.is_empty()
    }

    /// The pod was tried and fits nowhere; with `room`: some node would take it
    /// if it had more left.
    pub fn park(&mut self, name: &Name, uid: &str, now: Timestamp, room: bool) {
        self.retry(name, uid, |entry| {
            entry.stage = Stage::Parked { since: now, room };
        });
    }

    /// The pod's binding failed: it is tried again after its back-off.
    pub fn failed(&mut self, name: &Name, uid: &str, now: Timestamp) {
        self.retry(name, uid, |entry| {
            entry.stage = Stage::Backoff(after(now, backoff(entry.attempts)));
        });
    }

    fn retry(&mut self, name: &Name, uid: &str, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get(name).filter(|e| e.uid == uid) else {
            return;
        };
        let Reverse(priority) = entry.rank.0;
        let rank = self.rank(priority);
        self.change(name, |entry| {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.rank = rank;
            change(entry);
        });
    }

    /// The clock was set: how long the pods have waited is not known. All are tried again.
    /// True when any did wait.
    pub fn release_all(&mut self) -> bool {
        let backed_off = self.backoff.iter().map(|(_, name)| name);
        let parked = self.parked.iter().map(|(_, name)| name);
        let names: Vec<Name> = backed_off.chain(parked).cloned().collect();
        for name in &names {
            self.change(name, |entry| entry.stage = Stage::Ready);
        }
        !names.is_empty()
    }

    /// Who is to be tried now, `most` pods at most.
    pub fn turn(&self, now: Timestamp, most: usize) -> Turn {
        let long_ago = after(now, -PARKED_AT_MOST);
        let passed = self.backoff.iter().take_while(|(until, _)| *until <= now);
        let flushed = self
            .parked
            .iter()
            .take_while(|(since, _)| *since <= long_ago);
        let due = passed.chain(flushed).filter_map(|(_, name)| {
            let entry = self.entries.get(name)?;
            Some((entry.rank, name))
        });
        let ready = self.ready.iter().map(|(rank, name)| (*rank, name));
        // Of those that are ready only the first can be among the first.
        let mut due: Vec<(Rank, &Name)> = due.chain(ready.take(most)).collect();
        due.sort_unstable();
        let more = due.len() > most || self.ready.len() > most;
        due.truncate(most);
        let backed_off = self.backoff.iter().map(|(until, _)| *until);
        let parked = self.parked.iter();
        let parked = parked.map(|(since, _)| after(*since, PARKED_AT_MOST));
        let later = [
            backed_off.into_iter().find(|until| *until > now),
            parked.into_iter().find(|end| *end > now),
        ];
        let next = if more {
            Some(now)
        } else {
            later.into_iter().flatten().min()
        };
        let pods = due.into_iter().map(|(_, name)| name.clone()).collect();
        Turn { pods, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_tests::now;

    fn name(n: usize) -> Name {
        Name::new("default", format!("p{n:04}"))
    }

    fn put(queue: &mut Queue, numbers: impl IntoIterator<Item = usize>) {
        for n in numbers {
            assert!(queue.put(&name(n), "uid", 0));
        }
    }

    fn names(turn: &Turn) -> Vec<&str> {
        turn.pods.iter().map(|n| n.name.as_str()).collect()
    }

    #[test]
    fn a_woken_pod_is_tried_after_its_back_off() {
        // Attempts so far, and the seconds after the last one.
        for (attempts, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (40, 10)] {
            let mut queue = Queue::default();
            put(&mut queue, [1]);
            for _ in 0..attempts {
                queue.park(&name(1), "uid", now(), true);
            }
            let parked = queue.turn(now(), 10);
            assert_eq!(names(&parked), [""; 0]);
            assert_eq!(parked.next, Some(after(now(), 300)));
            assert!(queue.wake(&name(1)));
            assert_eq!(queue.turn(now(), 10).next, Some(after(now(), seconds)));
            assert!(queue.turn(after(now(), seconds - 1), 10).pods.is_empty());
            let due = queue.turn(after(now(), seconds), 10);
            assert_eq!((names(&due), due.next), (vec!["p0001"], None));
        }
    }

    /// Without it they wait for as long as the clock was set back.
    #[test]
    fn no_pod_waits_for_a_clock_that_was_set_back() {
        let mut queue = Queue::default();
        put(&mut queue, [1, 2, 3]);
        queue.park(&name(1), "uid", now(), true);
        queue.park(&name(2), "uid", now(), true);
        queue.failed(&name(3), "uid", now());
        queue.wake(&name(2));
        let earlier = after(now(), -7200);
        assert_eq!(names(&queue.turn(earlier, 10)), [""; 0]);
        assert!(queue.release_all());
        assert_eq!(names(&queue.turn(earlier, 10)), ["p0001", "p0002", "p0003"]);
        assert!(!queue.release_all());
        // They are backed off by the new time from then on.
        queue.park(&name(1), "uid", earlier, true);
        queue.wake(&name(1));
        let due = queue.turn(after(earlier, 2), 10);
        assert!(names(&due).contains(&"p0001"));
    }

    #[test]
    fn what_wakes_whom() {
        // (room was missing, room became free, another change): tried again?
        for (short, room, expected) in [
            (true, true, true),
            (false, true, false),
            (true, false, true),
            (false, false, true),
        ] {
            let mut queue = Queue::default();
            put(&mut queue, [1]);
            queue.park(&name(1), "uid", now(), short);
            assert_eq!(queue.wake_all(room), expected);
            let due = queue.turn(after(now(), 1), 10);
            assert_eq!(due.pods.len(), usize::from(expected), "{short} {room}");
            // No pod is woken twice.
            assert!(!queue.wake_all(room) || !expected);
        }
        // After a long time without any event.
        let mut queue = Queue::default();
        put(&mut queue, [1]);
        queue.park(&name(1), "uid", now(), false);
        assert!(queue.turn(after(now(), 299), 10).pods.is_empty());
        assert_eq!(names(&queue.turn(after(now(), 300), 10)), ["p0001"]);
    }

    #[test]
    fn the_order_is_priority_then_coming_then_trying() {
        let mut queue = Queue::default();
        put(&mut queue, [3, 1, 2]);
        assert!(queue.put(&name(9), "uid", 7));
        assert_eq!(names(&queue.turn(now(), 3)), ["p0009", "p0003", "p0001"]);
        assert_eq!(queue.turn(now(), 3).next, Some(now()));
        queue.failed(&name(3), "uid", now());
        let later = after(now(), 1);
        let all = ["p0009", "p0001", "p0002", "p0003"];
        assert_eq!(names(&queue.turn(later, 10)), all);
        // The same pod again changes nothing; another one of the name is new.
        assert!(!queue.put(&name(1), "uid", 0));
        assert!(queue.put(&name(1), "other", 0));
        let all = ["p0009", "p0002", "p0003", "p0001"];
        assert_eq!(names(&queue.turn(later, 10)), all);
        queue.park(&name(1), "uid", now(), true);
        assert_eq!(names(&queue.turn(later, 10)), all, "that was another pod");
        for n in [1, 2, 3, 9] {
            queue.remove(&name(n));
        }
        let nothing = Turn {
            pods: Vec::new(),
            next: None,
        };
        assert_eq!(queue.turn(later, 10), nothing);
        assert!(queue.is_empty() && queue.ready.is_empty() && queue.backoff.is_empty());
    }

    /// However many pods keep failing, and however often they are woken, each
    /// pod has its turn.
    #[test]
    fn no_pod_is_left_out() {
        let mut queue = Queue::default();
        put(&mut queue, 0..1100);
        let mut last = None;
        let mut time = now();
        for pass in 0..6 {
            if pass == 2 {
                put(&mut queue, [2000]);
            }
            let turn = queue.turn(time, 500);
            if turn.pods.contains(&name(2000)) {
                last = Some(pass);
                break;
            }
            for pod in &turn.pods {
                queue.park(pod, "uid", time, true);
            }
            time = after(time, 20);
            queue.wake_all(true);
        }
        // Pass 0 and 1 tried 1,000, pass 2 the 100 that were left and then those
        // that came before the new one.
        assert_eq!(last, Some(4));
    }
}
