//! What a kind says about itself to the controllers: where it stands in the
//! indexes, and what its changes make due.
//!
//! One file implements this for each kind (`pod.rs`, `node.rs`, ...); a line in
//! `registry.rs` lists the kind. Called by `world.rs` through the registry.

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::index::Indexes;
use crate::object::Name;
use crate::task::Task;

/// A kind that controllers look into.
pub trait Watched: Metadata<Ty = ObjectMeta> {
    /// True when claims name an owner of this kind by its name, not by its uid.
    const CLAIMS_BY_NAME: bool = false;

    /// The task that brings an object of this kind to what its spec says. It is
    /// due when the object or one that it controls changes.
    fn reconcile(_name: &Name) -> Option<Task> {
        None
    }

    /// Adds the object to the indexes of its kind.
    fn index(&self, _name: &Name, _indexes: &mut Indexes) {}

    /// Takes it out again: the reverse of `index`.
    fn unindex(&self, _name: &Name, _indexes: &mut Indexes) {}

    /// Makes due what a change may require besides [`Watched::reconcile`]. No
    /// `old`: it is new; no `new`: it was removed. The indexes are of after it.
    fn changed(_name: &Name, _old: Option<&Self>, _new: Option<&Self>, _indexes: &mut Indexes) {}
}
