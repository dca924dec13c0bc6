//! Problems of plans, each logged once: plans are made again and again.
//!
//! A part of the node (`node.rs`).

use std::collections::BTreeSet;

use agent_plan::action::Problem;

/// Problems that are remembered; more would be a list that grows with time.
const MAX: usize = 1000;

/// Problems that were logged.
#[derive(Debug, Default)]
pub(crate) struct Problems(BTreeSet<Problem>);

impl Problems {
    /// Logs those that were not logged before.
    pub(crate) fn tell(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            if self.0.len() > MAX {
                self.0.clear();
            }
            if !self.0.contains(&problem) {
                tracing::warn!("{problem}");
                self.0.insert(problem);
            }
        }
    }
}
