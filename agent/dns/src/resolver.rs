//! A question to its answer: from the cluster's names, from the cache, or from upstream.
//!
//! What is there is answered at once ([`Resolver::handle`]), the rest in a task
//! ([`Resolver::later`]). One question that several clients ask at a time is sent upstream
//! once; so a question that comes back to us waits for itself, and ends with the time-out
//! of its first sender instead of going round.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, Record};
use proto::v1;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::PORT;
use crate::cache::{Cache, Key};
use crate::counters::Counters;
use crate::lookup::{Answer, Found, lookup};
use crate::message::{self, Read, Request, Transport, encode};
use crate::resolv::File;
use crate::status;
use crate::upstream::{self, Question, UpstreamError};
use crate::zone::{Zone, absolute};

/// Entries of the cache.
const CACHE_ENTRIES: usize = 20_000;
/// Bytes of the cache.
const CACHE_BYTES: usize = 8 << 20;
/// For all servers together: clients give up after 5 seconds.
const UPSTREAM_TIME: Duration = Duration::from_millis(4500);
/// Names that stand for other names, one after the other.
const ALIASES: usize = 8;
/// The node's resolv.conf is looked at so often, milliseconds.
const RESOLV_MS: u64 = 1000;

/// Milliseconds of a clock that only goes forward.
pub type Clock = fn() -> u64;

/// What can be said at once.
#[derive(Debug)]
enum Now {
    /// The answer, and how old it is in seconds.
    Answer(Arc<Answer>, u32),
    /// It has to be asked for.
    Later,
}

/// What is done with a message of a client.
#[derive(Debug)]
pub(crate) enum Handled {
    /// It gets no reply.
    Silent,
    /// It gets this one.
    Reply(Vec<u8>),
    /// It has to be asked for: [`Resolver::later`].
    Later(Box<Request>),
}

/// Where other names are asked for.
#[derive(Debug)]
struct Upstreams {
    node: File,
    looked: Option<u64>,
    /// Domains with servers of their own, the longest first.
    stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Of the node's servers, the one that answered last.
    first: Option<SocketAddr>,
}

/// All that answers need; shared by the serving threads and tasks.
#[derive(Debug)]
pub struct Resolver {
    zone: RwLock<Zone>,
    cache: Mutex<Cache>,
    pending: Mutex<HashMap<Key, watch::Receiver<Option<Arc<Answer>>>>>,
    upstreams: Mutex<Upstreams>,
    turn: AtomicUsize,
    clock: Clock,
    /// What was done.
    pub counters: Counters,
}

/// A question in the state in which its aliases are followed.
struct Trail {
    query: Query,
    aliases: Vec<Record>,
}

impl Resolver {
    /// A resolver without names, which asks the servers of `resolv_conf`.
    pub fn new(resolv_conf: PathBuf, clock: Clock) -> Self {
        Resolver {
            zone: RwLock::default(),
            cache: Mutex::new(Cache::new(CACHE_ENTRIES, CACHE_BYTES)),
            pending: Mutex::default(),
            upstreams: Mutex::new(Upstreams {
                node: File::new(resolv_conf),
                looked: None,
                stubs: Vec::new(),
                first: None,
            }),
            turn: AtomicUsize::new(0),
            clock,
            counters: Counters::default(),
        }
    }

    /// Changes the names, all of it at once for clients.
    pub fn change<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the names.
    pub fn names<T>(&self, read: impl FnOnce(&Zone) -> T) -> T {
        read(&self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the facts of the cluster.
    pub fn configure(&self, config: &v1::ClusterConfig) {
        self.change(|zone| zone.configure(config));
        let own = config.dns_address.parse().ok();
        let mut stubs: Vec<(Name, Vec<SocketAddr>)> = Vec::new();
        for stub in &config.dns_stubs {
            let servers = stub.servers.iter().filter_map(|text| server(text));
            let servers: Vec<SocketAddr> = servers.filter(|s| Some(s.ip()) != own).collect();
            if let Some(domain) = absolute(&stub.domain) {
                stubs.push((domain, servers));
            }
        }
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.iter().count()));
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if stubs != upstreams.stubs {
            // What is kept may be from a server that is not asked for it any more.
            *self.cache.lock().unwrap_or_else(PoisonError::into_inner) =
                Cache::new(CACHE_ENTRIES, CACHE_BYTES);
            upstreams.stubs = stubs;
        }
        upstreams.node.own(own);
    }

    /// Counters, and how much is there now: names and values.
    fn status(&self) -> Vec<(&'static str, u64)> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let cached = self.cache.lock();
        let cached = cached.unwrap_or_else(PoisonError::into_inner).len();
        let pending = self.pending.lock();
        let pending = pending.unwrap_or_else(PoisonError::into_inner).len();
        let mut rows = self.counters.read();
        rows.push(("cache_entries", count(cached)));
        rows.push(("upstream_pending", count(pending)));
        rows.push(("services", count(self.names(Zone::len))));
        rows
    }

    /// Answers a message as far as that is possible at once; counted.
    pub(crate) fn handle(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Handled {
        let counters = &self.counters;
        Counters::add(match transport {
            Transport::Udp => &counters.queries_udp,
            Transport::Tcp => &counters.queries_tcp,
        });
        if !self.names(|zone| zone.serves(client)) {
            Counters::add(&counters.dropped);
            return Handled::Silent;
        }
        match message::read(bytes) {
            Read::Request(request) => match self.now(&request) {
                Now::Answer(answer, age) => {
                    Handled::Reply(self.reply(&request, (&answer, age), transport))
                }
                Now::Later => Handled::Later(request),
            },
            Read::Status(request) => {
                let answer = self.about(&request, client);
                Handled::Reply(self.reply(&request, (&answer, 0), transport))
            }
            Read::Refused(code, bytes) => {
                counters.reply(code);
                Handled::Reply(bytes)
            }
            Read::Ignored => {
                Counters::add(&counters.dropped);
                Handled::Silent
            }
        }
    }

    /// The answer about the server itself, which its own node alone gets.
    fn about(&self, request: &Request, client: IpAddr) -> Answer {
        if self.names(|zone| zone.is_node(client)) {
            status::answer(self.status(), &request.query)
        } else {
            Answer::empty(ResponseCode::Refused)
        }
    }

    /// The answer, if it is known here.
    fn now(&self, request: &Request) -> Now {
        self.counters.question(request.query.query_type());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match self.names(|zone| lookup(zone, &request.query, turn)) {
            Found::Here(answer) => {
                Counters::add(&self.counters.zone);
                return Now::Answer(Arc::new(answer), 0);
            }
            Found::Alias { .. } => return Now::Later,
            Found::Elsewhere => {}
        }
        let question = self.question(request, request.query.clone());
        if let Some((answer, age)) = self.cached(&key(&question)) {
            Counters::add(&self.counters.cache_hits);
            return Now::Answer(answer, age);
        }
        if !request.recursion_desired() {
            return Now::Answer(Arc::new(Answer::empty(ResponseCode::Refused)), 0);
        }
        Now::Later
    }

    /// The answer, after asking for it.
    pub async fn later(&self, request: &Request) -> Arc<Answer> {
        let mut trail = Trail {
            query: request.query.clone(),
            aliases: Vec::new(),
        };
        for _ in 0..=ALIASES {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            match self.names(|zone| lookup(zone, &trail.query, turn)) {
                Found::Here(answer) => {
                    Counters::add(&self.counters.zone);
                    return Arc::new(behind(trail.aliases, answer));
                }
                Found::Alias { record, target } => {
                    trail.aliases.push(*record);
                    trail.query.set_name(target);
                }
                Found::Elsewhere => {
                    let question = self.question(request, trail.query);
                    let answer = self.upstream(question).await;
                    if trail.aliases.is_empty() {
                        return answer;
                    }
                    return Arc::new(behind(trail.aliases, Answer::clone(&answer)));
                }
            }
        }
        Arc::new(Answer::empty(ResponseCode::ServFail))
    }

    /// The reply with an answer that is `age` seconds old; counted.
    pub(crate) fn reply(
        &self,
        request: &Request,
        (answer, age): (&Answer, u32),
        transport: Transport,
    ) -> Vec<u8> {
        self.counters.reply(answer.code);
        let limit = request.limit(transport);
        let reply = if age == 0 {
            encode(request, answer, limit)
        } else {
            encode(request, &aged(answer, age), limit)
        };
        if reply.truncated {
            Counters::add(&self.counters.replies_truncated);
        }
        reply.bytes
    }

    fn question(&self, request: &Request, query: Query) -> Question {
        Question {
            query,
            dnssec_ok: request.dnssec_ok(),
            checking_disabled: request.checking_disabled(),
        }
    }

    fn cached(&self, key: &[u8]) -> Option<(Arc<Answer>, u32)> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(key, (self.clock)())
    }

    /// From the cache, from who asks the same already, or from a server.
    async fn upstream(&self, question: Question) -> Arc<Answer> {
        let key = key(&question);
        if let Some((answer, age)) = self.cached(&key) {
            Counters::add(&self.counters.cache_hits);
            return Arc::new(aged(&answer, age));
        }
        Counters::add(&self.counters.cache_misses);
        let failed = || Arc::new(Answer::empty(ResponseCode::ServFail));
        let (sender, asked) = watch::channel(None);
        let earlier = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let earlier = pending.get(&key).cloned();
            if earlier.is_none() {
                pending.insert(key.clone(), asked);
            }
            earlier
        };
        if let Some(mut earlier) = earlier {
            // Its sender may be dropped without an answer, when the runtime ends.
            return match earlier.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().unwrap_or_else(failed),
                Err(_dropped) => failed(),
            };
        }
        // Also when this task is dropped half-way: others must be able to ask again.
        let _asking = Asking {
            resolver: self,
            key: &key,
        };
        let answer = match timeout(UPSTREAM_TIME, self.servers(&question)).await {
            Ok(Some(answer)) => Arc::new(answer),
            Ok(None) | Err(_) => {
                Counters::add(&self.counters.upstream_failures);
                failed()
            }
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put(key.clone(), answer.clone(), (self.clock)());
        drop(cache);
        sender.send_replace(Some(answer.clone()));
        answer
    }

    /// Asks one server after the other, and all of them once more.
    async fn servers(&self, question: &Question) -> Option<Answer> {
        let servers = self.servers_for(question.query.name());
        if servers.is_empty() {
            tracing::debug!(name = %question.query.name(), "no upstream DNS server");
        }
        for server in servers.iter().chain(&servers) {
            Counters::add(&self.counters.upstream_queries);
            match upstream::ask(question, *server).await {
                Ok(answer) => {
                    let mut upstreams = self
                        .upstreams
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    upstreams.first = Some(*server);
                    return Some(answer);
                }
                Err(error) => {
                    Counters::add(match error {
                        UpstreamError::Silent { .. } => &self.counters.upstream_timeouts,
                        UpstreamError::Io { .. }
                        | UpstreamError::Code { .. }
                        | UpstreamError::Question => &self.counters.upstream_errors,
                    });
                    tracing::debug!(name = %question.query.name(), %error, "upstream DNS server");
                }
            }
        }
        None
    }

    /// Who is asked for a name, the one that answered last first.
    fn servers_for(&self, name: &Name) -> Vec<SocketAddr> {
        let now = (self.clock)();
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let upstreams = &mut *upstreams;
        let first = upstreams.first;
        let stub = upstreams
            .stubs
            .iter()
            .find(|(domain, _)| domain.zone_of(name));
        let mut servers = match stub {
            Some((_, servers)) => servers.clone(),
            None => {
                if upstreams
                    .looked
                    .is_none_or(|at| now.saturating_sub(at) >= RESOLV_MS)
                {
                    upstreams.looked = Some(now);
                    upstreams.node.read();
                }
                upstreams.node.servers().to_vec()
            }
        };
        servers.sort_by_key(|server| Some(*server) != first);
        servers
    }
}

/// A question that is being asked, until this is dropped.
struct Asking<'a> {
    resolver: &'a Resolver,
    key: &'a Key,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let pending = self.resolver.pending.lock();
        pending
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.key);
    }
}

/// "192.0.2.1", "192.0.2.1:5353", "[2001:db8::1]:53"
fn server(text: &str) -> Option<SocketAddr> {
    let with_port = text.parse().ok();
    with_port.or_else(|| Some(SocketAddr::new(text.parse().ok()?, PORT)))
}

fn key(question: &Question) -> Key {
    let name = question.query.name();
    let mut key = Vec::with_capacity(name.len() + 8);
    for label in name.iter() {
        key.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        key.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    key.extend(u16::from(question.query.query_type()).to_be_bytes());
    key.push(u8::from(question.dnssec_ok) | u8::from(question.checking_disabled) << 1);
    key.into()
}

/// Aliases of ours, and what they lead to.
fn behind(aliases: Vec<Record>, mut answer: Answer) -> Answer {
    if !aliases.is_empty() {
        answer.answers.splice(0..0, aliases);
        answer.authentic = false;
    }
    answer
}

/// The answer with the time that is left of it.
fn aged(answer: &Answer, seconds: u32) -> Answer {
    let mut answer = answer.clone();
    if seconds > 0 {
        let sections = [
            &mut answer.answers,
            &mut answer.authorities,
            &mut answer.additionals,
        ];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
    }
    answer
}

#[cfg(test)]
#[path = "tests/resolver.rs"]
mod tests;
