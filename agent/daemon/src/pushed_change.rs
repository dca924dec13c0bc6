//! One change into a desired state: checked, then taken, or refused with the reason.
//!
//! Called by `pushed.rs` for what the control plane sends, and by `observe.rs` for what
//! was kept on the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_plan::world::Desired;
use proto::DecodeError;
use proto::service_change;
use proto::v1;
use proto::v1::change::Change;

use crate::check;
use crate::pushed_file;

/// What a step has and the node does not take.
#[derive(Debug, Default)]
pub(crate) struct Unfit {
    /// One for each change that was refused.
    pub(crate) failures: Vec<v1::Failure>,
    /// Pods that are to stop and were refused, and of which there is nothing.
    pub(crate) gone: Vec<v1::PodGone>,
}

/// Takes a change into a state, unless it is refused: false. Then it stays out of it.
pub(crate) fn take(
    desired: &mut Desired,
    refused: &mut BTreeSet<String>,
    unfit: &mut Unfit,
    change: Change,
) -> bool {
    let mut of = None;
    let mut stop = None;
    if let Change::Service(service) = &change {
        let name = pushed_file::name(&service.namespace, &service.name);
        refused.remove(&name);
        of = Some(name);
    } else if let Change::ServiceChange(change) = &change {
        of = Some(pushed_file::name(&change.namespace, &change.name));
    } else if let Change::ServiceRemoved(name) = &change {
        refused.remove(name);
    } else if let Change::Pod(spec) = &change {
        stop = spec.stop_grace_seconds.map(|grace_s| {
            let (uid, namespace) = (spec.uid.clone(), spec.namespace.clone());
            let name = spec.name.clone();
            let gone = v1::PodGone {
                uid,
                namespace,
                name,
            };
            (gone, grace_s)
        });
    }
    let before = of.as_ref().filter(|name| refused.contains(*name));
    let result = match before {
        Some(name) => {
            let message = "the message before it was refused".to_owned();
            Err(failure("Service", name.clone(), message))
        }
        None => put(desired, change),
    };
    let Err(failure) = result else {
        return true;
    };
    unfit.failures.push(failure);
    refused.extend(of);
    if let Some((gone, grace_s)) = stop {
        match desired.pods.get_mut(&gone.uid) {
            // What was taken before ends all the same.
            Some(spec) => Arc::make_mut(spec).stop_grace_seconds = Some(grace_s),
            None => unfit.gone.push(gone),
        }
    }
    false
}

/// Records what was kept on the disk.
pub(crate) fn restore(desired: &mut Desired, change: Change) {
    if let Err(v1::Failure { kind, key, message }) = put(desired, change) {
        tracing::error!(kind, key, "{message}");
    }
}

/// A change that does not parse.
pub(crate) fn undecoded(error: &DecodeError) -> v1::Failure {
    v1::Failure {
        kind: "Change".into(),
        key: String::new(),
        message: format!("a change does not parse: {error}"),
    }
}

fn failure(kind: &str, key: String, message: String) -> v1::Failure {
    v1::Failure {
        kind: kind.into(),
        key,
        message,
    }
}

/// Takes a change into a state; what is malformed stays out of it.
fn put(desired: &mut Desired, change: Change) -> Result<(), v1::Failure> {
    match change {
        Change::Config(config) => desired.config = config,
        Change::Pod(spec) => {
            check::pod(&spec).map_err(|e| failure("Pod", spec.uid.clone(), e))?;
            desired.pods.insert(spec.uid.clone(), Arc::new(spec));
        }
        Change::PodRemoved(uid) => {
            desired.pods.remove(&uid);
        }
        Change::Service(service) => {
            let name = pushed_file::name(&service.namespace, &service.name);
            check::service(&service).map_err(|e| failure("Service", name.clone(), e))?;
            desired.services.insert(name, service);
        }
        Change::ServiceChange(change) => {
            let name = pushed_file::name(&change.namespace, &change.name);
            let refused = |e: String| failure("Service", name.clone(), e);
            let Some(service) = desired.services.get(&name) else {
                return Err(refused(
                    "a change of a service that was not sent".to_owned(),
                ));
            };
            let mut changed = service.clone();
            let applied = service_change::apply(&mut changed, change);
            applied.map_err(|error| refused(error.to_string()))?;
            check::service(&changed).map_err(refused)?;
            desired.services.insert(name, changed);
        }
        Change::ServiceRemoved(name) => {
            desired.services.remove(&name);
        }
        Change::Route(route) => {
            desired.routes.insert(route.node.clone(), route);
        }
        Change::RouteRemoved(node) => {
            desired.routes.remove(&node);
        }
    }
    Ok(())
}
