//! Pulls under way, at most one for each instance of a container.
//!
//! Begun by `images.rs`, and cancelled as plans say: a registry may take as long as it
//! likes, and what it sends is for nothing once the pod is deleted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_plan::action::Instance;
use tokio::task::AbortHandle;

/// The tasks that pull.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<BTreeMap<Instance, AbortHandle>>);

impl Pulls {
    /// Spawns one, which calls [`Pulls::ended`] at its end. Cancels the one before it, whose
    /// image the container does not have any more.
    pub(crate) fn spawn(
        &self,
        instance: Instance,
        pull: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut running = self.running();
        let task = tokio::spawn(pull).abort_handle();
        if let Some(before) = running.insert(instance, task) {
            before.abort();
        }
    }

    /// Forgets the calling task.
    pub(crate) fn ended(&self, instance: &Instance) {
        let mut running = self.running();
        if running
            .get(instance)
            .is_some_and(|task| task.id() == tokio::task::id())
        {
            running.remove(instance);
        }
    }

    /// Ends the one of that instance, if there is one.
    pub(crate) fn cancel(&self, instance: &Instance) {
        if let Some(task) = self.running().remove(instance) {
            task.abort();
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Instance, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    fn instance(attempt: u32) -> Instance {
        Instance {
            uid: "u".to_owned(),
            container: "c".to_owned(),
            attempt,
        }
    }

    /// A pull that does not end; the receiver hears when it is dropped.
    fn endless(pulls: &Pulls, attempt: u32) -> oneshot::Receiver<()> {
        let (sender, dropped) = oneshot::channel();
        pulls.spawn(instance(attempt), async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
        dropped
    }

    #[tokio::test]
    async fn pulls_end_when_they_are_cancelled_or_replaced() {
        let pulls = Arc::new(Pulls::default());
        let first = endless(&pulls, 1);
        let mut other = endless(&pulls, 2);
        let second = endless(&pulls, 1);
        first.await.unwrap_err();
        pulls.cancel(&instance(1));
        pulls.cancel(&instance(3));
        second.await.unwrap_err();
        other.try_recv().unwrap_err();
        assert_eq!(pulls.running().len(), 1);

        // One that ends by itself forgets itself, and no other.
        let (sender, told) = oneshot::channel();
        let own = pulls.clone();
        pulls.spawn(instance(3), async move {
            own.ended(&instance(2));
            own.ended(&instance(3));
            sender.send(()).unwrap();
        });
        told.await.unwrap();
        assert_eq!(pulls.running().len(), 1);
        pulls.cancel(&instance(2));
        other.await.unwrap_err();
    }
}
