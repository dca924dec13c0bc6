//! The scheduler's score: of the nodes that can take a pod, the best one.
//!
//! The most left of CPU and memory, and few pods of the same owner. Called by
//! `schedule.rs`.

use k8s_openapi::api::core::v1::Pod;

use crate::hash::fnv64;
use crate::object;
use crate::place::{Place, Places};
use crate::usage::Usage;

/// Index of the best of these nodes; each comes with the number of pods of the same
/// owner that it has.
pub(crate) fn best(
    pod: &Pod,
    asked: &Usage,
    fit: Vec<(usize, u32)>,
    places: &mut Places<'_>,
) -> Option<usize> {
    let most = fit.iter().map(|(_, same)| *same).max().unwrap_or(0);
    let best = fit.into_iter().max_by_key(|(at, same)| {
        let place = places.get(*at);
        let spread = (most - same) * 100 / most.max(1);
        let score = least_allocated(place, asked) + u64::from(spread) * 2;
        // Equal nodes: the one with fewer pods, then any, but not always the same.
        let any = fnv64(&[object::uid(&pod.metadata).as_bytes(), place.name.as_bytes()]);
        (score, std::cmp::Reverse(place.used.pods), any)
    });
    best.map(|(at, _)| at)
}

/// 0 to 100: the mean of the parts of CPU and memory that would be left.
fn least_allocated(place: &Place<'_>, asked: &Usage) -> u64 {
    let left = |offered: u64, used: u64, asked: u64| {
        let free = offered.saturating_sub(used.saturating_add(asked));
        u128::from(free) * 100 / u128::from(offered.max(1))
    };
    let cpu = left(
        place.offered.scored_cpu,
        place.used.scored_cpu,
        asked.scored_cpu,
    );
    let memory = left(
        place.offered.scored_memory,
        place.used.scored_memory,
        asked.scored_memory,
    );
    u64::try_from(u128::midpoint(cpu, memory)).unwrap_or(0)
}
