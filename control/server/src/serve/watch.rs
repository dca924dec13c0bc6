//! Watch: what is there, then every change, of the objects that are selected.
//!
//! An object that comes to be selected is ADDED, one that no longer is is
//! DELETED, whatever happened to it in the store. A slow client slows nobody;
//! one that falls behind the store's history is told so and lists again.

use std::sync::Arc;
use std::time::Duration;

use control_store::{Event, EventKind, ListRequest, StoreError, Watch};
use futures::FutureExt as _;
use proto::v1;
use proto::v1::watch_event::Type;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::kind_of;
use super::read::Filter;
use crate::objects::Objects;
use crate::refusal::{Refusal, status_of};
use crate::stored;

/// Events that wait for a slow client outside of the store.
const WINDOW: usize = 64;
/// Entries of the initial list read at once.
const PAGE: usize = 500;
/// A quiet watch says how far it is this often, so that it can be resumed.
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
}

pub(super) async fn watch(
    objects: Arc<Objects>,
    request: v1::WatchRequest,
) -> Result<ReceiverStream<Result<v1::WatchEvent, Status>>, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    let namespace = Some(request.namespace.as_str()).filter(|n| !n.is_empty());
    let prefix = kind.prefix(namespace);
    let filter = Filter::parse(&request.label_selector, &request.field_selector)?;
    let text = &request.resource_version;
    let from = match text.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_error: std::num::ParseIntError| {
            Refusal::BadRequest(format!("resourceVersion {text:?} is not a number"))
        })?),
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
    };
    tokio::spawn(async move {
        if let Err(End::Refused(refusal)) = subscription.serve(watch).await {
            // The client may be gone; then nobody needs to know.
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
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(BOOKMARK, watch.next()) => next,
                () = self.sender.closed() => return Err(End::Client),
            };
            match next {
                Ok(event) => self.event(&event?).await?,
                Err(_elapsed) => self.progress(&mut watch).await?,
            }
        }
    }

    /// Says how far the watch is when nothing has come for a while.
    async fn progress(&self, watch: &mut Watch) -> Result<(), End> {
        let revision = self.objects.store().revision().await?;
        // What happened until then is there now.
        let mut drained = None;
        while let Some(event) = watch.next().now_or_never() {
            let event = event?;
            drained = Some(event.revision);
            self.event(&event).await?;
        }
        if drained.is_none() {
            self.bookmark(revision).await?;
        }
        Ok(())
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
