//! Hostile messages of clients and of upstream servers: nothing panics, and no reply is
//! longer than its client accepts.

use hickory_proto::rr::rdata::{CNAME, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};
use proto::v1;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::cache::Cache;
use crate::message::{self, Read, TCP_MOST, Transport};
use crate::resolver::{Handled, Resolver};

/// 10,240, unless `$PROPTEST_CASES` says that more are wanted.
fn cases() -> usize {
    40 * proptest::test_runner::Config::default().cases as usize
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const NAMES: &[&str] = &[
    "web.default.svc.cluster.local.",
    "db.default.svc.cluster.local.",
    "db-1.db.default.svc.cluster.local.",
    "_sql._tcp.db.default.svc.cluster.local.",
    "ext.default.svc.cluster.local.",
    "10-244-1-5.default.pod.cluster.local.",
    "dns-version.cluster.local.",
    "cluster.local.",
    "1.0.96.10.in-addr.arpa.",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
    "www.example.com.",
    "counters.hydrofoil.",
    ".",
];

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// Names of all kinds, one of them with more endpoints than fit a message.
fn resolver() -> Resolver {
    let resolver = Resolver::new("/nowhere".into(), || 1);
    resolver.configure(&v1::ClusterConfig {
        dns_address: "10.96.0.10".into(),
        pod_cidrs: vec!["10.244.0.0/16".into(), "fd00::/64".into()],
        service_cidrs: vec!["10.96.0.0/16".into()],
        ..v1::ClusterConfig::default()
    });
    let service = |name: &str| v1::Service {
        namespace: "default".into(),
        name: name.into(),
        ..v1::Service::default()
    };
    let endpoint = |n: u32| v1::NamedEndpoint {
        address: Ipv4Addr::from(0x0af4_0000 + n).to_string(),
        hostname: format!("db-{n}"),
        ports: vec![v1::EndpointPort {
            name: "sql".into(),
            protocol: "TCP".into(),
            port: 5432,
        }],
    };
    resolver.change(|zone| {
        zone.put(&v1::Service {
            cluster_ips: vec!["10.96.0.1".into()],
            ..service("web")
        });
        zone.put(&v1::Service {
            endpoints: (0..40).map(endpoint).collect(),
            ..service("db")
        });
        zone.put(&v1::Service {
            external_name: "www.example.com".into(),
            ..service("ext")
        });
    });
    resolver
}

/// Changes a few bytes, and cuts or lengthens some messages.
fn spoil(random: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(0..6) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
    }
    match random.random_range(0..8) {
        0 => bytes.truncate(random.random_range(0..=bytes.len())),
        1 => bytes.extend((0..random.random_range(0..40)).map(|_| random.random::<u8>())),
        _ => {}
    }
}

/// A message of a client: a query that was spoilt, random bytes behind a header that
/// announces a question, or random bytes.
fn of_client(random: &mut StdRng) -> Vec<u8> {
    let kind = random.random_range(0..10);
    if kind < 2 {
        let mut bytes: Vec<u8> = (0..random.random_range(0..300))
            .map(|_| random.random())
            .collect();
        if kind == 0 && bytes.len() > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, random.random_range(0..3)]);
        }
        return bytes;
    }
    let mut message = Message::new(random.random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = random.random();
    let asked = [1, 28, 33, 12, 16, 5, 6, 255, random.random()];
    let asked = RecordType::from(*asked.choose(random).unwrap());
    let mut query = Query::query(name(NAMES.choose(random).unwrap()), asked);
    if random.random_bool(0.05) {
        query.set_query_class(hickory_proto::rr::DNSClass::CH);
    }
    message.add_query(query);
    if random.random() {
        let mut edns = Edns::new();
        edns.set_max_payload(*[0, 512, 600, 1232, 4096, 65_535].choose(random).unwrap());
        edns.set_dnssec_ok(random.random());
        message.set_edns(edns);
    }
    let mut bytes = message.to_vec().unwrap();
    spoil(random, &mut bytes);
    bytes
}

/// What a failure says of its case.
fn lazily(seed: u64, case: usize, bytes: &[u8]) -> impl std::fmt::Display {
    std::fmt::from_fn(move |f| write!(f, "seed {seed} case {case}: {bytes:?}"))
}

/// The most that a reply over UDP may have, as another reader of the query sees it.
fn accepts(bytes: &[u8]) -> usize {
    let edns = Message::from_vec(bytes).ok().and_then(|m| m.edns);
    edns.map_or(512, |edns| {
        usize::from(edns.max_payload()).clamp(512, UDP_MOST)
    })
}

#[test]
fn no_message_of_a_client_ends_the_server_or_gets_too_long_a_reply() {
    let resolver = resolver();
    let (mut replies, mut longest) = (0, 0);
    let seed: u64 = rand::random();
    let cases = cases();
    for case in 0..cases {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(case as u64));
        let bytes = of_client(&mut random);
        let told = lazily(seed, case, &bytes);
        let (transport, most) = match case % 4 {
            0 => (Transport::Tcp, TCP_MOST),
            _ => (Transport::Udp, accepts(&bytes)),
        };
        let Handled::Reply(reply) = resolver.handle(&bytes, CLIENT, transport) else {
            continue;
        };
        replies += 1;
        longest = longest.max(reply.len());
        assert!(
            (12..=most).contains(&reply.len()),
            "{} bytes, {told}",
            reply.len()
        );
        assert_eq!(reply[..2], bytes[..2], "{told}");
        let message = Message::from_vec(&reply);
        let message = message.unwrap_or_else(|error| panic!("{error}, {told}"));
        assert_eq!(
            message.metadata.message_type,
            MessageType::Response,
            "{told}"
        );
    }
    assert!(replies > cases / 2, "{replies} replies");
    assert!(longest > UDP_MOST, "{longest} bytes");
}

/// A reply of a server: of any length and shape, spoilt or not.
fn of_server(random: &mut StdRng, question: &Question, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = ResponseCode::from(0, random.random_range(0..6));
    message.add_query(question.query.clone());
    let owner = question.query.name().clone();
    for _ in 0..random.random_range(0..40) {
        let data = match random.random_range(0..4) {
            0 => RData::CNAME(CNAME(name(NAMES.choose(random).unwrap()))),
            1 => RData::SOA(SOA::new(
                name("n."),
                name("h."),
                1,
                1,
                1,
                1,
                random.random(),
            )),
            2 => RData::TXT(TXT::new(vec!["x".repeat(random.random_range(0..255))])),
            _ => IpAddr::from(random.random::<[u8; 4]>()).into(),
        };
        let record = Record::from_rdata(owner.clone(), random.random(), data);
        match random.random_range(0..3) {
            0 => message.add_authority(record),
            1 => message.add_additional(record),
            _ => message.add_answer(record),
        };
    }
    let mut bytes = message.to_vec().unwrap();
    if random.random() {
        spoil(random, &mut bytes);
    }
    bytes
}

#[test]
fn no_reply_of_a_server_ends_ours_or_is_told_on_too_long() {
    let query = Query::query(name("www.example.com."), RecordType::A);
    let question = Question {
        query: query.clone(),
        dnssec_ok: false,
        checking_disabled: false,
    };
    let mut asked = Message::new(1, MessageType::Query, OpCode::Query);
    asked.add_query(query);
    let Read::Request(request) = message::read(&asked.to_vec().unwrap()) else {
        panic!("a query");
    };
    let mut cache = Cache::new(100, 1 << 20);
    let mut told_on = 0;
    let seed: u64 = rand::random();
    let cases = cases() / 10;
    for case in 0..cases {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(case as u64));
        let id = random.random();
        let bytes = of_server(&mut random, &question, id);
        let Some(answer) = answer(&question, id, &bytes).and_then(|reply| taken(reply).ok()) else {
            continue;
        };
        told_on += 1;
        let answer = std::sync::Arc::new(answer);
        cache.put(Box::from(&bytes[..2]), answer.clone(), case as u64 * 100);
        drop(cache.get(&bytes[..2], case as u64 * 100));
        for transport in [Transport::Udp, Transport::Tcp] {
            let limit = request.limit(transport);
            let reply = message::encode(&request, &answer, limit).bytes;
            let told = lazily(seed, case, &bytes);
            assert!(
                (12..=limit).contains(&reply.len()),
                "{} bytes, {told}",
                reply.len()
            );
            assert!(Message::from_vec(&reply).is_ok(), "{told}");
        }
    }
    assert!(told_on > cases / 10, "{told_on}");
}
