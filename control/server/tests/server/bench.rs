//! How long it takes from applying a pod until its node has it, and until it
//! is ready; printed, never asserted. Run with `--ignored --nocapture`.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::*;

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{what}: n {} min {:?} p50 {:?} p99 {:?}",
        times.len(),
        times[0],
        at(50),
        at(99)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn applied_until_pushed() {
    let mut server = server().await;
    let mut agent = server.agent("n1").await;
    agent.until("its range", |told| told.config.is_some()).await;
    let (mut pushed, mut applied) = (Vec::new(), Vec::new());
    for i in 0..50 {
        let name = format!("p{i}");
        let start = Instant::now();
        server.apply(&pod(&name)).await;
        applied.push(start.elapsed());
        agent
            .until("the pod", |told| told.pods.values().any(|p| p.name == name))
            .await;
        pushed.push(start.elapsed());
    }
    show("apply answered", applied);
    show("one pod, applied until pushed", pushed);
    let start = Instant::now();
    server.apply(&deployment("web", 50, "a")).await;
    agent.until("50 pods", |told| told.pods.len() == 100).await;
    println!(
        "50 pods of a deployment, applied until pushed: {:?}",
        start.elapsed()
    );
    server
        .until("pods", "app=web", "50 ready", |p| {
            p.len() == 50 && p.iter().all(is_ready)
        })
        .await;
    println!(
        "50 pods of a deployment, applied until ready: {:?}",
        start.elapsed()
    );
}
