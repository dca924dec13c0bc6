//! The type of a kind: its names, its shape, its keys in the store, and the
//! functions that each kind brings. Not the list of kinds: see `registry`. Not
//! the rules themselves: each kind has a file of its own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    /// Whether `spec.replicas` can be set by Scale.
    const SCALABLE: bool = false;
    /// Seconds that a stored object has between its deletion and its end. `asked`:
    /// by the request.
    fn grace_seconds(_object: &Value, _asked: Option<i64>) -> i64 {
        0
    }
    /// Marks a stored object that is being deleted, and says whether a controller
    /// completes the deletion, also if it has no finalizer.
    fn terminate(_object: &mut Value) -> bool {
        false
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

pub(crate) type AdmitFn = fn(&'static Kind, &Value, Option<&Value>) -> Result<Admitted, Invalid>;

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
    /// Scale may set `spec.replicas`.
    pub scalable: bool,
    /// See [`Rules::grace_seconds`].
    pub grace_seconds: fn(&Value, Option<i64>) -> i64,
    /// See [`Rules::terminate`].
    pub terminate: fn(&mut Value) -> bool,
    pub(crate) admit: AdmitFn,
    pub(crate) admit_status: AdmitFn,
    /// What this version's type has of a stored object; `None`: all of it.
    pub(crate) known: fn(&Kind, &Value) -> Result<Option<Value>, Invalid>,
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
