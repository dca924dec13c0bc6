//! The stream of events that a watcher reads. Not where events come from: each
//! implementation hands in an [`EventSource`]. Called by `control-server`.

use std::collections::VecDeque;

use futures::future::BoxFuture;

use crate::error::StoreError;
use crate::event::Event;

/// Where a watch gets its events: asked for the next ones whenever it has none.
pub trait EventSource: Send {
    /// Waits for events above the last ones given, and returns them in order:
    /// only whole transactions, at least one event. Safe to cancel: events that
    /// were not returned come with the next call.
    fn next_batch(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;

    /// The revision up to which all events were returned. It moves on while a call
    /// waits, where what was written concerns other keys.
    fn position(&self) -> u64;
}

/// Events in order, without a gap. After an error there is nothing more.
pub struct Watch {
    source: Box<dyn EventSource>,
    failed: bool,
    ready: VecDeque<Event>,
}

impl Watch {
    pub fn new(source: Box<dyn EventSource>) -> Self {
        Self {
            source,
            failed: false,
            ready: VecDeque::new(),
        }
    }

    /// The revision up to which all events were returned by [`Watch::next`]: a
    /// watch that begins here continues this one without a gap.
    pub fn position(&self) -> u64 {
        match self.ready.front() {
            // Of its transaction at least this one was not returned yet.
            Some(event) => event.revision - 1,
            None => self.source.position(),
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
            if self.failed {
                return Err(StoreError::Closed);
            }
            match self.source.next_batch().await {
                Ok(events) => self.ready.extend(events),
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
    }
}
