//! Which names the cluster's domain has: services and their endpoints, by name and by
//! address. One service is changed at a time; no change makes the whole anew.
//!
//! What is answered to a question is `lookup.rs`. Names are kept in lower case.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use hickory_proto::rr::Name;
use ipnet::IpNet;
use proto::v1;

/// A named port of a service or endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// "" for an unnamed one.
    pub name: String,
    /// "tcp", "udp", "sctp"
    pub protocol: String,
    /// Host byte order.
    pub number: u16,
}

/// A ready endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The one that it names, or its address with dashes.
    pub hostname: String,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// What a service is to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It has addresses of its own.
    Cluster {
        /// One of each family.
        addresses: Vec<IpAddr>,
        /// What it serves.
        ports: Vec<Port>,
    },
    /// Its name stands for its endpoints.
    Headless {
        /// Ready ones, ordered by address.
        endpoints: Vec<Endpoint>,
        /// Indexes of `endpoints`, by hostname.
        by_hostname: BTreeMap<String, Vec<usize>>,
    },
    /// Its name stands for another; `None`: what it names is no name.
    External(Option<Name>),
}

/// A service by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Lower case, as it is.
    pub namespace: String,
    /// Lower case, as it is.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What an address is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// "namespace/name" of the service.
    pub service: String,
    /// Of the endpoint; `None`: the address is the service's.
    pub hostname: Option<String>,
}

/// The names of the cluster.
#[derive(Debug, Clone)]
pub struct Zone {
    /// "cluster.local."
    pub(crate) domain: Name,
    /// Address that this server answers at.
    pub(crate) address: Option<IpAddr>,
    /// Ranges of pods.
    pub(crate) pods: Vec<IpNet>,
    /// Ranges whose addresses have no names elsewhere: pods and services.
    pub(crate) ranges: Vec<IpNet>,
    /// Ranges of this node's pods, which may ask.
    clients: Vec<IpNet>,
    /// Goes up with each change.
    pub(crate) serial: u32,
    services: HashMap<String, Service>,
    /// Number of services in each namespace.
    namespaces: HashMap<String, usize>,
    pointers: HashMap<IpAddr, Vec<Pointer>>,
}

impl Default for Zone {
    fn default() -> Self {
        Zone {
            domain: Name::root(),
            address: None,
            pods: Vec::new(),
            ranges: Vec::new(),
            clients: Vec::new(),
            serial: 1,
            services: HashMap::new(),
            namespaces: HashMap::new(),
            pointers: HashMap::new(),
        }
    }
}

/// The domain of a cluster that names none.
const DOMAIN: &str = "cluster.local";

fn ranges(texts: &[String]) -> impl Iterator<Item = IpNet> {
    texts.iter().filter_map(|text| text.parse().ok())
}

/// A name as records have it: absolute, in lower case. `None`: it is none.
pub(crate) fn absolute(text: &str) -> Option<Name> {
    let text = text.trim_end_matches('.');
    let mut name = Name::from_ascii(text).ok().filter(|_| !text.is_empty())?;
    name.set_fqdn(true);
    Some(name.to_lowercase())
}

impl From<&v1::Service> for Service {
    fn from(message: &v1::Service) -> Self {
        service(message)
    }
}

impl Zone {
    /// Takes the facts of the cluster.
    pub fn configure(&mut self, config: &v1::ClusterConfig) {
        self.domain = absolute(&config.cluster_domain)
            .or_else(|| absolute(DOMAIN))
            .unwrap_or_else(Name::root);
        self.address = config.dns_address.parse().ok();
        self.pods = ranges(&config.pod_cidrs).collect();
        self.ranges = ranges(&config.service_cidrs)
            .chain(ranges(&config.pod_cidrs))
            .collect();
        self.clients = ranges(&config.node_pod_cidrs).collect();
        self.serial = self.serial.wrapping_add(1);
    }

    /// True for an address that may ask: a pod's of this node, or the node's own, which
    /// asks from the address that it asks.
    pub fn serves(&self, client: IpAddr) -> bool {
        self.is_node(client) || self.clients.iter().any(|range| range.contains(&client))
    }

    /// True for the node's own address.
    pub(crate) fn is_node(&self, client: IpAddr) -> bool {
        self.address == Some(client) || client.is_loopback()
    }

    /// Adds a service, or takes in its change.
    pub fn put(&mut self, service: impl Into<Service>) {
        let service = service.into();
        let key = key(&service.namespace, &service.name);
        if self.services.get(&key) == Some(&service) {
            return;
        }
        self.remove(&key);
        *self
            .namespaces
            .entry(service.namespace.clone())
            .or_default() += 1;
        for (address, hostname) in addresses(&service.kind) {
            self.pointers.entry(address).or_default().push(Pointer {
                service: key.clone(),
                hostname: hostname.map(str::to_owned),
            });
        }
        self.services.insert(key, service);
        self.serial = self.serial.wrapping_add(1);
    }

    /// Removes a service: "namespace/name".
    pub fn remove(&mut self, key: &str) {
        let Some(service) = self.services.remove(key) else {
            return;
        };
        self.serial = self.serial.wrapping_add(1);
        if let Some(count) = self.namespaces.get_mut(&service.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&service.namespace);
            }
        }
        for (address, _) in addresses(&service.kind) {
            if let Some(pointers) = self.pointers.get_mut(&address) {
                pointers.retain(|pointer| pointer.service != key);
                if pointers.is_empty() {
                    self.pointers.remove(&address);
                }
            }
        }
    }

    /// Removes all services but those that `keep` says.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let gone = self.services.keys().filter(|key| !keep(key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// The service of that name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&key(namespace, name))
    }

    /// True if there is a service in the namespace.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// What the address is called.
    pub fn pointers(&self, address: IpAddr) -> &[Pointer] {
        self.pointers.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Number of services.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// True without services.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

fn key(namespace: &str, name: &str) -> String {
    let mut key = String::with_capacity(namespace.len() + name.len() + 1);
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key
}

/// The addresses that are called by the service, and the hostnames of endpoints.
fn addresses(kind: &Kind) -> Vec<(IpAddr, Option<&str>)> {
    match kind {
        Kind::Cluster { addresses, .. } => addresses.iter().map(|a| (*a, None)).collect(),
        Kind::Headless { endpoints, .. } => endpoints
            .iter()
            .map(|e| (e.address, Some(e.hostname.as_str())))
            .collect(),
        Kind::External(_) => Vec::new(),
    }
}

fn service(message: &v1::Service) -> Service {
    let addresses: Vec<IpAddr> = message
        .cluster_ips
        .iter()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let kind = if !message.external_name.is_empty() {
        Kind::External(absolute(&message.external_name))
    } else if addresses.is_empty() {
        headless(message)
    } else {
        let ports = message.ports.iter();
        let ports = ports.filter_map(|p| port(&p.name, &p.protocol, p.port));
        Kind::Cluster {
            ports: ports.collect(),
            addresses,
        }
    };
    Service {
        namespace: message.namespace.to_ascii_lowercase(),
        name: message.name.to_ascii_lowercase(),
        kind,
    }
}

fn port(name: &str, protocol: &str, number: u32) -> Option<Port> {
    Some(Port {
        name: name.to_ascii_lowercase(),
        protocol: protocol.to_ascii_lowercase(),
        number: u16::try_from(number).ok()?,
    })
}

fn headless(message: &v1::Service) -> Kind {
    let endpoint = |e: &v1::NamedEndpoint| {
        let address: IpAddr = e.address.parse().ok()?;
        let ports = e.ports.iter();
        let ports = ports.filter_map(|p| port(&p.name, &p.protocol, p.port));
        Some(Endpoint {
            hostname: match e.hostname.as_str() {
                "" => dashed(address),
                named => named.to_ascii_lowercase(),
            },
            ports: ports.collect(),
            address,
        })
    };
    let mut endpoints: Vec<Endpoint> = message.endpoints.iter().filter_map(endpoint).collect();
    endpoints.sort_by(|a, b| (a.address, &a.hostname).cmp(&(b.address, &b.hostname)));
    let mut by_hostname: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        by_hostname
            .entry(endpoint.hostname.clone())
            .or_default()
            .push(index);
    }
    Kind::Headless {
        endpoints,
        by_hostname,
    }
}

/// "10-244-1-5", "fd00--1"
pub(crate) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, ip: &str) -> v1::Service {
        v1::Service {
            namespace: "team".into(),
            name: name.into(),
            cluster_ips: vec![ip.into()],
            ..v1::Service::default()
        }
    }

    #[test]
    fn a_change_takes_back_what_was_there() {
        let mut zone = Zone::default();
        zone.put(&message("web", "10.96.0.5"));
        let serial = zone.serial;
        zone.put(&message("web", "10.96.0.5"));
        assert_eq!(zone.serial, serial, "nothing has changed");
        zone.put(&message("web", "10.96.0.6"));
        let (old, new): (IpAddr, IpAddr) =
            ("10.96.0.5".parse().unwrap(), "10.96.0.6".parse().unwrap());
        assert!(zone.pointers(old).is_empty());
        assert_eq!(zone.pointers(new).len(), 1);
        assert!(zone.has_namespace("team"));
        zone.remove("team/web");
        assert!(zone.is_empty() && !zone.has_namespace("team") && zone.pointers(new).is_empty());
    }

    #[test]
    fn who_may_ask() {
        let mut zone = Zone::default();
        zone.configure(&v1::ClusterConfig {
            dns_address: "10.96.0.10".into(),
            node_pod_cidrs: vec!["10.244.1.0/24".into()],
            pod_cidrs: vec!["10.244.0.0/16".into()],
            ..v1::ClusterConfig::default()
        });
        for (client, may) in [
            ("10.244.1.9", true),
            ("10.96.0.10", true),
            ("127.0.0.1", true),
            ("10.244.2.9", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(zone.serves(client.parse().unwrap()), may, "{client}");
        }
    }
}
