//! Store, nodes and clock as the controllers know them, without any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control_plan::claim::{Claim, ClaimKey, ClaimWrite};
use control_plan::{Key, Name, Object, Settings, Task, World, Write, object, plan, readiness};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::{
    Container, Namespace, Node, NodeAddress, NodeCondition, NodeStatus, Pod, PodCondition, PodSpec,
    PodTemplateSpec, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

pub(crate) struct Cluster {
    random: u64,
    now: Timestamp,
    revision: u64,
    uids: u64,
    objects: BTreeMap<Key, Object>,
    claims: BTreeMap<ClaimKey, Claim>,
    world: World,
    due: BTreeSet<Task>,
    later: BTreeSet<(Timestamp, Task)>,
    /// Nodes that are not heard of, since when.
    silent: BTreeMap<String, Timestamp>,
    started: Timestamp,
}

const NODES: [&str; 3] = ["n0", "n1", "n2"];

fn settings() -> Settings {
    Settings {
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        // Few addresses, so that they are used again.
        node_prefix: 27,
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        node_ports: control_plan::pool::PortRange {
            first: 30_000,
            last: 32_767,
        },
        load_balancer_pools: Vec::new(),
        eviction_seconds: 5,
        event_seconds: 60,
        lost_seconds: 4,
        terminated_pods: 12_500,
    }
}

fn labels(app: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), app.to_owned())])
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        ..ObjectMeta::default()
    }
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Object {
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(name)),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: Some(image.to_owned()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
    };
    let selector = LabelSelector {
        match_labels: Some(labels(name)),
        ..LabelSelector::default()
    };
    admitted(&Object::Deployment(Arc::new(Deployment {
        metadata: named(name),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector,
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    })))
}

/// As the server stores what people write: with all defaults.
fn admitted(object: &Object) -> Object {
    let value = object.to_json().unwrap().unwrap();
    let kind = control_api::find_for(&value).unwrap();
    let (value, _) = control_api::admit(&value, kind, None).unwrap();
    let bytes = serde_json::to_vec(&value).unwrap();
    let mut object = Object::read(kind.group, kind.kind, &bytes, 0).unwrap();
    object.meta_mut().resource_version = None;
    object
}

pub(crate) fn service(name: &str) -> Object {
    admitted(&Object::Service(Arc::new(Service {
        metadata: named(name),
        spec: Some(ServiceSpec {
            selector: Some(labels(name)),
            ports: Some(vec![ServicePort {
                port: 80,
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    })))
}

pub(crate) fn image_of(template: &PodTemplateSpec) -> &str {
    template.spec.as_ref().unwrap().containers[0]
        .image
        .as_deref()
        .unwrap()
}

fn node_object(name: &str) -> Object {
    let amounts = [("cpu", "8"), ("memory", "8Gi"), ("pods", "25")];
    let amounts = amounts.map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
    let address = NodeAddress {
        type_: "InternalIP".to_owned(),
        address: "192.0.2.1".to_owned(),
    };
    let mut object = Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(NodeStatus {
            allocatable: Some(BTreeMap::from(amounts)),
            addresses: Some(vec![address]),
            ..NodeStatus::default()
        }),
    };
    make_ready(&mut object);
    Object::Node(Arc::new(object))
}

fn make_ready(node: &mut Node) {
    let ready = NodeCondition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        ..NodeCondition::default()
    };
    node.status.as_mut().unwrap().conditions = Some(vec![ready]);
}

impl Cluster {
    pub(crate) fn new(seed: u64) -> Self {
        let mut cluster = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            revision: 0,
            uids: 0,
            objects: BTreeMap::new(),
            claims: BTreeMap::new(),
            world: World::new(settings()),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            silent: BTreeMap::new(),
            started: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let metadata = ObjectMeta {
            name: Some("default".to_owned()),
            ..ObjectMeta::default()
        };
        cluster.create(Object::Namespace(Arc::new(Namespace {
            metadata,
            ..Namespace::default()
        })));
        for name in NODES {
            cluster.create(node_object(name));
        }
        cluster
    }

    pub(crate) fn chance(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below as u64).unwrap()
    }

    // The store.

    fn put(&mut self, mut object: Object) {
        self.revision += 1;
        let revision = self.revision.to_string();
        object.meta_mut().resource_version = Some(revision);
        self.objects.insert(object.key(), object.clone());
        self.world.put(object);
    }

    pub(crate) fn create(&mut self, mut object: Object) {
        if self.objects.contains_key(&object.key()) {
            return;
        }
        self.uids += 1;
        let (uid, now) = (format!("uid-{}", self.uids), self.now);
        let meta = object.meta_mut();
        meta.uid = Some(uid);
        meta.creation_timestamp = Some(Time(now));
        meta.generation = Some(1);
        self.put(object);
    }

    fn remove(&mut self, key: &Key) {
        self.revision += 1;
        self.objects.remove(key);
        self.world.remove(key);
    }

    fn claim(&mut self, write: &ClaimWrite) {
        if write.forgets() {
            self.claims.remove(&write.key);
            self.world.put_claim(write.key.clone(), None);
            return;
        }
        let claim = Claim {
            owner: write.owner.clone(),
            revision: self.revision,
        };
        self.claims.insert(write.key.clone(), claim.clone());
        self.world.put_claim(write.key.clone(), Some(claim));
    }

    fn claims_hold(&self, writes: &[ClaimWrite]) -> bool {
        writes
            .iter()
            .all(|w| self.claims.get(&w.key).map_or(0, |c| c.revision) == w.revision)
    }

    /// False: refused as stale.
    fn write(&mut self, write: &Write) -> bool {
        let current = |c: &Self, key: &Key| c.objects.get(key).map_or(0, Object::revision);
        match write {
            Write::Put { object, claims } => {
                let key = object.key();
                if current(self, &key) != object.revision() || !self.claims_hold(claims) {
                    return false;
                }
                if object.revision() == 0 {
                    self.create(object.clone());
                } else {
                    self.put(self.next_generation(&key, object.clone()));
                }
                for claim in claims {
                    self.claim(claim);
                }
            }
            Write::Claims(claims) => {
                if !self.claims_hold(claims) {
                    return false;
                }
                self.revision += 1;
                for claim in claims {
                    self.claim(claim);
                }
            }
            Write::Delete {
                key,
                uid,
                revision,
                grace_seconds,
                ..
            } => {
                let found = self.objects.get(key).cloned();
                if found.is_some() && revision.is_some_and(|r| r != current(self, key)) {
                    return false;
                }
                if let Some(found) = found.filter(|o| o.meta().uid.as_deref() == Some(uid)) {
                    self.mark_deleted(found, *grace_seconds);
                }
            }
            Write::Remove { key, revision } => {
                if current(self, key) != *revision {
                    return false;
                }
                self.remove(key);
            }
            Write::Unhook {
                key,
                revision,
                finalizer,
                owners,
            } => {
                if current(self, key) != *revision {
                    return false;
                }
                let mut object = self.objects[key].clone();
                let meta = object.meta_mut();
                if let Some(list) = &mut meta.owner_references {
                    list.retain(|o| !owners.contains(&o.uid));
                }
                if let Some(list) = &mut meta.finalizers {
                    list.retain(|f| Some(f) != finalizer.as_ref());
                }
                self.put(object);
            }
        }
        true
    }

    /// As the server does: a change of the spec is a new generation.
    fn next_generation(&self, key: &Key, mut object: Object) -> Object {
        let same = match (&self.objects[key], &object) {
            (Object::ReplicaSet(a), Object::ReplicaSet(b)) => a.spec == b.spec,
            (Object::Deployment(a), Object::Deployment(b)) => a.spec == b.spec,
            // Of other kinds no generation is looked at.
            (_, _) => true,
        };
        if !same {
            let meta = object.meta_mut();
            meta.generation = meta.generation.map(|g| g + 1);
        }
        object
    }

    fn mark_deleted(&mut self, mut found: Object, grace: Option<i64>) {
        let bound = matches!(&found, Object::Pod(p) if object::pod_node(p).is_some());
        if !bound || grace == Some(0) {
            self.remove(&found.key());
        } else if !object::deleting(found.meta()) {
            let now = self.now;
            let meta = found.meta_mut();
            meta.deletion_timestamp = Some(Time(now));
            meta.deletion_grace_period_seconds = Some(30);
            self.put(found);
        }
    }

    // People.

    pub(crate) fn delete(&mut self, group: &str, kind: &str, name: &str) {
        let key = Key::new(group, kind, Name::new("default", name));
        if let Some(found) = self.objects.get(&key).cloned() {
            self.mark_deleted(found, None);
        }
    }

    pub(crate) fn edit_deployment(&mut self, name: &str, edit: impl FnOnce(&mut Deployment)) {
        let key = Key::new("apps", "Deployment", Name::new("default", name));
        if let Some(Object::Deployment(mut found)) = self.objects.get(&key).cloned() {
            let changed = Arc::make_mut(&mut found);
            let before = changed.spec.clone();
            edit(changed);
            if changed.spec != before {
                changed.metadata.generation = changed.metadata.generation.map(|g| g + 1);
                self.put(Object::Deployment(found));
            }
        }
    }

    /// Takes the hash label off, so that its set lets it go, or gives it another
    /// identity.
    pub(crate) fn relabel_some_pod(&mut self) {
        let pods: Vec<Pod> = self
            .pods()
            .filter(|p| object::controller(&p.metadata).is_some())
            .cloned()
            .collect();
        if pods.is_empty() {
            return;
        }
        let mut pod = pods[self.chance(pods.len())].clone();
        let labels = pod.metadata.labels.as_mut().unwrap();
        labels.insert("seen".to_owned(), self.chance(3).to_string());
        self.put(Object::Pod(Arc::new(pod)));
    }

    // Machines.

    /// The node says nothing any more; it does what it was told before.
    pub(crate) fn silence(&mut self, which: usize) {
        let now = self.now;
        self.silent.entry(format!("n{which}")).or_insert(now);
    }

    /// The node is heard of again.
    pub(crate) fn wake(&mut self, which: usize) {
        let name = format!("n{which}");
        if self.silent.remove(&name).is_none() {
            return;
        }
        let key = Key::new("", "Node", Name::new("", &name));
        match self.objects.get(&key).cloned() {
            Some(Object::Node(mut found)) if readiness::is_lost(&found) => {
                make_ready(Arc::make_mut(&mut found));
                self.put(Object::Node(found));
            }
            Some(_) => {}
            // It was deleted meanwhile.
            None => self.create(node_object(&name)),
        }
    }

    /// Somebody deletes a node. Its agent connects again, later.
    pub(crate) fn delete_node(&mut self, which: usize) {
        let name = format!("n{which}");
        let key = Key::new("", "Node", Name::new("", &name));
        if self.objects.contains_key(&key) {
            self.remove(&key);
            self.silence(which);
        }
    }

    /// What the server does each second, with the time that passed.
    fn look_at_nodes(&mut self) {
        if NODES.iter().all(|name| self.silent.contains_key(*name)) {
            self.hear();
        }
        let lost_after = SignedDuration::from_secs(settings().lost_seconds);
        for (name, since) in self.silent.clone() {
            let key = Key::new("", "Node", Name::new("", &name));
            let since = since.max(self.started);
            if let Some(Object::Node(found)) = self.objects.get(&key).cloned()
                && self.now.duration_since(since) >= lost_after
                && let Some(lost) = readiness::unheard(&found, self.now)
            {
                self.put(Object::Node(Arc::new(lost)));
            }
        }
    }

    fn hear(&mut self) {
        self.world.hear(self.now);
    }

    /// Time goes on, and what becomes due with it.
    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.look_at_nodes();
        let ripe = self.later.iter().filter(|(at, _)| *at <= self.now);
        for entry in ripe.cloned().collect::<Vec<_>>() {
            self.later.remove(&entry);
            self.due.insert(entry.1);
        }
    }

    pub(crate) fn restart_controllers(&mut self) {
        self.world = World::new(settings());
        self.started = self.now;
        self.hear();
        // Claims come before their owners, as in the store's order.
        for (key, claim) in &self.claims {
            self.world.put_claim(key.clone(), Some(claim.clone()));
        }
        for object in self.objects.values() {
            self.world.put(object.clone());
        }
        self.later.clear();
        self.due.clear();
    }

    /// Pods for which their agents have something to do.
    fn waiting(&self) -> impl Iterator<Item = &Pod> {
        self.pods()
            .filter(|p| object::pod_node(p).is_some_and(|n| !self.silent.contains_key(n)))
            .filter(|p| object::deleting(&p.metadata) || !object::pod_ready(p))
            // A phase that is final stays.
            .filter(|p| object::deleting(&p.metadata) || !object::pod_finished(p))
    }

    /// Agents do one thing: start a pod, or finish one that is being deleted.
    fn act(&mut self) -> bool {
        let waiting = self.waiting().count();
        if waiting == 0 {
            return false;
        }
        let at = self.chance(waiting);
        let mut pod = self.waiting().nth(at).cloned().unwrap();
        if object::deleting(&pod.metadata) {
            self.remove(&Object::Pod(Arc::new(pod)).key());
            return true;
        }
        let now = self.now;
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Running".to_owned());
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != "Ready");
        conditions.push(PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        });
        self.put(Object::Pod(Arc::new(pod)));
        true
    }

    /// One controller's plan, or one agent's act; false: there is nothing to do.
    pub(crate) fn step(&mut self) -> bool {
        self.due.extend(self.world.take_due());
        if self.chance(3) == 0 && self.act() {
            return true;
        }
        if self.due.is_empty() {
            return self.act();
        }
        let at = self.chance(self.due.len());
        let task = self.due.iter().nth(at).cloned().unwrap();
        self.due.remove(&task);
        let outcome = plan(&self.world, &task, self.now);
        self.world.note(&outcome, self.now);
        if let Some(at) = outcome.again_at {
            self.later.insert((at, task.clone()));
        }
        for write in outcome.writes {
            // Now and then somebody else was faster.
            if self.chance(10) == 0 || !self.write(&write) {
                self.due.insert(task.clone());
            }
        }
        true
    }

    /// Time goes on, all machines work, until nothing is left to do.
    pub(crate) fn settle(&mut self, seed: u64) {
        (0..3).for_each(|node| self.wake(node));
        for _ in 0..20_000 {
            if self.step() {
                continue;
            }
            if self.later.is_empty() && self.due.is_empty() {
                return;
            }
            self.pass(10);
        }
        panic!("seed {seed}: does not settle; due: {:?}", self.due);
    }

    // What is there.

    /// What the controllers would write if all was due.
    pub(crate) fn writes_wanted(&mut self) -> Vec<String> {
        let tasks = self.world.take_due();
        let plans = tasks
            .iter()
            .flat_map(|t| plan(&self.world, t, self.now).writes);
        plans.map(|w| format!("{w:?}")).collect()
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub(crate) fn object(&self, group: &str, kind: &str, name: &str) -> Option<&Object> {
        self.objects
            .get(&Key::new(group, kind, Name::new("default", name)))
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.objects.values().filter_map(|o| {
            if let Object::Pod(p) = o {
                Some(&**p)
            } else {
                None
            }
        })
    }

    pub(crate) fn replica_sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.objects.values().filter_map(|o| {
            if let Object::ReplicaSet(s) = o {
                Some(&**s)
            } else {
                None
            }
        })
    }

    pub(crate) fn deployment(&self, name: &str) -> Option<&Deployment> {
        let found = self.object("apps", "Deployment", name)?;
        if let Object::Deployment(d) = found {
            Some(d.as_ref())
        } else {
            None
        }
    }

    pub(crate) fn endpoints(&self, service: &str) -> BTreeSet<String> {
        let mut addresses = BTreeSet::new();
        for object in self.objects.values() {
            let Object::EndpointSlice(slice) = object else {
                continue;
            };
            let labels = slice.metadata.labels.as_ref().unwrap();
            if labels[control_plan::endpointslice::SERVICE_LABEL] == service {
                for endpoint in &slice.endpoints {
                    assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));
                    addresses.extend(endpoint.addresses.iter().cloned());
                }
            }
        }
        addresses
    }

    pub(crate) fn claimed_pod_addresses(&self) -> BTreeSet<String> {
        let held = self.claims.iter().filter(|(_, c)| !c.owner.is_empty());
        held.filter_map(|(key, _)| match key {
            ClaimKey::PodAddress(address) => Some(address.to_string()),
            ClaimKey::ServiceAddress(_)
            | ClaimKey::ServiceId(_)
            | ClaimKey::PortId(_)
            | ClaimKey::NodeRange(_)
            | ClaimKey::NodePort(_)
            | ClaimKey::LoadBalancerAddress(_)
            | ClaimKey::Identity(_) => None,
        })
        .collect()
    }

    pub(crate) fn identities(&self) -> BTreeSet<u32> {
        let number = |key: &ClaimKey| {
            if let ClaimKey::Identity(number) = key {
                Some(*number)
            } else {
                None
            }
        };
        self.claims.keys().filter_map(number).collect()
    }

    pub(crate) fn has_uid(&self, uid: &str) -> bool {
        self.objects.values().any(|o| object::uid(o.meta()) == uid)
    }
}
