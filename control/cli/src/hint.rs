//! What to do instead of a command line that cannot be parsed: `exec` without `--`, and
//! commands of kubectl that `foil` does not have.
//!
//! Pure. Called by `main.rs` before it prints clap's own error.

/// Commands of kubectl, with what does the same here; empty: nothing yet.
const KUBECTL: [(&str, &str); 18] = [
    ("attach", ""),
    ("auth", ""),
    ("autoscale", ""),
    ("cluster-info", "foil version"),
    ("cp", "tar c FILE | foil exec -i POD -- tar x -C FOLDER"),
    ("debug", ""),
    ("diff", "foil apply --dry-run=server -o yaml -f FILE"),
    (
        "edit",
        "foil get KIND/NAME -o yaml > FILE, then foil apply -f FILE",
    ),
    ("explain", ""),
    ("expose", "foil apply -f FILE with a Service"),
    ("kustomize", "kustomize build FOLDER | foil apply -f -"),
    ("port-forward", ""),
    ("proxy", ""),
    ("replace", "foil apply --force-conflicts -f FILE"),
    ("run", "foil apply -f FILE with a Pod"),
    (
        "set",
        "foil patch deploy/NAME -p 'spec: {template: {spec: {containers: [{name: NAME, image: IMAGE}]}}}'",
    ),
    (
        "taint",
        "foil patch node/NAME -p 'spec: {taints: [...]}', with all taints that the node is to have",
    ),
    ("top", ""),
];

/// Options with a value that may stand before a subcommand or before the pod of `exec`.
const WITH_VALUE: [&str; 6] = [
    "-c",
    "--container",
    "-n",
    "--namespace",
    "--config",
    "--context",
];

/// What to say of a command line (without the program) that clap refused, if there is more to
/// say than what clap says.
pub(crate) fn of(words: &[String]) -> Option<String> {
    let command = next(words, 0);
    match words.get(command)?.as_str() {
        "exec" => without_separator(words, command),
        word => {
            let (_, instead) = KUBECTL.iter().find(|(known, _)| *known == word)?;
            Some(if instead.is_empty() {
                format!("foil has no \"{word}\" yet")
            } else {
                format!("foil has no \"{word}\"; use: {instead}")
            })
        }
    }
}

/// Where the first word from `from` on is that is neither an option nor an option's value.
fn next(words: &[String], from: usize) -> usize {
    let mut at = from;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += if WITH_VALUE.contains(&word.as_str()) {
            2
        } else {
            1
        };
    }
    at
}

/// Without `--` the options of the command cannot be told from those of `exec`.
fn without_separator(words: &[String], exec: usize) -> Option<String> {
    if words.iter().any(|word| word == "--") {
        return None;
    }
    let pod = next(words, exec + 1);
    words.get(pod)?;
    let (before, command) = words.split_at(next(words, pod + 1).min(words.len()));
    let command = match command {
        [] => "COMMAND".to_owned(),
        command => command.join(" "),
    };
    Some(format!(
        "the command must come after \"--\": foil {} -- {command}",
        before.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        of(&words)
    }

    #[test]
    fn what_to_type_instead() {
        for (line, want) in [
            ("exec p ls -l", "foil exec p -- ls -l"),
            ("exec p", "foil exec p -- COMMAND"),
            ("-n x exec -c a -it p sh", "foil -n x exec -c a -it p -- sh"),
            ("exec p -c a ls", "foil exec p -c a -- ls"),
            ("set image deploy/a a=b", "[{name: NAME, image: IMAGE}]}}}'"),
            ("port-forward p 80", "foil has no \"port-forward\" yet"),
            (
                "-n x replace -f a",
                "use: foil apply --force-conflicts -f FILE",
            ),
        ] {
            let hint = hint(line).unwrap();
            assert!(hint.ends_with(want), "{line}: {hint}");
        }
        for line in [
            "exec p -- ls",
            "get pods",
            "exec",
            "logs exec",
            "frobnicate",
        ] {
            assert_eq!(hint(line), None, "{line}");
        }
    }
}
