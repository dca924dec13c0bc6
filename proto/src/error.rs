//! An error and what caused it, in one line: for logs, events and answers.

use std::error::Error;

/// The error's text, then those of its sources that it does not contain already.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("outer")]
        Silent { source: io::Error },
        #[error("outer: {source}")]
        Tells { source: io::Error },
    }

    #[test]
    fn each_cause_is_said_once() {
        let source = || io::Error::other("inner");
        for error in [
            Outer::Silent { source: source() },
            Outer::Tells { source: source() },
        ] {
            assert_eq!(chain(&error), "outer: inner");
        }
    }
}
