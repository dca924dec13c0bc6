//! The test program of this crate: the cases one after another on one cluster, each in a
//! namespace of its own, in an order that changes with a seed.
//!
//! Not libtest's harness, because starting a cluster for each case would take most of the
//! time, and because nothing must be left at the end of all of them.
#![forbid(unsafe_code)]

use libtest_mimic::{Arguments, Failed, Trial};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use tests_cluster::case::{CASES, Case};
use tests_cluster::scene::{Narrator, Scene};
use tests_cluster::teardown;
use tests_harness::{Cluster, wait};

/// Started by the first case that runs.
type Shared = Arc<Mutex<Option<Cluster>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // All share one cluster, and some kill its agents.
    arguments.test_threads = Some(1);
    let shared = Shared::default();
    let seed = seed();
    let mut cases = CASES.to_vec();
    cases.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    let trials = cases.into_iter().map(|case| {
        let shared = Arc::clone(&shared);
        Trial::test(case.name, move || run(&shared, case))
    });
    let trials: Vec<Trial> = trials.collect();
    if !arguments.list {
        println!("order of the cases: FOIL_SEED={seed}");
        wait::catch_interrupts();
    }
    let failed = libtest_mimic::run(&arguments, trials).has_failed();
    let cluster = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(cluster) = cluster else {
        return exit_code(!failed);
    };
    let mut narrator = Narrator::keeping();
    let clean = catch_unwind(AssertUnwindSafe(|| teardown::run(&mut narrator, cluster)));
    if clean.is_err() {
        println!(
            "after the last case something was left\n{}",
            narrator.text()
        );
    }
    exit_code(!failed && clean.is_ok())
}

fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// `$FOIL_SEED`, with which an order is repeated, or a random one.
fn seed() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the arguments of a test program are libtest's"
    )]
    let given = std::env::var("FOIL_SEED").ok();
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random)
}

/// One case in a namespace of its own. Agents and control plane run afterwards, also
/// if it failed.
fn run(shared: &Shared, case: Case) -> Result<(), Failed> {
    if wait::interrupted() {
        return Err("interrupted".into());
    }
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = match &mut *shared {
        Some(cluster) => cluster,
        empty => empty.insert(start()?),
    };
    let mut narrator = Narrator::keeping();
    let namespace = case.name.replace("::", "-").replace('_', "-");
    let ran = catch_unwind(AssertUnwindSafe(|| {
        cluster.enter_namespace(&namespace);
        (case.run)(&mut Scene {
            cluster,
            narrator: &mut narrator,
        });
    }));
    let failed = ran.map_err(|panic| {
        let (text, logs) = (narrator.text(), cluster.logs(60));
        format!("{text}\n{}\n{logs}", message(panic.as_ref()))
    });
    let left = catch_unwind(AssertUnwindSafe(|| {
        cluster.ensure_running();
        cluster.leave_namespace();
    }));
    failed?;
    left.map_err(|panic| format!("after the case: {}", message(panic.as_ref())))?;
    Ok(())
}

/// Two agents, and a third node without one; images in the registry.
fn start() -> Result<Cluster, Failed> {
    let started = catch_unwind(|| {
        let mut cluster = Cluster::start_with_spare(2, 1);
        cluster.push_images();
        cluster
    });
    started.map_err(|panic| message(panic.as_ref()).into())
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without a message".to_owned(),
    }
}
