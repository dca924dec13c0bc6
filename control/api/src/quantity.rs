//! Quantities: "100m", "1.5Gi", "1e3". Exact, in nanounits. Not what they are
//! quantities of. Called by rules, by the scheduler and by `proto`'s convert.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Nanounits in one unit.
const NANO: i128 = 1_000_000_000;

/// An amount, exact to a billionth. Compares by value, not by how it is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    suffix: Suffix,
}

/// How it is written, which Kubernetes keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Suffix {
    /// n u m, none, k M G T P E
    #[default]
    Decimal,
    /// Ki Mi Gi Ti Pi Ei
    Binary,
    /// e3
    Exponent,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Not a quantity; the sentence is Kubernetes'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression \
     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct QuantityError;

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

impl Quantity {
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let end = text
            .char_indices()
            .find(|(i, c)| {
                !(c.is_ascii_digit() || *c == '.' || (*i == 0 && matches!(c, '+' | '-')))
            })
            .map_or(text.len(), |(i, _)| i);
        let (number, unit) = text.split_at(end);
        let negative = number.starts_with('-');
        let number = number.trim_start_matches(['+', '-']);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (suffix, scale) = unit_of(unit)?;
        let digits = format!("{whole}{fraction}");
        let mantissa: i128 = if digits.is_empty() {
            0
        } else {
            digits.parse().map_err(|_too_long| QuantityError)?
        };
        let places = i32::try_from(fraction.len()).map_err(|_too_long| QuantityError)?;
        let nanos = scale.nanos(mantissa, places).ok_or(QuantityError)?;
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            suffix,
        })
    }

    /// Of an API object; `None` if it does not parse (it was refused then).
    pub fn of(text: &Text) -> Option<Self> {
        Self::parse(&text.0).ok()
    }

    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            suffix: Suffix::Decimal,
        }
    }

    /// Whole units, rounded up. Negative amounts are 0.
    pub fn units(&self) -> u64 {
        ceil(self.nanos, NANO)
    }

    /// Thousandths, rounded up: CPUs to millicores. Negative amounts are 0.
    pub fn millis(&self) -> u64 {
        ceil(self.nanos, NANO / 1000)
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// A whole number of thousandths.
    pub fn is_milli(&self) -> bool {
        self.nanos % (NANO / 1000) == 0
    }

    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
}

/// Not below zero, saturating.
fn ceil(nanos: i128, unit: i128) -> u64 {
    let nanos = nanos.max(0);
    let whole = nanos / unit + i128::from(nanos % unit != 0);
    u64::try_from(whole).unwrap_or(u64::MAX)
}

enum Scale {
    Ten(i32),
    Two(u32),
}

impl Scale {
    /// `mantissa` with so many decimal places, in nanos, rounded up to a nano.
    fn nanos(&self, mantissa: i128, places: i32) -> Option<i128> {
        match self {
            Self::Ten(exponent) => {
                let exponent = exponent + 9 - places;
                if exponent >= 0 {
                    let factor = 10_i128.checked_pow(exponent.unsigned_abs())?;
                    return mantissa.checked_mul(factor);
                }
                let Some(divisor) = 10_i128.checked_pow(exponent.unsigned_abs()) else {
                    return Some(i128::from(mantissa != 0));
                };
                Some(mantissa / divisor + i128::from(mantissa % divisor != 0))
            }
            Self::Two(bits) => {
                let scaled = mantissa.checked_mul(1_i128 << bits)?.checked_mul(NANO)?;
                let divisor = 10_i128.checked_pow(places.unsigned_abs())?;
                Some(scaled / divisor + i128::from(scaled % divisor != 0))
            }
        }
    }
}

fn unit_of(unit: &str) -> Result<(Suffix, Scale), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == unit) {
        return Ok((Suffix::Decimal, Scale::Ten(*exponent)));
    }
    if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == unit) {
        return Ok((Suffix::Binary, Scale::Two(*bits)));
    }
    let exponent = unit.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent: i32 = exponent.parse().map_err(|_not_a_number| QuantityError)?;
    if exponent.abs() > 24 {
        return Err(QuantityError);
    }
    Ok((Suffix::Exponent, Scale::Ten(exponent)))
}

/// Kubernetes' canonical form: the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.suffix == Suffix::Binary && self.is_whole() {
            let units = self.nanos / NANO;
            let fits = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| units % (1_i128 << bits) == 0);
            return match fits {
                Some((name, bits)) => write!(f, "{}{name}", units >> bits),
                None => write!(f, "{units}"),
            };
        }
        for (name, exponent) in DECIMAL.iter().rev() {
            let unit = 10_i128.pow((exponent + 9).unsigned_abs());
            if self.nanos % unit == 0 {
                let number = self.nanos / unit;
                return match (self.suffix, *exponent) {
                    (Suffix::Exponent, 0) => write!(f, "{number}"),
                    (Suffix::Exponent, exponent) => write!(f, "{number}e{exponent}"),
                    (Suffix::Decimal | Suffix::Binary, _) => write!(f, "{number}{name}"),
                };
            }
        }
        Ok(())
    }
}

/// Rewrites a quantity of an object to its canonical form; leaves what does not parse.
pub(crate) fn canonicalise(text: &mut Text) {
    if let Some(quantity) = Quantity::of(text) {
        text.0 = quantity.to_string();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_writes_as_kubernetes_does() {
        let rows: [(&str, u64, u64, &str); 19] = [
            ("0", 0, 0, "0"),
            ("1", 1, 1000, "1"),
            ("100m", 1, 100, "100m"),
            ("0.1", 1, 100, "100m"),
            (".5", 1, 500, "500m"),
            ("1000m", 1, 1000, "1"),
            ("1.5", 2, 1500, "1500m"),
            ("1k", 1000, 1_000_000, "1k"),
            ("1000k", 1_000_000, 1_000_000_000, "1M"),
            ("1Ki", 1024, 1_024_000, "1Ki"),
            ("1024Mi", 1 << 30, (1 << 30) * 1000, "1Gi"),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000, "1536Mi"),
            ("128974848", 128_974_848, 128_974_848_000, "128974848"),
            ("129e6", 129_000_000, 129_000_000_000, "129e6"),
            ("1E3", 1000, 1_000_000, "1e3"),
            ("1E", 1_000_000_000_000_000_000, u64::MAX, "1E"),
            ("1u", 1, 1, "1u"),
            ("-1", 0, 0, "-1"),
            ("+2", 2, 2000, "2"),
        ];
        for (text, units, millis, canonical) in rows {
            let q = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(q.units(), units, "{text} in units");
            assert_eq!(q.millis(), millis, "{text} in thousandths");
            assert_eq!(q.to_string(), canonical, "{text} written");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "", "a", "1Kib", "1 Mi", "1mm", "--1", "1.2.3", ".", "1e", "1e99", "Mi",
        ] {
            assert_eq!(Quantity::parse(text), Err(QuantityError), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn canonical_form_has_the_same_value(number in 0_u64..1_000_000_000, unit in 0_usize..16) {
            let units: Vec<&str> =
                DECIMAL.iter().map(|d| d.0).chain(BINARY.iter().map(|b| b.0)).collect();
            let q = Quantity::parse(&format!("{number}{}", units[unit])).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            prop_assert_eq!(q.nanos, again.nanos);
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let parsed = Quantity::parse(&text);
            prop_assert!(parsed.map(|q| q.to_string().len()).unwrap_or(1) > 0);
        }
    }
}
