//! Whose an entry of the flow map is, and how many a pod may have.
//!
//! A full map evicts the least recently used entries, so a flood must not fill it: while the sweep
//! runs, an owner may have as many entries as are free. One pod alone gets half of the map; of two
//! that flood each gets a third, and a third stays free for all others. Called by
//! `stage/entry.rs`, `stage/create.rs`, `hook/flow_sweep.rs` and `agent-sys`.

use crate::conntrack::elapsed;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey, FlowUsage, SCOPE_HOST};

/// Entries of a connection: one for each direction.
const CONNECTION: u64 = 2;
/// Difference between two counts that changes under way can make: an entry is made, or removed,
/// before it is counted.
const TOLERANCE: i64 = 64;

/// Who an entry is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<A> {
    /// Interface of a pod, or `SCOPE_HOST`: the node.
    pub ifindex: u32,
    /// Address of the pod; of the node zero.
    pub addr: A,
}

/// The pod that has opened the connection, else the pod that it goes to, else the node. The same
/// for both entries of a connection.
#[inline(always)]
pub const fn owner<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> Owner<A> {
    let sender = Owner {
        ifindex: key.from(),
        addr: key.src,
    };
    let receiver = Owner {
        ifindex: flow.answered_from(),
        addr: flow.dst,
    };
    let (first, second) = if flow.is_reply() {
        (receiver, sender)
    } else {
        (sender, receiver)
    };
    if first.ifindex > SCOPE_HOST {
        first
    } else if second.ifindex > SCOPE_HOST {
        second
    } else {
        Owner {
            ifindex: SCOPE_HOST,
            addr: A::UNSPECIFIED,
        }
    }
}

/// Seconds without a pass of the sweep, of which one begins every ten, after which counts are not
/// believed any more.
const SWEPT: u32 = 120;

/// Which entries an owner may still have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Any.
    All,
    /// Those of connections that do not work without.
    Needed,
    /// None.
    None,
}

/// What an owner with `used` entries may still have, when `all` of the map's `size` entries are in
/// use. What works without an entry, as everything from outside does that the stack forwards, takes
/// a fourth of the owner's share at most: or a flood of it would end the pod's own connections.
#[inline(always)]
pub const fn share_left(used: u64, all: u64, size: u32) -> Share {
    let free = free(all, size);
    if used * 4 + CONNECTION <= free {
        Share::All
    } else if used + CONNECTION <= free {
        Share::Needed
    } else {
        Share::None
    }
}

/// Whether the sweep runs, so that ended connections give their entries back and counts are right.
/// Without an agent a full map evicts the least recently used entry.
#[inline(always)]
pub const fn is_swept(now: u32, swept: u32, jiffies_per_second: u32) -> bool {
    elapsed(now, swept) < SWEPT * jiffies_per_second
}

/// Entries that are free, which is what each owner may have.
#[inline(always)]
pub const fn free(all: u64, size: u32) -> u64 {
    (size as u64).saturating_sub(all)
}

/// Whether the owner is about to be refused: it has four fifths of what it may have.
pub const fn is_near(used: u64, all: u64, size: u32) -> bool {
    used * 5 >= free(all, size) * 4
}

/// Whether so little is free that a pod with a usual number of connections may be refused soon.
pub const fn is_nearly_full(all: u64, size: u32) -> bool {
    all * 5 >= size as u64 * 4
}

/// What has to be added to a count so that it may be right: `seen` entries were counted one by
/// one while it went from `before` to `after`. What was made or removed meanwhile may have been
/// seen or not, so the count is changed only if it cannot be right, and by the least that can be.
pub const fn correction(before: FlowUsage, after: FlowUsage, seen: u64) -> i64 {
    let made = after.made.wrapping_sub(before.made) as i64;
    let removed = after.removed.wrapping_sub(before.removed) as i64;
    let excess = before.made.wrapping_sub(before.removed) as i64 - seen as i64;
    let (least, most) = (excess - removed - TOLERANCE, excess + made + TOLERANCE);
    if made == 0 && removed == 0 {
        -excess
    } else if least > 0 {
        -least
    } else if most < 0 {
        -most
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::MapType as _;
    use ebpf_common::conntrack::{Flow4, FlowKey4, SCOPE_NETDEV, action, scope};
    use ebpf_common::net::{Be32, protocol};
    use proptest::prelude::*;

    fn allows(used: u64, all: u64, size: u32) -> bool {
        share_left(used, all, size) != Share::None
    }

    #[test]
    fn what_needs_no_entry_takes_a_part_of_the_share() {
        assert_eq!(share_left(99, 600, 1000), Share::All);
        assert_eq!(share_left(100, 600, 1000), Share::Needed);
        assert_eq!(share_left(398, 600, 1000), Share::Needed);
        assert_eq!(share_left(399, 600, 1000), Share::None);
    }

    #[test]
    fn counts_are_believed_while_the_sweep_runs() {
        assert!(is_swept(100, u32::MAX, 250) && is_swept(29_999, 0, 250));
        assert!(!is_swept(30_000, 0, 250));
    }

    const POD: u32 = 5;
    const OTHER: u32 = 6;
    const UPLINK: u32 = 2;

    fn key(from: u32) -> FlowKey4 {
        FlowKey4 {
            src: Be32::new(1),
            scope: scope(from, protocol::TCP),
            ..FlowKey4::zeroed()
        }
    }

    fn flow(action: u8, ifindex: u32) -> Flow4 {
        Flow4 {
            action,
            ifindex,
            dst: Be32::new(2),
            ..Flow4::zeroed()
        }
    }

    #[test]
    fn both_directions_have_one_owner() {
        use action::*;
        // (from, action, interface) of the connection's own direction, of the answers, the owner,
        // and whether it is the one that has opened the connection.
        for (own, answers, ifindex, opener) in [
            // Pod to pod of this node.
            ((POD, PEER, OTHER), (OTHER, PEER, POD), POD, true),
            // Pod to another node.
            (
                (POD, NEIGH | ANSWERS_NETDEV, UPLINK),
                (SCOPE_NETDEV, PEER, POD),
                POD,
                true,
            ),
            // Pod to outside, by the stack.
            (
                (POD, PASS | ANSWERS_HOST, 0),
                (SCOPE_HOST, PASS, POD),
                POD,
                true,
            ),
            // From outside to a pod, by the stack.
            (
                (SCOPE_HOST, PASS, POD),
                (POD, PASS | ANSWERS_HOST, 0),
                POD,
                false,
            ),
            // The node to a service with a backend here, on another node, and in its own network.
            (
                (SCOPE_HOST, POD_NEIGH, POD),
                (POD, SERVICE | ANSWERS_HOST, 9),
                POD,
                false,
            ),
            (
                (SCOPE_HOST, NEIGH | ANSWERS_NETDEV, UPLINK),
                (SCOPE_NETDEV, SERVICE | ANSWERS_HOST, 9),
                SCOPE_HOST,
                true,
            ),
            (
                (SCOPE_HOST, SERVICE | ANSWERS_HOST, 9),
                (SCOPE_HOST, SERVICE | ANSWERS_HOST, 9),
                SCOPE_HOST,
                true,
            ),
        ] {
            let found = owner(&key(own.0), &flow(own.1, own.2));
            let back = owner(&key(answers.0), &flow(answers.1 | REPLY, answers.2));
            assert_eq!((found.ifindex, back.ifindex), (ifindex, ifindex), "{own:?}");
            if ifindex != SCOPE_HOST {
                let addrs = if opener { (1, 2) } else { (2, 1) };
                assert_eq!((found.addr.get(), back.addr.get()), addrs, "{own:?}");
            }
        }
        // From another node: one entry, and none for the answers.
        let found = owner(&key(SCOPE_NETDEV), &flow(PEER, POD));
        assert_eq!(found.ifindex, POD);
    }

    /// Each of `floods` pods takes what it gets; returns how many entries each has.
    fn flood(size: u32, floods: usize) -> (u64, u64) {
        let mut used = [0u64; 8];
        let mut all = 0;
        loop {
            let mut added = false;
            for used in &mut used[..floods] {
                if allows(*used, all, size) {
                    *used += CONNECTION;
                    all += CONNECTION;
                    added = true;
                }
            }
            if !added {
                return (used[0], all);
            }
        }
    }

    #[test]
    fn what_floods_leave_is_as_much_as_each_of_them_has() {
        for floods in 1..=8 {
            let (each, all) = flood(100_000, floods);
            let share = 100_000 / (floods as u64 + 1);
            assert!(each.abs_diff(share) <= 4, "{floods}: {each}");
            assert!(allows(each - 8, all, 100_000) && allows(0, all, 100_000));
            assert!(!allows(each, all, 100_000));
            assert!(is_near(each, all, 100_000));
        }
        assert!(!allows(0, 100, 100) && !allows(0, 99, 100) && allows(0, 98, 100));
        // A count that is wrong.
        assert!(!allows(0, 200, 100));
        assert!(!is_near(399, 500, 1_000) && is_near(400, 500, 1_000));
        assert!(!is_nearly_full(799, 1_000) && is_nearly_full(800, 1_000));
    }

    #[test]
    fn a_count_that_is_wrong_is_put_right() {
        let count = |made, removed| FlowUsage {
            made,
            removed,
            swept: 0,
        };
        // (before, after, seen, correction)
        for (before, after, seen, wanted) in [
            (count(10, 4), count(10, 4), 6, 0),
            (count(10, 4), count(10, 4), 5, -1),
            (count(10, 4), count(10, 4), 7, 1),
            (count(0, 4), count(0, 4), 7, 11),
            // 100 too many, while 30 were made and 5 removed.
            (count(200, 0), count(230, 5), 100, -(100 - 5 - TOLERANCE)),
            (count(200, 0), count(230, 5), 400, 200 - 30 - TOLERANCE),
            (count(200, 0), count(230, 5), 210, 0),
            (count(200, 0), count(230, 5), 190, 0),
        ] {
            assert_eq!(
                correction(before, after, seen),
                wanted,
                "{before:?} {after:?} {seen}"
            );
        }
    }

    proptest! {
        /// A count that is right is not changed, whatever of the changes was seen; one that is
        /// wrong does not get worse.
        #[test]
        fn a_correction_never_harms(
            there in 0u64..10_000,
            made in 0u64..10_000,
            part in 0.0f64..=1.0,
            other_part in 0.0f64..=1.0,
            removed_part in 0.0f64..=1.0,
            drift in -10_000i64..10_000,
        ) {
            let removed = ((there + made) as f64 * removed_part) as u64;
            let seen = there + (made as f64 * part) as u64;
            let seen = seen.saturating_sub((removed as f64 * other_part) as u64);
            let seen = seen.max(there.saturating_sub(removed));
            let before = FlowUsage { made: there.wrapping_add_signed(drift), ..FlowUsage::default() };
            let after = FlowUsage { made: before.made.wrapping_add(made), removed, swept: 0 };
            let by = correction(before, after, seen);
            prop_assert!((drift + by).abs() <= drift.abs());
            prop_assert!(by == 0 || by.signum() == -drift.signum());
        }
    }
}
