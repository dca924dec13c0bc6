//! Watch: what is there, then every change, of the objects that are selected.
//!
//! An object that comes to be selected is ADDED, one that no longer is is
//! DELETED, also if it was changed in the store. A slow client does not slow others;
//! one that falls behind the store's history is told so and lists again.

use std::sync::Arc;
use std::time::Duration;

use control_store::{Event, EventKind, ListRequest, StoreError, Watch};
use proto::v1;
use proto::v1::watch_event::Type;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::kind_of;
use super::read::{Filter, Version, version};
use crate::objects::Objects;
use crate::refusal::{Refusal, status_of};
use crate::stored;

/// Events that wait for a slow client outside of the store.
const WINDOW: usize = 64;
/// Entries of the initial list read at once.
const PAGE: usize = 500;
/// How often a watch says how far it is, so that it can be resumed from there.
const BOOKMARK: Duration = Duration::from_secs(60);

type Sender = mpsc::Sender<Result<v1::WatchEvent, Status>>;

/// Why a watch ends.
enum End {
    /// The client went away.
    Client,
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Refused(refusal)
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        End::Refused(error.into())
    }
}

/// What one client watches.
struct Subscription {
    objects: Arc<Objects>,
    prefix: String,
    filter: Filter,
    sender: Sender,
    /// Time between two bookmarks.
    bookmarks: Duration,
}

pub(super) async fn watch(
    objects: Arc<Objects>,
    request: v1::WatchRequest,
) -> Result<ReceiverStream<Result<v1::WatchEvent, Status>>, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    let namespace = Some(request.namespace.as_str()).filter(|n| !n.is_empty());
    let prefix = kind.prefix(namespace);
    let filter = Filter::parse(&request.label_selector, &request.field_selector)?;
    let from = match version(&request.resource_version)? {
        Version::Newest => None,
        Version::NotOlderThan(revision) | Version::Exact(revision) => Some(revision),
    };
    // Opened here, so that a revision that is too old is the call's own answer.
    let watch = match from {
        Some(revision) => Some(objects.store().watch(prefix.clone(), revision).await?),
        None => None,
    };
    let (sender, receiver) = mpsc::channel(WINDOW);
    let subscription = Subscription {
        objects,
        prefix,
        filter,
        sender,
        bookmarks: BOOKMARK,
    };
    tokio::spawn(async move {
        if let Err(End::Refused(refusal)) = subscription.serve(watch).await {
            // The client may be gone; the error is dropped then.
            drop(subscription.sender.send(Err(status_of(&refusal))).await);
        }
    });
    Ok(ReceiverStream::new(receiver))
}

impl Subscription {
    async fn serve(&self, watch: Option<Watch>) -> Result<(), End> {
        let mut watch = match watch {
            Some(watch) => watch,
            None => {
                let revision = self.list().await?;
                self.bookmark(revision).await?;
                self.objects
                    .store()
                    .watch(self.prefix.clone(), revision)
                    .await?
            }
        };
        let mut told = watch.position();
        let mut tick = tokio::time::interval(self.bookmarks);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once.
        tick.tick().await;
        loop {
            tokio::select! {
                event = watch.next() => self.event(&event?).await?,
                _ = tick.tick() => {
                    // Not the store's revision: events up to there may still be read.
                    let position = watch.position();
                    if position > told {
                        told = position;
                        self.bookmark(position).await?;
                    }
                }
                () = self.sender.closed() => return Err(End::Client),
            }
        }
    }

    async fn list(&self) -> Result<u64, End> {
        let mut page = ListRequest {
            limit: PAGE,
            ..ListRequest::all(self.prefix.clone())
        };
        loop {
            let listing = self.objects.list(page.clone()).await?;
            for entry in &listing.entries {
                if let Some(value) = self.filter.selects_entry(entry)? {
                    self.send(Type::Added, Some(&value), entry.revision).await?;
                }
            }
            let Some(next) = listing.next else {
                return Ok(listing.revision);
            };
            page = ListRequest {
                after: Some(next),
                revision: Some(listing.revision),
                ..page
            };
        }
    }

    async fn event(&self, event: &Event) -> Result<(), End> {
        let before = match &event.previous {
            Some(entry) => self.filter.selects_entry(entry)?,
            None => None,
        };
        let after = match event.kind {
            EventKind::Put => {
                let value = stored::decode(&event.key, &event.value, event.revision)?;
                self.filter.selects(&value).then_some(value)
            }
            EventKind::Delete => None,
        };
        let (what, mut object) = match (before, after) {
            (None, None) => return Ok(()),
            (None, Some(after)) => (Type::Added, after),
            (Some(_), Some(after)) => (Type::Modified, after),
            (Some(before), None) => (Type::Deleted, before),
        };
        control_api::meta::set_resource_version(&mut object, event.revision);
        self.send(what, Some(&object), event.revision).await
    }

    async fn bookmark(&self, revision: u64) -> Result<(), End> {
        self.send(Type::Bookmark, None, revision).await
    }

    async fn send(
        &self,
        what: Type,
        object: Option<&serde_json::Value>,
        revision: u64,
    ) -> Result<(), End> {
        let event = v1::WatchEvent {
            r#type: what.into(),
            object: object.map(super::encode).transpose()?,
            resource_version: revision.to_string(),
        };
        self.sender
            .send(Ok(event))
            .await
            .map_err(|_client| End::Client)
    }
}

#[cfg(test)]
mod tests {
    use control_store::{Embedded, EventSource, Options, Store};
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    /// Hands out its events one by one; the next is read only when `read` says so.
    struct Slow {
        events: Vec<Event>,
        position: u64,
        read: mpsc::Receiver<()>,
    }

    impl EventSource for Slow {
        fn next_batch(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
            async move {
                self.read.recv().await.ok_or(StoreError::Closed)?;
                let event = self.events.remove(0);
                self.position = event.revision;
                Ok(vec![event])
            }
            .boxed()
        }

        fn position(&self) -> u64 {
            self.position
        }
    }

    fn config_map(revision: u64, app: &str) -> Event {
        let value = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a","labels":{{"app":"{app}"}}}}}}"#
        );
        Event {
            kind: EventKind::Put,
            key: "configmaps/default/a".to_owned(),
            value: value.into(),
            revision,
            previous: None,
        }
    }

    #[tokio::test]
    async fn a_bookmark_names_what_was_sent_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            history: 100,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.path().join("store"), options).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        // The store is further than the watch all the time.
        for _ in 0..20 {
            let condition = control_store::Condition::Any;
            store.put("k".into(), "v".into(), condition).await.unwrap();
        }
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        let (sender, mut sent) = mpsc::channel(8);
        let subscription = Subscription {
            objects: Arc::new(Objects::new(store, config.settings())),
            prefix: "configmaps/".to_owned(),
            filter: Filter::parse("app=x", "").unwrap(),
            sender,
            bookmarks: Duration::from_millis(1),
        };
        let (read, reading) = mpsc::channel(8);
        let source = Slow {
            events: vec![config_map(5, "x"), config_map(9, "y")],
            position: 3,
            read: reading,
        };
        let watch = Watch::new(Box::new(source));
        let serving = tokio::spawn(async move { subscription.serve(Some(watch)).await.is_err() });
        // Nothing is known of 4 and later yet, however often it could have been told.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(sent.try_recv().is_err());
        read.send(()).await.unwrap();
        let mut next = async || {
            let event = sent.recv().await.unwrap().unwrap();
            (event.r#type(), event.resource_version)
        };
        assert_eq!(next().await, (Type::Added, "5".to_owned()));
        assert_eq!(next().await, (Type::Bookmark, "5".to_owned()));
        // One that is not selected is not sent; that it was read is.
        read.send(()).await.unwrap();
        assert_eq!(next().await, (Type::Bookmark, "9".to_owned()));
        drop(read);
        assert!(serving.await.unwrap());
    }
}
