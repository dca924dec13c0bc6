//! The registry of kinds that controllers look into: one line each makes the
//! kind's variant of [`Object`], its table, and its way from and to JSON.
//!
//! What a kind means to the controllers is in its own file (`watched.rs`). Kinds
//! that have no line are known by their metadata alone. Used by `world.rs`, and
//! by control-server between the store's JSON and the controllers.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_api::bytes::without_managed_fields;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::index::Indexes;
use crate::object::{self, Key, Name};
use crate::task::Task;
use crate::watched::Watched;

/// Key of a table: [`Name`], or the bare name for cluster-wide kinds.
trait TableKey: Ord + Clone {
    fn key(name: &Name) -> &Self;
}

impl TableKey for Name {
    fn key(name: &Name) -> &Self {
        name
    }
}

impl TableKey for String {
    fn key(name: &Name) -> &Self {
        &name.name
    }
}

/// Any object, as far as all are alike.
#[derive(Deserialize)]
struct Bare {
    metadata: ObjectMeta,
}

/// The metadata of an object of any kind, in JSON. Without the owners of
/// its fields: plans do not read them, and the server keeps them at each write.
pub fn metadata(json: &[u8]) -> Result<ObjectMeta, serde_json::Error> {
    let json = without_managed_fields(json);
    let mut metadata = serde_json::from_slice::<Bare>(&json)?.metadata;
    metadata.managed_fields = None;
    Ok(metadata)
}

fn typed<T>(json: &[u8], revision: u64) -> Result<Arc<T>, serde_json::Error>
where
    T: DeserializeOwned + Metadata<Ty = ObjectMeta>,
{
    let mut object: T = serde_json::from_slice(&without_managed_fields(json))?;
    object.metadata_mut().managed_fields = None;
    object.metadata_mut().resource_version = Some(revision.to_string());
    Ok(Arc::new(object))
}

fn is<T: Resource>(group: &str, kind: &str) -> bool {
    T::GROUP == group && T::KIND == kind
}

macro_rules! kinds {
    ($($kind:ident in $table:ident by $key:ty;)*) => {
        /// One object. `metadata.resourceVersion` is the revision that it was read
        /// at; empty in an object that is to be created.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("A ", stringify!($kind), ".")]
            $kind(Arc<$kind>),)*
            /// Any other kind: who owns it, and whether it is being deleted.
            Other {
                /// API group.
                group: String,
                /// Kind.
                kind: String,
                /// Its metadata.
                meta: Arc<ObjectMeta>,
            },
        }

        /// All objects by kind and name.
        #[derive(Debug, Default)]
        pub struct Tables {
            $(#[doc = concat!("All objects of kind ", stringify!($kind), ".")]
            pub $table: BTreeMap<$key, Arc<$kind>>,)*
            /// Kinds that no controller looks into.
            pub others: BTreeMap<Key, Arc<ObjectMeta>>,
        }

        impl Object {
            /// API group and kind.
            pub fn kind(&self) -> (&str, &str) {
                match self {
                    $(Object::$kind(_) => ($kind::GROUP, $kind::KIND),)*
                    Object::Other { group, kind, .. } => (group, kind),
                }
            }

            /// Its metadata.
            pub fn meta(&self) -> &ObjectMeta {
                match self {
                    $(Object::$kind(o) => &o.metadata,)*
                    Object::Other { meta, .. } => meta,
                }
            }

            /// Its metadata, to be changed.
            pub fn meta_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(Object::$kind(o) => &mut Arc::make_mut(o).metadata,)*
                    Object::Other { meta, .. } => Arc::make_mut(meta),
                }
            }

            /// From the store's JSON, with the revision that it was written at.
            pub fn read(
                group: &str,
                kind: &str,
                json: &[u8],
                revision: u64,
            ) -> Result<Self, serde_json::Error> {
                $(if is::<$kind>(group, kind) {
                    return Ok(Object::$kind(typed(json, revision)?));
                })*
                let mut meta = metadata(json)?;
                meta.resource_version = Some(revision.to_string());
                Ok(Object::Other {
                    group: group.to_owned(),
                    kind: kind.to_owned(),
                    meta: Arc::new(meta),
                })
            }

            /// As JSON; `None` for a kind of which only the metadata is known.
            pub fn to_json(&self) -> Option<Result<serde_json::Value, serde_json::Error>> {
                match self {
                    $(Object::$kind(o) => Some(serde_json::to_value(o.as_ref())),)*
                    Object::Other { .. } => None,
                }
            }

            /// True when claims name the object by its name, not by its uid.
            pub(crate) fn claims_by_name(&self) -> bool {
                match self {
                    $(Object::$kind(_) => $kind::CLAIMS_BY_NAME,)*
                    Object::Other { .. } => false,
                }
            }

            /// See [`Watched::index`].
            pub(crate) fn index(&self, name: &Name, indexes: &mut Indexes) {
                match self {
                    $(Object::$kind(o) => o.index(name, indexes),)*
                    Object::Other { .. } => {}
                }
            }

            /// See [`Watched::unindex`].
            pub(crate) fn unindex(&self, name: &Name, indexes: &mut Indexes) {
                match self {
                    $(Object::$kind(o) => o.unindex(name, indexes),)*
                    Object::Other { .. } => {}
                }
            }
        }

        impl Tables {
            /// The object of this key.
            pub fn get(&self, key: &Key) -> Option<Object> {
                $(if is::<$kind>(&key.group, &key.kind) {
                    let found = self.$table.get(<$key>::key(&key.name));
                    return found.cloned().map(Object::$kind);
                })*
                self.others.get(key).map(|meta| Object::Other {
                    group: key.group.clone(),
                    kind: key.kind.clone(),
                    meta: meta.clone(),
                })
            }

            pub(crate) fn insert(&mut self, object: Object) {
                let key = object.key();
                match object {
                    $(Object::$kind(o) => {
                        self.$table.insert(<$key>::key(&key.name).clone(), o);
                    })*
                    Object::Other { meta, .. } => {
                        self.others.insert(key, meta);
                    }
                }
            }

            pub(crate) fn remove(&mut self, key: &Key) {
                $(if is::<$kind>(&key.group, &key.kind) {
                    self.$table.remove(<$key>::key(&key.name));
                    return;
                })*
                self.others.remove(key);
            }
        }

        /// See [`Watched::reconcile`].
        pub(crate) fn reconcile(group: &str, kind: &str, name: &Name) -> Option<Task> {
            $(if is::<$kind>(group, kind) {
                return $kind::reconcile(name);
            })*
            None
        }

        /// See [`Watched::changed`]. Both are of the kind of `key`.
        pub(crate) fn changed(
            key: &Key,
            old: Option<&Object>,
            new: Option<&Object>,
            indexes: &mut Indexes,
        ) {
            $(if is::<$kind>(&key.group, &key.kind) {
                let of = |object: Option<&'_ Object>| -> Option<Arc<$kind>> {
                    if let Some(Object::$kind(o)) = object {
                        Some(o.clone())
                    } else {
                        None
                    }
                };
                let (old, new) = (of(old), of(new));
                $kind::changed(&key.name, old.as_deref(), new.as_deref(), indexes);
            })*
        }
    };
}

kinds! {
    Pod in pods by Name;
    ReplicaSet in replica_sets by Name;
    Deployment in deployments by Name;
    Service in services by Name;
    EndpointSlice in slices by Name;
    Node in nodes by String;
    Namespace in namespaces by String;
    ConfigMap in config_maps by Name;
    Secret in secrets by Name;
    Event in events by Name;
}

// The controllers only find these by name.
impl Watched for ConfigMap {}
impl Watched for Secret {}

impl Object {
    /// Its key.
    pub fn key(&self) -> Key {
        let (group, kind) = self.kind();
        Key::new(group, kind, Name::of(self.meta()))
    }

    /// The revision that it was read at; 0 in an object that is to be created.
    pub fn revision(&self) -> u64 {
        object::revision(self.meta())
    }
}
