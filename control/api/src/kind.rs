//! The registry of kinds: what they are called, and the functions that each
//! brings. Not the rules themselves: one file per kind has them. Adding a kind
//! is such a file and a line in [`kinds`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admit;
use crate::invalid::{Causes, Invalid, Warning};

/// What a kind must say about itself. All pure.
pub trait Rules:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone
{
    /// Fields that belong to the system: taken from `old`, or cleared on create.
    fn prepare(&mut self, _old: Option<&Self>) {}
    /// Fills in what Kubernetes fills in. Idempotent.
    fn set_defaults(&mut self) {}
    /// Judges a defaulted object (metadata is judged elsewhere).
    fn validate(&self, causes: &mut Causes);
    /// Judges a change: immutable fields.
    fn validate_update(&self, _old: &Self, _causes: &mut Causes) {}
    /// Accepted, but worth a word.
    fn warnings(&self, _warnings: &mut Vec<Warning>) {}
    /// The status of a new object, if the kind has one.
    fn initial_status(&self) -> Option<Value> {
        None
    }
}

/// What a name must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: up to 253 characters, dots allowed.
    Subdomain,
    /// RFC 1123 label: up to 63 characters.
    Label,
    /// RFC 1035 label: begins with a letter.
    Label1035,
}

/// Result of admission: the object as it is to be stored, and what to tell the user.
pub type Admitted = (Value, Vec<Warning>);

type AdmitFn = fn(&'static Kind, &Value, Option<&Value>) -> Result<Admitted, Invalid>;

/// One kind of object.
pub struct Kind {
    /// "" for core objects.
    pub group: &'static str,
    pub version: &'static str,
    /// "Deployment"
    pub kind: &'static str,
    /// "deployments"
    pub plural: &'static str,
    /// "deployment"
    pub singular: &'static str,
    /// "deploy"
    pub short_names: &'static [&'static str],
    pub namespaced: bool,
    /// Has `status`, which is written by the system only.
    pub has_status: bool,
    /// Path to the PodSpec in it: "spec", "spec.template.spec", or "".
    pub pod_spec: &'static str,
    pub name_rule: NameRule,
    pub(crate) admit: AdmitFn,
    pub(crate) admit_status: AdmitFn,
}

impl Kind {
    /// "v1", "apps/v1"
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// "pods", "deployments.apps": names the kind in keys and messages.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Key of an object in the store. `namespace` is left out where the kind has none.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!(
            "{}{name}",
            self.prefix(self.namespaced.then_some(namespace))
        )
    }

    /// Prefix of the keys of all objects of the kind, or of those of one namespace.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced && !namespace.is_empty() => {
                format!("{}/{namespace}/", self.resource())
            }
            Some(_) | None => format!("{}/", self.resource()),
        }
    }

    pub(crate) const fn of<T: Rules>(words: Words) -> Self {
        Self {
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            plural: words.plural,
            singular: words.singular,
            short_names: words.short_names,
            namespaced: words.namespaced,
            has_status: words.has_status,
            pod_spec: words.pod_spec,
            name_rule: words.name_rule,
            admit: admit::admit_as::<T>,
            admit_status: admit::admit_status_as::<T>,
        }
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kind({} {})", self.api_version(), self.kind)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.group == other.group && self.kind == other.kind && self.version == other.version
    }
}
impl Eq for Kind {}

/// What a kind is called, and its shape.
pub(crate) struct Words {
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) has_status: bool,
    pub(crate) pod_spec: &'static str,
    pub(crate) name_rule: NameRule,
}

/// A line for each kind.
static KINDS: &[&Kind] = &[
    &crate::pod::KIND,
    &crate::replicaset::KIND,
    &crate::deployment::KIND,
    &crate::service::KIND,
    &crate::endpointslice::KIND,
    &crate::configmap::KIND,
    &crate::secret::KIND,
    &crate::namespace::KIND,
    &crate::node::KIND,
    &crate::event::KIND,
];

/// All kinds, in the order in which help lists them.
pub fn kinds() -> &'static [&'static Kind] {
    KINDS
}

/// By group, version and kind.
pub fn find(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .copied()
        .find(|k| k.group == group && k.version == version && k.kind == kind)
}

/// By an object's own `apiVersion` and `kind`. The error says what is missing
/// or which kinds there are.
pub fn find_for(object: &Value) -> Result<&'static Kind, Invalid> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let name = crate::meta::name(object);
    if !object.is_object() {
        return Err(Invalid::one("object", "", "", "must be an object"));
    }
    if kind.is_empty() {
        return Err(Invalid::one("object", name, "kind", "Required value"));
    }
    if api_version.is_empty() {
        return Err(Invalid::one(kind, name, "apiVersion", "Required value"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(found) = find(group, version, kind) {
        return Ok(found);
    }
    if let Some(other) = kinds().iter().find(|k| k.kind == kind) {
        let message = format!(
            "Unsupported value: {api_version:?}: supported values: {:?}",
            other.api_version()
        );
        return Err(Invalid::one(kind, name, "apiVersion", message));
    }
    let message = format!("{api_version} {kind} is not supported by Hydrofoil yet");
    Err(Invalid::one(kind, name, "kind", message))
}

/// By a word of a person: "po", "pod", "pods", "Pod", "deployments.apps".
/// Letter case does not matter.
pub fn by_word(word: &str) -> Option<&'static Kind> {
    let word = word.to_ascii_lowercase();
    let (name, group) = match word.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (word.as_str(), None),
    };
    kinds().iter().copied().find(|k| {
        let named = k.plural == name
            || k.singular == name
            || k.short_names.contains(&name)
            || k.kind.to_ascii_lowercase() == name;
        let grouped =
            group.is_none_or(|g| g == k.group || g == format!("{}.{}", k.version, k.group));
        named && grouped
    })
}
