//! Random clusters and packets, judged by `model`: 54,000 packets, and each failure is shrunk to
//! the shortest sequence that still shows it.
//!
//! The seed is fixed, so that a run says something about the programs and not about its luck;
//! `HYDROFOIL_SEED` names another one. The message of a failure has the steps as Rust, for a test
//! of their own beside the others of their noun.

use crate::node::{Node, TCP, UDP};
use crate::world::{ENDPOINTS, PODS, PORTS, REMOTE, SERVICES, Step, To, World, Wrong};
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Worlds, and steps in each: most steps are packets.
const WORLDS: u32 = 60;
const STEPS: usize = 900;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let to = prop_oneof![
        8 => (0..SERVICES.len()).prop_map(To::Service),
        4 => (0..ENDPOINTS.len()).prop_map(To::Endpoint),
        1 => (0..SERVICES.len()).prop_map(To::NoPort),
        1 => Just(To::Outside),
    ];
    let protocol = prop_oneof![Just(TCP), Just(UDP)];
    let client = prop_oneof![5 => Just(SYN), 6 => Just(ACK), 1 => Just(FIN | ACK), 1 => Just(RST)];
    let server = prop_oneof![
        4 => Just(SYN | ACK), 5 => Just(ACK), 2 => Just(FIN | ACK), 1 => Just(RST | ACK)
    ];
    let wrong = prop_oneof![
        4 => (0..30_usize).prop_map(Wrong::Cut),
        1 => Just(Wrong::Options),
        1 => Just(Wrong::Version),
        1 => Just(Wrong::Length),
        2 => any::<bool>().prop_map(Wrong::Fragment),
        1 => Just(Wrong::Source),
    ];
    let step = prop_oneof![
        3 => (0..SERVICES.len(), 0..64_u8, 0..64_u8).prop_map(|(at, ready, ending)| Step::Put(at, ready, ending)),
        1 => (0..SERVICES.len()).prop_map(Step::Remove),
        180 => (0..=PODS.len(), 0..PORTS, to.clone(), protocol.clone(), client)
            .prop_map(|(pod, port, to, protocol, flags)| Step::Client(pod, port, to, protocol, flags)),
        120 => (any::<usize>(), server).prop_map(|(which, flags)| Step::Server(which, flags)),
        12 => any::<usize>().prop_map(Step::Error),
        6 => (0..PORTS, 0..SERVICES.len()).prop_map(|(port, to)| Step::FromOutside(port, to)),
        6 => (0..REMOTE.len(), 0..PODS.len()).prop_map(|(from, to)| Step::FromRemote(from, to)),
        18 => (0..PODS.len(), to, protocol, wrong)
            .prop_map(|(pod, to, protocol, wrong)| Step::Bad(pod, to, protocol, wrong)),
    ];
    // Some services are there from the beginning. A change waits for the kernel, packets do not.
    let begin: Vec<_> = (0..SERVICES.len())
        .map(|at| (1..64_u8).prop_map(move |ready| Step::Put(at, ready, 0)))
        .collect();
    let more = prop::collection::vec(step, STEPS);
    (begin, more).prop_map(|(begin, more)| [begin, more].concat())
}

fn replay(node: &Node, steps: &[Step]) -> Result<(), String> {
    let mut world = World::new(node);
    for (number, step) in steps.iter().enumerate() {
        world
            .step(*step)
            .map_err(|what| format!("step {number}, {step:?}: {what}"))?;
    }
    world.end()
}

fn node() -> Node {
    let node = Node::quiet(&PODS);
    node.netns
        .ip(&["route", "add", "10.244.2.0/24", "via", "172.31.0.12"]);
    node.datapath.maps().bump_node_generation().expect("bump");
    node
}

#[test]
fn random_packets_of_random_clusters_do_what_kubernetes_says() {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no config file; another seed is for people who look for failures"
    )]
    let named = std::env::var("HYDROFOIL_SEED").ok();
    let seed: u64 = named.and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: WORLDS,
        failure_persistence: None,
        max_shrink_iters: 4_000,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let node = node();
    let ran = node.netns.enter(|| {
        runner.run(&steps(), |steps| {
            replay(&node, &steps).map_err(TestCaseError::fail)
        })
    });
    match ran {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => {
            panic!("HYDROFOIL_SEED={seed}: {why}\nthe steps: {steps:?}")
        }
        Err(TestError::Abort(why)) => panic!("HYDROFOIL_SEED={seed}: {why}"),
    }
}
