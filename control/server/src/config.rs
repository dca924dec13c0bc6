//! The configuration file: TOML text to a checked tree, once, at the edge.
//!
//! Called by `main.rs`, which logs the outcome.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use control_plan::Settings;
use control_plan::pool::PortRange;
use ipnet::IpNet;
use proto::v1;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::view::ClusterFacts;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, a wrong type.
    #[error("{0}")]
    Parse(#[from] toml::de::Error),
    /// A value that makes no sense.
    #[error("{field}: {reason}")]
    Value {
        /// Key in the file.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The file as it is written. Defaults are in the table below.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to serve on.
    #[serde(default = "default::listen")]
    pub listen: SocketAddr,
    /// Folder of the store, the CA, the operator's context, the join token.
    pub data: PathBuf,
    /// Names and addresses that clients reach this server by. The first one
    /// goes into the operator's context.
    #[serde(default = "default::names")]
    pub names: Vec<String>,
    /// Address at which nodes and pods reach this server, the endpoint of the Service
    /// `default/kubernetes`; by default `listen`, the first address in `names`, or that of
    /// the default route.
    pub advertise_address: Option<Ipv4Addr>,
    /// Range of all pods.
    #[serde(default = "default::pod_cidr")]
    pub pod_cidr: IpNet,
    /// Prefix length of one node's part of it.
    #[serde(default = "default::node_prefix")]
    pub node_prefix: u8,
    /// Range of all services.
    #[serde(default = "default::service_cidr")]
    pub service_cidr: IpNet,
    /// Ports of every node that services of the types NodePort and LoadBalancer may have,
    /// "30000-32767".
    #[serde(default = "default::node_ports", deserialize_with = "port_range")]
    pub node_port_range: PortRange,
    /// Ranges of the addresses that services of the type LoadBalancer are given. Nodes
    /// answer at them; that they reach a node is up to the network.
    #[serde(default)]
    pub load_balancer_pools: Vec<IpNet>,
    /// Seconds without a heartbeat after which a node counts as lost, and without its
    /// Node object after which its pods are deleted.
    #[serde(default = "default::node_lost_after_seconds")]
    pub node_lost_after_seconds: u64,
    /// Seconds after which the pods of a lost node start elsewhere, unless a pod
    /// tolerates the loss for longer.
    #[serde(default = "default::pod_eviction_seconds")]
    pub pod_eviction_seconds: u32,
    /// Finished pods that are kept; of more, the oldest are deleted. 0 keeps all.
    #[serde(default = "default::terminated_pod_gc_threshold")]
    pub terminated_pod_gc_threshold: usize,
    /// Start although the store holds objects that this version cannot read: they
    /// are left as they are, and nothing that may depend on them is deleted.
    #[serde(default)]
    pub skip_unreadable_objects: bool,
    /// Seconds for which events are kept.
    #[serde(default = "default::event_seconds")]
    pub event_seconds: u32,
    /// Seconds for which the certificates of nodes are valid. Agents renew theirs
    /// after two thirds of it.
    #[serde(default = "default::node_certificate_seconds")]
    pub node_certificate_seconds: u32,
    /// DNS domain of the cluster.
    #[serde(default = "default::cluster_domain")]
    pub cluster_domain: String,
    /// Address at which every node answers cluster DNS itself, in `service_cidr`; by
    /// default its tenth. Empty: nodes do not.
    pub dns_address: Option<String>,
    /// Servers that pods ask; by default `dns_address`.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
    /// Domains that nodes ask other servers for than their own.
    #[serde(default)]
    pub dns_stub: Vec<DnsStub>,
}

/// A domain with DNS servers of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsStub {
    /// "corp.example"
    pub domain: String,
    /// "192.0.2.1" or "192.0.2.1:5353", in the order in which they are asked.
    pub servers: Vec<String>,
}

/// From "30000-32767".
fn port_range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortRange, D::Error> {
    let text = String::deserialize(deserializer)?;
    let ends = text.split_once('-');
    let ends = ends.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match ends {
        Some((first, last)) if 0 < first && first <= last => Ok(PortRange { first, last }),
        Some(_) | None => Err(D::Error::custom(format!(
            "node_port_range: {text:?} is no range of ports, such as \"30000-32767\""
        ))),
    }
}

/// What a key that is absent stands for.
mod default {
    use std::net::SocketAddr;

    use control_plan::pool::PortRange;
    use ipnet::{IpNet, Ipv4Net};

    fn net(a: u8, b: u8) -> IpNet {
        // Always a valid prefix length; the fallback is the whole range.
        IpNet::V4(Ipv4Net::new([a, b, 0, 0].into(), 16).unwrap_or_default())
    }
    pub(super) fn listen() -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 7443))
    }
    pub(super) fn names() -> Vec<String> {
        vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
    }
    pub(super) fn pod_cidr() -> IpNet {
        net(10, 244)
    }
    pub(super) fn node_prefix() -> u8 {
        24
    }
    pub(super) fn service_cidr() -> IpNet {
        net(10, 96)
    }
    pub(super) fn node_ports() -> PortRange {
        PortRange {
            first: 30_000,
            last: 32_767,
        }
    }
    pub(super) fn node_lost_after_seconds() -> u64 {
        40
    }
    pub(super) fn pod_eviction_seconds() -> u32 {
        300
    }
    pub(super) fn terminated_pod_gc_threshold() -> usize {
        12_500
    }
    pub(super) fn event_seconds() -> u32 {
        3600
    }
    pub(super) fn node_certificate_seconds() -> u32 {
        365 * 24 * 3600
    }
    pub(super) fn cluster_domain() -> String {
        "cluster.local".to_owned()
    }
}

impl Config {
    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// What operators connect to, with this port.
    pub fn url(&self, port: u16) -> String {
        let host = self.names.first().map_or("localhost", String::as_str);
        if host.contains(':') {
            format!("https://[{host}]:{port}")
        } else {
            format!("https://{host}:{port}")
        }
    }

    /// What the server's certificate is for: its names, and those of the Service
    /// `default/kubernetes`, which pods use.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = self.names.clone();
        names.extend(self.advertise_address.map(|address| address.to_string()));
        let service = self.service_cidr.hosts().next();
        names.extend(service.map(|address| address.to_string()));
        let domain = self.cluster_domain.trim_end_matches('.');
        for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
            names.push(name.to_owned());
        }
        names.push(format!("kubernetes.default.svc.{domain}"));
        names.sort();
        names.dedup();
        names
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, reason: &str| {
            Err(ConfigError::Value {
                field,
                reason: reason.to_owned(),
            })
        };
        if self.data.as_os_str().is_empty() {
            return wrong("data", "must name a folder");
        }
        if self.names.is_empty() {
            return wrong("names", "must have at least one name or address");
        }
        if let Some(address) = self.advertise_address
            && (address.is_loopback() || address.is_unspecified())
        {
            return wrong(
                "advertise_address",
                "must be an address that nodes can reach",
            );
        }
        for (field, net) in [
            ("pod_cidr", &self.pod_cidr),
            ("service_cidr", &self.service_cidr),
        ] {
            if net.addr() != net.network() {
                return wrong(field, "has bits set behind its prefix");
            }
            if !net.addr().is_ipv4() {
                return wrong(field, "must be a range of IPv4; IPv6 is not supported yet");
            }
        }
        let (pods, services) = (&self.pod_cidr, &self.service_cidr);
        if pods.contains(services) || services.contains(pods) {
            return wrong("service_cidr", "overlaps pod_cidr");
        }
        for pool in &self.load_balancer_pools {
            let field = "load_balancer_pools";
            if pool.addr() != pool.network() {
                return wrong(field, "a range has bits set behind its prefix");
            }
            if !pool.addr().is_ipv4() {
                return wrong(field, "must be ranges of IPv4; IPv6 is not supported yet");
            }
            let others = [pods, services].into_iter();
            let others = others.chain(self.load_balancer_pools.iter());
            let meets = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
            if others.filter(|other| meets(pool, other)).count() > 1 {
                return wrong(
                    field,
                    "a range overlaps another one, pod_cidr or service_cidr",
                );
            }
        }
        if self.node_prefix < self.pod_cidr.prefix_len() || self.node_prefix > 29 {
            return wrong("node_prefix", "must be from the prefix of pod_cidr to 29");
        }
        match self.dns_address() {
            Ok(None) => {}
            Ok(Some(address)) => {
                let edge = address == services.network() || address == services.broadcast();
                if !services.contains(&address) || edge {
                    return wrong("dns_address", "must be an address of service_cidr");
                }
            }
            Err(_parse) => return wrong("dns_address", "must be an address, or empty"),
        }
        for stub in &self.dns_stub {
            let address = |text: &String| {
                text.parse::<SocketAddr>().is_err() && text.parse::<IpAddr>().is_err()
            };
            if stub.servers.is_empty() || stub.servers.iter().any(address) {
                return wrong("dns_stub", "servers must be addresses, at least one");
            }
            if stub.domain.trim_end_matches('.').is_empty() {
                return wrong("dns_stub", "domain must be a name");
            }
        }
        if self.node_certificate_seconds == 0 {
            return wrong("node_certificate_seconds", "must be at least 1");
        }
        if self.node_lost_after_seconds == 0 {
            return wrong("node_lost_after_seconds", "must be at least 1");
        }
        Ok(())
    }

    /// Where nodes answer cluster DNS.
    pub fn dns_address(&self) -> Result<Option<IpAddr>, std::net::AddrParseError> {
        match self.dns_address.as_deref() {
            Some("") => Ok(None),
            Some(text) => text.parse().map(Some),
            // `None` for a range without a tenth address.
            None => Ok(self.service_cidr.hosts().nth(9)),
        }
    }

    /// What nodes are told of the cluster.
    pub fn facts(&self) -> ClusterFacts {
        let address = self.dns_address().unwrap_or_default();
        let address = address.map(|address| address.to_string());
        let servers: Vec<String> = self.dns_servers.iter().map(ToString::to_string).collect();
        let stubs = self.dns_stub.iter().map(|stub| v1::DnsStub {
            domain: stub.domain.clone(),
            servers: stub.servers.clone(),
        });
        ClusterFacts {
            domain: self.cluster_domain.clone(),
            dns_servers: if servers.is_empty() {
                address.iter().cloned().collect()
            } else {
                servers
            },
            dns_address: address.unwrap_or_default(),
            dns_stubs: stubs.collect(),
        }
    }

    /// What the controllers need of it.
    pub fn settings(&self) -> Settings {
        Settings {
            pod_cidr: self.pod_cidr,
            node_prefix: self.node_prefix,
            service_cidr: self.service_cidr,
            node_ports: self.node_port_range,
            load_balancer_pools: self.load_balancer_pools.clone(),
            eviction_seconds: i64::from(self.pod_eviction_seconds),
            event_seconds: i64::from(self.event_seconds),
            lost_seconds: i64::try_from(self.node_lost_after_seconds).unwrap_or(i64::MAX),
            terminated_pods: self.terminated_pod_gc_threshold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_refusals() {
        let outside = "data = \"/d\"\nnode_port_range = \"30000-30100\"\nload_balancer_pools = [\"192.0.2.0/28\"]";
        let settings = Config::parse(outside).unwrap().settings();
        assert_eq!(settings.node_ports.last, 30_100);
        assert_eq!(settings.load_balancer_pools.len(), 1);
        let config = Config::parse("data = \"/d\"").unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.pod_cidr.to_string(), "10.244.0.0/16");
        assert_eq!(config.service_cidr.to_string(), "10.96.0.0/16");
        assert_eq!(config.facts().dns_address, "10.96.0.10");
        assert_eq!(config.facts().dns_servers, ["10.96.0.10"]);
        let names = config.certificate_names();
        for name in [
            "localhost",
            "10.96.0.1",
            "kubernetes.default.svc.cluster.local",
        ] {
            assert!(names.iter().any(|found| found == name), "{names:?}");
        }
        let other = "data = \"/d\"\ndns_address = \"\"\ndns_servers = [\"10.96.0.53\"]";
        let facts = Config::parse(other).unwrap().facts();
        assert_eq!(facts.dns_address, "");
        assert_eq!(facts.dns_servers, ["10.96.0.53"]);
        let rows = [
            ("", "data"),
            ("data = 1", "data"),
            ("data = \"/d\"\nspeed = 1", "speed"),
            ("data = \"/d\"\nnames = []", "names"),
            ("data = \"/d\"\npod_cidr = \"10.244.0.1/16\"", "pod_cidr"),
            (
                "data = \"/d\"\nservice_cidr = \"10.244.3.0/24\"",
                "overlaps",
            ),
            ("data = \"/d\"\nnode_prefix = 8", "node_prefix"),
            (
                "data = \"/d\"\nadvertise_address = \"127.0.0.1\"",
                "advertise_address",
            ),
            ("data = \"/d\"\nnode_port_range = \"9\"", "node_port_range"),
            (
                "data = \"/d\"\nload_balancer_pools = [\"10.244.9.0/24\"]",
                "load_balancer_pools",
            ),
            ("data = \"/d\"\ndns_address = \"10.97.0.10\"", "dns_address"),
            ("data = \"/d\"\ndns_address = \"x\"", "dns_address"),
            (
                "data = \"/d\"\n[[dns_stub]]\ndomain = \"a\"\nservers = []",
                "dns_stub",
            ),
        ];
        for (text, expected) in rows {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
