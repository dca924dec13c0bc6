//! How long ago, in the few characters that `kubectl` users read at a glance.
//!
//! Not a general duration format: the precision falls with the size, so that a
//! column stays narrow. Called by printers and describers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What a cell says when there is no time to speak of.
pub(crate) const UNKNOWN: &str = "<unknown>";

/// "45s", "3m12s", "5h", "2d3h", "340d", "2y10d".
pub(crate) fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// Two units, or the larger alone when the smaller is nought.
fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

/// Time since `then`, or `<unknown>` without one.
pub(crate) fn since(then: Option<&Time>, now: Timestamp) -> String {
    match then {
        Some(then) => human(now.as_second() - then.0.as_second()),
        None => UNKNOWN.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (3600 * 7 + 60, "7h1m"),
            (3600 * 8, "8h"),
            (3600 * 47, "47h"),
            (3600 * 48, "2d"),
            (3600 * 51, "2d3h"),
            (3600 * 24 * 8, "8d"),
            (3600 * 24 * 729, "729d"),
            (3600 * 24 * 735, "2y5d"),
            (3600 * 24 * 3000, "8y"),
        ] {
            assert_eq!(human(seconds), want, "{seconds}");
        }
    }
}
