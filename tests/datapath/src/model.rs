//! What Kubernetes says about Services, as a model that judges each packet of a node.
//!
//! Written from the documentation of Services, not from the programs: a connection to a service
//! port reaches one of its ready endpoints and stays there, its answers come from the service, a
//! client without an endpoint is told at once. Where Kubernetes is silent, the model has what
//! ARCHITECTURE.md promises: which packet begins a connection, what happens to those of an endpoint
//! that is gone, and that a source port changes only if another connection has the tuple.
//!
//! It knows no epochs, generations or entries, and time stands still in it.

use crate::node::{HAIRPIN, TCP};
use crate::packet::{At, NEXT, REDIRECT, SHOT, Seen, see, see_error};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// An endpoint of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Takes new connections.
    Ready,
    /// Keeps those that it has.
    Terminating,
}

/// A service port.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) endpoints: BTreeMap<At, Condition>,
    /// `sessionAffinity: ClientIP`.
    pub(crate) affinity: bool,
}

/// Address, port and protocol of a service port.
pub(crate) type Frontend = (At, u8);
/// Protocol, client and where the client sends to.
pub(crate) type Connection = (u8, At, At);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client has sent SYN, and nothing since the server has answered.
    Opening,
    Open,
    /// FIN both ways, or RST.
    Over,
}

/// A connection that was let through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The service, if it is one.
    service: Option<Frontend>,
    pub(crate) endpoint: At,
    /// The client as the endpoint sees it.
    pub(crate) seen: At,
    phase: Phase,
    /// Who has sent FIN: client, server.
    fins: [bool; 2],
    /// The server has sent something.
    answered: bool,
    /// The endpoint was taken out of the service.
    removed: bool,
}

impl Known {
    /// Whether the server still has to answer with SYN.
    pub(crate) fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed
    }

    /// Whether its entries are its own for sure.
    fn alive(&self) -> bool {
        !self.removed && self.phase != Phase::Over
    }

    fn sent(&mut self, side: usize, flags: u8) {
        self.fins[side] |= flags & FIN != 0;
        self.answered |= side == 1;
        if flags & RST != 0 || self.fins == [true; 2] {
            self.phase = Phase::Over;
        } else if flags & SYN == 0 && self.answered && self.phase == Phase::Opening {
            self.phase = Phase::Open;
        }
    }
}

/// What may become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes to one of these endpoints, from this source if it is given.
    To(Vec<At>, Option<At>),
    /// To the receiver, from this source.
    Answer { from: At, to: At },
    /// To the host's stack as it is.
    Stack,
    /// The sender is told.
    Refused(Drop),
    /// Nothing happens.
    Dropped(Drop),
}

/// The state of the node.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) services: BTreeMap<Frontend, Service>,
    pub(crate) connections: BTreeMap<Connection, Known>,
    /// Tuples that endpoints have seen: a first connection with a tuple keeps its source port.
    tuples: BTreeSet<(u8, At, At)>,
    affinities: BTreeMap<(Frontend, Ipv4Addr), At>,
    /// Drops that were to be counted.
    pub(crate) dropped: BTreeMap<(Drop, Hook), u64>,
}

impl Model {
    /// A service with these endpoints, instead of the one that was there.
    pub(crate) fn put(&mut self, frontend: Frontend, service: Service) {
        let before = self.services.get(&frontend);
        let gone: Vec<At> = before
            .into_iter()
            .flat_map(|before| before.endpoints.keys())
            .filter(|endpoint| !service.endpoints.contains_key(endpoint))
            .copied()
            .collect();
        self.forget(frontend, &gone);
        self.services.insert(frontend, service);
    }

    pub(crate) fn remove(&mut self, frontend: Frontend) {
        if let Some(service) = self.services.remove(&frontend) {
            let gone: Vec<At> = service.endpoints.into_keys().collect();
            self.forget(frontend, &gone);
        }
    }

    fn forget(&mut self, frontend: Frontend, gone: &[At]) {
        self.affinities
            .retain(|(of, _), endpoint| *of != frontend || !gone.contains(endpoint));
        for known in self.connections.values_mut() {
            let of = known.service == Some(frontend);
            known.removed |= of && gone.contains(&known.endpoint);
        }
    }

    /// A packet of the client: what may become of it.
    pub(crate) fn client(&mut self, connection: Connection, flags: u8) -> Outcome {
        let (protocol, client, to) = connection;
        let opens = protocol == TCP && flags & (SYN | ACK) == SYN;
        if let Some(known) = self.connections.get_mut(&connection) {
            if !known.removed && (!opens || known.phase == Phase::Opening) {
                known.sent(0, flags);
                return Outcome::To(vec![known.endpoint], Some(known.seen));
            }
            if known.removed && protocol == TCP && !opens {
                self.connections.remove(&connection);
                return refused(Drop::BackendGone, flags);
            }
            // Datagrams begin again, with another endpoint or none; late answers belong to no connection.
            if known.removed && protocol != TCP {
                self.connections.remove(&connection);
            }
        }
        let Some(service) = self.services.get(&(to, protocol)) else {
            return if is_service(*to.ip()) {
                refused(Drop::NoFrontend, flags)
            } else {
                Outcome::To(vec![to], None)
            };
        };
        let ready = |condition: &Condition| *condition == Condition::Ready;
        let given = self.affinities.get(&((to, protocol), *client.ip()));
        let given = given.filter(|at| service.endpoints.get(at).is_some_and(ready));
        let all = service.endpoints.iter();
        let allowed: Vec<At> = match given.filter(|_| service.affinity) {
            Some(endpoint) => vec![*endpoint],
            None => all
                .filter(|(_, state)| ready(state))
                .map(|(at, _)| *at)
                .collect(),
        };
        if allowed.is_empty() {
            return refused(Drop::NoBackend, flags);
        }
        Outcome::To(allowed, None)
    }

    /// Where the packet went that begins a connection: `client` left the source open.
    ///
    /// # Errors
    /// If that must not be.
    pub(crate) fn went(
        &mut self,
        connection: Connection,
        flags: u8,
        out: Seen,
    ) -> Result<(), String> {
        let (protocol, client, to) = connection;
        let own = if out.to.ip() == client.ip() && out.to != to {
            HAIRPIN
        } else {
            *client.ip()
        };
        if *out.from.ip() != own {
            return Err(format!("{} is told of as {}", client, out.from));
        }
        let tuple = (protocol, out.to, out.from);
        let moved = out.from.port() != client.port();
        if moved
            && !self
                .tuples
                .contains(&(protocol, out.to, At::new(own, client.port())))
        {
            return Err(format!(
                "port {} became {} without need",
                client.port(),
                out.from.port()
            ));
        }
        for (other, known) in &self.connections {
            let same = (other.0, known.endpoint, known.seen) == tuple;
            if same && *other != connection && known.alive() {
                return Err(format!(
                    "{connection:?} has the tuple of {other:?}, which is alive"
                ));
            }
        }
        self.connections
            .retain(|other, known| (other.0, known.endpoint, known.seen) != tuple);
        self.tuples.insert(tuple);
        let service = Some((to, protocol)).filter(|frontend| self.services.contains_key(frontend));
        if let Some(frontend) = service.filter(|frontend| self.services[frontend].affinity) {
            self.affinities.insert((frontend, *client.ip()), out.to);
        }
        let opens = flags & (SYN | ACK) == SYN;
        let mut known = Known {
            service,
            endpoint: out.to,
            seen: out.from,
            phase: if opens { Phase::Opening } else { Phase::Open },
            fins: [false; 2],
            answered: false,
            removed: false,
        };
        known.sent(0, flags);
        self.connections.insert(connection, known);
        Ok(())
    }

    /// A packet of the server of a connection.
    pub(crate) fn server(&mut self, connection: Connection, flags: u8, hook: Hook) -> Outcome {
        let (protocol, client, to) = connection;
        let Some(known) = self.connections.get_mut(&connection) else {
            return Outcome::Stack;
        };
        if !known.removed {
            known.sent(1, flags);
            return Outcome::Answer {
                from: to,
                to: client,
            };
        }
        if protocol == TCP {
            self.connections.remove(&connection);
        }
        // From the network nothing is answered.
        if protocol == TCP && hook == Hook::FromPod {
            refused(Drop::BackendGone, flags)
        } else {
            Outcome::Dropped(Drop::BackendGone)
        }
    }

    /// Compares what a program did with what may be. `sent` is the packet, `told` what became of
    /// it, if it was forwarded.
    ///
    /// # Errors
    /// The difference.
    pub(crate) fn compare(
        &mut self,
        outcome: &Outcome,
        hook: Hook,
        sent: Seen,
        verdict: i32,
        told: impl FnOnce() -> Seen,
    ) -> Result<Option<Seen>, String> {
        let difference = |what: &str| Err(format!("{what}: {outcome:?} was expected"));
        match outcome {
            Outcome::Dropped(reason) => {
                *self.dropped.entry((*reason, hook)).or_default() += 1;
                if verdict == SHOT {
                    Ok(None)
                } else {
                    difference("not dropped")
                }
            }
            Outcome::Stack => {
                if verdict == NEXT {
                    Ok(None)
                } else {
                    difference("not left to the stack")
                }
            }
            Outcome::Refused(reason) => {
                *self.dropped.entry((*reason, hook)).or_default() += 1;
                if verdict == REDIRECT {
                    Ok(None)
                } else {
                    difference("not told")
                }
            }
            Outcome::To(..) | Outcome::Answer { .. } if verdict != REDIRECT => {
                difference("not forwarded")
            }
            Outcome::To(endpoints, from) => {
                let told = told();
                let right =
                    endpoints.contains(&told.to) && from.is_none_or(|from| from == told.from);
                if right && told.flags == sent.flags {
                    Ok(Some(told))
                } else {
                    difference(&format!("{told:?}"))
                }
            }
            Outcome::Answer { from, to } => {
                let told = told();
                if (told.from, told.to, told.flags) == (*from, *to, sent.flags) {
                    Ok(Some(told))
                } else {
                    difference(&format!("{told:?}"))
                }
            }
        }
    }
}

/// A reset is not answered.
fn refused(reason: Drop, flags: u8) -> Outcome {
    if flags & RST == 0 {
        Outcome::Refused(reason)
    } else {
        Outcome::Dropped(reason)
    }
}

/// Whether the address is one of the range of services.
fn is_service(address: Ipv4Addr) -> bool {
    address.octets()[..2] == [10, 96]
}

/// What a refused sender gets: a reset, or an ICMP error about its packet.
pub(crate) fn told_to(frame: &[u8], sent: Seen) -> Result<(), String> {
    let right = if sent.protocol == TCP {
        let told = see(frame);
        (told.from, told.to, told.flags & RST) == (sent.to, sent.from, RST)
    } else {
        see_error(frame) == (*sent.to.ip(), *sent.from.ip(), sent.from, sent.to)
    };
    if right {
        Ok(())
    } else {
        Err(format!("{sent:?} was answered by {frame:02x?}"))
    }
}

/// Data is not translated.
pub(crate) fn payload(before: &[u8], after: &[u8]) -> Result<(), String> {
    let same = before.len() == after.len() && after.ends_with(b"payload");
    if same {
        Ok(())
    } else {
        Err(format!("the payload became {after:02x?}"))
    }
}
