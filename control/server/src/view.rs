//! From the controllers' world to what nodes get: which messages a change of
//! an object touches, and what they say then.
//!
//! The conversion itself is `proto::convert`; addresses and numbers are read
//! off the objects, where the controllers put them. Called by `run.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use control_plan::usage::Usage;
use control_plan::{Key, Name, Notice, Object, Severity, World, identity, ipam, node, object};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proto::convert::input::{NodeFacts, PodInput};
use proto::convert::service::ServiceIds;
use proto::v1;

use crate::hub::Hub;

/// Facts of the cluster that all nodes get.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// DNS domain.
    pub domain: String,
    /// DNS servers of pods, as text.
    pub dns_servers: Vec<String>,
    /// Address at which nodes answer; "": they do not.
    pub dns_address: String,
    /// Domains with servers of their own.
    pub dns_stubs: Vec<v1::DnsStub>,
}

/// A ConfigMap (false) or Secret (true), by name.
type Source = (bool, Name);

/// Which messages have to be made again.
#[derive(Default)]
pub struct Touched {
    pods: BTreeSet<Name>,
    services: BTreeSet<Name>,
    nodes: BTreeSet<String>,
}

/// What was pushed, as far as it is needed to take it back.
pub struct Views {
    facts: ClusterFacts,
    /// Node and uid of each pod that was pushed.
    placed: HashMap<Name, (String, String)>,
    users: BTreeMap<Source, BTreeSet<Name>>,
    sources: HashMap<Name, Vec<Source>>,
    /// uids of pods that are to stop now.
    pub stopping: HashSet<String>,
    /// Services that are too long for a message, and the number of addresses left out that
    /// was told.
    shortened: BTreeMap<Name, u32>,
    /// What is to be told of them.
    pub notices: Vec<Notice>,
}

impl Views {
    /// Nothing pushed yet.
    pub fn new(facts: ClusterFacts) -> Self {
        Self {
            facts,
            placed: HashMap::new(),
            users: BTreeMap::new(),
            sources: HashMap::new(),
            stopping: HashSet::new(),
            shortened: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// Notes what an object's change touches. A pod's status alone touches
    /// nothing: it comes from the node.
    pub fn touch_change(&self, touched: &mut Touched, old: Option<&Object>, new: &Object) {
        if let (Some(Object::Pod(old)), Object::Pod(new)) = (old, new)
            && same_for_node(old, new)
        {
            return;
        }
        if let Some(old) = old {
            self.touch(touched, old);
        }
        self.touch(touched, new);
    }

    /// Notes what an object touches by being there, or by being gone.
    pub fn touch(&self, touched: &mut Touched, object: &Object) {
        let name = Name::of(object.meta());
        // Nodes are told nothing of other kinds.
        if let Object::Pod(_) = object {
            touched.pods.insert(name);
        } else if let Object::Service(_) = object {
            touched.services.insert(name);
        } else if let Object::EndpointSlice(slice) = object {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|l| l.get(control_plan::endpointslice::SERVICE_LABEL));
            if let Some(service) = service {
                touched.services.insert(Name::new(name.namespace, service));
            }
        } else if let Object::Node(_) = object {
            touched.nodes.insert(name.name);
        } else if let Object::ConfigMap(_) | Object::Secret(_) = object {
            let source = (matches!(object, Object::Secret(_)), name);
            let users = self.users.get(&source).into_iter().flatten();
            touched.pods.extend(users.cloned());
        }
    }

    /// Notes that a pod is to be made again for another reason.
    pub fn touch_pod(touched: &mut Touched, name: &Name) {
        touched.pods.insert(name.clone());
    }

    /// Makes the messages again and hands them to the hub.
    pub fn push(&mut self, touched: Touched, world: &World, hub: &Hub) {
        for node in touched.nodes {
            let found = world.nodes.get(&node);
            hub.put_route(&node, found.and_then(|n| route(&node, n)));
            if found.is_some() {
                hub.put_config(&node, self.config(world, &node));
            }
        }
        for name in touched.services {
            let service = world.services.get(&name);
            let service = service.filter(|s| !object::deleting(&s.metadata));
            let mut message = service.and_then(|s| service_message(world, s));
            let left_out = message.as_ref().map_or(0, |m| m.left_out);
            if left_out == 0 {
                self.shortened.remove(&name);
            } else if is_news(self.shortened.get(&name), left_out) {
                self.shortened.insert(name.clone(), left_out);
                self.notices
                    .extend(service.map(|s| over_capacity(s, left_out)));
            }
            if let Some(message) = &mut message {
                message.node_local = message.cluster_ips.contains(&self.facts.dns_address);
            }
            hub.put_service(&name.to_string(), message);
        }
        for name in touched.pods {
            self.push_pod(&name, world, hub);
        }
    }

    fn push_pod(&mut self, name: &Name, world: &World, hub: &Hub) {
        let pod = world.pods.get(name);
        let place = pod.and_then(|pod| {
            let node = object::pod_node(pod)?;
            let ready = !control_plan::pod::lacks_address(pod);
            ready.then(|| (node.to_owned(), object::uid(&pod.metadata).to_owned()))
        });
        if let Some(old) = self.placed.get(name)
            && place.as_ref() != Some(old)
        {
            hub.put_pod(&old.0, &old.1, None);
            self.stopping.remove(&old.1);
            self.placed.remove(name);
        }
        self.forget_sources(name);
        let (Some(pod), Some((node, uid))) = (pod, place) else {
            return;
        };
        self.note_sources(name, pod);
        let message = self.pod_message(world, pod, &node, &uid);
        hub.put_pod(&node, &uid, Some(message));
        self.placed.insert(name.clone(), (node, uid));
    }

    fn note_sources(&mut self, name: &Name, pod: &Pod) {
        let references = proto::convert::pod::references(pod);
        let source = |secret| move |n: &String| (secret, Name::new(&*name.namespace, n));
        let sources: Vec<Source> = (references.config_maps.iter().map(source(false)))
            .chain(references.secrets.iter().map(source(true)))
            .collect();
        for source in &sources {
            self.users
                .entry(source.clone())
                .or_default()
                .insert(name.clone());
        }
        if !sources.is_empty() {
            self.sources.insert(name.clone(), sources);
        }
    }

    fn forget_sources(&mut self, name: &Name) {
        for source in self.sources.remove(name).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&source) {
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(&source);
                }
            }
        }
    }

    fn config(&self, world: &World, node: &str) -> v1::ClusterConfig {
        let found = world.nodes.get(node);
        let spec = found.and_then(|n| n.spec.as_ref());
        v1::ClusterConfig {
            pod_cidrs: vec![world.settings.pod_cidr.to_string()],
            service_cidrs: vec![world.settings.service_cidr.to_string()],
            node_pod_cidrs: spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default(),
            cluster_domain: self.facts.domain.clone(),
            dns_servers: self.facts.dns_servers.clone(),
            dns_address: self.facts.dns_address.clone(),
            dns_stubs: self.facts.dns_stubs.clone(),
            zone: found.map(|n| object::zone(n).1).unwrap_or_default(),
            node_ports: Some(v1::PortRange {
                first: world.settings.node_ports.first.into(),
                last: world.settings.node_ports.last.into(),
            }),
            load_balancer_pools: world
                .settings
                .load_balancer_pools
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }

    fn pod_message(&self, world: &World, pod: &Pod, node: &str, uid: &str) -> v1::PodSpec {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let config_map = |name: &str| {
            let found = world.config_maps.get(&Name::new(&*namespace, name));
            found.map(|o| o.as_ref().clone())
        };
        let secret = |name: &str| {
            let found = world.secrets.get(&Name::new(&*namespace, name));
            found.map(|o| o.as_ref().clone())
        };
        let found = world.nodes.get(node);
        let offered = found.map(|n| Usage::allocatable(n)).unwrap_or_default();
        let ips = pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
        let stop = self.stopping.contains(uid).then(|| {
            pod.metadata
                .deletion_grace_period_seconds
                .unwrap_or_default()
        });
        proto::convert::pod::pod_spec(&PodInput {
            pod,
            config_map: &config_map,
            secret: &secret,
            node: &NodeFacts {
                name: node.to_owned(),
                addresses: found.map(|n| node_addresses(n)).unwrap_or_default(),
                cpu_millis: offered.cpu_millis,
                memory_bytes: offered.memory_bytes,
            },
            cluster: &self.config(world, node),
            ips: ips.map(|ip| ip.ip.clone()).collect(),
            identity: identity::of(pod),
            generation: 0,
            stop_grace_seconds: stop,
        })
    }
}

/// True when a node is told the same about both.
fn same_for_node(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| pod.status.as_ref().and_then(|s| s.pod_ips.clone());
    let (a, b) = (&old.metadata, &new.metadata);
    old.spec == new.spec
        && a.uid == b.uid
        && a.labels == b.labels
        && a.annotations == b.annotations
        && a.deletion_timestamp == b.deletion_timestamp
        && a.deletion_grace_period_seconds == b.deletion_grace_period_seconds
        && ips(old) == ips(new)
}

fn node_addresses(node: &k8s_openapi::api::core::v1::Node) -> Vec<String> {
    let all = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten());
    all.filter(|a| a.type_ == "InternalIP")
        .map(|a| a.address.clone())
        .collect()
}

fn route(name: &str, node: &k8s_openapi::api::core::v1::Node) -> Option<v1::NodeRoute> {
    let pod_cidrs = node.spec.as_ref()?.pod_cidrs.clone()?;
    node::address(node)?;
    Some(v1::NodeRoute {
        node: name.to_owned(),
        pod_cidrs,
        node_ips: node_addresses(node),
    })
}

/// For the users of a service of which nodes do not get all endpoints.
/// Whether the number is to be told after the one before: it is another power of two, so that
/// endpoints that come and go do not make an event each.
fn is_news(told: Option<&u32>, left_out: u32) -> bool {
    told.and_then(|told| told.checked_ilog2()) != left_out.checked_ilog2()
}

fn over_capacity(service: &Service, left_out: u32) -> Notice {
    Notice {
        about: Key::new("", "Service", Name::of(&service.metadata)),
        uid: object::uid(&service.metadata).to_owned(),
        severity: Severity::Warning,
        reason: "EndpointsOverCapacity",
        message: format!(
            "The service has more endpoints than fit into a message to a node: {left_out} \
             addresses get no connections on some port"
        ),
        component: "foil-control",
        write: None,
    }
}

fn service_message(world: &World, service: &Service) -> Option<v1::Service> {
    let numbers = ipam::ids(service);
    let name = Name::of(&service.metadata);
    let slices: Vec<&EndpointSlice> = world.slices_of(&name).map(AsRef::as_ref).collect();
    let ids = ServiceIds {
        service: numbers.service.unwrap_or(0),
        port: &|name| numbers.ports.get(name).copied().unwrap_or(0),
        external: &|name| numbers.external.get(name).copied().unwrap_or(0),
    };
    proto::convert::service::service(service, &slices, &ids, 0)
}
