//! What changed for all nodes: services and routes, in the order of their last change.
//!
//! One list for all sessions, each of which remembers how far it has read: the cost
//! of a change does not depend on the number of nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::mailbox::Item;

/// Changes that are kept beyond twice the number of things: who is further behind gets
/// a snapshot.
const SPARE: usize = 10_000;

/// The last change of each thing.
#[derive(Default)]
pub(super) struct Shared {
    /// By number, oldest first.
    changes: BTreeMap<u64, Item>,
    numbers: HashMap<Item, u64>,
    /// Number of the next change.
    end: u64,
    /// Changes from this number on are here.
    start: u64,
}

impl Shared {
    /// The thing has changed, or is gone. `there` is the number of things.
    pub(super) fn push(&mut self, item: Item, there: usize) {
        if let Some(before) = self.numbers.insert(item.clone(), self.end) {
            self.changes.remove(&before);
        }
        self.changes.insert(self.end, item);
        self.end += 1;
        while self.changes.len() > 2 * there + SPARE {
            let Some((number, item)) = self.changes.pop_first() else {
                break;
            };
            self.numbers.remove(&item);
            self.start = number + 1;
        }
    }

    /// Where who has read all of it is.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What changed since the reader was at `seen`; `None`: that is not known any more.
    pub(super) fn since(&self, seen: u64) -> Option<BTreeSet<Item>> {
        let changes = || self.changes.range(seen..).map(|(_, item)| item.clone());
        (seen >= self.start).then(|| changes().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(n: usize) -> Item {
        Item::Service(format!("d/{n}").into())
    }

    #[test]
    fn each_thing_is_there_once_and_a_reader_gets_what_is_new() {
        let mut shared = Shared::default();
        for n in [1, 2, 1] {
            shared.push(service(n), 2);
        }
        let set = |items: &[usize]| Some(items.iter().copied().map(service).collect());
        assert_eq!(shared.since(0), set(&[1, 2]));
        assert_eq!(shared.since(2), set(&[1]));
        assert_eq!(shared.since(shared.end()), set(&[]));
    }

    #[test]
    fn a_reader_that_is_far_behind_does_not_make_it_grow() {
        let mut shared = Shared::default();
        for n in 0..SPARE + 100 {
            shared.push(service(n), 10);
        }
        assert_eq!(shared.changes.len(), SPARE + 20);
        assert_eq!(shared.numbers.len(), SPARE + 20);
        assert_eq!(shared.since(79), None);
        assert_eq!(shared.since(80).unwrap().len(), SPARE + 20);
    }
}
