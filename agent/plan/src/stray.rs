//! What is ours on the node and belongs to no pod: left by an agent that died
//! between two steps of a removal, or before the record of a pod was lost.
//!
//! Nothing is planned here before all that is wanted is known. Called with the
//! network's plan.

use crate::action::Action;
use crate::device;
use crate::link;
use crate::step::Step;
use crate::time::Monotonic;
use crate::world::{Desired, Observed};

/// What removes it.
pub fn plan(desired: &Desired, observed: &Observed, now: Monotonic) -> Vec<Action> {
    if !desired.complete {
        return Vec::new();
    }
    let mut actions = Vec::new();
    let owned = |ifindex: u32| observed.pods.values().any(|p| p.ifindex == Some(ifindex));
    let addressed = |addr| {
        observed
            .pods
            .values()
            .any(|p| p.address().map(Into::into) == Some(addr))
    };
    for endpoint in observed.endpoints.entries.values() {
        if !owned(endpoint.ifindex) && !addressed(endpoint.addr) {
            actions.push(Action::DeleteEndpoint {
                endpoint: *endpoint,
            });
        }
    }
    for (uid, step) in &observed.strays {
        // A pod of that uid that came again is made over what is left.
        if step.due(now) && !observed.pods.contains_key(uid) && !desired.pods.contains_key(uid) {
            let link = link::name(uid);
            actions.push(Action::RemoveStray {
                uid: uid.clone(),
                link,
            });
        }
    }
    for (name, step) in &observed.network.strays {
        if step.due(now) && !observed.pods.keys().any(|uid| link::name(uid) == *name) {
            actions.push(Action::DeleteLink { name: name.clone() });
        }
    }
    let dead = observed.network.dead.iter();
    for (ifindex, _) in dead.filter(|(_, step)| step.due(now)) {
        if device::has(&observed.network, *ifindex) {
            continue;
        }
        actions.push(Action::DetachPrograms { ifindex: *ifindex });
    }
    actions
}

/// When the next removal that failed is tried again.
pub fn wake(observed: &Observed) -> Option<Monotonic> {
    let network = &observed.network;
    let strays = observed.strays.values().chain(network.strays.values());
    strays
        .chain(network.dead.values())
        .filter_map(Step::wake)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::simulate;
    use crate::time::Moment;

    #[test]
    fn strays_go_once_all_is_known() {
        let mut observed = Observed::default();
        observed.strays.insert("u".into(), Step::Absent);
        observed
            .network
            .strays
            .insert("foil0123456789".into(), Step::Absent);
        let mut desired = Desired::default();
        assert_eq!(plan(&desired, &observed, Monotonic::default()), []);
        desired.complete = true;
        let actions = plan(&desired, &observed, Monotonic::default());
        assert_eq!(actions.len(), 2);
        for action in actions {
            simulate(&mut observed, &action, Moment::default());
        }
        assert!(observed.strays.is_empty() && observed.network.strays.is_empty());
    }
}
