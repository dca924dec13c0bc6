//! Writes JSON: strings, and percentiles of samples.

/// A JSON string, quoted.
pub(crate) fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// `{"min":..,"p50":..,"p90":..,"p99":..,"max":..,"mean":..}` of sorted samples.
pub(crate) fn percentiles(sorted: &[u64]) -> String {
    let at = |percent: usize| {
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
    };
    let fields: Vec<String> = [
        ("min", 0),
        ("p50", 50),
        ("p90", 90),
        ("p99", 99),
        ("max", 100),
    ]
    .iter()
    .map(|(name, percent)| format!("\"{name}\":{}", at(*percent).copied().unwrap_or(0)))
    .collect();
    let mean = sorted
        .iter()
        .sum::<u64>()
        .checked_div(sorted.len() as u64)
        .unwrap_or(0);
    format!("{{{},\"mean\":{mean}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_percentiles() {
        assert_eq!(string("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
        let samples: Vec<u64> = (1..=100).collect();
        assert_eq!(
            percentiles(&samples),
            r#"{"min":1,"p50":51,"p90":91,"p99":100,"max":100,"mean":50}"#
        );
        assert_eq!(
            percentiles(&[]),
            r#"{"min":0,"p50":0,"p90":0,"p99":0,"max":0,"mean":0}"#
        );
    }
}
