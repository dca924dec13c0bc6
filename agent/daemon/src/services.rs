//! Service changes into the maps: planned one by one, written together.
//!
//! Many services of one update cost one wait for the kernel's readers, and in each
//! update a packet sees all backends before the tables that name them.

use std::collections::BTreeSet;

use agent_plan::action::Action;
use agent_plan::outcome::Outcome;
use agent_plan::service;
use agent_sys::clock;

use crate::apply::{Applied, WriteError};
use crate::node::Node;

/// Place of an action in the order of writes.
fn phase(action: &Action) -> u8 {
    if matches!(action, Action::PutBackend { .. }) {
        0
    } else if matches!(action, Action::PutTable { .. }) {
        1
    } else if matches!(action, Action::PutFrontend { .. }) {
        2
    } else if matches!(action, Action::DeleteFrontend { .. }) {
        3
    } else if matches!(action, Action::DeleteTable { .. }) {
        4
    } else {
        5
    }
}

/// In the order in which they are written; what is deleted and put again by
/// another service is only put.
fn ordered(mut actions: Vec<Action>) -> Vec<Action> {
    let mut put = BTreeSet::new();
    for action in &actions {
        if let Action::PutFrontend { key, .. } = action {
            put.insert(*key);
        }
    }
    actions.retain(|action| !matches!(action, Action::DeleteFrontend { key } if put.contains(key)));
    actions.sort_by_key(phase);
    actions
}

impl Node {
    /// Plans and writes the services that changed.
    pub(crate) fn settle_services(&mut self) {
        if self.services.is_empty() && !self.sweep {
            return;
        }
        let now = clock::unix_ms();
        let mut actions = Vec::new();
        let mut freed = Vec::new();
        for (id, name) in std::mem::take(&mut self.services) {
            let wanted = name.and_then(|n| self.desired.services.get(&n));
            let (planned, problems) = service::plan(id, wanted, &self.observed.maps);
            self.complain(problems);
            self.assume(planned, &mut actions, &mut freed, now);
        }
        if self.sweep && self.desired.complete {
            self.sweep = false;
            let planned = service::sweep(&self.desired, &self.observed.maps);
            self.assume(planned, &mut actions, &mut freed, now);
        }
        // Only now: a number that one service frees is not given to another one in
        // the same step, as it is written before it is freed.
        for action in &freed {
            self.take_written(action, now);
        }
        actions.extend(freed);
        if actions.is_empty() {
            return;
        }
        let count = actions.len();
        let began = clock::now();
        if let Err(error) = self.write(&ordered(actions)) {
            self.write_failed(&error, now);
        }
        tracing::debug!(count, took = ?began.elapsed(), "service maps written");
    }

    fn assume(
        &mut self,
        planned: Vec<Action>,
        actions: &mut Vec<Action>,
        freed: &mut Vec<Action>,
        now: i64,
    ) {
        for action in planned {
            if matches!(action, Action::DeleteBackend { .. }) {
                freed.push(action);
            } else {
                self.take_written(&action, now);
                actions.push(action);
            }
        }
    }

    fn take_written(&mut self, action: &Action, now: i64) {
        let outcome = Outcome::Written {
            action: Box::new(action.clone()),
        };
        self.observed.take(outcome, &self.apply.sys.settings, now);
    }

    fn write(&mut self, actions: &[Action]) -> Result<(), WriteError> {
        let mut put = Vec::new();
        let mut deleted = Vec::new();
        for action in actions {
            if let Action::PutTable { port_id, slots } = action {
                put.push((*port_id, slots.clone()));
                continue;
            }
            if let Action::DeleteTable { port_id } = action {
                deleted.push(*port_id);
                continue;
            }
            // The tables stand between what they name and what names them.
            if phase(action) >= 2 && !put.is_empty() {
                self.apply.tables(&std::mem::take(&mut put), &[])?;
            }
            if phase(action) >= 5 && !deleted.is_empty() {
                self.apply.tables(&[], &std::mem::take(&mut deleted))?;
            }
            match self.apply.one(action, &self.observed) {
                Applied::Failed(error) => return Err(error),
                Applied::Later | Applied::Done | Applied::Now(_) => {}
            }
        }
        self.apply.tables(&put, &deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_plan::service::{Frontend, FrontendKey};

    #[test]
    fn an_address_that_moves_between_services_is_not_deleted() {
        let key = FrontendKey {
            addr: std::net::Ipv4Addr::new(10, 96, 0, 1).into(),
            port: ebpf_common::net::Be16::new(80),
            protocol: 6,
            pad: 0,
        };
        let frontend = Frontend {
            service_port: 2,
            service: 2,
            flags: 0,
        };
        let put = Action::PutFrontend {
            key,
            frontend,
            name: "n/s:80".into(),
        };
        let free = Action::DeleteBackend { id: 1 };
        let table = Action::PutTable {
            port_id: 2,
            slots: vec![],
        };
        let actions = vec![
            free.clone(),
            Action::DeleteFrontend { key },
            put.clone(),
            table.clone(),
        ];
        assert_eq!(ordered(actions), [table, put, free]);
    }
}
