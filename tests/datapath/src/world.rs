//! A node and its model side by side: each step is done to both, and what they say is compared.
//!
//! Called by `differential`.

use crate::model::{Condition, Connection, Frontend, Model, Outcome, Service, payload, told_to};
use crate::node::{Node, PORT, TCP, UDP};
use crate::packet::{At, SHOT, Seen, at, error, see, see_error, tcp, udp};
use agent_sys::bpf::{Program, Ran};
use agent_sys::maps::{Counted, Maps};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::service::{ACTIVE, Backend, TERMINATING, algorithm};
use ebpf_logic::parse::flag::{ACK, SYN};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Pods of the node; the last one serves nothing.
pub(crate) const PODS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 244, 1, 5),
    Ipv4Addr::new(10, 244, 1, 6),
    Ipv4Addr::new(10, 244, 1, 7),
    Ipv4Addr::new(10, 244, 1, 8),
];
/// Pods of another node.
pub(crate) const REMOTE: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 244, 2, 9), Ipv4Addr::new(10, 244, 2, 10)];
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What may be an endpoint; several services have the same.
pub(crate) const ENDPOINTS: [(Ipv4Addr, u16); 6] = [
    (PODS[0], 8080),
    (PODS[1], 8080),
    (PODS[1], 9090),
    (PODS[2], 8080),
    (REMOTE[0], 8080),
    (REMOTE[1], 8080),
];
/// Addresses and protocols of the services, how their endpoints are chosen, and their affinity.
pub(crate) const SERVICES: [(Ipv4Addr, u8, u8, bool); 5] = [
    (Ipv4Addr::new(10, 96, 0, 7), TCP, algorithm::HASH, false),
    (Ipv4Addr::new(10, 96, 0, 7), UDP, algorithm::MAGLEV, false),
    (
        Ipv4Addr::new(10, 96, 0, 8),
        TCP,
        algorithm::LEAST_CONNECTIONS,
        true,
    ),
    (Ipv4Addr::new(10, 96, 0, 8), UDP, algorithm::HASH, true),
    (Ipv4Addr::new(10, 96, 0, 9), TCP, algorithm::HASH, false),
];
/// Client ports.
pub(crate) const PORTS: u16 = 4;
/// Seconds of session affinity.
const AFFINITY: u32 = 10_800;

/// Whom a client calls.
#[derive(Debug, Clone, Copy)]
pub(crate) enum To {
    Service(usize),
    Endpoint(usize),
    /// A port that the service does not have.
    NoPort(usize),
    Outside,
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wrong {
    /// The frame ends early.
    Cut(usize),
    Options,
    Version,
    /// The IP header says one byte more.
    Length,
    /// A fragment, the first or a later one.
    Fragment(bool),
    /// Another pod's source address.
    Source,
}

/// One change, or one packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// A service has these endpoints, by their bits: ready, and of the others terminating.
    Put(usize, u8, u8),
    Remove(usize),
    /// Client (a pod, or behind the last one the node), port, receiver, protocol, TCP flags.
    Client(usize, u16, To, u8, u8),
    /// A packet of the server of a known connection, by number.
    Server(usize, u8),
    /// The server's ICMP error about the connection's last packet.
    Error(usize),
    /// From the network, of a host outside, to a service.
    FromOutside(u16, usize),
    /// From the network, of another node's pod, to a pod.
    FromRemote(usize, usize),
    Bad(usize, To, u8, Wrong),
}

/// The node and the model, side by side.
pub(crate) struct World<'n> {
    node: &'n Node,
    model: Model,
    /// Last packet of each connection, as its server saw it.
    last: BTreeMap<Connection, Vec<u8>>,
    counted: BTreeMap<(Drop, Hook), u64>,
}

fn endpoint(number: usize) -> At {
    let (addr, port) = ENDPOINTS[number];
    at(addr, port)
}

fn frontend(number: usize) -> Frontend {
    let (vip, protocol, ..) = SERVICES[number];
    (at(vip, PORT), protocol)
}

fn backend_id(service: usize, endpoint: usize) -> u32 {
    (1 + service * 16 + endpoint) as u32
}

fn frame(protocol: u8, from: At, to: At, flags: u8) -> Vec<u8> {
    if protocol == TCP {
        tcp(from, to, flags, b"payload")
    } else {
        udp(from, to, b"payload")
    }
}

impl<'n> World<'n> {
    pub(crate) fn new(node: &'n Node) -> Self {
        let mut this = Self {
            node,
            model: Model::default(),
            last: BTreeMap::new(),
            counted: BTreeMap::new(),
        };
        for service in 0..SERVICES.len() {
            this.remove(service);
        }
        let flows = this.maps().flows().expect("flows");
        for (key, _) in flows {
            this.maps().delete_flow(&key).expect("delete flow");
        }
        this.counted = this.drops();
        this
    }

    fn maps(&self) -> &'n Maps {
        self.node.datapath.maps()
    }

    fn drops(&self) -> BTreeMap<(Drop, Hook), u64> {
        let all = self.node.counters().into_iter();
        all.filter_map(|(what, hook, count)| match what {
            Counted::Dropped(reason) => Some(((reason, hook), count)),
            Counted::Decided | Counted::EventShed | Counted::Unknown(_) => None,
        })
        .collect()
    }

    /// As the agent does: what is new, the choice, and then what is gone.
    fn put(&mut self, number: usize, ready: u8, ending: u8) {
        let (vip, protocol, algorithm, affinity) = SERVICES[number];
        let service_port = 1 + number as u32;
        let mut endpoints = BTreeMap::new();
        let mut choice = Vec::new();
        for (which, (addr, port)) in ENDPOINTS.into_iter().enumerate() {
            let (condition, state) = match (ready >> which & 1, ending >> which & 1) {
                (1, _) => (Condition::Ready, ACTIVE),
                (0, 1) => (Condition::Terminating, TERMINATING),
                _ => continue,
            };
            endpoints.insert(endpoint(which), condition);
            let id = backend_id(number, which);
            let backend = Backend {
                addr: addr.into(),
                service_port,
                port: ebpf_common::net::Be16::new(port),
                protocol,
                state,
                weight: 1,
                ..Backend::default()
            };
            self.maps()
                .put_backend(id, &backend, "test/backend")
                .expect("put backend");
            if state == ACTIVE {
                choice.push(id);
            }
        }
        self.node.put_choices(service_port, algorithm, &choice);
        let seconds = if affinity { AFFINITY } else { 0 };
        self.node.put_frontend(vip, service_port, protocol, seconds);
        let before = self.model.services.get(&frontend(number)).cloned();
        for which in 0..ENDPOINTS.len() {
            let had = before
                .as_ref()
                .is_some_and(|s| s.endpoints.contains_key(&endpoint(which)));
            if had && !endpoints.contains_key(&endpoint(which)) {
                self.maps()
                    .delete_backend(backend_id(number, which))
                    .expect("delete backend");
            }
        }
        self.model.put(
            frontend(number),
            Service {
                endpoints,
                affinity,
            },
        );
    }

    fn remove(&mut self, number: usize) {
        let (vip, protocol, ..) = SERVICES[number];
        let maps = self.maps();
        let key = crate::node::frontend_key(vip, protocol);
        if maps
            .frontends()
            .expect("frontends")
            .iter()
            .any(|(there, _)| *there == key)
        {
            maps.delete_frontend(&key).expect("delete frontend");
            maps.delete_choices(&[1 + number as u32])
                .expect("delete choices");
            for (id, _) in maps.backends().expect("backends") {
                if (id as usize - 1) / 16 == number {
                    maps.delete_backend(id).expect("delete backend");
                }
            }
        }
        self.model.remove(frontend(number));
    }

    /// As `Node::run`, in the namespace already: that is entered once for all packets.
    fn run(&self, program: Program, ifindex: u32, packet: &[u8]) -> Ran {
        let from_network = program == Program::FromNetdev;
        let mut frame = packet.to_vec();
        if from_network {
            frame[..6].copy_from_slice(&self.node.uplink_mac);
        }
        let ran = self.node.datapath.test_run(program, &frame, ifindex, 0, 1);
        let mut ran = ran.expect("test_run");
        if from_network {
            ran.packet[..6].copy_from_slice(&packet[..6]);
        }
        ran
    }

    /// Where the packets of an address of this node, or of the network, come in.
    fn hook(&self, sender: Ipv4Addr) -> (Program, Hook, u32) {
        if let Some(pod) = self.node.pods.iter().find(|pod| pod.addr == sender) {
            (Program::FromPod, Hook::FromPod, pod.ifindex)
        } else if sender == self.node.addr {
            (Program::ToNetdev, Hook::ToNetdev, self.node.service)
        } else {
            (Program::FromNetdev, Hook::FromNetdev, self.node.uplink)
        }
    }

    pub(crate) fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Put(service, ready, ending) => self.put(service, ready, ending & !ready),
            Step::Remove(service) => self.remove(service),
            Step::Client(client, port, to, protocol, flags) => {
                return self.client(client, port, to, protocol, flags);
            }
            Step::Server(which, flags) => {
                if let Some(connection) = self.connection(which) {
                    return self.server(connection, flags);
                }
            }
            Step::Error(which) => {
                if let Some(connection) = self.connection(which) {
                    return self.error(connection);
                }
            }
            Step::FromOutside(port, to) => {
                let (vip, protocol) = frontend(to);
                let packet = frame(protocol, at(OUTSIDE, 40_000 + port), vip, SYN);
                let known = self.model.services.contains_key(&(vip, protocol));
                let reason = if known {
                    Drop::ExternalService
                } else {
                    Drop::NoFrontend
                };
                return self.nothing(OUTSIDE, &packet, reason);
            }
            Step::FromRemote(from, to) => {
                // A port that no client has: those of another node are not told apart here.
                let packet = tcp(at(REMOTE[from], 50_000), at(PODS[to], 8080), SYN, b"");
                let (program, _, ifindex) = self.hook(REMOTE[from]);
                let ran = self.run(program, ifindex, &packet);
                if (ran.verdict, &ran.packet) != (crate::packet::REDIRECT, &packet) {
                    return Err(format!("another node's pod: {ran:?}"));
                }
            }
            Step::Bad(pod, to, protocol, wrong) => return self.bad(pod, to, protocol, wrong),
        }
        Ok(())
    }

    fn connection(&self, which: usize) -> Option<Connection> {
        let all = &self.model.connections;
        let number = which.checked_rem(all.len())?;
        all.keys().nth(number).copied()
    }

    fn receiver(to: To) -> At {
        match to {
            To::Service(number) => frontend(number).0,
            To::Endpoint(number) => endpoint(number),
            To::NoPort(number) => at(*frontend(number).0.ip(), PORT + 1),
            To::Outside => at(OUTSIDE, 53),
        }
    }

    fn client(
        &mut self,
        client: usize,
        port: u16,
        to: To,
        protocol: u8,
        flags: u8,
    ) -> Result<(), String> {
        let host = client == PODS.len();
        let client = if host { self.node.addr } else { PODS[client] };
        let receiver = Self::receiver(to);
        // A pod reaches itself, and the node others, without a program of ours.
        if *receiver.ip() == client || (host && !matches!(to, To::Service(_) | To::NoPort(_))) {
            return Ok(());
        }
        let from = at(client, 40_000 + port);
        let packet = frame(protocol, from, receiver, flags);
        let (program, hook, ifindex) = self.hook(client);
        let ran = self.run(program, ifindex, &packet);
        if matches!(to, To::Outside) {
            let left = (ran.verdict, &ran.packet) == (crate::packet::NEXT, &packet);
            return if left {
                Ok(())
            } else {
                Err(format!("to the outside: {ran:?}"))
            };
        }
        let connection = (protocol, from, receiver);
        let flags = if protocol == TCP { flags } else { 0 };
        let outcome = self.model.client(connection, flags);
        let sent = Seen {
            from,
            to: receiver,
            protocol,
            flags,
        };
        let told = || see(&ran.packet);
        let out = self
            .model
            .compare(&outcome, hook, sent, ran.verdict, told)?;
        if let Outcome::Refused(_) = outcome {
            return told_to(&ran.packet, sent);
        }
        if let Some(out) = out {
            payload(&packet, &ran.packet)?;
            if let Outcome::To(_, None) = outcome {
                self.model.went(connection, flags, out)?;
            }
            self.last.insert(connection, ran.packet);
        }
        Ok(())
    }

    fn server(&mut self, connection: Connection, flags: u8) -> Result<(), String> {
        let (protocol, ..) = connection;
        let known = self.model.connections[&connection];
        let (program, hook, ifindex) = self.hook(*known.endpoint.ip());
        let flags = match protocol {
            // A server answers a SYN with one, and nothing else.
            TCP if flags & SYN != 0 && !known.is_opening() => ACK,
            TCP => flags,
            _ => 0,
        };
        let packet = frame(protocol, known.endpoint, known.seen, flags);
        let ran = self.run(program, ifindex, &packet);
        let outcome = self.model.server(connection, flags, hook);
        let sent = Seen {
            from: known.endpoint,
            to: known.seen,
            protocol,
            flags,
        };
        let told = || see(&ran.packet);
        self.model
            .compare(&outcome, hook, sent, ran.verdict, told)?;
        match outcome {
            Outcome::Refused(_) => told_to(&ran.packet, sent),
            Outcome::Answer { .. } => payload(&packet, &ran.packet),
            Outcome::To(..) | Outcome::Stack | Outcome::Dropped(_) => Ok(()),
        }
    }

    /// The server's stack says that the port is closed: the client is told about its own packet.
    fn error(&mut self, connection: Connection) -> Result<(), String> {
        let (_, client, to) = connection;
        let known = self.model.connections[&connection];
        let Some(last) = self.last.get(&connection).filter(|_| !known.is_removed()) else {
            return Ok(());
        };
        let (program, _, ifindex) = self.hook(*known.endpoint.ip());
        let packet = error(*known.endpoint.ip(), *known.seen.ip(), last);
        let ran = self.run(program, ifindex, &packet);
        if ran.verdict != crate::packet::REDIRECT {
            return Err(format!(
                "an error about {connection:?} ended with {}",
                ran.verdict
            ));
        }
        let wanted = (*to.ip(), *client.ip(), client, to);
        let told = see_error(&ran.packet);
        if told == wanted {
            Ok(())
        } else {
            Err(format!("{told:?}, and not {wanted:?}"))
        }
    }

    /// A packet that must not get anywhere.
    fn nothing(&mut self, sender: Ipv4Addr, packet: &[u8], reason: Drop) -> Result<(), String> {
        let (program, hook, ifindex) = self.hook(sender);
        let ran = self.run(program, ifindex, packet);
        *self.model.dropped.entry((reason, hook)).or_default() += 1;
        if ran.verdict == SHOT {
            Ok(())
        } else {
            Err(format!("{reason:?} let through: {ran:?}"))
        }
    }

    fn bad(&mut self, pod: usize, to: To, protocol: u8, wrong: Wrong) -> Result<(), String> {
        let receiver = Self::receiver(to);
        let mut packet = frame(protocol, at(PODS[pod], 41_000), receiver, ACK);
        let reason = match wrong {
            Wrong::Cut(len) => {
                // test_run takes no shorter one.
                packet.truncate((34 + len).min(packet.len() - 1));
                Drop::BadIpLength
            }
            Wrong::Options => {
                packet[14] = 0x46;
                Drop::IpOptions
            }
            Wrong::Version => {
                packet[14] = 0x55;
                Drop::BadIpHeader
            }
            Wrong::Length => {
                packet[17] += 1;
                Drop::BadIpLength
            }
            Wrong::Source => {
                let other = PODS[(pod + 1) % PODS.len()];
                packet = frame(protocol, at(other, 41_000), receiver, ACK);
                Drop::SpoofedSource
            }
            Wrong::Fragment(first) => {
                // Others are forwarded by their addresses.
                let To::Service(number) = to else {
                    return Ok(());
                };
                let (vip, protocol) = frontend(number);
                packet = frame(protocol, at(PODS[pod], 41_000), vip, ACK);
                packet[20..22].copy_from_slice(if first { &[0x20, 0] } else { &[0, 8] });
                Drop::Fragment
            }
        };
        self.nothing(PODS[pod], &packet, reason)
    }

    /// Every drop was counted with its reason, and no other was.
    pub(crate) fn end(self) -> Result<(), String> {
        let mut wanted = self.counted.clone();
        for (what, count) in &self.model.dropped {
            *wanted.entry(*what).or_default() += count;
        }
        let found = self.drops();
        if found == wanted {
            Ok(())
        } else {
            Err(format!("counted {found:?}, and not {wanted:?}"))
        }
    }
}
