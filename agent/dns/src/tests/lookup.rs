//! The Kubernetes DNS specification 1.1.0, row by row.

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;
use proto::v1;

use super::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn port(name: &str, protocol: &str, number: u32) -> v1::ServicePort {
    v1::ServicePort {
        name: name.into(),
        protocol: protocol.into(),
        port: number,
        ..v1::ServicePort::default()
    }
}

fn endpoint(address: &str, hostname: &str, ports: &[(&str, &str, u32)]) -> v1::NamedEndpoint {
    let port = |(name, protocol, port): &(&str, &str, u32)| v1::EndpointPort {
        name: (*name).into(),
        protocol: (*protocol).into(),
        port: *port,
    };
    v1::NamedEndpoint {
        address: address.into(),
        hostname: hostname.into(),
        ports: ports.iter().map(port).collect(),
    }
}

fn named(namespace: &str, name: &str) -> v1::Service {
    v1::Service {
        namespace: namespace.into(),
        name: name.into(),
        ..v1::Service::default()
    }
}

fn zone() -> Zone {
    let mut zone = Zone::default();
    zone.configure(&v1::ClusterConfig {
        pod_cidrs: texts(&["10.244.0.0/16", "fd00:10::/56"]),
        service_cidrs: texts(&["10.96.0.0/16"]),
        cluster_domain: "cluster.local".into(),
        dns_address: "10.96.0.10".into(),
        ..v1::ClusterConfig::default()
    });
    zone.put(&v1::Service {
        id: 1,
        cluster_ips: texts(&["10.96.0.1", "fd00:96::1"]),
        ports: vec![port("https", "TCP", 443), port("", "TCP", 80)],
        ..named("default", "kubernetes")
    });
    let sql: &[(&str, &str, u32)] = &[("sql", "TCP", 5432), ("", "TCP", 81)];
    zone.put(&v1::Service {
        endpoints: vec![
            endpoint("10.244.1.5", "my-pet", sql),
            endpoint("10.244.1.6", "", sql),
            endpoint("fd00:10::6", "my-pet", sql),
        ],
        ..named("default", "headless")
    });
    zone.put(&named("default", "empty"));
    zone.put(&v1::Service {
        external_name: "www.example.com".into(),
        ..named("default", "foo")
    });
    zone.put(&v1::Service {
        external_name: "kubernetes.default.svc.cluster.local".into(),
        ..named("other", "alias")
    });
    zone
}

fn ask(name: &str, asked: RecordType) -> Found {
    let mut query = Query::query(Name::from_ascii(name).unwrap(), asked);
    query.set_query_class(DNSClass::IN);
    lookup(&zone(), &query, 0)
}

/// An answer as one would write it: code, then the data of each record.
fn told(found: &Found) -> String {
    match found {
        Found::Elsewhere => "elsewhere".to_owned(),
        Found::Alias { record, .. } => format!("alias {}", record.data),
        Found::Here(answer) => {
            assert!(answer.authoritative);
            let data = answer.answers.iter().map(|record| record.data.to_string());
            let code = match (answer.code, answer.authorities.is_empty()) {
                (ResponseCode::NoError, _) => "",
                (ResponseCode::NXDomain, false) => "no such name",
                _other => panic!("{answer:?}"),
            };
            if answer.answers.is_empty() {
                assert_eq!(answer.authorities.len(), 1, "RFC 2308: a SOA");
            }
            let data: Vec<String> = data.collect();
            format!("{code}{}", data.join(", "))
        }
    }
}

#[test]
fn rows_of_the_specification() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SRV, TXT};
    let rows = [
        // 2.2
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("dns-version.cluster.local.", A, ""),
        // 2.3.1, case-insensitive
        ("kubernetes.default.svc.cluster.local.", A, "10.96.0.1"),
        ("Kubernetes.DEFAULT.svc.Cluster.Local.", A, "10.96.0.1"),
        ("kubernetes.default.svc.cluster.local.", AAAA, "fd00:96::1"),
        ("kubernetes.default.svc.cluster.local.", TXT, ""),
        ("nothing.default.svc.cluster.local.", A, "no such name"),
        ("kubernetes.nowhere.svc.cluster.local.", A, "no such name"),
        // 2.3.2
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "0 100 443 kubernetes.default.svc.cluster.local.",
        ),
        (
            "_https._udp.kubernetes.default.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        (
            "_._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        (
            "https.tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        ("_https._tcp.kubernetes.default.svc.cluster.local.", A, ""),
        ("_tcp.kubernetes.default.svc.cluster.local.", SRV, ""),
        (
            "_udp.kubernetes.default.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        // 2.3.3
        (
            "1.0.96.10.in-addr.arpa.",
            PTR,
            "kubernetes.default.svc.cluster.local.",
        ),
        ("1.0.96.10.in-addr.arpa.", A, ""),
        ("2.0.96.10.in-addr.arpa.", PTR, "no such name"),
        ("1.2.0.192.in-addr.arpa.", PTR, "elsewhere"),
        // 2.4.1
        (
            "headless.default.svc.cluster.local.",
            A,
            "10.244.1.5, 10.244.1.6",
        ),
        ("headless.default.svc.cluster.local.", AAAA, "fd00:10::6"),
        ("empty.default.svc.cluster.local.", A, "no such name"),
        (
            "my-pet.headless.default.svc.cluster.local.",
            A,
            "10.244.1.5",
        ),
        (
            "my-pet.headless.default.svc.cluster.local.",
            AAAA,
            "fd00:10::6",
        ),
        (
            "10-244-1-6.headless.default.svc.cluster.local.",
            A,
            "10.244.1.6",
        ),
        (
            "10-244-1-5.headless.default.svc.cluster.local.",
            A,
            "no such name",
        ),
        (
            "my-pet.kubernetes.default.svc.cluster.local.",
            A,
            "no such name",
        ),
        // 2.4.2
        (
            "_sql._tcp.headless.default.svc.cluster.local.",
            SRV,
            "0 33 5432 my-pet.headless.default.svc.cluster.local., \
             0 33 5432 10-244-1-6.headless.default.svc.cluster.local., \
             0 33 5432 my-pet.headless.default.svc.cluster.local.",
        ),
        ("_tcp.headless.default.svc.cluster.local.", A, ""),
        // 2.4.3
        (
            "5.1.244.10.in-addr.arpa.",
            PTR,
            "my-pet.headless.default.svc.cluster.local.",
        ),
        (
            "6.1.244.10.in-addr.arpa.",
            PTR,
            "10-244-1-6.headless.default.svc.cluster.local.",
        ),
        (
            "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "my-pet.headless.default.svc.cluster.local.",
        ),
        // 2.5
        (
            "foo.default.svc.cluster.local.",
            A,
            "alias www.example.com.",
        ),
        ("foo.default.svc.cluster.local.", CNAME, "www.example.com."),
        ("a.foo.default.svc.cluster.local.", A, "no such name"),
        // 2.6
        ("10-244-9-9.default.pod.cluster.local.", A, "10.244.9.9"),
        ("10-244-9-9.default.pod.cluster.local.", AAAA, ""),
        ("fd00-10--9.default.pod.cluster.local.", AAAA, "fd00:10::9"),
        ("192-0-2-1.default.pod.cluster.local.", A, "no such name"),
        ("x.default.pod.cluster.local.", A, "no such name"),
        // Names between.
        ("cluster.local.", A, ""),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", A, "10.96.0.10"),
        ("svc.cluster.local.", A, ""),
        ("default.svc.cluster.local.", A, ""),
        ("nowhere.svc.cluster.local.", A, "no such name"),
        ("default.pod.cluster.local.", A, ""),
        ("*.default.svc.cluster.local.", A, "no such name"),
        ("a.b.c.d.default.svc.cluster.local.", A, "no such name"),
        // Not ours.
        ("example.com.", A, "elsewhere"),
        ("notcluster.local.", A, "elsewhere"),
        ("local.", A, "elsewhere"),
        (".", A, "elsewhere"),
    ];
    for (name, asked, expected) in rows {
        assert_eq!(told(&ask(name, asked)), expected, "{name} {asked}");
    }
}

#[test]
fn addresses_of_srv_targets_come_along() {
    let Found::Here(answer) = ask(
        "_sql._tcp.headless.default.svc.cluster.local.",
        RecordType::SRV,
    ) else {
        panic!()
    };
    let mut additionals: Vec<String> = answer.additionals.iter().map(ToString::to_string).collect();
    additionals.sort();
    assert_eq!(additionals.len(), 3, "{additionals:?}");
    assert!(
        additionals[0].starts_with("10-244-1-6.headless"),
        "{additionals:?}"
    );
}

#[test]
fn addresses_take_turns_at_the_front() {
    let query = Query::query(
        Name::from_ascii("headless.default.svc.cluster.local.").unwrap(),
        RecordType::A,
    );
    let zone = zone();
    let first = |turn| match lookup(&zone, &query, turn) {
        Found::Here(answer) => answer.answers[0].data.to_string(),
        other @ (Found::Elsewhere | Found::Alias { .. }) => panic!("{other:?}"),
    };
    let seen: std::collections::BTreeSet<String> = (0..6).map(first).collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn any_gets_the_least_that_can_be_said() {
    let Found::Here(answer) = ask("kubernetes.default.svc.cluster.local.", RecordType::ANY) else {
        panic!()
    };
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(answer.answers[0].record_type(), RecordType::HINFO);
}

#[test]
fn the_soa_is_above_the_name_that_it_denies() {
    for name in [
        "nothing.default.svc.cluster.local.",
        "2.0.96.10.in-addr.arpa.",
        "9.9.244.10.in-addr.arpa.",
    ] {
        let name = Name::from_ascii(name).unwrap();
        let query = Query::query(name.clone(), RecordType::PTR);
        let Found::Here(answer) = lookup(&zone(), &query, 0) else {
            panic!("{name}")
        };
        assert!(
            answer.authorities[0].name.zone_of(&name),
            "{name}: {answer:?}"
        );
    }
}

proptest! {
    /// A zone that was changed step by step answers like one built from the final state.
    #[test]
    fn changes_leave_what_a_fresh_zone_has(
        steps in proptest::collection::vec((0_u8..6, 0_u8..3, 0_u8..4), 0..40)
    ) {
        let name = |n: u8| format!("s{n}");
        let mut changed = zone();
        let mut last = std::collections::BTreeMap::new();
        for (n, kind, address) in steps {
            let message = match kind {
                0 => v1::Service { cluster_ips: vec![format!("10.96.1.{address}")], ..named("n", &name(n)) },
                1 => v1::Service {
                    endpoints: vec![endpoint(&format!("10.244.1.{address}"), "", &[])],
                    ..named("n", &name(n))
                },
                _ => {
                    changed.remove(&format!("n/{}", name(n)));
                    last.remove(&n);
                    continue;
                }
            };
            changed.put(&message);
            last.insert(n, message);
        }
        let mut fresh = zone();
        last.values().for_each(|message| fresh.put(message));
        prop_assert_eq!(changed.len(), fresh.len());
        prop_assert_eq!(changed.has_namespace("n"), fresh.has_namespace("n"));
        for n in 0..6 {
            let asked = Name::from_ascii(format!("{}.n.svc.cluster.local.", name(n))).unwrap();
            let query = Query::query(asked, RecordType::A);
            let answers = |zone: &Zone| match lookup(zone, &query, 0) {
                Found::Here(answer) => answer.answers,
                other @ (Found::Elsewhere | Found::Alias { .. }) => panic!("{other:?}"),
            };
            prop_assert_eq!(answers(&changed), answers(&fresh));
        }
        for last in 0..4_u8 {
            for net in [[10, 96, 1, last], [10, 244, 1, last]] {
                let sorted = |zone: &Zone| {
                    let pointers = zone.pointers(std::net::IpAddr::from(net)).iter();
                    let mut found: Vec<String> = pointers.map(|p| format!("{p:?}")).collect();
                    found.sort();
                    found
                };
                prop_assert_eq!(sorted(&changed), sorted(&fresh));
            }
        }
    }
}
