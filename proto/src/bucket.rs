//! Buckets of what a node has: what both sides of a session compare, so that a node that
//! comes back to another process of the control plane is sent only what differs.
//!
//! A thing belongs to one bucket, by its name. The control plane makes the digests of
//! buckets and tells them with the last part of each step (`Update.digests`); the agent keeps
//! them, and says them in its next `Hello`. The control plane then sends all things of the
//! buckets that differ (`Update.replaced`). Facts of the cluster are in no bucket: they are
//! sent with each session.
//!
//! Used by `control-server` (`hub/digest.rs`) and `agent-daemon` (`pushed.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::v1::BucketDigest;
use crate::v1::change::Change;

/// Buckets of services and routes, which all nodes have: the first ones.
pub const SHARED: u32 = 256;
/// Buckets of pods, of which each node has others: behind them.
pub const PODS: u32 = 64;
/// All of them. Another number is another protocol: digests of one do not fit the other.
pub const COUNT: u32 = SHARED + PODS;

/// FNV-1a with 64 bits (draft-eastlake-fnv).
fn hash(kind: u8, name: &str) -> u64 {
    let bytes = std::iter::once(kind).chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// One of so many buckets. The hash is mixed (MurmurHash3's fmix64), as names that differ in
/// their last bytes alone differ in few bits of it.
fn within(count: u32, hash: u64) -> u32 {
    let mut mixed = hash;
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(factor);
    }
    u32::try_from((mixed ^ (mixed >> 33)) % u64::from(count)).unwrap_or(0)
}

/// Bucket of a service, "namespace/name".
pub fn of_service(name: &str) -> u32 {
    within(SHARED, hash(b's', name))
}

/// Bucket of the route to a node.
pub fn of_route(node: &str) -> u32 {
    within(SHARED, hash(b'r', node))
}

/// Bucket of a pod, by its uid.
pub fn of_pod(uid: &str) -> u32 {
    SHARED + within(PODS, hash(b'p', uid))
}

/// True for a bucket of pods.
pub fn has_pods(bucket: u32) -> bool {
    (SHARED..COUNT).contains(&bucket)
}

/// Bucket of the thing that a change is about; `None` for facts of the cluster.
pub fn of(change: &Change) -> Option<u32> {
    Some(match change {
        Change::Config(_) => return None,
        Change::Pod(spec) => of_pod(&spec.uid),
        Change::PodRemoved(uid) => of_pod(uid),
        Change::Service(s) => of_service(&format!("{}/{}", s.namespace, s.name)),
        Change::ServiceChange(s) => of_service(&format!("{}/{}", s.namespace, s.name)),
        Change::ServiceRemoved(name) => of_service(name),
        Change::Route(route) => of_route(&route.node),
        Change::RouteRemoved(node) => of_route(node),
    })
}

/// Digests of what a node has, as its agent keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<u32, Vec<u8>>);

impl Digests {
    /// Takes what the control plane says, or what was kept.
    pub fn note(&mut self, said: BucketDigest) {
        self.0.insert(said.bucket, said.digest);
    }

    /// What is in the bucket is not what the control plane said it is.
    pub fn forget(&mut self, bucket: u32) {
        self.0.insert(bucket, Vec::new());
    }

    /// For `Hello.digests`.
    pub fn list(&self) -> Vec<BucketDigest> {
        let digests = self.0.iter();
        let digests = digests.map(|(bucket, digest)| BucketDigest {
            bucket: *bucket,
            digest: digest.clone(),
        });
        digests.collect()
    }
}

/// A step that replaces buckets: what of them was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replacing {
    buckets: BTreeSet<u32>,
    services: BTreeSet<String>,
    routes: BTreeSet<String>,
    pods: BTreeSet<String>,
}

impl Replacing {
    /// These are replaced.
    pub fn new(buckets: Vec<u32>) -> Self {
        Self {
            buckets: buckets.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The buckets.
    pub fn buckets(&self) -> impl Iterator<Item = u32> {
        self.buckets.iter().copied()
    }

    /// The step has this change.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Service(s) => {
                self.services.insert(format!("{}/{}", s.namespace, s.name));
            }
            Change::ServiceChange(s) => {
                self.services.insert(format!("{}/{}", s.namespace, s.name));
            }
            Change::Route(route) => drop(self.routes.insert(route.node.clone())),
            Change::Pod(spec) => drop(self.pods.insert(spec.uid.clone())),
            Change::Config(_)
            | Change::PodRemoved(_)
            | Change::ServiceRemoved(_)
            | Change::RouteRemoved(_) => {}
        }
    }

    /// Removals of what the node has in these buckets beside what was sent. Of services
    /// "namespace/name", of routes nodes, of pods uids.
    pub fn removals<'a>(
        &self,
        services: impl Iterator<Item = &'a String>,
        routes: impl Iterator<Item = &'a String>,
        pods: impl Iterator<Item = &'a String>,
    ) -> Vec<Change> {
        let is_in = |bucket| self.buckets.contains(&bucket);
        let services = services
            .filter(|name| is_in(of_service(name)) && !self.services.contains(*name))
            .map(|name| Change::ServiceRemoved(name.clone()));
        let routes = routes
            .filter(|node| is_in(of_route(node)) && !self.routes.contains(*node))
            .map(|node| Change::RouteRemoved(node.clone()));
        let pods = pods
            .filter(|uid| is_in(of_pod(uid)) && !self.pods.contains(*uid))
            .map(|uid| Change::PodRemoved(uid.clone()));
        services.chain(routes).chain(pods).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides have to agree, also where they are of different releases.
    #[test]
    fn buckets_do_not_change() {
        assert_eq!(hash(b'a', ""), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash(b'f', "oobar"), 0x8594_4171_f739_67e8);
        let got = [
            of_service("default/web"),
            of_route("node-1"),
            of_pod("6ff2a1f0-9f1c-4b0a-8d63-7f3f4a3d9b11"),
        ];
        assert_eq!(got, [238, 235, 272]);
    }

    #[test]
    fn names_are_spread() {
        let mut counts = vec![0; SHARED as usize];
        for n in 0..10_000 {
            counts[of_service(&format!("default/service-{n}")) as usize] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        // 39 on average.
        assert!(*least > 10 && *most < 80, "{least} {most}");
    }
}
