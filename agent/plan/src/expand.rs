//! `$(NAME)` in commands, arguments and environment, as Kubernetes expands it.
//! Not a shell. Called by `environment.rs`.

/// Replaces each `$(NAME)` that `lookup` knows; leaves those that it does not.
/// `$$` is a `$`, so that `$$(NAME)` stays `$(NAME)`.
/// `None`: it would have more than `most` bytes.
pub fn expand<'a>(
    text: &str,
    lookup: impl Fn(&str) -> Option<&'a str>,
    most: usize,
) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) if value.len() > most.saturating_sub(out.len()) => return None,
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Some(out).filter(|out| out.len() <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_kubernetes_does() {
        let rows = [
            ("$(A)", "1"),
            ("___$(A)___", "___1___"),
            ("$(A)$(B)", "12"),
            ("$(UNKNOWN)-$(A)", "$(UNKNOWN)-1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$(EMPTY)x", "x"),
            ("$A $(A", "$A $(A"),
            ("a$", "a$"),
            ("$()", "$()"),
            ("$(A", "$(A"),
            ("((A))", "((A))"),
            ("$(NESTED)", "$(A)"),
            ("äö$(B)ü", "äö2ü"),
        ];
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("2"),
            "EMPTY" => Some(""),
            "NESTED" => Some("$(A)"),
            _ => None,
        };
        for (text, expected) in rows {
            let length = expected.len();
            let expanded = expand(text, lookup, length);
            assert_eq!(expanded.as_deref(), Some(expected), "{text:?}");
            if let Some(less) = length.checked_sub(1) {
                assert_eq!(expand(text, lookup, less), None, "{text:?}");
            }
        }
    }
}
