//! Pods that this agent refuses, as their messages cannot be used, and that are to stop: there
//! is nothing of them, which the control plane waits to hear.
//!
//! Called by `node.rs`; the plan knows nothing of these pods.

use std::collections::BTreeSet;

use agent_plan::world::{Desired, Observed};
use proto::v1;

use crate::report::Report;

/// Tells that these are gone, until the control plane removes them. `touched` are the pods of
/// the same update.
pub(crate) fn tell(
    desired: &Desired,
    observed: &Observed,
    touched: &BTreeSet<String>,
    gone: Vec<v1::PodGone>,
    report: &mut Report,
) {
    let is_unknown = |uid: &str| {
        let is_here = observed.pods.contains_key(uid) || observed.gone.contains(uid);
        !is_here && !desired.pods.contains_key(uid)
    };
    for uid in touched.iter().filter(|uid| is_unknown(uid)) {
        report.forget(uid);
    }
    for gone in gone.into_iter().filter(|gone| is_unknown(&gone.uid)) {
        report.gone(gone);
    }
}
