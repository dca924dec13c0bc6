//! Samples to the line that the benchmark prints.

use serde_json::{Map, Value, json};

/// Prints `id`, `unit`, `n`, `min`, `median`, `p99` and what varies. Samples need no order.
pub(super) fn print(id: &str, unit: &str, samples: &[f64], varies: &[(&str, Value)]) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let row = summary(id, unit, sorted.len(), quantiles(&sorted), varies);
    println!("{row}");
}

/// The same from figures that are already there: min, median, p99 of `n` samples.
pub(super) fn summary(
    id: &str,
    unit: &str,
    n: usize,
    [min, median, p99]: [f64; 3],
    varies: &[(&str, Value)],
) -> Value {
    let mut row = Map::new();
    for (key, value) in [
        ("id", json!(id)),
        ("unit", json!(unit)),
        ("n", json!(n)),
        ("min", json!(rounded(min))),
        ("median", json!(rounded(median))),
        ("p99", json!(rounded(p99))),
    ] {
        row.insert(key.to_owned(), value);
    }
    for (key, value) in varies {
        row.insert((*key).to_owned(), value.clone());
    }
    Value::Object(row)
}

/// Three digits behind the point: no machine is steadier.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Median of any samples; 0 of none.
pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantiles(&sorted)[1]
}

/// min, median, p99 of sorted samples.
fn quantiles(sorted: &[f64]) -> [f64; 3] {
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    let last = sorted.len().saturating_sub(1);
    [
        at(0),
        at(sorted.len() / 2),
        at((sorted.len() * 99 / 100).min(last)),
    ]
}
