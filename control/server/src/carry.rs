//! The writes of one task, carried out.
//!
//! Started by `run.rs`, many at once; each write by itself is `write.rs`.

use std::collections::BTreeSet;

use control_plan::{Key, Notice, Object, Task, Write};
use futures::future::join_all;

use crate::objects::Objects;
use crate::record::Recorder;
use crate::refusal::Refusal;
use crate::write;

/// What became of a task's writes.
pub(crate) struct Done {
    pub(crate) task: Task,
    /// Revision from which they show.
    pub(crate) revision: u64,
    /// Some were refused or failed.
    pub(crate) failed: bool,
    /// Pods that could not be bound, with their uids.
    pub(crate) unbound: Vec<(Key, String)>,
    /// The first object that could not be created or deleted.
    pub(crate) refused: Option<Denied>,
}

/// A creation or deletion that was refused.
pub(crate) struct Denied {
    /// It was to delete an object.
    pub(crate) deletes: bool,
    /// The refusal's words.
    pub(crate) message: String,
}

/// Carries out a task's writes, and tells of those that took place. Of one that did
/// not, the plan that makes it again tells.
pub(crate) async fn carry_out(
    objects: &Objects,
    task: Task,
    writes: Vec<Write>,
    notices: Vec<Notice>,
    recorder: &Recorder,
) -> Done {
    let numbered = || writes.iter().enumerate();
    let (creates, others): (Vec<_>, Vec<_>) = numbered().partition(|(_, write)| creates(write));
    let (made, changed) = futures::join!(
        slow_start(objects, &creates),
        join_all(others.iter().map(|(_, write)| write::apply(objects, write)))
    );
    let mut done = Done {
        task,
        revision: 0,
        failed: made.len() < creates.len(),
        unbound: Vec::new(),
        refused: None,
    };
    let mut carried = BTreeSet::new();
    let made = creates.into_iter().zip(made);
    for ((number, write), result) in made.chain(others.into_iter().zip(changed)) {
        match result {
            Ok(revision) => {
                done.revision = done.revision.max(revision);
                carried.insert(number);
            }
            Err(refusal) => done.refused(write, &refusal),
        }
    }
    let again = done.failed || !done.unbound.is_empty();
    if again {
        // The world may be behind what is there: plan again when it has caught up.
        match objects.store().revision().await {
            Ok(revision) => done.revision = done.revision.max(revision),
            Err(error) => tracing::warn!("the store failed: {error}"),
        }
    }
    recorder.record(told(notices, &carried, again));
    done
}

/// The notices that are true now and will not be told by another plan.
fn told(notices: Vec<Notice>, carried: &BTreeSet<usize>, again: bool) -> Vec<Notice> {
    let is_true = |notice: &Notice| match notice.write {
        Some(number) => carried.contains(&number),
        None => !again,
    };
    notices.into_iter().filter(is_true).collect()
}

impl Done {
    fn refused(&mut self, write: &Write, refusal: &Refusal) {
        let task = &self.task;
        if refusal.is_conflict() {
            tracing::debug!(?task, "{refusal}");
            self.failed = true;
            return;
        }
        tracing::warn!(?task, "a controller's write failed: {refusal}");
        let deletes = matches!(write, Write::Delete { .. });
        if deletes || creates(write) {
            let message = refusal.to_string();
            self.refused.get_or_insert(Denied { deletes, message });
        }
        if *task == Task::Schedule
            && let Write::Put { object, .. } = write
        {
            // One pod that cannot be bound holds up no other.
            let uid = control_plan::object::uid(object.meta()).to_owned();
            self.unbound.push((object.key(), uid));
        } else {
            self.failed = true;
        }
    }
}

fn creates(write: &Write) -> bool {
    matches!(write, Write::Put { object, .. } if Object::revision(object) == 0)
}

/// Creates one object, then two, then four, and so on while all of them succeed:
/// where each would be refused for the same reason, few are tried (Kubernetes'
/// pkg/controller/replicaset, slowStartBatch). Results of those that were tried.
async fn slow_start(objects: &Objects, creates: &[(usize, &Write)]) -> Vec<Result<u64, Refusal>> {
    let mut results = Vec::with_capacity(creates.len());
    let mut size = 1;
    let mut rest = creates;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(size.min(rest.len()));
        let tried = join_all(batch.iter().map(|(_, w)| write::apply(objects, w))).await;
        let failed = tried.iter().any(Result::is_err);
        results.extend(tried);
        if failed {
            break;
        }
        rest = later;
        size *= 2;
    }
    results
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use control_plan::{Name, Severity};
    use control_store::{Embedded, Options};
    use serde_json::json;

    use super::*;

    /// How many of these pods are tried, and how many of them are made.
    async fn tried(good: impl Fn(usize) -> bool, count: usize) -> (usize, usize) {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            history: 100,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.path().join("store"), options).unwrap();
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        let objects = Objects::new(Arc::new(store), config.settings());
        objects.make_builtin().await.unwrap();
        let pod = |n: usize| {
            let image = if good(n) { "busybox" } else { "" };
            let pod = json!({
                "metadata": {"name": format!("p{n}"), "namespace": "default"},
                "spec": {"containers": [{"name": "main", "image": image}]},
            });
            Write::Put {
                object: Object::Pod(Arc::new(serde_json::from_value(pod).unwrap())),
                claims: Vec::new(),
            }
        };
        let writes: Vec<Write> = (0..count).map(pod).collect();
        let writes: Vec<(usize, &Write)> = writes.iter().enumerate().collect();
        let results = slow_start(&objects, &writes).await;
        let made = results.iter().filter(|r| r.is_ok()).count();
        (results.len(), made)
    }

    #[tokio::test]
    async fn creation_starts_slowly_and_stops_at_a_refusal() {
        assert_eq!(tried(|_| true, 20).await, (20, 20));
        assert_eq!(tried(|_| false, 20).await, (1, 0));
        // Batches of 1, 2, 4: the whole batch with a refusal is tried, and no other.
        assert_eq!(tried(|n| n != 3, 20).await, (7, 6));
        assert_eq!(tried(|n| n != 19, 20).await, (20, 19));
        assert_eq!(tried(|_| true, 0).await, (0, 0));
    }

    #[test]
    fn what_took_place_is_told_also_where_another_write_was_refused() {
        let notice = |write| Notice {
            about: Key::new("", "Pod", Name::new("d", "p")),
            uid: String::new(),
            severity: Severity::Normal,
            reason: "Scheduled",
            message: String::new(),
            component: "test",
            write,
        };
        let carried = BTreeSet::from([1]);
        for (write, again, expected) in [
            (Some(1), true, true),
            (Some(0), true, false),
            (Some(1), false, true),
            (None, true, false),
            (None, false, true),
        ] {
            let got = told(vec![notice(write)], &carried, again);
            assert_eq!(!got.is_empty(), expected, "{write:?} {again}");
        }
    }
}
