//! Nanoseconds per packet of `tc_from_pod`, by `test_run`, beside an empty program.
//!
//! One JSON object a line on standard output; what happens on standard error. The kernel does
//! the timing. Rounds of all rows are interleaved, because machines change speed for minutes;
//! `marked` counts the rounds in which the empty program took twice its median.
//! `cargo xtask bench pkt` runs it. With paths of BPF objects of the same ABI version as
//! arguments, it measures those beside each other.
//!
//! Each packet that is counted is known to have taken the path that the row is named after: the
//! programs count their slow path.
#![forbid(unsafe_code)]

mod memory;
mod row;
mod services;
mod six;

use agent_sys::bpf::Program;
use agent_sys::clock::thread_cpu;
use ebpf_common::conntrack::{Flow4, FlowKey4};
use ebpf_common::net::Be32;
use ebpf_logic::checksum::{addr_delta, port_delta};
use ebpf_logic::parse::flag::{ACK, SYN};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use row::Row;
use services::{Services, fill, service};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use tests_datapath::node::{Node, TCP};
use tests_datapath::packet::{At, REDIRECT, at, key, tcp};
use tests_harness::binary;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const PODS: [Ipv4Addr; 3] = [
    CLIENT,
    Ipv4Addr::new(10, 244, 1, 6),
    Ipv4Addr::new(10, 244, 1, 7),
];
/// Services that translate into each other: `test_run` does not put the packet back between
/// repeats, so what one makes of it must be a packet of the other.
const CYCLE: [(Ipv4Addr, u16); 2] = [(PODS[1], 8080), (PODS[2], 9090)];
const ROUNDS: usize = 40;
/// Repeats of one run: long enough that the two clock readings around it do not count.
const REPEAT: u32 = 200_000;
/// First packets in a round, each a run of its own.
const FIRST: usize = 200;
/// Services of the nodes.
const SERVICES: [u32; 4] = [1, 1_000, 10_000, 30_000];
/// Flows that packets meet, in random order.
const FLOWS: [u32; 3] = [1, 50_000, 200_000];
/// Flows that are made by one run, each of which translates into the next one's first packet.
const CREATED: u32 = 10_000;
/// Runs of it.
const CREATIONS: u16 = 10;
/// Backends that they have.
const BACKENDS: u32 = 5_000;
/// Flows that are passed over by the sweep.
const SWEPT_FLOWS: [u32; 2] = [50_000, 500_000];
/// Entries that expire between two passes.
const EXPIRED: u32 = 5_000;
/// Ticks since they were seen; two days, at 1,000 in a second.
const EXPIRED_SINCE: u32 = 2 * 86_400 * 1_000;

/// A node to measure on.
struct Case {
    object: usize,
    /// 4 or 6; with 6 the node is one of both.
    family: u8,
    services: u32,
    flows: u32,
    node: Node,
}

impl Case {
    fn row(&self, id: &'static str, repeat: u32) -> Row {
        Row {
            id,
            unit: "ns",
            object: self.object,
            family: self.family,
            services: self.services,
            flows: self.flows,
            repeat,
            samples: Vec::new(),
        }
    }

    /// A packet of a connection that is open.
    fn established(&self) -> Vec<u8> {
        if self.family == 6 {
            six::established()
        } else {
            tcp(at(CLIENT, 40_000), at(CYCLE[0].0, CYCLE[0].1), ACK, b"")
        }
    }

    /// The first packet of a connection.
    fn first(&self, port: u16) -> Vec<u8> {
        if self.family == 6 {
            six::first(port)
        } else {
            tcp(at(CLIENT, port), at(service(0), 80), SYN, b"")
        }
    }
}

fn main() {
    let mut objects: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if objects.is_empty() {
        objects.push(binary("hydrofoil.bpf.o"));
    }
    let sizes = FLOWS
        .into_iter()
        .flat_map(|flows| SERVICES.map(|services| (services, flows)));
    let mut cases = Vec::new();
    for (services, flows) in sizes {
        for (number, object) in objects.iter().enumerate() {
            eprintln!("a node with {services} services and {flows} flows");
            // Two entries each, and half as many again. First packets come from one pod, which has
            // half of the map at most.
            let least = if flows == 1 { 1 << 19 } else { 1 << 17 };
            let entries = (flows * 3).next_power_of_two().max(least);
            let node = Node::measured(&PODS, object, entries);
            fill(&node, services);
            connect(&node);
            if flows > 1 {
                chain(&node, flows);
            }
            cases.push(Case {
                object: number,
                family: 4,
                services,
                flows,
                node,
            });
        }
    }
    for (number, object) in objects.iter().enumerate() {
        eprintln!("a node of both families");
        cases.push(Case {
            object: number,
            family: 6,
            services: 1,
            flows: 1,
            node: six::node(object, 1 << 19),
        });
    }
    let mut rows = Vec::new();
    for case in &cases {
        rows.push(case.row("pkt.empty", REPEAT));
        rows.push(case.row("pkt.established", REPEAT));
        if case.flows == 1 {
            rows.push(case.row("pkt.empty", 1));
            rows.push(case.row("pkt.first", 1));
        }
    }
    let mut port = 10_000;
    for round in 0..ROUNDS {
        if round % 10 == 0 {
            eprintln!("round {round} of {ROUNDS}");
        }
        let mut rows = rows.iter_mut();
        for case in &cases {
            let Case { flows, node, .. } = case;
            let mut next = || rows.next().expect("a row for each measurement");
            let (empty, established) = (next(), next());
            let packet = case.established();
            pinned(node, || {
                empty.push(run(node, Program::Empty, &packet, REPEAT, 0));
                let slow = node.slow();
                established.push(run(node, Program::FromPod, &packet, REPEAT, REDIRECT));
                assert_eq!(node.slow(), slow, "established packets took the slow path");
            });
            if *flows > 1 {
                continue;
            }
            let (empty, first) = (next(), next());
            pinned(node, || {
                let slow = node.slow();
                for _ in 0..FIRST {
                    port = if port == 60_000 { 10_000 } else { port + 1 };
                    let packet = case.first(port);
                    empty.push(run(node, Program::Empty, &packet, 1, 0));
                    first.push(run(node, Program::FromPod, &packet, 1, REDIRECT));
                }
                let slow = node.slow() - slow;
                assert_eq!(slow, FIRST as u64, "first packets took the fast path");
            });
        }
    }
    drop(cases);
    rows.extend(objects.iter().enumerate().map(creations));
    rows.extend(objects.iter().enumerate().flat_map(sweeps));
    for row in &rows {
        println!("{}", row.line(&objects));
    }
    eprintln!("loads from memory");
    let loads = Row {
        id: "memory.cold_load",
        unit: "ns",
        samples: memory::cold_loads(),
        ..Row::default()
    };
    println!("{}", loads.line(&objects[..1]));
}

/// How many flows a second one CPU makes.
fn creations((number, object): (usize, &PathBuf)) -> Row {
    eprintln!("{CREATED} new flows at once");
    let node = Node::measured(&PODS, object, 1 << 19);
    fill(&node, 0);
    // Each service has one backend, which is the next service.
    let place = |number: u32| {
        let pod = PODS[1 + number as usize % 2];
        (pod, 10_000 + (number / 2) as u16)
    };
    let mut services = Services::after(3, 3);
    for number in 0..CREATED {
        services.add(place(number), &[place(number + 1)]);
    }
    services.put(&node);
    let case = Case {
        object: number,
        family: 4,
        services: CREATED,
        flows: CREATED,
        node,
    };
    let mut row = case.row("flows.created_per_s", CREATED);
    row.unit = "1/s";
    let (to, port) = place(0);
    for round in 0..CREATIONS {
        let packet = tcp(at(CLIENT, 20_000 + round), at(to, port), SYN, b"");
        pinned(&case.node, || {
            let slow = case.node.slow();
            let taken = run(&case.node, Program::FromPod, &packet, CREATED, REDIRECT);
            assert_eq!(
                case.node.slow() - slow,
                u64::from(CREATED),
                "flows were not new"
            );
            row.push((1e9 / taken).round());
        });
    }
    row
}

/// Passes of the sweep over many flows, of which some are expired.
fn sweeps((number, object): (usize, &PathBuf)) -> Vec<Row> {
    let mut rows = Vec::new();
    for flows in SWEPT_FLOWS {
        eprintln!("passes over {flows} flows");
        let node = Node::measured(&PODS, object, (flows * 2).next_power_of_two());
        fill(&node, 1);
        connect(&node);
        crowd(&node, flows, 0);
        let case = Case {
            object: number,
            family: 4,
            services: 1,
            flows,
            node,
        };
        let [mut longest, mut pass] = ["sweep.longest", "sweep.pass"].map(|id| case.row(id, 1));
        for _ in 0..ROUNDS {
            // Some of each pass are expired: those are handed to the program.
            crowd(&case.node, EXPIRED, EXPIRED_SINCE);
            pinned(&case.node, || {
                let began = thread_cpu();
                let swept = case.node.sweep();
                pass.push((thread_cpu() - began).as_nanos() as f64);
                longest.push(swept.longest.as_nanos() as f64);
                assert_eq!(swept.removed, EXPIRED);
            });
        }
        rows.extend([longest, pass]);
    }
    rows
}

/// Opens one connection through each of the two services, as packets do.
fn connect(node: &Node) {
    for (to, server) in [(CYCLE[0], CYCLE[1]), (CYCLE[1], CYCLE[0])] {
        let pod = PODS.iter().position(|addr| *addr == server.0);
        let server = (pod.expect("a pod"), at(server.0, server.1));
        node.open((0, at(CLIENT, 40_000)), at(to.0, to.1), server);
    }
}

/// Flows that no packet meets, last seen so many ticks ago.
fn crowd(node: &Node, flows: u32, ago: u32) {
    let maps = node.datapath.maps();
    let client = at(CLIENT, 40_000);
    let like = key(
        node.pods[0].ifindex,
        TCP,
        client,
        at(CYCLE[0].0, CYCLE[0].1),
    );
    let flow = maps.flow(&like).expect("read a flow");
    let flow = flow.expect("the flow that was opened");
    // Those that stay have other addresses than those that expire.
    let first: u32 = if ago == 0 { 0x0b00_0000 } else { 0x0c00_0000 };
    let all: Vec<(FlowKey4, Flow4)> = (0..flows)
        .map(|number| {
            let src = Be32::new(first + number);
            let last_seen = flow.last_seen.wrapping_sub(ago);
            // An answers' key that no flow has.
            let flow = Flow4 {
                last_seen,
                dst: src,
                ..flow
            };
            (FlowKey4 { src, ..like }, flow)
        })
        .collect();
    maps.put_flows(&all).expect("put flows");
}

/// The numbers below `count`, each once, in no order that a cache knows.
fn shuffled(count: u32, mut random: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        order.swap(last, ((random as u64 * (last as u64 + 1)) >> 32) as usize);
    }
    order
}

/// Flows each of which translates into the next one's packet, in random order: what a repeat
/// of `test_run` meets is never what the one before it met. They were made in another order,
/// and have many backends.
fn chain(node: &Node, flows: u32) {
    let mut order = shuffled(flows, 1);
    // The first one is the packet that is run.
    let start = order.iter().position(|number| *number == 0).unwrap_or(0);
    order.rotate_left(start);
    let from = node.pods[0].ifindex;
    // One that the programs wrote: its generations and its route are those of all others.
    let client = at(CLIENT, 40_000);
    let like_key = key(from, TCP, client, at(CYCLE[0].0, CYCLE[0].1));
    let maps = node.datapath.maps();
    let like = maps.flow(&like_key).expect("read a flow");
    let like = like.expect("the flow that was opened");
    let back = maps.flow(&like.answer_key(&like_key)).expect("read a flow");
    let back = back.expect("its answers' flow");
    let place = |position: usize| {
        let number = order[position % order.len()];
        let to = CYCLE[position % 2];
        key(from, TCP, client_of(number), at(to.0, to.1))
    };
    let all = shuffled(flows, 2).into_iter().flat_map(|position| {
        let position = position as usize;
        let (key, next) = (place(position), place(position + 1));
        // Their generation is that of all: none of them was ever removed.
        let backend = 1 + order[position] % BACKENDS;
        let mut flow = Flow4 {
            src: next.src,
            dst: next.dst,
            sport: next.sport,
            dport: next.dport,
            backend,
            ..like
        };
        let answer_key = flow.answer_key(&key);
        let mut answer = Flow4 {
            src: key.dst,
            dst: key.src,
            sport: key.dport,
            dport: key.sport,
            backend,
            ..back
        };
        for (key, flow) in [(key, &mut flow), (answer_key, &mut answer)] {
            flow.addr_delta = addr_delta(&key, flow);
            flow.port_delta = port_delta(&key, flow);
        }
        [(key, flow), (answer_key, answer)]
    });
    let all: Vec<(FlowKey4, Flow4)> = all.collect();
    maps.put_flows(&all).expect("put flows");
}

/// Every number another client, the first one that of the packet that is run.
fn client_of(number: u32) -> At {
    let port = (40_000 + number % 25_000) as u16;
    let host = number / 25_000;
    at(Ipv4Addr::from(u32::from(CLIENT) + host * 256), port)
}

/// Runs something inside of the node, on one CPU.
fn pinned(node: &Node, inside: impl FnOnce() + Send) {
    node.netns.enter(|| {
        let mut cpus = CpuSet::new();
        cpus.set(0).expect("CPU 0");
        sched_setaffinity(Pid::from_raw(0), &cpus).expect("pin to CPU 0");
        inside();
    });
}

/// Nanoseconds of one repeat.
fn run(node: &Node, program: Program, packet: &[u8], repeat: u32, verdict: i32) -> f64 {
    let ifindex = node.pods[0].ifindex;
    let ran = node.datapath.test_run(program, packet, ifindex, 0, repeat);
    let ran = ran.expect("test_run");
    assert_eq!(ran.verdict, verdict, "{program:?}");
    f64::from(ran.nanoseconds)
}
