//! What a word on the command line names: kinds, and objects of them.
//!
//! The kinds that this build knows come from `control-api`, so that nothing is
//! asked over the wire for them; a control plane that is newer is asked for the
//! rest (`Session::kind`). All forms of `kubectl`: `po`, `pods`, `deploy,svc`,
//! `deployments.apps`, `po/x svc/y`, `all`.

use proto::v1;

/// A kind and what it is called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kind {
    /// "" for core objects.
    pub(crate) group: String,
    pub(crate) version: String,
    /// "Deployment"
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
}

/// Objects that were named: all of a kind, or one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) name: Option<String>,
}

/// Words that name nothing.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum TargetError {
    #[error("the control plane doesn't have a resource type \"{word}\"; see `foil api-resources`")]
    UnknownKind { word: String },
    #[error(
        "you must specify the type of resource: a kind such as `pods`, or KIND/NAME; see `foil api-resources`"
    )]
    Nothing,
    #[error("\"{word}\": either KIND NAME... or KIND/NAME for each, not both")]
    Mixed { word: String },
    #[error("\"{word}\": a name is missing after the slash")]
    EmptyName { word: String },
}

/// Kinds that `all` stands for, of those that exist.
const ALL: [&str; 9] = [
    "pods",
    "replicationcontrollers",
    "services",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "jobs",
    "cronjobs",
];

impl Kind {
    /// How it is named on the wire.
    pub(crate) fn reference(&self) -> v1::KindRef {
        v1::KindRef {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
        }
    }

    /// "v1", "apps/v1"
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// "pod/x", "deployment.apps/x": what results are reported about.
    pub(crate) fn object(&self, name: &str) -> String {
        format!("{}/{name}", self.qualified(&self.singular))
    }

    /// "pods", "deployments.apps"
    pub(crate) fn resource(&self) -> String {
        self.qualified(&self.plural)
    }

    fn qualified(&self, word: &str) -> String {
        if self.group.is_empty() {
            word.to_string()
        } else {
            format!("{word}.{}", self.group)
        }
    }

    /// Is this what a person means by `word`? Letter case does not matter.
    fn is_called(&self, word: &str) -> bool {
        let word = word.to_ascii_lowercase();
        let (name, group) = match word.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (word.as_str(), None),
        };
        let named = self.plural == name
            || self.singular == name
            || self.kind.eq_ignore_ascii_case(name)
            || self.short_names.iter().any(|short| short == name);
        named
            && group.is_none_or(|group| {
                group == self.group || group == format!("{}.{}", self.version, self.group)
            })
    }
}

impl From<&control_api::kind::Kind> for Kind {
    fn from(known: &control_api::kind::Kind) -> Self {
        Self {
            group: known.group.to_string(),
            version: known.version.to_string(),
            kind: known.kind.to_string(),
            plural: known.plural.to_string(),
            singular: known.singular.to_string(),
            short_names: known.short_names.iter().map(ToString::to_string).collect(),
            namespaced: known.namespaced,
        }
    }
}

impl From<v1::KindInfo> for Kind {
    fn from(info: v1::KindInfo) -> Self {
        let v1::KindRef {
            group,
            version,
            kind,
        } = info.kind.unwrap_or_default();
        Self {
            group,
            version,
            kind,
            plural: info.plural,
            singular: info.singular,
            short_names: info.short_names,
            namespaced: info.namespaced,
        }
    }
}

/// The kinds that this build knows.
pub(crate) fn known() -> Vec<Kind> {
    control_api::kinds()
        .iter()
        .map(|kind| Kind::from(*kind))
        .collect()
}

/// The kind that an object says it is of.
pub(crate) fn of_object(kinds: &[Kind], api_version: &str, kind: &str) -> Option<Kind> {
    kinds
        .iter()
        .find(|known| known.kind == kind && known.api_version() == api_version)
        .cloned()
}

/// The kind that a word means.
pub(crate) fn by_word(kinds: &[Kind], word: &str) -> Result<Kind, TargetError> {
    let unknown = || TargetError::UnknownKind {
        word: word.to_string(),
    };
    kinds
        .iter()
        .find(|kind| kind.is_called(word))
        .cloned()
        .ok_or_else(unknown)
}

/// Reads `KIND[,KIND] [NAME...]` or `KIND/NAME...`.
pub(crate) fn targets(kinds: &[Kind], words: &[String]) -> Result<Vec<Target>, TargetError> {
    let (first, names) = words.split_first().ok_or(TargetError::Nothing)?;
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| with_slash(kinds, word)).collect();
    }
    let mut found = Vec::new();
    for word in first.split(',').filter(|word| !word.is_empty()) {
        let of_word = if word.eq_ignore_ascii_case("all") {
            ALL.iter()
                .filter_map(|word| by_word(kinds, word).ok())
                .collect()
        } else {
            vec![by_word(kinds, word)?]
        };
        for kind in of_word {
            if names.is_empty() {
                found.push(Target { kind, name: None });
            } else {
                let named = |name: &String| Target {
                    kind: kind.clone(),
                    name: Some(name.clone()),
                };
                found.extend(names.iter().map(named));
            }
        }
    }
    if found.is_empty() {
        Err(TargetError::Nothing)
    } else {
        Ok(found)
    }
}

fn with_slash(kinds: &[Kind], word: &str) -> Result<Target, TargetError> {
    let (kind, name) = word.split_once('/').ok_or_else(|| TargetError::Mixed {
        word: word.to_string(),
    })?;
    if name.is_empty() {
        return Err(TargetError::EmptyName {
            word: word.to_string(),
        });
    }
    Ok(Target {
        kind: by_word(kinds, kind)?,
        name: Some(name.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<String, TargetError> {
        let words: Vec<String> = words.split_whitespace().map(ToString::to_string).collect();
        let found = targets(&known(), &words)?;
        let text = |target: &Target| {
            format!(
                "{}:{}",
                target.kind.plural,
                target.name.as_deref().unwrap_or("*")
            )
        };
        Ok(found.iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn forms() {
        for (words, want) in [
            ("pods", "pods:*"),
            ("po a b", "pods:a pods:b"),
            ("Pod a", "pods:a"),
            ("po/a svc/b", "pods:a services:b"),
            ("deploy,svc", "deployments:* services:*"),
            ("deployments.apps x", "deployments:x"),
            ("deployment.v1.apps/x", "deployments:x"),
            ("all", "pods:* services:* deployments:* replicasets:*"),
        ] {
            assert_eq!(read(words).as_deref(), Ok(want), "{words}");
        }
    }

    #[test]
    fn refused() {
        for (words, want) in [
            ("", TargetError::Nothing),
            (
                "gizmos",
                TargetError::UnknownKind {
                    word: "gizmos".into(),
                },
            ),
            (
                "deployments.batch",
                TargetError::UnknownKind {
                    word: "deployments.batch".into(),
                },
            ),
            ("po/a b", TargetError::Mixed { word: "b".into() }),
            ("po/", TargetError::EmptyName { word: "po/".into() }),
        ] {
            assert_eq!(read(words), Err(want), "{words}");
        }
    }
}
