//! Messages of clients, well-formed, mutated and random.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData};
use proptest::prelude::*;

use super::*;

fn query(name: &str, asked: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), asked));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn request(bytes: &[u8]) -> Request {
    match read(bytes) {
        Read::Request(request) => *request,
        other @ (Read::Status(_) | Read::Refused(..) | Read::Ignored) => panic!("{other:?}"),
    }
}

fn addresses(count: u32) -> Answer {
    let mut answer = Answer::empty(ResponseCode::NoError);
    let name = Name::from_ascii("a.default.svc.cluster.local.").unwrap();
    answer.answers = (0..count)
        .map(|n| {
            Record::from_rdata(
                name.clone(),
                5,
                RData::from(IpAddr::from(Ipv4Addr::from(n))),
            )
        })
        .collect();
    answer
}

#[test]
fn what_is_not_answered_as_asked() {
    let good = query("a.b.", RecordType::A, None);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut version = query("a.b.", RecordType::A, Some(1232));
    let end = version.len();
    version[end - 5] = 1;
    let mut hesiod = good.clone();
    let end = hesiod.len();
    hesiod[end - 1] = 4;
    let rows: Vec<(Vec<u8>, Option<ResponseCode>)> = vec![
        (Vec::new(), None),
        (good[..11].to_vec(), None),
        // An answer.
        (with(2, 0x80), None),
        // NOTIFY
        (with(2, 0x20), Some(ResponseCode::NotImp)),
        // No question, two questions, an answer beside the question.
        (with(5, 0), Some(ResponseCode::FormErr)),
        (with(5, 2), Some(ResponseCode::FormErr)),
        (with(7, 1), Some(ResponseCode::FormErr)),
        (with(4, 0xff), Some(ResponseCode::FormErr)),
        (good[..good.len() - 2].to_vec(), Some(ResponseCode::FormErr)),
        // A name that points at itself.
        (
            [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
            Some(ResponseCode::FormErr),
        ),
        (
            query("a.", RecordType::AXFR, None),
            Some(ResponseCode::NotImp),
        ),
        (version, Some(ResponseCode::BADVERS)),
        (hesiod, Some(ResponseCode::Refused)),
    ];
    for (bytes, expected) in rows {
        match (read(&bytes), expected) {
            (Read::Ignored, None) => {}
            (Read::Refused(code, reply), Some(expected)) => {
                assert_eq!(code, expected, "{bytes:?}");
                let reply = Message::from_vec(&reply).unwrap();
                assert_eq!(reply.metadata.id, 7);
                // 16 is BADVERS and, elsewhere, BADSIG.
                let got = u16::from(reply.metadata.response_code);
                assert_eq!(got, u16::from(expected));
            }
            (other, expected) => panic!("{bytes:?}: {other:?}, not {expected:?}"),
        }
    }
}

#[test]
fn replies_fit_and_say_when_they_do_not() {
    // (EDNS payload, transport, addresses, bytes at most, all of them)
    let rows = [
        (None, Transport::Udp, 20, 512, true),
        (None, Transport::Udp, 100, 512, false),
        (Some(100), Transport::Udp, 100, 512, false),
        (Some(1232), Transport::Udp, 60, 1232, true),
        (Some(65_535), Transport::Udp, 200, 1232, false),
        (None, Transport::Tcp, 1_200, 65_535, true),
        (Some(1232), Transport::Tcp, 10_000, 65_535, false),
    ];
    for (edns, transport, count, most, all) in rows {
        let name = "a.default.svc.cluster.local.";
        let request = request(&query(name, RecordType::A, edns));
        let reply = encode(&request, &addresses(count), request.limit(transport));
        assert!(reply.bytes.len() <= most, "{edns:?} {count}");
        let message = Message::from_vec(&reply.bytes).unwrap();
        assert_eq!(message.metadata.truncation, !all, "{edns:?} {count}");
        assert_eq!(reply.truncated, !all);
        let got = message.answers.len();
        assert_eq!(got == count as usize, all, "{got} of {count}");
        // One more would not have fitted.
        assert!(
            all || reply.bytes.len() + 50 > most,
            "{} of {most}",
            reply.bytes.len()
        );
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
}

#[test]
fn additional_records_go_before_answers_do() {
    let name = "a.default.svc.cluster.local.";
    let request = request(&query(name, RecordType::A, None));
    let mut answer = addresses(20);
    answer.additionals = addresses(40).answers;
    let reply = encode(&request, &answer, 512);
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert!(!message.metadata.truncation);
    assert_eq!((message.answers.len(), message.additionals.len()), (20, 0));
}

/// A well-formed query with a few bytes changed, or cut.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "a.default.svc.cluster.local.",
        "1.0.96.10.in-addr.arpa.",
        "_x._tcp.a.b.svc.cluster.local.",
        ".",
    ]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (
        names,
        any::<u16>(),
        prop::option::of(any::<u16>()),
        changes,
        any::<prop::sample::Index>(),
    )
        .prop_map(|(name, asked, edns, changes, end)| {
            let mut bytes = query(name, RecordType::from(asked), edns);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            // Half of them whole.
            let end = end.index(bytes.len() * 2);
            bytes.truncate(end.max(1));
            bytes
        })
}

fn check(bytes: &[u8], answer: &Answer) -> Result<(), TestCaseError> {
    match read(bytes) {
        Read::Ignored => {}
        Read::Refused(_, reply) => {
            prop_assert!(reply.len() <= 512 && reply.len() >= 12);
            prop_assert!(Message::from_vec(&reply).is_ok());
            prop_assert_eq!(&reply[..2], &bytes[..2]);
        }
        Read::Request(request) | Read::Status(request) => {
            for transport in [Transport::Udp, Transport::Tcp] {
                let limit = request.limit(transport);
                let reply = encode(&request, answer, limit);
                prop_assert!(reply.bytes.len() <= limit && limit <= 65_535);
                let message = Message::from_vec(&reply.bytes);
                prop_assert!(message.is_ok(), "{:?}", message);
                prop_assert_eq!(&reply.bytes[..2], &bytes[..2]);
                prop_assert!(reply.bytes[2] & 0x80 != 0);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn mutated_messages_are_answered_or_ignored(bytes in mutated(), count in 0_u32..300) {
        check(&bytes, &addresses(count))?;
    }

    #[test]
    fn random_messages_are_answered_or_ignored(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes, &addresses(3))?;
    }

    /// Random behind a header that says: one question.
    #[test]
    fn random_questions_are_answered_or_ignored(
        tail in prop::collection::vec(any::<u8>(), 0..300), additionals in 0_u8..3
    ) {
        let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, additionals];
        check(&[&header, tail.as_slice()].concat(), &addresses(3))?;
    }
}
