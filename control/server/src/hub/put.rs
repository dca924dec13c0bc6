//! What nodes are to have, thing by thing; the same again is no change.
//!
//! Called by `view.rs`, between [`Hub::set_revision`] and [`Hub::complete`].

use std::sync::Arc;

use proto::bucket;
use proto::v1::{self, change};

use super::Hub;
use super::message::{Content, Described, Message, Route};
use super::service::Served;
use crate::mailbox::Item;

impl Hub {
    /// A service for all nodes; `None`: it is gone.
    pub fn put_service(&self, name: &str, service: Option<v1::Service>) {
        let service = service.map(|service| {
            let service = v1::Service {
                generation: 0,
                ..service
            };
            (
                Content::of(change::Change::Service(service.clone())),
                service,
            )
        });
        let mut inner = self.lock();
        let stamp = inner.stamp();
        let name: Arc<str> = name.into();
        let old = inner.services.get(&name).map(|old| old.message.content);
        let item = Item::Service(name.clone());
        let (bucket, mut now) = (bucket::of_service(&name), Content::default());
        match service {
            Some((content, _)) if old == Some(content) => return,
            Some((content, mut service)) => {
                service.generation = inner.revision;
                now = content;
                match inner.services.get_mut(&name) {
                    Some(served) => served.put(service, content, stamp),
                    None => {
                        let served = Served::new(service, content, bucket, stamp);
                        inner.services.insert(name, served);
                    }
                }
            }
            None if old.is_none() => return,
            None => {
                inner.services.remove(&name);
                inner.remember(None, item.clone());
            }
        }
        inner.note_shared(bucket, old.unwrap_or_default(), now);
        inner.post_all(item);
    }

    /// The way to a node's pods, for all other nodes; `None`: there is none.
    pub fn put_route(&self, node: &str, route: Option<v1::NodeRoute>) {
        let mut inner = self.lock();
        let stamp = inner.stamp();
        let node: Arc<str> = node.into();
        let old = inner.routes.get(&node).map(|old| old.message.content);
        let item = Item::Route(node.clone());
        let (bucket, mut now) = (bucket::of_route(&node), Content::default());
        match route {
            Some(route) => {
                let address = route.node_ips.first().cloned();
                let change = change::Change::Route(route);
                let content = Content::of(change.clone());
                if old == Some(content) {
                    return;
                }
                let message = Message::new(change, content, bucket, stamp);
                now = content;
                inner.routes.insert(node, Route { message, address });
            }
            None if old.is_none() => return,
            None => {
                inner.routes.remove(&node);
                inner.remember(None, item.clone());
            }
        }
        inner.note_shared(bucket, old.unwrap_or_default(), now);
        inner.post_all(item);
    }

    /// Facts for one node.
    pub fn put_config(&self, node: &str, config: v1::ClusterConfig) {
        let change = change::Change::Config(config);
        let content = Content::of(change.clone());
        let mut inner = self.lock();
        let stamp = inner.stamp();
        let view = inner.views.entry(node.to_owned()).or_default();
        if view.config.as_ref().is_some_and(|o| o.content == content) {
            return;
        }
        view.config = Some(Message::new(change, content, bucket::COUNT, stamp));
        view.post(&Item::Config);
        inner.posted.nodes.insert(node.to_owned());
    }

    /// A pod for one node; `None`: the node is not to have it any more.
    pub fn put_pod(&self, node: &str, uid: &str, pod: Option<v1::PodSpec>) {
        let pod = pod.map(Described::new);
        let mut inner = self.lock();
        let (revision, stamp) = (inner.revision, inner.stamp());
        if pod.is_none() && !inner.views.contains_key(node) {
            return;
        }
        let number = inner.next_change();
        let view = inner.views.entry(node.to_owned()).or_default();
        let uid: Arc<str> = uid.into();
        let item = Item::Pod(uid.clone());
        let bucket = bucket::of_pod(&uid);
        let old = view.pods.get(&uid);
        let before = old.map(|old| old.message.content).unwrap_or_default();
        match pod {
            Some(pod) if old.is_some_and(|old| pod.is(old)) => return,
            Some(pod) => {
                view.buckets.change(bucket, before, pod.content, number);
                view.pods.insert(uid, pod.into_pod(revision, bucket, stamp));
                view.post(&item);
            }
            None if old.is_none() => return,
            None => {
                view.pods.remove(&uid);
                view.buckets
                    .change(bucket, before, Content::default(), number);
                view.post(&item);
                inner.forget_unused(node);
                inner.remember(Some(node), item);
            }
        }
        inner.posted.nodes.insert(node.to_owned());
    }
}
