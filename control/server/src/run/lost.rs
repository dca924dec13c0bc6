//! Nodes that are lost, and nodes that are back: what the loop looks at every few seconds.
//!
//! The judgement is `health.rs`; evictions are planned by `control-plan` (`eviction.rs`).

use std::sync::Arc;

use control_plan::{Object, Task, Write, readiness};
use jiff::Timestamp;
use tokio::time::Instant;

use super::Controllers;
use crate::carry::Done;
use crate::health::Verdict;
use crate::report;

impl Controllers {
    /// Says of nodes that were not heard of for too long that they are lost, and
    /// of those that are heard of again that they are back.
    pub(super) fn look_at_nodes(&mut self) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let heard = self.hub.last_heard(self.world.nodes.keys());
        let any = heard.iter().any(|at| self.hearing.is_heard(*at, now));
        let passed = self.hearing.look(now, wall);
        if passed.clock_set {
            tracing::warn!("the clock was set, to {wall}");
            self.world.clock_set(wall);
        }
        // What was heard before counts for nothing.
        if passed.stalled || passed.clock_set || !any {
            self.world.hear(wall);
        }
        let mut lost = Vec::new();
        let mut back = Vec::new();
        for ((name, node), heard) in self.world.nodes.iter().zip(heard) {
            let verdict = self.hearing.judge(readiness::is_lost(node), heard, now);
            if verdict == Verdict::Unchanged || self.agenda.is_busy(&Task::Node(name.clone())) {
                continue;
            }
            match verdict {
                Verdict::Unchanged => {}
                Verdict::Lost => lost.extend(readiness::unheard(node, wall)),
                Verdict::Back => back.push(name.clone()),
            }
        }
        for node in lost {
            let name = node.metadata.name.clone().unwrap_or_default();
            tracing::warn!(
                node = name,
                "the node was not heard of for too long: it is lost"
            );
            let write = Write::Put {
                object: Object::Node(Arc::new(node)),
                claims: Vec::new(),
            };
            self.write(Task::Node(name), vec![write], Vec::new());
        }
        for name in back {
            self.restore(name);
        }
    }

    /// Writes again what a node reported last: it counts as lost, but is heard of.
    fn restore(&mut self, node: String) {
        tracing::info!(node, "the node is heard of again");
        let task = Task::Node(node.clone());
        self.agenda.begin(task.clone());
        let (objects, hub) = (self.objects.clone(), self.hub.clone());
        let done = self.done_out.clone();
        tokio::spawn(async move {
            let written = report::register(&objects, &hub, &node).await;
            match &written {
                Ok(true) => hub.reopen(&node),
                // Its session has begun since, or was ended for it.
                Ok(false) => {}
                Err(refusal) => {
                    tracing::warn!(node, "the node's status was not stored: {refusal}");
                }
            }
            let revision = objects.store().revision().await.unwrap_or_default();
            let finished = Done {
                task,
                revision,
                failed: written.is_err(),
                unbound: Vec::new(),
                refused: None,
            };
            if done.send(finished).await.is_err() {
                tracing::debug!("the controllers ended before their writes");
            }
        });
    }
}
