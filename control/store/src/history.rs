//! Watching the embedded store: the newest events in memory, older ones on disk.
//! A watcher pulls, nothing is pushed to it, so that a slow one costs nothing.
//! Called by `embedded`.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::error::StoreError;
use crate::event::Event;
use crate::shared::Shared;
use crate::watch::EventSource;

/// Events taken from disk at a time.
const BATCH: usize = 1024;

/// One watcher's place in the stream.
pub(crate) struct Follower {
    pub(crate) shared: Arc<Shared>,
    pub(crate) prefix: String,
    /// Everything up to here was handed out.
    pub(crate) after: u64,
    pub(crate) newest: watch::Receiver<u64>,
}

impl Follower {
    async fn read(&self) -> Result<(Vec<Event>, u64), StoreError> {
        if let Some(found) = self.shared.tail.after(&self.prefix, self.after) {
            return Ok(found);
        }
        let (prefix, after) = (self.prefix.clone(), self.after);
        self.shared
            .blocking(move |shared| shared.events(&prefix, after, BATCH))
            .await
    }
}

impl EventSource for Follower {
    fn next_batch(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        async move {
            loop {
                let newest = *self.newest.borrow_and_update();
                if newest > self.after {
                    let (events, complete) = self.read().await?;
                    self.after = complete;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                    continue;
                }
                if self.newest.changed().await.is_err() {
                    return Err(StoreError::Closed);
                }
            }
        }
        .boxed()
    }

    fn position(&self) -> u64 {
        self.after
    }
}
