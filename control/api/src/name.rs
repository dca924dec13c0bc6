//! What names, labels and addresses must look like: RFC 1123, RFC 1035, and
//! Kubernetes' qualified names, with Kubernetes' sentences. `Err` is the sentence.
//! Called by the kinds' rules.

/// Longest DNS label (RFC 1123).
pub(crate) const LABEL_MAX: usize = 63;
/// Longest DNS name.
const SUBDOMAIN_MAX: usize = 253;

type Verdict = Result<(), String>;

fn too_long(max: usize) -> Verdict {
    Err(format!("must be no more than {max} characters"))
}

fn lower_or_digit(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    text.chars().all(|c| lower_or_digit(c) || c == '-')
        && text.starts_with(lower_or_digit)
        && text.ends_with(lower_or_digit)
}

/// RFC 1123 label.
pub(crate) fn label(text: &str) -> Verdict {
    if text.len() > LABEL_MAX {
        return too_long(LABEL_MAX);
    }
    if is_label(text) {
        return Ok(());
    }
    Err(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
         and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
         regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .to_owned(),
    )
}

/// RFC 1035 label: as above, but begins with a letter.
pub(crate) fn label_1035(text: &str) -> Verdict {
    if text.len() > LABEL_MAX {
        return too_long(LABEL_MAX);
    }
    if is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with \
         an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
         'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .to_owned(),
    )
}

/// RFC 1123 subdomain.
pub(crate) fn subdomain(text: &str) -> Verdict {
    if text.len() > SUBDOMAIN_MAX {
        return too_long(SUBDOMAIN_MAX);
    }
    if !text.is_empty()
        && text
            .split('.')
            .all(|part| !part.is_empty() && is_label(part))
    {
        return Ok(());
    }
    Err(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
         or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
         regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .to_owned(),
    )
}

fn is_name(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// Key of a label or an annotation: `name` or `prefix/name`.
pub(crate) fn qualified(text: &str) -> Verdict {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Err("prefix part must be non-empty".to_owned());
        }
        subdomain(prefix).map_err(|detail| format!("prefix part {detail}"))?;
    }
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    if name.len() > LABEL_MAX {
        return Err(format!(
            "name part must be no more than {LABEL_MAX} characters"
        ));
    }
    if is_name(name) {
        return Ok(());
    }
    Err(
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
         end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex \
         used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            .to_owned(),
    )
}

/// Value of a label; may be empty.
pub(crate) fn label_value(text: &str) -> Verdict {
    if text.len() > LABEL_MAX {
        return too_long(LABEL_MAX);
    }
    if text.is_empty() || is_name(text) {
        return Ok(());
    }
    Err(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' \
         or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
         'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .to_owned(),
    )
}

/// Name of a port (RFC 6335 service name): up to 15 characters with a letter.
pub(crate) fn port_name(text: &str) -> Verdict {
    if text.len() > 15 {
        return too_long(15);
    }
    if !text.chars().all(|c| lower_or_digit(c) || c == '-') {
        return Err(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.chars().any(|c| c.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("must not begin or end with a hyphen".to_owned());
    }
    Ok(())
}

/// A port number.
pub(crate) fn port(number: i32) -> Verdict {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err("must be between 1 and 65535, inclusive".to_owned())
}

/// Name of an environment variable: printable ASCII but '='.
pub(crate) fn env_name(text: &str) -> Verdict {
    if text.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        return Ok(());
    }
    Err(
        "a valid environment variable name must consist only of printable ASCII characters other \
         than '='"
            .to_owned(),
    )
}

/// Key in a ConfigMap or Secret, and so a file name.
pub(crate) fn config_key(text: &str) -> Verdict {
    if text.len() > SUBDOMAIN_MAX {
        return too_long(SUBDOMAIN_MAX);
    }
    if text == "." || text == ".." || text.starts_with("..") {
        return Err(format!(
            "must not be '.' or '..', and must not start with '..': {text:?}"
        ));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(legal) {
        return Ok(());
    }
    Err(
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
         'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
         '[-._a-zA-Z0-9]+')"
            .to_owned(),
    )
}

/// IPv4 or IPv6 text.
pub(crate) fn ip(text: &str) -> Verdict {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_not_an_address) => {
            Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
        }
    }
}
