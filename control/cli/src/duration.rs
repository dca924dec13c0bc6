//! Durations as people type them: `30s`, `5m`, `1h30m`, or a number of seconds.

use std::time::Duration;

use crate::error::RequestError;

/// Reads a duration; whole milliseconds are the finest.
pub(crate) fn parse(text: &str) -> Result<Duration, RequestError> {
    let refused = || RequestError::Duration {
        text: text.to_string(),
    };
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|at| *at > 0)
            .ok_or_else(refused)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let milliseconds = match unit {
            "ms" => 1.0,
            "s" => 1000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            _ => return Err(refused()),
        };
        let number: f64 = number.parse().map_err(|_error| refused())?;
        total += Duration::try_from_secs_f64(number * milliseconds / 1000.0)
            .map_err(|_error| refused())?;
        rest = tail;
    }
    if text.is_empty() {
        Err(refused())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (text, want) in [
            ("0", Some(0)),
            ("30", Some(30_000)),
            ("30s", Some(30_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("2d", Some(172_800_000)),
            ("", None),
            ("s", None),
            ("5x", None),
            ("-5s", None),
            ("5s3", None),
        ] {
            assert_eq!(
                parse(text).ok().map(|duration| duration.as_millis()),
                want,
                "{text}"
            );
        }
    }
}
