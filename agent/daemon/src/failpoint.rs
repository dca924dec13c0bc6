//! Places at which a test lets the agent die, so that each gap between an effect and the
//! knowledge of it is met for certain. Release builds have none.
//!
//! The variable `FOIL_FAILPOINT` names a pod and a place: "UID begun StartShim", "UID
//! done Started"; for a part of a pod, as in "UID done Cgroup", the part. Called by
//! `node.rs`.

use agent_plan::action::Action;
use agent_plan::outcome::Outcome;

/// An action was begun: what it does is perhaps done, and nothing is known of that.
pub(crate) fn begun(uid: &str, action: &Action) {
    if cfg!(debug_assertions) {
        reach(uid, "begun", &format!("{action:?}"));
    }
}

/// What an action did is done, and not known yet.
pub(crate) fn done(uid: &str, outcome: &Outcome) {
    if cfg!(debug_assertions) {
        if let Outcome::Part { part, .. } = outcome {
            reach(uid, "done", &format!("{part:?}"));
        } else {
            reach(uid, "done", &format!("{outcome:?}"));
        }
    }
}

fn reach(uid: &str, place: &str, what: &str) {
    #[expect(
        clippy::disallowed_methods,
        reason = "not configuration: a release build does not read it"
    )]
    let Ok(wanted) = std::env::var("FOIL_FAILPOINT") else {
        return;
    };
    let name = what.split([' ', '{']).next().unwrap_or_default();
    if wanted == format!("{uid} {place} {name}") {
        tracing::error!(place = wanted, "failpoint");
        std::process::abort();
    }
}
