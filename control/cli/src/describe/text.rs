//! Lines of "Name:   value", aligned, in nested sections.
//!
//! The value column of a section stands behind its longest name; a nested
//! section is indented by two and has a column of its own.

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::output::table::Table;

/// A text that is being put together.
#[derive(Debug, Default)]
pub(crate) struct Text {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    /// As it is.
    Plain(String),
    /// Name and value, to be aligned with its neighbours of the same depth.
    Pair {
        depth: usize,
        name: String,
        value: String,
    },
}

impl Text {
    /// A line as it is, indented.
    pub(super) fn line(&mut self, depth: usize, line: &str) {
        self.lines
            .push(Line::Plain(format!("{}{line}", "  ".repeat(depth))));
    }

    /// "Name:  value"; several values stand below each other.
    pub(super) fn pair(&mut self, depth: usize, name: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default().to_string();
        self.lines.push(Line::Pair {
            depth,
            name: format!("{name}:"),
            value: first,
        });
        for more in lines {
            self.lines.push(Line::Pair {
                depth,
                name: String::new(),
                value: more.to_string(),
            });
        }
    }

    /// The heading of a nested section.
    pub(super) fn section(&mut self, depth: usize, name: &str) {
        self.line(depth, &format!("{name}:"));
    }

    /// A table, indented.
    pub(super) fn table(&mut self, depth: usize, rows: Vec<Vec<String>>) {
        let mut table = Table::default();
        rows.into_iter().for_each(|row| table.row(row));
        let mut bytes = Vec::new();
        // A Vec takes all that it is given.
        if table.flush(&mut bytes).is_ok() {
            for line in String::from_utf8_lossy(&bytes).lines() {
                self.line(depth, line);
            }
        }
    }

    /// Another text, a section deeper.
    pub(super) fn deeper(&mut self, inner: Self) {
        self.lines
            .extend(inner.lines.into_iter().map(|line| match line {
                Line::Plain(text) => Line::Plain(format!("  {text}")),
                Line::Pair { depth, name, value } => Line::Pair {
                    depth: depth + 1,
                    name,
                    value,
                },
            }));
    }

    /// The whole text.
    pub(crate) fn finish(self) -> String {
        let mut out = String::new();
        for (index, line) in self.lines.iter().enumerate() {
            match line {
                Line::Plain(text) => out.push_str(text.trim_end()),
                Line::Pair { depth, name, value } => {
                    let width = self.width(index, *depth);
                    // Writing to a String does not fail.
                    if write!(
                        out,
                        "{:indent$}{name:<width$}  {value}",
                        "",
                        indent = depth * 2
                    )
                    .is_ok()
                    {
                        out.truncate(out.trim_end_matches(' ').len());
                    }
                }
            }
            out.push('\n');
        }
        out
    }

    /// Longest name among the pairs of this section: those of the same depth,
    /// until a line of a lesser one.
    fn width(&self, index: usize, depth: usize) -> usize {
        let within = |line: &&Line| match line {
            Line::Pair { depth: other, .. } => *other >= depth,
            Line::Plain(text) => {
                text.len() - text.trim_start().len() >= depth * 2 && (depth > 0 || !text.is_empty())
            }
        };
        let name_of = |line: &Line| match line {
            Line::Pair {
                depth: other, name, ..
            } if *other == depth => name.chars().count(),
            Line::Pair { .. } | Line::Plain(_) => 0,
        };
        let before = self
            .lines
            .get(..index)
            .unwrap_or_default()
            .iter()
            .rev()
            .take_while(within);
        let after = self
            .lines
            .get(index..)
            .unwrap_or_default()
            .iter()
            .take_while(within);
        before.chain(after).map(name_of).max().unwrap_or(0)
    }
}

/// A time in the form of RFC 5322, in UTC.
pub(super) fn time(time: Option<&Time>) -> String {
    time.map_or_else(
        || "<unknown>".into(),
        |time| time.0.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_have_their_own_columns() {
        let mut text = Text::default();
        text.pair(0, "Name", "a");
        text.pair(0, "Labels", "x=1\ny=2");
        text.section(0, "Containers");
        text.section(1, "app");
        text.pair(2, "Image", "i");
        text.pair(2, "Restart Count", "0");
        text.section(1, "log");
        text.pair(2, "Image", "j");
        text.pair(0, "QoS", "");
        assert_eq!(
            text.finish(),
            "Name:    a\nLabels:  x=1\n         y=2\nContainers:\n  app:\n    Image:          i\n    Restart Count:  0\n  log:\n    Image:  j\nQoS:\n"
        );
    }
}
