//! JSONPath templates in the dialect of `kubectl`: parsing.
//!
//! Text stands as it is; `{...}` holds a path, a quoted text, `range PATH` or
//! `end`. Not RFC 9535: filters compare one path with one literal or path, and
//! there are no functions. Evaluation is in `jsonpath_eval.rs`.

use serde_json::Value;

/// A template that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum JsonPathError {
    #[error("jsonpath: \"{{\" at character {at} is not closed")]
    Unclosed { at: usize },
    #[error("jsonpath: unexpected {found} at character {at}")]
    Unexpected { found: String, at: usize },
    #[error("jsonpath: {{range}} without {{end}}")]
    RangeWithoutEnd,
    #[error("jsonpath: {{end}} without {{range}}")]
    EndWithoutRange,
}

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(crate) enum Node {
    Text(String),
    /// Printed with spaces between its results.
    Path(Vec<Step>),
    /// The nodes once for each result of the path.
    Range(Vec<Step>, Vec<Node>),
}

/// One step of a path.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// `$`: the whole input, also within a range.
    Root,
    Field(String),
    Wildcard,
    /// `..`: the values and all that is in them.
    Descend,
    Index(i64),
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
    },
    /// `['a','b']` or `[0,2]`.
    Union(Vec<Step>),
    Filter {
        left: Operand,
        compare: Option<(Compare, Operand)>,
    },
}

/// A side of a filter.
#[derive(Debug, PartialEq)]
pub(crate) enum Operand {
    Path(Vec<Step>),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A template ready to be evaluated.
#[derive(Debug, PartialEq)]
pub(crate) struct Template {
    pub(crate) nodes: Vec<Node>,
}

impl Template {
    /// Reads a template with braces: `{.metadata.name}{"\n"}`.
    pub(crate) fn parse(text: &str) -> Result<Self, JsonPathError> {
        let mut reader = Reader {
            chars: text.chars().collect(),
            at: 0,
        };
        let nodes = reader.nodes(false)?;
        Ok(Self { nodes })
    }

    /// Reads one path, with or without braces and leading dot, as columns and `wait` take it.
    pub(crate) fn parse_path(text: &str) -> Result<Self, JsonPathError> {
        let inner = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or(text);
        let dotted = if inner.starts_with(['.', '[', '$', '@']) {
            inner.to_string()
        } else {
            format!(".{inner}")
        };
        Self::parse(&format!("{{{dotted}}}"))
    }
}

struct Reader {
    chars: Vec<char>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let found = self.peek();
        self.at += usize::from(found.is_some());
        found
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn take_word(&mut self, word: &str) -> bool {
        let end = self.at + word.chars().count();
        let there = self
            .chars
            .get(self.at..end)
            .is_some_and(|found| found.iter().copied().eq(word.chars()));
        if there {
            self.at = end;
        }
        there
    }

    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), JsonPathError> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> JsonPathError {
        let found = self
            .peek()
            .map_or_else(|| "end".to_string(), |c| format!("{c:?}"));
        JsonPathError::Unexpected {
            found,
            at: self.at + 1,
        }
    }

    /// Until the end of the input, or of the range that it is in.
    fn nodes(&mut self, in_range: bool) -> Result<Vec<Node>, JsonPathError> {
        let mut nodes = Vec::new();
        let mut text = String::new();
        while let Some(c) = self.next() {
            if c != '{' {
                text.push(c);
                continue;
            }
            let open = self.at;
            if !text.is_empty() {
                nodes.push(Node::Text(std::mem::take(&mut text)));
            }
            self.skip_spaces();
            if self.take_word("end") {
                self.close(open)?;
                return if in_range {
                    Ok(nodes)
                } else {
                    Err(JsonPathError::EndWithoutRange)
                };
            }
            if self.take_word("range ") {
                self.skip_spaces();
                let path = self.path()?;
                self.close(open)?;
                nodes.push(Node::Range(path, self.nodes(true)?));
                continue;
            }
            if matches!(self.peek(), Some('"' | '\'')) {
                nodes.push(Node::Text(self.quoted()?));
            } else {
                nodes.push(Node::Path(self.path()?));
            }
            self.close(open)?;
        }
        if in_range {
            return Err(JsonPathError::RangeWithoutEnd);
        }
        if !text.is_empty() {
            nodes.push(Node::Text(text));
        }
        Ok(nodes)
    }

    fn close(&mut self, open: usize) -> Result<(), JsonPathError> {
        self.skip_spaces();
        match self.peek() {
            Some('}') => {
                self.at += 1;
                Ok(())
            }
            None => Err(JsonPathError::Unclosed { at: open }),
            Some(_) => Err(self.unexpected()),
        }
    }

    fn path(&mut self) -> Result<Vec<Step>, JsonPathError> {
        let mut steps = Vec::new();
        if self.take('$') {
            steps.push(Step::Root);
        } else {
            self.take('@');
        }
        loop {
            if self.take('.') {
                if self.take('.') {
                    steps.push(Step::Descend);
                    if self.peek() == Some('[') {
                        continue;
                    }
                }
                if self.take('*') {
                    steps.push(Step::Wildcard);
                } else {
                    let name = self.name();
                    // A lone "." is the input itself.
                    if !name.is_empty() {
                        steps.push(Step::Field(name));
                    }
                }
            } else if self.take('[') {
                steps.push(self.subscript()?);
            } else {
                return Ok(steps);
            }
        }
    }

    /// A field's name; a backslash keeps the dot after it.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '\\' {
                self.at += 1;
                name.extend(self.next());
            } else if c.is_alphanumeric() || matches!(c, '_' | '-' | '/') {
                name.push(c);
                self.at += 1;
            } else {
                break;
            }
        }
        name
    }

    fn subscript(&mut self) -> Result<Step, JsonPathError> {
        self.skip_spaces();
        let step = if self.take('*') {
            Step::Wildcard
        } else if self.take('?') {
            self.expect('(')?;
            let filter = self.filter()?;
            self.expect(')')?;
            filter
        } else {
            let mut members = vec![self.member()?];
            while self.take(',') {
                self.skip_spaces();
                members.push(self.member()?);
            }
            if members.len() == 1 {
                members.remove(0)
            } else {
                Step::Union(members)
            }
        };
        self.skip_spaces();
        self.expect(']')?;
        Ok(step)
    }

    /// `'name'`, `3`, `-1`, `1:3`, `::2`.
    fn member(&mut self) -> Result<Step, JsonPathError> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return Ok(Step::Field(self.quoted()?));
        }
        let start = self.integer()?;
        if !self.take(':') {
            return start.map(Step::Index).ok_or_else(|| self.unexpected());
        }
        let end = self.integer()?;
        let step = if self.take(':') {
            self.integer()?.unwrap_or(1)
        } else {
            1
        };
        if step < 1 {
            return Err(self.unexpected());
        }
        Ok(Step::Slice { start, end, step })
    }

    fn integer(&mut self) -> Result<Option<i64>, JsonPathError> {
        let mut digits = String::new();
        if self.take('-') {
            digits.push('-');
        }
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            digits.push(c);
            self.at += 1;
        }
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_error| self.unexpected())
    }

    fn filter(&mut self) -> Result<Step, JsonPathError> {
        self.skip_spaces();
        let left = self.operand()?;
        self.skip_spaces();
        const OPERATORS: [(&str, Compare); 6] = [
            ("==", Compare::Equal),
            ("!=", Compare::NotEqual),
            ("<=", Compare::LessOrEqual),
            (">=", Compare::GreaterOrEqual),
            ("<", Compare::Less),
            (">", Compare::Greater),
        ];
        let mut compare = None;
        for (word, operator) in OPERATORS {
            if self.take_word(word) {
                self.skip_spaces();
                compare = Some((operator, self.operand()?));
                self.skip_spaces();
                break;
            }
        }
        Ok(Step::Filter { left, compare })
    }

    fn operand(&mut self) -> Result<Operand, JsonPathError> {
        match self.peek() {
            Some('@' | '$' | '.') => Ok(Operand::Path(self.path()?)),
            Some('"' | '\'') => Ok(Operand::Literal(Value::String(self.quoted()?))),
            Some(_) | None => self.word_literal(),
        }
    }

    /// `true`, `null`, `3.5`.
    fn word_literal(&mut self) -> Result<Operand, JsonPathError> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '+' | '.'))
        {
            self.at += 1;
        }
        let word: String = self
            .chars
            .get(start..self.at)
            .unwrap_or_default()
            .iter()
            .collect();
        match serde_json::from_str(&word) {
            Ok(value) => Ok(Operand::Literal(value)),
            Err(_) => {
                self.at = start;
                Err(self.unexpected())
            }
        }
    }

    /// With the escapes that a shell leaves in: `\n`, `\t`, `\"`.
    fn quoted(&mut self) -> Result<String, JsonPathError> {
        let open = self.at + 1;
        let quote = self.next();
        let mut text = String::new();
        loop {
            let Some(c) = self.next() else {
                return Err(JsonPathError::Unclosed { at: open });
            };
            if Some(c) == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            match self.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(other) => text.push(other),
                None => return Err(JsonPathError::Unclosed { at: open }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused() {
        for (text, want) in [
            ("{.a", JsonPathError::Unclosed { at: 1 }),
            (
                "{.a]}",
                JsonPathError::Unexpected {
                    found: "']'".into(),
                    at: 4,
                },
            ),
            ("{range .a}x", JsonPathError::RangeWithoutEnd),
            ("{end}", JsonPathError::EndWithoutRange),
            (
                "{.a[x]}",
                JsonPathError::Unexpected {
                    found: "'x'".into(),
                    at: 5,
                },
            ),
            (
                "{.a[?(@.b==)]}",
                JsonPathError::Unexpected {
                    found: "')'".into(),
                    at: 12,
                },
            ),
            ("{\"a}", JsonPathError::Unclosed { at: 2 }),
            (
                "{.a[::0]}",
                JsonPathError::Unexpected {
                    found: "']'".into(),
                    at: 8,
                },
            ),
        ] {
            assert_eq!(Template::parse(text), Err(want), "{text}");
        }
    }
}
