//! What a load costs that no cache has: figures with many flows are read beside it.

use std::hint::black_box;
use std::time::Instant;

/// Elements of the ring, four bytes each: more than any cache holds.
const ELEMENTS: u32 = 32 << 20;
/// Loads of one sample, each of which needs the one before it.
const LOADS: u32 = 1 << 20;
const SAMPLES: usize = 20;

/// Nanoseconds of a load, by samples.
pub(crate) fn cold_loads() -> Vec<f64> {
    // One ring through all elements, in random order (Sattolo).
    let mut next: Vec<u32> = (0..ELEMENTS).collect();
    let mut random = 1_u64;
    for last in (1..ELEMENTS).rev() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let other = ((random >> 32) * u64::from(last)) >> 32;
        next.swap(last as usize, other as usize);
    }
    let mut at = 0;
    let sample = |_| {
        let start = Instant::now();
        for _ in 0..LOADS {
            at = next[at as usize];
        }
        black_box(at);
        start.elapsed().as_nanos() as f64 / f64::from(LOADS)
    };
    (0..SAMPLES).map(sample).collect()
}
