//! What is kept, for how long, and how much of it.

use std::net::Ipv4Addr;

use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn address(ttl: u32) -> Record {
    Record::from_rdata(name("a.example."), ttl, RData::A(A(Ipv4Addr::LOCALHOST)))
}

fn alias(ttl: u32) -> Record {
    Record::from_rdata(
        name("a.example."),
        ttl,
        RData::CNAME(CNAME(name("b.example."))),
    )
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.example."), name("h.example."), 1, 1, 1, 1, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(soa))
}

fn answer(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Arc<Answer> {
    Arc::new(Answer {
        answers,
        authorities,
        ..Answer::empty(code)
    })
}

fn key(n: usize) -> Key {
    n.to_be_bytes().into()
}

#[test]
fn how_long_answers_are_kept() {
    use ResponseCode::{NXDomain, NoError, ServFail};
    let rows = [
        (
            "the least",
            answer(NoError, vec![address(60), address(30)], vec![]),
            30,
        ),
        (
            "not for ever",
            answer(NoError, vec![address(1 << 30)], vec![]),
            3600,
        ),
        (
            "zero is not kept",
            answer(NoError, vec![address(0), address(60)], vec![]),
            0,
        ),
        (
            "the SOA's minimum",
            answer(NXDomain, vec![], vec![soa(900, 60)]),
            60,
        ),
        (
            "the SOA's own",
            answer(NXDomain, vec![], vec![soa(20, 60)]),
            20,
        ),
        (
            "negative, bounded",
            answer(NXDomain, vec![], vec![soa(90_000, 90_000)]),
            1800,
        ),
        ("without a SOA", answer(NXDomain, vec![], vec![]), 0),
        ("no data", answer(NoError, vec![], vec![soa(900, 60)]), 60),
        ("no data without a SOA", answer(NoError, vec![], vec![]), 0),
        (
            "a name for nothing",
            answer(NoError, vec![alias(300)], vec![soa(900, 60)]),
            60,
        ),
        (
            "a short name for nothing",
            answer(NXDomain, vec![alias(10)], vec![soa(900, 60)]),
            10,
        ),
        ("a failure", answer(ServFail, vec![], vec![]), 1),
    ];
    for (row, answer, expected) in rows {
        let mut cache = Cache::new(10, 1 << 20);
        cache.put(key(1), answer, 5_000);
        let end = 5_000 + expected * 1000;
        assert_eq!(cache.get(&key(1), end), None, "{row}");
        assert_eq!(cache.get(&key(1), end - 1).is_some(), expected > 0, "{row}");
    }
}

#[test]
fn failures_in_a_row_are_kept_longer_and_longer_until_an_answer() {
    let mut cache = Cache::new(10, 1 << 20);
    let failure = answer(ResponseCode::ServFail, vec![], vec![]);
    let mut now = 0;
    for seconds in [1, 2, 4, 8, 16, 32, 32, 32] {
        cache.put(key(1), failure.clone(), now);
        assert!(cache.get(&key(1), now + seconds * 1000 - 1).is_some());
        now += seconds * 1000;
        assert!(cache.get(&key(1), now).is_none(), "{seconds}");
    }
    let good = answer(ResponseCode::NoError, vec![address(1)], vec![]);
    cache.put(key(1), good, now);
    cache.put(key(1), failure, now + 1000);
    assert!(cache.get(&key(1), now + 2000).is_none(), "one second again");
}

#[test]
fn the_age_of_an_answer() {
    let mut cache = Cache::new(10, 1 << 20);
    cache.put(
        key(1),
        answer(ResponseCode::NoError, vec![address(60)], vec![]),
        500,
    );
    assert_eq!(cache.get(&key(1), 1_499).unwrap().1, 0);
    assert_eq!(cache.get(&key(1), 12_500).unwrap().1, 12);
}

#[test]
fn what_is_asked_for_stays() {
    let mut cache = Cache::new(100, 1 << 20);
    let kept = answer(ResponseCode::NoError, vec![address(60)], vec![]);
    for n in 0..10_000 {
        cache.put(key(n), kept.clone(), 0);
        assert!(cache.get(&key(0), 0).is_some(), "{n}");
    }
}

proptest! {
    #[test]
    fn it_is_bounded(sizes in prop::collection::vec(0_usize..40, 0..400)) {
        let (entries, bytes) = (50, 20_000);
        let mut cache = Cache::new(entries, bytes);
        for (n, records) in sizes.into_iter().enumerate() {
            let answer = answer(ResponseCode::NoError, vec![address(60); records + 1], vec![]);
            cache.put(key(n % 90), answer, 0);
            prop_assert!(cache.len() <= entries);
            let held: usize = cache.young.values().chain(cache.old.values()).map(|e| e.bytes).sum();
            prop_assert!(held <= bytes, "{held}");
            let young: usize = cache.young.values().map(|e| e.bytes).sum();
            prop_assert_eq!(young, cache.bytes);
        }
    }
}
