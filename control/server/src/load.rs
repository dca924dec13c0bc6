//! From the store's bytes to what the controllers see, and keys back to names.
//!
//! Called by `run.rs`, for the first load and for each event.

use control_api::kind::Kind;
use control_plan::{Key, Name, Object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Any object, as far as all are alike.
#[derive(Deserialize)]
struct Bare {
    metadata: ObjectMeta,
}

/// Kind, namespace and name that a key of the store stands for; `None` for
/// keys that are no objects.
pub fn parse_key(key: &str) -> Option<(&'static Kind, Name)> {
    let (resource, rest) = key.split_once('/')?;
    let mut all = control_api::kinds().iter().copied();
    let kind = all.find(|k| k.resource() == resource)?;
    let name = if kind.namespaced {
        let (namespace, name) = rest.split_once('/')?;
        Name::new(namespace, name)
    } else {
        Name::new("", rest)
    };
    Some((kind, name))
}

/// The key of the controllers' world.
pub fn world_key(kind: &Kind, name: Name) -> Key {
    Key::new(kind.group, kind.kind, name)
}

/// An object of the store, typed, with its revision.
pub fn object(kind: &Kind, bytes: &[u8], revision: u64) -> Result<Object, serde_json::Error> {
    let object = match (kind.group, kind.kind) {
        ("", "Pod") => Object::Pod(read(bytes, revision)?),
        ("apps", "ReplicaSet") => Object::ReplicaSet(read(bytes, revision)?),
        ("apps", "Deployment") => Object::Deployment(read(bytes, revision)?),
        ("", "Service") => Object::Service(read(bytes, revision)?),
        ("discovery.k8s.io", "EndpointSlice") => Object::EndpointSlice(read(bytes, revision)?),
        ("", "Node") => Object::Node(read(bytes, revision)?),
        ("", "Namespace") => Object::Namespace(read(bytes, revision)?),
        ("", "ConfigMap") => Object::ConfigMap(read(bytes, revision)?),
        ("", "Secret") => Object::Secret(read(bytes, revision)?),
        ("", "Event") => Object::Event(read(bytes, revision)?),
        (group, kind) => {
            let mut bare: Bare = serde_json::from_slice(bytes)?;
            bare.metadata.resource_version = Some(revision.to_string());
            let (group, kind) = (group.to_owned(), kind.to_owned());
            Object::Other {
                group,
                kind,
                meta: Arc::new(bare.metadata),
            }
        }
    };
    Ok(object)
}

fn read<T>(bytes: &[u8], revision: u64) -> Result<Arc<T>, serde_json::Error>
where
    T: DeserializeOwned + k8s_openapi::Metadata<Ty = ObjectMeta>,
{
    let mut object: T = serde_json::from_slice(bytes)?;
    object.metadata_mut().resource_version = Some(revision.to_string());
    Ok(Arc::new(object))
}
