//! Services in the indexes. Their slices are `endpointslice.rs`, their addresses
//! and numbers `ipam.rs`.

use control_api::service_type::balanced;
use k8s_openapi::api::core::v1::Service;

use crate::index::{Indexes, Label, add, sub};
use crate::loadbalancer;
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
        if loadbalancer::waits(self) {
            indexes.waiting_balancers.insert(name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        if let Some(pair) = pair(self, &name.namespace) {
            sub(&mut indexes.services_by_label, &pair, name);
        }
        indexes.waiting_balancers.remove(name);
    }

    fn changed(name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        let balanced = |service: Option<&Self>| service.is_some_and(|s| balanced(s).is_some());
        if new.is_some() && (balanced(old) || balanced(new)) {
            indexes.make_due(Task::LoadBalancer(name.clone()));
            if indexes.waiting_balancers.contains(name) {
                indexes.make_due(Task::LoadBalancers);
            }
        }
    }
}
