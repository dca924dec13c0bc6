//! Which objects a command line means: words, `-f`, `-l`, `--field-selector`, `--all`, `-A`
//! and `-n`, by the same rules for every command.
//!
//! Pure. `Session::select` brings kinds and namespace; the rules are `kubectl`'s.

use serde_json::Value;

use crate::client::Selection;
use crate::kinds::{Kind, Target};

/// What was given on the command line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Request<'r> {
    /// `KIND [NAME...]` or `KIND/NAME...`
    pub(crate) words: &'r [String],
    /// `-f`
    pub(crate) files: &'r [String],
    /// `-R`
    pub(crate) recursive: bool,
    /// `-l`; empty: not given
    pub(crate) labels: &'r str,
    /// `--field-selector`; empty: not given
    pub(crate) fields: &'r str,
    /// `--all`
    pub(crate) all: bool,
    /// `-A`
    pub(crate) all_namespaces: bool,
    /// What a kind without a name and without a selector means.
    pub(crate) bare: Bare,
}

/// A kind without a name and without a selector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Bare {
    /// All objects of it: commands that only read.
    Whole,
    /// A mistake: commands that change.
    #[default]
    Refused,
}

/// One object, or all that match.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Selected {
    One(Object),
    Matching(Kind, Selection),
}

/// One object by its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    /// "" for kinds that are in no namespace.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What cannot be combined, or means nothing.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum SelectError {
    #[error("objects are named by -f or by words, not by both")]
    FilesAndWords,
    #[error("{option} cannot be combined with -f: the manifests name the objects")]
    FilesAnd { option: &'static str },
    #[error("{option} cannot be combined with the name \"{name}\"")]
    NameAnd { option: &'static str, name: String },
    #[error("--all cannot be combined with {option}")]
    AllAnd { option: &'static str },
    #[error(
        "a {kind} cannot be named across all namespaces (-A): give its namespace by -n, or select by -l"
    )]
    NameInAllNamespaces { kind: String },
    #[error("-A and -n {namespace} exclude each other")]
    TwoScopes { namespace: String },
    #[error("no name was given for {resource}: name objects, or select them by -l or --all")]
    NoName { resource: String },
    #[error(
        "{object} is in namespace \"{own}\" by its manifest, and -n says \"{asked}\": leave -n out, or give -n {own}"
    )]
    OtherNamespace {
        object: String,
        own: String,
        asked: String,
    },
}

impl Request<'_> {
    /// What can be said before anything is read or connected.
    pub(crate) fn check(&self, namespace_option: Option<&str>) -> Result<(), SelectError> {
        let given = [
            ("-l", !self.labels.is_empty()),
            ("--field-selector", !self.fields.is_empty()),
        ];
        if let (true, Some(namespace)) = (self.all_namespaces, namespace_option) {
            return Err(SelectError::TwoScopes {
                namespace: namespace.to_owned(),
            });
        }
        if self.all
            && let Some((option, _)) = given.iter().find(|(_, given)| *given)
        {
            return Err(SelectError::AllAnd { option });
        }
        if self.files.is_empty() {
            return Ok(());
        }
        if !self.words.is_empty() {
            return Err(SelectError::FilesAndWords);
        }
        let others = [("--all", self.all), ("-A", self.all_namespaces)];
        match given.iter().chain(&others).find(|(_, given)| *given) {
            Some((option, _)) => Err(SelectError::FilesAnd { option }),
            None => Ok(()),
        }
    }

    /// What the words mean; `namespace` is the one in use.
    pub(crate) fn plan(
        &self,
        targets: Vec<Target>,
        namespace: &str,
    ) -> Result<Vec<Selected>, SelectError> {
        let plan = targets
            .into_iter()
            .map(|target| self.target(target, namespace));
        plan.collect()
    }

    fn target(&self, target: Target, namespace: &str) -> Result<Selected, SelectError> {
        let Target { kind, name } = target;
        let selecting = [
            ("-l", !self.labels.is_empty()),
            ("--field-selector", !self.fields.is_empty()),
            ("--all", self.all),
        ];
        let selecting = selecting.iter().find(|(_, given)| *given);
        match (name, selecting) {
            (Some(name), Some((option, _))) => Err(SelectError::NameAnd { option, name }),
            (Some(_), None) if self.all_namespaces && kind.namespaced => {
                Err(SelectError::NameInAllNamespaces {
                    kind: kind.singular,
                })
            }
            (Some(name), None) => Ok(Selected::One(Object {
                namespace: scope(&kind, namespace),
                kind,
                name,
            })),
            (None, None) if self.bare == Bare::Refused => Err(SelectError::NoName {
                resource: kind.resource(),
            }),
            (None, _) => {
                let namespace = if self.all_namespaces { "" } else { namespace };
                let selection = Selection {
                    namespace: scope(&kind, namespace),
                    labels: self.labels.to_owned(),
                    fields: self.fields.to_owned(),
                };
                Ok(Selected::Matching(kind, selection))
            }
        }
    }
}

/// The object that a manifest's document is about: in the namespace that it names, else in
/// that of `-n` (`asked`), else in the context's. A manifest and `-n` that differ are refused.
pub(crate) fn of_document(
    kind: Kind,
    document: &Value,
    asked: Option<&str>,
    context: &str,
) -> Result<Object, SelectError> {
    let name = control_api::meta::name(document).to_owned();
    let own = control_api::meta::namespace(document);
    let namespace = match (own, asked) {
        ("", asked) => asked.unwrap_or(context),
        (own, Some(asked)) if own != asked => {
            return Err(SelectError::OtherNamespace {
                object: kind.object(&name),
                own: own.to_owned(),
                asked: asked.to_owned(),
            });
        }
        (own, _) => own,
    };
    Ok(Object {
        namespace: scope(&kind, namespace),
        kind,
        name,
    })
}

/// No namespace for kinds that are in none.
fn scope(kind: &Kind, namespace: &str) -> String {
    if kind.namespaced {
        namespace.to_owned()
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    /// Reads a command line as the commands do, and says what it means, a word an object.
    fn meaning(line: &str, bare: Bare) -> Result<String, String> {
        let mut words = Vec::new();
        let mut files = Vec::new();
        let mut request = Request {
            bare,
            ..Request::default()
        };
        let (mut labels, mut fields, mut asked) = (String::new(), String::new(), None);
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(("-l", value)) => value.clone_into(&mut labels),
                Some(("--field-selector", value)) => value.clone_into(&mut fields),
                Some(("-f", value)) => files.push(value.to_owned()),
                Some(("-n", value)) => asked = Some(value.to_owned()),
                _ if word == "-A" => request.all_namespaces = true,
                _ if word == "--all" => request.all = true,
                _ => words.push(word.to_owned()),
            }
        }
        request.words = &words;
        request.files = &files;
        request.labels = &labels;
        request.fields = &fields;
        let text = |error: SelectError| error.to_string();
        request.check(asked.as_deref()).map_err(text)?;
        if !files.is_empty() {
            return Ok("files".to_owned());
        }
        let targets = kinds::targets(&kinds::known(), &words).map_err(|error| error.to_string())?;
        let plan = request
            .plan(targets, asked.as_deref().unwrap_or("here"))
            .map_err(text)?;
        let words = plan.iter().map(|selected| match selected {
            Selected::One(one) => format!("{}:{}/{}", one.kind.plural, one.namespace, one.name),
            Selected::Matching(kind, of) => {
                format!(
                    "{}:{}/*{}{}",
                    kind.plural, of.namespace, of.labels, of.fields
                )
            }
        });
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_lines_mean() {
        for (line, want) in [
            ("pod a", "pods:here/a"),
            ("pod a -n=x", "pods:x/a"),
            ("po/a svc/b", "pods:here/a services:here/b"),
            ("node n1", "nodes:/n1"),
            ("node n1 -A", "nodes:/n1"),
            ("node n1 -n=x", "nodes:/n1"),
            ("pods -l=app", "pods:here/*app"),
            ("pods -l=app -A", "pods:/*app"),
            ("pods --field-selector=a.b -n=x", "pods:x/*a.b"),
            ("pods,svc --all", "pods:here/* services:here/*"),
            ("pods --all -A", "pods:/*"),
            ("nodes --all", "nodes:/*"),
            ("-f=a.yaml", "files"),
            ("-f=a.yaml -n=x", "files"),
        ] {
            for bare in [Bare::Whole, Bare::Refused] {
                assert_eq!(meaning(line, bare).as_deref(), Ok(want), "{line}");
            }
        }
        assert_eq!(meaning("pods", Bare::Whole).as_deref(), Ok("pods:here/*"));
        assert_eq!(meaning("pods -A", Bare::Whole).as_deref(), Ok("pods:/*"));
    }

    #[test]
    fn what_is_refused_names_the_options() {
        for (line, want) in [
            (
                "pod a -A",
                "a pod cannot be named across all namespaces (-A)",
            ),
            (
                "pod/a -A",
                "a pod cannot be named across all namespaces (-A)",
            ),
            ("pod a -l=app", "-l cannot be combined with the name \"a\""),
            (
                "pod a --all",
                "--all cannot be combined with the name \"a\"",
            ),
            (
                "pod a --field-selector=x",
                "--field-selector cannot be combined with the name \"a\"",
            ),
            ("pods --all -l=app", "--all cannot be combined with -l"),
            ("pods -A -n=x -l=app", "-A and -n x exclude each other"),
            ("pod a -f=x.yaml", "named by -f or by words, not by both"),
            ("-f=x.yaml -l=app", "-l cannot be combined with -f"),
            ("-f=x.yaml -A", "-A cannot be combined with -f"),
            ("-f=x.yaml --all", "--all cannot be combined with -f"),
            ("", "you must specify the type of resource"),
        ] {
            for bare in [Bare::Whole, Bare::Refused] {
                let refused = meaning(line, bare).expect_err(line);
                assert!(refused.contains(want), "{line}: {refused}");
            }
        }
        let refused = meaning("deploy", Bare::Refused).expect_err("no name");
        assert!(
            refused.contains("no name was given for deployments.apps"),
            "{refused}"
        );
    }

    #[test]
    fn documents_and_namespaces() {
        let pod =
            |namespace: Option<&str>| json!({"metadata": {"name": "a", "namespace": namespace}});
        let kind = || kinds::by_word(&kinds::known(), "pods").unwrap();
        let place = |own, asked| {
            of_document(kind(), &pod(own), asked, "context").map(|object| object.namespace)
        };
        assert_eq!(place(None, None).as_deref(), Ok("context"));
        assert_eq!(place(None, Some("x")).as_deref(), Ok("x"));
        assert_eq!(place(Some("own"), None).as_deref(), Ok("own"));
        assert_eq!(place(Some("own"), Some("own")).as_deref(), Ok("own"));
        let refused = place(Some("own"), Some("x")).unwrap_err().to_string();
        assert!(
            refused.contains("pod/a") && refused.contains("-n own"),
            "{refused}"
        );
    }
}
