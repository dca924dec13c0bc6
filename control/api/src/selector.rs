//! Label and field selectors: parsing, matching, and the rules for a
//! LabelSelector in an object. Not an index. Called by controllers, by list and
//! watch, and by `foil`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::invalid::{Causes, Field};
use crate::{meta, name};

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// The label is there with one of these values.
    In(Vec<String>),
    /// The label is absent, or has none of these values.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// All requirements must hold; none selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

/// A selector that does not parse. `part` is what was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse selector at {part:?}: {reason}")]
pub struct SelectorError {
    pub part: String,
    pub reason: String,
}

impl Selector {
    /// Text as `foil -l` and the API take it: `a=b,c!=d,e in (f,g),h,!i`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split(text) {
            let part = part.trim();
            if !part.is_empty() {
                requirements.push(requirement(part)?);
            }
        }
        Ok(Self { requirements })
    }

    /// From a plain map, as Services have it. An empty map selects everything
    /// here; for a Service it means that no controller manages its endpoints.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirements = map
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.clone()]),
            })
            .collect();
        Self { requirements }
    }

    /// From a selector that was validated; unknown operators match nothing.
    pub fn from_label_selector(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.clone().unwrap_or_default();
        let mut all = Self::from_map(&labels);
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let operator = match expression.operator.as_str() {
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "In" => Operator::In(values),
                _unknown => Operator::In(Vec::new()),
            };
            all.requirements.push(Requirement {
                key: expression.key.clone(),
                operator,
            });
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether labels, looked up by key, satisfy all requirements.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| {
            let value = label(&r.key);
            match &r.operator {
                Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
                Operator::NotIn(values) => !value.is_some_and(|v| values.iter().any(|x| x == v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// Matches the labels of an object of any kind.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_by(|key| meta::label(object, key))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.operator {
                Operator::In(values) => match values.as_slice() {
                    [only] => write!(f, "{key}={only}")?,
                    several => write!(f, "{key} in ({})", several.join(","))?,
                },
                Operator::NotIn(values) => match values.as_slice() {
                    [only] => write!(f, "{key}!={only}")?,
                    several => write!(f, "{key} notin ({})", several.join(","))?,
                },
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// At commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, SelectorError> {
    let fail = |reason: String| SelectorError {
        part: part.to_owned(),
        reason,
    };
    let (key, operator) = if let Some((key, value)) = part.split_once("!=") {
        (key, Operator::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Operator::In(vec![value.trim().to_owned()]))
    } else if let Some(key) = part.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else if let Some((key, rest)) = part.split_once(char::is_whitespace) {
        let (word, list) = rest
            .trim()
            .split_once('(')
            .ok_or_else(|| fail("expected 'in (...)', 'notin (...)', '=' or '!='".to_owned()))?;
        let list = list
            .strip_suffix(')')
            .ok_or_else(|| fail("the list of values has no ')'".to_owned()))?;
        let values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
        match word.trim() {
            "in" => (key, Operator::In(values)),
            "notin" => (key, Operator::NotIn(values)),
            other => return Err(fail(format!("unknown operator {other:?}"))),
        }
    } else {
        (part, Operator::Exists)
    };
    let key = key.trim();
    name::qualified(key).map_err(fail)?;
    if let Operator::In(values) | Operator::NotIn(values) = &operator {
        for value in values {
            name::label_value(value).map_err(fail)?;
        }
    }
    Ok(Requirement {
        key: key.to_owned(),
        operator,
    })
}

/// Conditions on fields: `status.phase!=Running,spec.nodeName=n`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Path, value, and whether it must be equal (or must differ).
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) =
                part.split_once("==").or_else(|| part.split_once('='))
            {
                (path, value, true)
            } else {
                let reason = "expected '=', '==' or '!='".to_owned();
                return Err(SelectorError {
                    part: part.to_owned(),
                    reason,
                });
            };
            terms.push((path.trim().to_owned(), value.trim().to_owned(), equal));
        }
        Ok(Self { terms })
    }

    /// An absent field reads as "". Fields are found by their path in the object.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(path, value, equal)| {
            let found = path.split('.').try_fold(object, |at, step| at.get(step));
            let found = match found {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Bool(b)) => b.to_string(),
                Some(Value::Number(n)) => n.to_string(),
                Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => String::new(),
            };
            (found == *value) == *equal
        })
    }
}

/// Rules for a LabelSelector in an object.
pub(crate) fn validate(selector: &LabelSelector, at: &Field, causes: &mut Causes) {
    meta::validate_labels(
        selector.match_labels.as_ref(),
        &at.child("matchLabels"),
        causes,
    );
    for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let at = at.child("matchExpressions").index(i);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                causes.required(&at.child("values"), detail);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.forbidden(&at.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => causes.invalid(
                &at.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        if let Err(detail) = name::qualified(&expression.key) {
            causes.invalid(&at.child("key"), &expression.key, detail);
        }
        for (j, value) in values.iter().enumerate() {
            if let Err(detail) = name::label_value(value) {
                causes.invalid(&at.child("values").index(j), value, detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn selects_by_labels() {
        let rows = [
            ("", "", true),
            ("a=b", "a=b,c=d", true),
            ("a==b", "a=c", false),
            ("a=", "a=", true),
            ("a!=b", "c=d", true),
            ("a!=b", "a=b", false),
            ("a", "a=x", true),
            ("a", "b=x", false),
            ("!a", "b=x", true),
            ("!a", "a=x", false),
            ("e in (f, g)", "e=g", true),
            ("e in (f,g)", "e=h", false),
            ("e notin (f,g)", "", true),
            ("e notin (f,g),a=b", "e=f,a=b", false),
            (
                "app.kubernetes.io/name=web , tier in (x)",
                "app.kubernetes.io/name=web,tier=x",
                true,
            ),
        ];
        for (selector, text, expected) in rows {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(
                parsed.matches(&labels(text)),
                expected,
                "{selector:?} on {text:?}"
            );
            let again = Selector::parse(&parsed.to_string()).unwrap();
            assert_eq!(again, parsed, "{selector:?} is read back from its own text");
        }
    }

    #[test]
    fn refuses_what_is_no_selector() {
        let rows = [
            "a b", "a in f", "a in (f", "=x", "-a=b", "a=b c", "a is (b)", "a=@",
        ];
        for text in rows {
            assert!(Selector::parse(text).is_err(), "{text:?}");
        }
        assert!(FieldSelector::parse("spec.nodeName").is_err());
    }

    #[test]
    fn selects_by_fields() {
        let pod = serde_json::json!({
            "metadata": {"name": "p"}, "spec": {"nodeName": "n", "hostNetwork": true},
            "status": {"phase": "Running"}
        });
        let rows = [
            ("metadata.name=p", true),
            ("metadata.name==q", false),
            ("status.phase!=Running", false),
            ("spec.nodeName=n,status.phase=Running", true),
            ("spec.hostNetwork=true", true),
            ("status.podIP=", true),
            ("", true),
        ];
        for (text, expected) in rows {
            assert_eq!(
                FieldSelector::parse(text).unwrap().matches(&pod),
                expected,
                "{text:?}"
            );
        }
    }
}
