//! Answers of upstream servers, for as long as they may be kept: bounded in number and
//! bytes. Times are milliseconds of any clock that only goes forward.
//!
//! Negative answers are kept by their SOA (RFC 2308), failures for a second at first and
//! longer each time (RFC 9520).

use std::collections::HashMap;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

use crate::lookup::Answer;

/// Longest time that an answer is kept, seconds.
const MOST: u32 = 3600;
/// Longest time that a negative answer is kept, seconds (RFC 2308, 5: one to three hours).
const MOST_NEGATIVE: u32 = 1800;
/// Longest time that a failure is kept, seconds (RFC 9520, 3.2: not above 5 minutes).
const MOST_FAILURE: u32 = 32;
/// Bytes of an entry beside its records.
const ENTRY: usize = 256;

/// What is asked for: the question's bytes with the name in lower case, and the flags that
/// change the answer.
pub type Key = Box<[u8]>;

#[derive(Debug, Clone)]
struct Entry {
    answer: Arc<Answer>,
    stored: u64,
    expires: u64,
    /// Failures in a row.
    failures: u32,
    bytes: usize,
}

/// The cache. Two generations: what was not asked for while a generation was filled is
/// dropped with the next but one.
#[derive(Debug)]
pub struct Cache {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
    /// Of `young`.
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
}

impl Cache {
    /// An empty cache of so many entries and bytes at most.
    pub fn new(entries: usize, bytes: usize) -> Self {
        Cache {
            young: HashMap::new(),
            old: HashMap::new(),
            bytes: 0,
            most_entries: (entries / 2).max(1),
            most_bytes: bytes / 2,
        }
    }

    /// The answer, and the seconds since it was stored.
    pub fn get(&mut self, key: &[u8], now: u64) -> Option<(Arc<Answer>, u32)> {
        if !self.young.contains_key(key) {
            let (key, entry) = self.old.remove_entry(key)?;
            self.insert(key, entry);
        }
        let entry = self.young.get(key).filter(|entry| now < entry.expires)?;
        let age = now.saturating_sub(entry.stored) / 1000;
        Some((entry.answer.clone(), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps an answer if it may be kept.
    pub fn put(&mut self, key: Key, answer: Arc<Answer>, now: u64) {
        let failures = if failed(answer.code) {
            let before = self.young.get(&key).or_else(|| self.old.get(&key));
            before.map_or(0, |entry| entry.failures) + 1
        } else {
            0
        };
        let seconds = seconds(&answer, failures);
        self.remove(&key);
        if seconds == 0 {
            return;
        }
        let bytes = ENTRY + key.len() + size(&answer);
        if bytes > self.most_bytes {
            return;
        }
        let entry = Entry {
            answer,
            stored: now,
            expires: now + u64::from(seconds) * 1000,
            failures,
            bytes,
        };
        self.insert(key, entry);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.young.remove(key) {
            self.bytes -= entry.bytes;
        }
        self.old.remove(key);
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        if self.young.len() >= self.most_entries || self.bytes + entry.bytes > self.most_bytes {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += entry.bytes;
        self.young.insert(key, entry);
    }
}

fn failed(code: ResponseCode) -> bool {
    ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&code)
}

/// For how long it may be kept.
fn seconds(answer: &Answer, failures: u32) -> u32 {
    if failures > 0 {
        return 1_u32
            .checked_shl(failures - 1)
            .unwrap_or(MOST_FAILURE)
            .clamp(1, MOST_FAILURE);
    }
    let least = answer.answers.iter().map(|record| record.ttl).min();
    let negative = answer.code == ResponseCode::NXDomain || is_alias_only(answer);
    if !negative {
        return least.unwrap_or(0).min(MOST);
    }
    // Without a SOA it is not known for how long (RFC 2308, 5).
    let soa = answer.authorities.iter().find_map(|record| {
        if let RData::SOA(soa) = &record.data {
            Some(record.ttl.min(soa.minimum))
        } else {
            None
        }
    });
    let soa = soa.unwrap_or(0).min(MOST_NEGATIVE);
    least.map_or(soa, |least| least.min(soa))
}

/// No answer, or the names of one that does not exist.
fn is_alias_only(answer: &Answer) -> bool {
    let alias = |record: &Record| record.record_type() == RecordType::CNAME;
    answer.answers.iter().all(alias)
        && answer
            .authorities
            .iter()
            .any(|r| r.record_type() == RecordType::SOA)
        || answer.answers.is_empty()
}

/// About the memory of its records.
fn size(answer: &Answer) -> usize {
    let records = [&answer.answers, &answer.authorities, &answer.additionals];
    let of = |record: &Record| {
        size_of::<Record>() + record.data.to_bytes().map_or(0, |bytes| bytes.len())
    };
    records.into_iter().flatten().map(of).sum()
}

#[cfg(test)]
#[path = "tests/cache.rs"]
mod tests;
