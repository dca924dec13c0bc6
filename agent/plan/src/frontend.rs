//! Where clients reach a service port, and which choice table they get there: at the
//! addresses of the cluster, at those outside, and at a port of every node.
//!
//! A port has up to two tables: all backends of the cluster, and those of this node.
//! Packets from outside get the one that `externalTrafficPolicy` says, pods and nodes
//! the one of the whole cluster, as in kube-proxy. Called by `service.rs`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_common::net::{Addr, Be16};
use ebpf_common::service::{LOCAL_ONLY, NODE_PORTS, SOURCE_RANGES, SourceRangeKey};
use proto::v1;

use crate::link::Cidr;
use crate::maps::{Frontend, FrontendKey};

/// The choice tables of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tables {
    /// For the addresses of the cluster.
    internal: u32,
    /// For others, to clients of the cluster.
    cluster: u32,
    /// For others, to clients outside; 0: none.
    external: u32,
    flags: u32,
}

/// Tables of a port with the policies by which their backends are chosen.
pub(crate) fn tables(
    service: &v1::Service,
    port: &v1::ServicePort,
) -> (Tables, Vec<(u32, v1::TrafficPolicy)>) {
    use v1::TrafficPolicy::{Cluster, Local};
    let internal = service.internal_traffic_policy();
    let external = service.external_traffic_policy();
    let other = match internal {
        Cluster => Local,
        Local => Cluster,
    };
    let mut policies = vec![(port.id, internal)];
    if port.external_id != 0 {
        policies.push((port.external_id, other));
    }
    let with = |policy| {
        let found = policies.iter().find(|(_, has)| *has == policy);
        found.map(|(id, _)| *id)
    };
    let tables = Tables {
        internal: port.id,
        cluster: with(Cluster).unwrap_or(port.id),
        external: with(external).unwrap_or(0),
        flags: if external == Local { LOCAL_ONLY } else { 0 },
    };
    (tables, policies)
}

/// Frontends of a service port; addresses that are not IPv4 have none.
pub(crate) fn frontends(
    service: &v1::Service,
    port: &v1::ServicePort,
    (number, protocol): (Be16, u8),
    tables: Tables,
) -> BTreeMap<FrontendKey, Frontend> {
    let frontend = |service_port, external, flags| Frontend {
        service_port,
        external,
        service: service.id,
        affinity: service.affinity_timeout_s,
        flags,
    };
    let at = |addr: Addr, port: Be16| FrontendKey {
        addr,
        port,
        protocol,
        pad: 0,
    };
    let outside = |flags| frontend(tables.cluster, tables.external, tables.flags | flags);
    let mut all = BTreeMap::new();
    if let Ok(node_port) = u16::try_from(port.node_port)
        && node_port != 0
    {
        all.insert(at(NODE_PORTS, Be16::new(node_port)), outside(0));
    }
    let ranges = match service.source_ranges.is_empty() {
        true => 0,
        false => SOURCE_RANGES,
    };
    for ip in addresses(&service.load_balancer_ips) {
        all.insert(at(ip.into(), number), outside(ranges));
    }
    for ip in addresses(&service.external_ips) {
        all.insert(at(ip.into(), number), outside(0));
    }
    for ip in addresses(&service.cluster_ips) {
        all.insert(at(ip.into(), number), frontend(tables.internal, 0, 0));
    }
    all
}

/// IPv4 addresses among these. The unspecified one would be every address of the node.
pub(crate) fn addresses(texts: &[String]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let parsed = texts.iter().filter_map(|ip| ip.parse::<Ipv4Addr>().ok());
    parsed.filter(|ip| !ip.is_unspecified())
}

/// Clients of the load balancer's addresses. What is no IPv4 range lets no IPv4 client in.
pub(crate) fn source_ranges(service: &v1::Service) -> impl Iterator<Item = SourceRangeKey> + '_ {
    let ranges = service.source_ranges.iter();
    let ranges = ranges.filter_map(|text| Cidr::parse(text.trim()));
    ranges.map(|range| SourceRangeKey::new(service.id, range.address.into(), range.bits.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::TrafficPolicy::{Cluster, Local};

    #[test]
    fn policies_say_which_table_a_client_gets() {
        // (internal, external, second id, tables for (address of the cluster, clients of the
        // cluster elsewhere, clients outside), flags)
        for (internal, external, second, wanted, flags) in [
            (Cluster, Cluster, 0, (7, 7, 7), 0),
            (Cluster, Local, 8, (7, 7, 8), LOCAL_ONLY),
            (Local, Cluster, 8, (7, 8, 8), 0),
            (Local, Local, 8, (7, 8, 7), LOCAL_ONLY),
            // A control plane that gives no second number where both are the same.
            (Local, Local, 0, (7, 7, 7), LOCAL_ONLY),
            // Not numbered yet: what would be wrong is refused.
            (Cluster, Local, 0, (7, 7, 0), LOCAL_ONLY),
        ] {
            let mut service = v1::Service::default();
            service.set_internal_traffic_policy(internal);
            service.set_external_traffic_policy(external);
            let port = v1::ServicePort {
                id: 7,
                external_id: second,
                ..Default::default()
            };
            let (found, policies) = tables(&service, &port);
            assert_eq!(
                (found.internal, found.cluster, found.external),
                wanted,
                "{internal:?} {external:?}"
            );
            assert_eq!(found.flags, flags);
            assert_eq!(policies[0], (7, internal));
            assert_eq!(policies.len(), if second == 0 { 1 } else { 2 });
        }
    }

    #[test]
    fn each_address_is_a_frontend_of_its_kind() {
        let text = |all: &[&str]| all.iter().map(|ip| (*ip).to_owned()).collect();
        let mut service = v1::Service {
            id: 3,
            cluster_ips: text(&["10.96.0.3", "fd00::3"]),
            external_ips: text(&["192.0.2.1", "0.0.0.0", "x"]),
            load_balancer_ips: text(&["198.51.100.1"]),
            source_ranges: text(&[" 203.0.113.0/24", "2001:db8::/32"]),
            ..Default::default()
        };
        let port = v1::ServicePort {
            id: 7,
            node_port: 30_080,
            ..Default::default()
        };
        let of = |service: &v1::Service| {
            let (tables, _) = tables(service, &port);
            let all = frontends(service, &port, (Be16::new(80), 6), tables);
            all.into_iter()
                .map(|(key, found)| {
                    let ip = key.addr.to_string();
                    (ip, key.port.get(), found.external, found.flags)
                })
                .collect::<Vec<_>>()
        };
        let mut found = of(&service);
        found.sort();
        let row = |ip: &str, port, external, flags| (ip.to_owned(), port, external, flags);
        let wanted = [
            row("0.0.0.0", 30_080, 7, 0),
            row("10.96.0.3", 80, 0, 0),
            row("192.0.2.1", 80, 7, 0),
            row("198.51.100.1", 80, 7, SOURCE_RANGES),
        ];
        assert_eq!(found, wanted);
        let range = SourceRangeKey::new(3, Ipv4Addr::new(203, 0, 113, 0).into(), 24);
        assert_eq!(source_ranges(&service).collect::<Vec<_>>(), [range]);
        assert_eq!(range.prefix_len, 32 + 96 + 24);
        // The same block in other words is the same.
        service.source_ranges = text(&["203.0.113.77/24", "203.0.113.0/24", "192.0.2.1/0"]);
        let all = SourceRangeKey::new(3, Ipv4Addr::UNSPECIFIED.into(), 0);
        assert_eq!(
            source_ranges(&service).collect::<Vec<_>>(),
            [range, range, all]
        );
        service.source_ranges.clear();
        assert!(of(&service).contains(&row("198.51.100.1", 80, 7, 0)));
    }
}
