//! Which documents of a file may be applied at the same time.
//!
//! Not how one is applied (`apply.rs`). A document waits for those before it that
//! its objects need when they come to be: a namespace for its contents, and what
//! pods read when they start (services, config maps, secrets) for pods and for what
//! makes pods.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::Value;
use tokio::sync::Notify;

/// What needs what: each rank needs those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Namespace,
    Other,
    /// Pods, and what makes pods.
    Workload,
}

impl Rank {
    fn of(object: &Value) -> Self {
        match object.get("kind").and_then(Value::as_str) {
            Some("Namespace") => Self::Namespace,
            Some(
                "Pod"
                | "ReplicationController"
                | "ReplicaSet"
                | "Deployment"
                | "StatefulSet"
                | "DaemonSet"
                | "Job"
                | "CronJob",
            ) => Self::Workload,
            Some(_) | None => Self::Other,
        }
    }
}

/// The documents that are being applied, by their place in the file.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The lowest rank in each.
    in_flight: RefCell<BTreeMap<usize, Rank>>,
    ended: Notify,
}

/// One document that is being applied; ends when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    order: &'a Order,
    index: usize,
    highest: Rank,
}

impl Order {
    /// A document begins. To be called in the order of the file.
    pub(crate) fn begin(&self, index: usize, objects: &[Value]) -> Turn<'_> {
        let ranks = || objects.iter().map(Rank::of);
        let lowest = ranks().min().unwrap_or(Rank::Workload);
        let highest = ranks().max().unwrap_or(Rank::Namespace);
        self.in_flight.borrow_mut().insert(index, lowest);
        Turn {
            order: self,
            index,
            highest,
        }
    }
}

impl Turn<'_> {
    /// Waits until all that this document needs was applied or refused.
    pub(crate) async fn wait(&self) {
        loop {
            // Before the look, so that no end is missed.
            let ended = self.order.ended.notified();
            if !self.is_blocked() {
                return;
            }
            ended.await;
        }
    }

    fn is_blocked(&self) -> bool {
        let in_flight = self.order.in_flight.borrow();
        let mut before = in_flight.range(..self.index);
        before.any(|(_, lowest)| *lowest < self.highest)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.order.in_flight.borrow_mut().remove(&self.index);
        self.order.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects(kinds: &[&str]) -> Vec<Value> {
        kinds.iter().map(|kind| json!({"kind": kind})).collect()
    }

    #[test]
    fn what_is_needed_comes_first_and_the_rest_at_once() {
        let order = Order::default();
        let file: [&[&str]; 6] = [
            &["Service"],
            &["ConfigMap"],
            &["Deployment"],
            &["Namespace"],
            &["Service"],
            &["Service", "Deployment"],
        ];
        let mut turns: Vec<Option<Turn<'_>>> = (0..)
            .zip(file)
            .map(|(index, kinds)| Some(order.begin(index, &objects(kinds))))
            .collect();
        let free = |turns: &[Option<Turn<'_>>]| -> Vec<usize> {
            let going = turns.iter().flatten();
            going.filter(|t| !t.is_blocked()).map(|t| t.index).collect()
        };
        // Of the third needs the first two, all behind the namespace need it.
        assert_eq!(free(&turns), [0, 1, 3]);
        turns[3] = None;
        assert_eq!(free(&turns), [0, 1, 4]);
        turns[0] = None;
        assert_eq!(free(&turns), [1, 4]);
        turns[1] = None;
        assert_eq!(free(&turns), [2, 4]);
        turns[4] = None;
        assert_eq!(free(&turns), [2, 5]);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let order = Order::default();
        let first = order.begin(0, &objects(&["Namespace"]));
        let second = order.begin(1, &objects(&["Pod"]));
        let waiting = second.wait();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        waiting.await;
    }
}
