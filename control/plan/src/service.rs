//! Services in the indexes. Their slices are `endpointslice.rs`, their addresses
//! and numbers `ipam.rs`.

use k8s_openapi::api::core::v1::Service;

use crate::index::{Indexes, Label, add, sub};
use crate::object::Name;
use crate::task::Task;
use crate::watched::Watched;

/// The label pair by which a service is indexed: any one of its selector's, as
/// a pod that it selects has them all.
fn pair(service: &Service, namespace: &str) -> Option<Label> {
    let (key, value) = service.spec.as_ref()?.selector.as_ref()?.iter().next()?;
    Some((namespace.to_owned(), key.clone(), value.clone()))
}

impl Watched for Service {
    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::EndpointSlices(name.clone()))
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        if let Some(pair) = pair(self, &name.namespace) {
            add(&mut indexes.services_by_label, pair, name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        if let Some(pair) = pair(self, &name.namespace) {
            sub(&mut indexes.services_by_label, &pair, name);
        }
    }
}
