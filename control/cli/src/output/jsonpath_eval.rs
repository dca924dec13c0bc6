//! JSONPath templates in the dialect of `kubectl`: evaluation.
//!
//! What is missing gives nothing and is no error, as `kubectl get` has it.
//! Called by the output formats, custom columns, and `wait --for=jsonpath`.

use serde_json::Value;

use super::jsonpath::{Compare, Node, Operand, Step, Template};

impl Template {
    /// The text that the template makes of a value.
    pub(crate) fn render(&self, value: &Value) -> String {
        let mut out = String::new();
        render(&self.nodes, value, value, &mut out);
        out
    }

    /// The values that the template's paths find, without its texts.
    pub(crate) fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        self.nodes
            .iter()
            .flat_map(|node| match node {
                Node::Path(path) => walk(path, value, value),
                Node::Text(_) | Node::Range(..) => Vec::new(),
            })
            .collect()
    }
}

fn render(nodes: &[Node], root: &Value, current: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                let found: Vec<String> =
                    walk(path, root, current).into_iter().map(text_of).collect();
                out.push_str(&found.join(" "));
            }
            Node::Range(path, inner) => {
                for item in walk(path, root, current) {
                    render(inner, root, item, out);
                }
            }
        }
    }
}

/// Strings as they are, all else as JSON.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

fn walk<'v>(path: &[Step], root: &'v Value, start: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![start];
    for step in path {
        found = found
            .into_iter()
            .flat_map(|value| take(step, root, value))
            .collect();
    }
    found
}

fn take<'v>(step: &Step, root: &'v Value, value: &'v Value) -> Vec<&'v Value> {
    match step {
        Step::Root => vec![root],
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Wildcard => children(value),
        Step::Descend => {
            let mut all = vec![value];
            for child in children(value) {
                all.extend(take(step, root, child));
            }
            all
        }
        Step::Index(index) => value
            .as_array()
            .and_then(|items| items.get(absolute(*index, items.len())))
            .into_iter()
            .collect(),
        Step::Slice { start, end, step } => slice(value, *start, *end, *step),
        Step::Union(members) => members
            .iter()
            .flat_map(|member| take(member, root, value))
            .collect(),
        Step::Filter { left, compare } => children(value)
            .into_iter()
            .filter(|item| passes(left, compare.as_ref(), root, item))
            .collect(),
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// Negative ones count from the end; out of range stays out of range.
fn absolute(index: i64, len: usize) -> usize {
    let from_start = if index < 0 {
        i64::try_from(len).unwrap_or(i64::MAX) + index
    } else {
        index
    };
    usize::try_from(from_start).unwrap_or(usize::MAX)
}

fn slice(value: &Value, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<&Value> {
    let Some(items) = value.as_array() else {
        return Vec::new();
    };
    let start = start.map_or(0, |index| absolute(index, items.len()));
    let end = end.map_or(items.len(), |index| {
        absolute(index, items.len()).min(items.len())
    });
    let step = usize::try_from(step).unwrap_or(1).max(1);
    items
        .get(start..end.max(start))
        .unwrap_or_default()
        .iter()
        .step_by(step)
        .collect()
}

fn passes(
    left: &Operand,
    compare: Option<&(Compare, Operand)>,
    root: &Value,
    item: &Value,
) -> bool {
    let left = values_of(left, root, item);
    let Some((operator, right)) = compare else {
        return !left.is_empty();
    };
    let right = values_of(right, root, item);
    let (Some(left), Some(right)) = (left.first(), right.first()) else {
        return false;
    };
    let order = order_of(left, right);
    match operator {
        Compare::Equal => left == right || order == Some(std::cmp::Ordering::Equal),
        Compare::NotEqual => left != right && order != Some(std::cmp::Ordering::Equal),
        Compare::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Compare::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Compare::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Compare::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
    }
}

fn values_of(operand: &Operand, root: &Value, item: &Value) -> Vec<Value> {
    match operand {
        Operand::Literal(value) => vec![value.clone()],
        Operand::Path(path) => walk(path, root, item).into_iter().cloned().collect(),
    }
}

fn order_of(left: &Value, right: &Value) -> Option<std::cmp::Ordering> {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        (None, _) | (_, None) => Some(left.as_str()?.cmp(right.as_str()?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let pods = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "status": {"phase": "Running", "n": 1},
             "spec": {"containers": [{"name": "c1", "image": "i1"}, {"name": "c2", "image": "i2"}]}},
            {"metadata": {"name": "b"}, "status": {"phase": "Pending", "n": 3}, "spec": {"containers": [{"name": "c3", "image": "i3"}]}},
        ]});
        for (template, want) in [
            ("{.kind}", "List"),
            ("{.items[*].metadata.name}", "a b"),
            (
                "{.items[0].metadata.name}-{.items[-1].metadata.name}",
                "a-b",
            ),
            (
                "{range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}",
                "a\tRunning\nb\tPending\n",
            ),
            (
                "{range .items[*]}{range .spec.containers[*]}{.image},{end};{end}",
                "i1,i2,;i3,;",
            ),
            (
                "{.items[?(@.status.phase==\"Running\")].metadata.name}",
                "a",
            ),
            ("{.items[?(@.status.n>1)].metadata.name}", "b"),
            ("{.items[?(@.metadata.labels)].metadata.name}", "a"),
            ("{.items[?(@.status.phase!='Running')].metadata.name}", "b"),
            (
                "{.items[0].metadata.labels.app\\.kubernetes\\.io/name}",
                "x",
            ),
            ("{.items[0].metadata.labels['app.kubernetes.io/name']}", "x"),
            ("{..image}", "i1 i2 i3"),
            ("{.items[0:1].metadata.name}", "a"),
            ("{.items[5:].metadata.name}{.items[5].metadata.name}", ""),
            ("{.items[0]['metadata','status'].name}", "a"),
            ("{.missing.field}", ""),
            (
                "{.items[0].metadata.labels}",
                "{\"app.kubernetes.io/name\":\"x\"}",
            ),
            ("{range .items[*]}{$.kind} {end}", "List List "),
            ("plain", "plain"),
        ] {
            assert_eq!(
                Template::parse(template).map(|t| t.render(&pods)),
                Ok(want.to_string()),
                "{template}"
            );
        }
    }

    #[test]
    fn paths_without_braces() {
        let pod = json!({"status": {"phase": "Running"}});
        for path in ["{.status.phase}", ".status.phase", "status.phase"] {
            let template = Template::parse_path(path).unwrap();
            assert_eq!(template.find(&pod), [&json!("Running")], "{path}");
        }
    }
}
