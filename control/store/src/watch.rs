//! The stream of events that a watcher reads. Not where events come from: each
//! implementation hands in an [`EventSource`]. Called by `control-server`.

use std::collections::VecDeque;

use futures::future::BoxFuture;

use crate::store::{Event, StoreError};

/// Where a watch gets its events: asked for the next ones whenever it has none.
pub trait EventSource: Send {
    /// Waits for events above the last ones given, and returns them in order:
    /// only whole transactions, at least one event. Safe to cancel: events that
    /// were not returned come with the next call.
    fn next_batch(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;
}

/// Events in order, without a gap. After an error there is nothing more.
pub struct Watch {
    source: Option<Box<dyn EventSource>>,
    ready: VecDeque<Event>,
}

impl Watch {
    pub fn new(source: Box<dyn EventSource>) -> Self {
        Self {
            source: Some(source),
            ready: VecDeque::new(),
        }
    }

    /// The next events, at least one, of whole transactions only; waits for them.
    /// Safe to cancel. `Closed` once it has failed.
    pub async fn next_batch(&mut self) -> Result<Vec<Event>, StoreError> {
        let first = self.next().await?;
        let mut events = vec![first];
        events.extend(self.ready.drain(..));
        Ok(events)
    }

    /// The next event; waits for it. Safe to cancel. `Closed` once it has failed.
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let Some(source) = self.source.as_mut() else {
                return Err(StoreError::Closed);
            };
            match source.next_batch().await {
                Ok(events) => self.ready.extend(events),
                Err(error) => {
                    self.source = None;
                    return Err(error);
                }
            }
        }
    }
}
