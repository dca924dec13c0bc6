//! Service changes into the maps: which services are to be planned, and the batch of
//! writes that the plan makes of them.
//!
//! A part of the node. What is written in which order is `agent_plan::batch`'s.

use std::collections::BTreeMap;

use agent_plan::action::Problem;
use agent_plan::batch::{self, Write};
use agent_plan::choice::Place;
use agent_plan::world::{Desired, Observed};
use agent_sys::clock;

use crate::apply::{Applied, Apply, WriteError};
use crate::health_check::HealthChecks;

/// Services that are to be planned.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// By id: their name if they are wanted.
    due: BTreeMap<u32, Option<String>>,
    health_checks: HealthChecks,
    /// The maps are to be searched for entries that belong to no service.
    sweep: bool,
}

impl Services {
    /// These have changed.
    pub(crate) fn touch(&mut self, services: impl IntoIterator<Item = (u32, Option<String>)>) {
        self.due.extend(services);
    }

    /// Entries of services that are wanted no more may be in the maps.
    pub(crate) fn sweep(&mut self) {
        self.sweep = true;
    }

    /// All changes are in the maps.
    pub(crate) fn is_settled(&self) -> bool {
        self.due.is_empty()
    }

    /// Plans and writes what has changed. After an error the maps have to be read
    /// again: `observed` is as if all had been written.
    pub(crate) fn settle(
        &mut self,
        desired: &Desired,
        observed: &mut Observed,
        apply: &mut Apply,
    ) -> (Vec<Problem>, Result<(), WriteError>) {
        let sweep = self.sweep && desired.complete;
        if self.due.is_empty() && !sweep {
            return (Vec::new(), Ok(()));
        }
        self.sweep = self.sweep && !sweep;
        let due = batch::named(std::mem::take(&mut self.due), desired);
        let settings = &apply.sys.settings;
        let place = Place::of(settings, desired);
        for (id, name) in &due {
            let wanted = name.as_ref().and_then(|name| desired.services.get(name));
            self.health_checks.put(*id, wanted, place);
        }
        let (writes, problems) = batch::plan(due, sweep, desired, observed, settings);
        let (count, began) = (writes.len(), clock::now());
        let result = writes
            .iter()
            .try_for_each(|write| one(apply, write, observed));
        if count > 0 {
            tracing::debug!(count, took = ?began.elapsed(), "service maps written");
        }
        (problems, result)
    }
}

fn one(apply: &mut Apply, write: &Write, observed: &Observed) -> Result<(), WriteError> {
    match write {
        Write::PutTables(tables) => apply.tables(tables, &[]),
        Write::DeleteTables(ports) => apply.tables(&[], ports),
        Write::One(action) => match apply.one(action, observed) {
            Applied::Failed(error) => Err(error),
            Applied::Later | Applied::Done | Applied::Now(_) => Ok(()),
        },
    }
}
