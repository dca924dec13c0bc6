//! The loop of the node: takes an event, plans what it touched, carries it out,
//! reports. It owns the parts: what was pushed (`pushed.rs`), what is observed, the
//! services that are due (`services.rs`), what is told upstream (`report.rs`), and
//! the handles of maps and programs (`apply.rs`).
//!
//! Nothing here waits: slow work is spawned by `apply.rs` and comes back as an
//! event, so that a service update never stands behind an image pull.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_plan::action::Action;
use agent_plan::outcome::Outcome;
use agent_plan::time::{Moment, Monotonic};
use agent_plan::world::Observed;
use agent_plan::{device, event as notes, pod, route, status, stray};
use proto::v1;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::answer;
use crate::apply::{Applied, Apply, WriteError};
use crate::clock;
use crate::dns::Dns;
use crate::event::{Event, NodeError, name_of, of_network};
use crate::failpoint;
use crate::flows::Flows;
use crate::health::Health;
use crate::kernel::Kernel;
use crate::observe::{self, Found};
use crate::problems::Problems;
use crate::pushed::Pushed;
use crate::refused;
use crate::report::Report;
use crate::serve;
use crate::services::Services;
use crate::tls::Calls;
use crate::touched;

/// Plans of one pod in a row; more would be a plan that does not converge.
const ROUNDS: usize = 64;
/// Events that are taken before anything is planned.
const BATCH: usize = 256;
/// After a start, the maps are left unchanged for this long while the control plane
/// is asked for changes; then the state on disk applies. Milliseconds.
const HOLD_MS: i64 = 3_000;
/// After a refused write into a map, milliseconds.
const MAPS_RETRY_MS: i64 = 1_000;
/// Between two plans of a pod that only time could change, milliseconds.
const LEAST_MS: i64 = 5;
/// When the queue upstream is full, milliseconds.
const FULL_MS: i64 = 20;

/// The node.
pub(crate) struct Node {
    apply: Apply,
    pushed: Pushed,
    dns: Dns,
    health: Health,
    kernel: Kernel,
    observed: Observed,
    services: Services,
    report: Report,
    /// What the node says first in each stream, but for what was pushed to it.
    hello: v1::Hello,
    calls: Calls,
    /// Pods to plan.
    pods: BTreeSet<String>,
    /// Links, routes and leftovers are to be planned.
    network: bool,
    /// What is in force once the network is settled.
    unacknowledged: Option<v1::Ack>,
    /// When time makes something of a pod due.
    wakes: BTreeMap<String, Monotonic>,
    network_wake: Option<Monotonic>,
    hold_until: Option<Monotonic>,
    maps_retry: Option<Monotonic>,
    flows: Flows,
    problems: Problems,
    full: bool,
    failed: Option<NodeError>,
}

impl Node {
    /// A node that starts from what was found.
    pub(crate) fn new(
        apply: Apply,
        found: Found,
        hello: v1::Hello,
        calls: Calls,
        (health, dns): (Health, Dns),
        now: Monotonic,
    ) -> Node {
        let Found {
            observed,
            desired,
            kept,
            journal,
        } = found;
        let pods = observed.pods.keys().cloned().collect();
        let mut due = Services::default();
        due.touch(touched::services(&desired));
        due.sweep();
        Node {
            apply,
            pushed: Pushed::new(desired, kept, journal),
            observed,
            services: due,
            health,
            dns,
            kernel: Kernel::default(),
            report: Report::default(),
            hello,
            calls,
            pods,
            network: true,
            unacknowledged: None,
            wakes: BTreeMap::new(),
            network_wake: None,
            hold_until: Some(now + HOLD_MS),
            maps_retry: None,
            flows: Flows::new(now),
            problems: Problems::default(),
            full: false,
            failed: None,
        }
    }

    /// Runs until the agent is asked to end; pods run on.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), NodeError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        while self.failed.is_none() {
            self.settle();
            let pause = self.pause(clock::monotonic());
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { break };
                    self.handle(event);
                    for _ in 0..BATCH {
                        match events.try_recv() {
                            Ok(event) => self.handle(event),
                            Err(_empty) => break,
                        }
                    }
                }
                () = tokio::time::sleep(pause) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.pushed.save_now();
        tracing::info!("shutting down; pods keep running");
        self.failed.map_or(Ok(()), Err)
    }

    /// Until something becomes due.
    fn pause(&self, now: Monotonic) -> Duration {
        let full = self.full.then_some(now + FULL_MS);
        let due = [
            self.network_wake,
            self.hold_until,
            self.maps_retry,
            self.pushed.due(),
            self.health.due(),
            full,
        ]
        .into_iter()
        .flatten()
        .chain(self.wakes.values().copied())
        .fold(self.flows.due(), Monotonic::min);
        // A moment late: rounding must not wake us before it is due.
        Duration::from_millis(u64::try_from(due - now).unwrap_or(0))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Outcome(outcome) => self.outcome(*outcome),
            Event::Greet(answer) => {
                let mut hello = self.hello.clone();
                self.pushed.greet(&mut hello);
                // Who asked may have ended.
                drop(answer.send(hello));
            }
            Event::Connected(stream) => self.report.connected(stream),
            Event::Disconnected => {
                self.report.disconnected();
                self.pushed.disconnected();
            }
            Event::Update(update) => self.update(*update),
            Event::Open(open) => serve::open(&self.apply.sys, self.calls.clone(), *open),
            Event::Kernel(changes) => {
                // It is in force already: only now are flows to ask for their way again.
                if changes.routing {
                    self.bump();
                }
                if changes.ours {
                    self.ask_kernel();
                }
            }
            Event::Measured(measured) => {
                self.keeps_secrets();
                let now = clock::moment();
                if let Some(status) = self.health.measured(&measured, now) {
                    self.hello.status = Some(status.clone());
                    self.report.node(status);
                }
                let node = &self.apply.sys.settings.node_name;
                let notes = self.health.notes();
                self.report.node_events(node, notes, now.wall);
            }
            Event::Ask(question) => {
                let settings = &self.apply.sys.settings;
                answer::answer(question, &self.observed, settings, clock::moment());
            }
            Event::Saved(result) => self.pushed.saved(result, clock::monotonic()),
        }
    }

    /// One step of what the node shall be.
    fn update(&mut self, update: v1::Update) {
        let Some(step) = self.pushed.update(update, clock::monotonic()) else {
            return;
        };
        let touched = step.touched;
        self.dns.take(&self.pushed.desired, &touched);
        let (desired, report) = (&self.pushed.desired, &mut self.report);
        refused::tell(desired, &self.observed, &touched.pods, step.gone, report);
        self.pods.extend(touched.pods);
        self.services.touch(touched.services);
        self.network |= touched.network;
        if touched.all {
            self.pods.extend(self.observed.pods.keys().cloned());
            self.pods.extend(self.observed.gone.iter().cloned());
            self.services.sweep();
        }
        let Some(mut ack) = step.end else {
            return;
        };
        self.hold_until = None;
        // Failures of an earlier step that was not acknowledged yet.
        if let Some(before) = self.unacknowledged.take() {
            ack.failures.splice(0..0, before.failures);
        }
        self.unacknowledged = Some(ack);
    }

    /// Flows ask for their way again.
    fn bump(&self) {
        match self.apply.datapath.maps().bump_node_generation() {
            Ok(()) => tracing::debug!("routes changed: flows ask again"),
            Err(error) => tracing::error!(%error, "cannot tell flows that routes have changed"),
        }
    }

    /// Something came to pass.
    fn outcome(&mut self, outcome: Outcome) {
        let now = clock::moment();
        tracing::debug!(outcome = name_of(&outcome), "came back");
        if let Some(uid) = outcome.uid() {
            failpoint::done(uid, &outcome);
            self.pods.insert(uid.to_owned());
        }
        if let Outcome::Route { result, route, .. } = &outcome {
            match result {
                Ok(()) => self.bump(),
                Err(error) => tracing::error!(?route, error, "cannot change a route"),
            }
            self.network = true;
        }
        let seen = matches!(outcome, Outcome::Seen { .. });
        let service_link = matches!(outcome, Outcome::ServiceLink { .. });
        let error = NodeError::of(&outcome, &self.apply.sys.settings);
        self.failed = self.failed.take().or(error);
        self.network |= seen || service_link || of_network(&outcome);
        if matches!(outcome, Outcome::LinkDeleted { .. } | Outcome::Part { .. }) {
            self.network = self.network || !self.observed.strays.is_empty();
        }
        for note in self.observed.take(outcome, &self.apply.sys.settings, now) {
            self.report.event(note, now.wall);
        }
        if seen {
            self.pods.extend(self.observed.unlinked());
            if self.kernel.answered() {
                self.ask_kernel();
            }
        }
        if service_link {
            // It may be gone again, which was not believed while it was being made.
            self.ask_kernel();
        }
    }

    /// Observes links, routes and attached programs in the kernel.
    fn ask_kernel(&mut self) {
        let Apply { sys, datapath } = &self.apply;
        self.kernel.ask(sys, datapath, || self.observed.expected());
    }

    /// Brings the node to what is wanted, as far as it can be without waiting.
    fn settle(&mut self) {
        let moment = clock::moment();
        let now = moment.monotonic;
        if self.hold_until.is_some_and(|at| now >= at) {
            self.hold_until = None;
        }
        if self.maps_retry.is_some_and(|at| now >= at) {
            self.reread(now);
        }
        let notes = self.flows.sweep_if_due(&self.apply.datapath, now);
        let node = &self.apply.sys.settings.node_name;
        self.report.node_events(node, notes, moment.wall);
        if self.hold_until.is_none() && self.maps_retry.is_none() {
            self.settle_services(now);
        }
        if self.network || self.network_wake.is_some_and(|at| now >= at) {
            self.settle_network(moment);
        }
        self.settle_pods(moment);
        self.acknowledge();
        self.pushed.save_if_due(&self.apply.sys, now);
        self.health.measure_if_due(&self.apply.sys, now);
        self.full = self.report.flush();
    }

    fn settle_services(&mut self, now: Monotonic) {
        let (problems, written) =
            self.services
                .settle(&self.pushed.desired, &mut self.observed, &mut self.apply);
        self.problems.tell(problems);
        if let Err(error) = written {
            self.write_failed(&error, now);
        }
    }

    fn settle_network(&mut self, moment: Moment) {
        let now = moment.monotonic;
        self.network = false;
        let settings = &self.apply.sys.settings;
        let (mut actions, problems) =
            route::plan(&self.pushed.desired, &self.observed.network, settings, now);
        actions.extend(device::plan(&self.observed.network, settings, now));
        actions.extend(stray::plan(&self.pushed.desired, &self.observed, now));
        self.problems.tell(problems);
        for action in actions {
            self.act(&action, moment);
        }
        // What failed and is not wanted any more is not tried again.
        let network = &self.observed.network;
        let wakes = [
            route::wake(network),
            device::wake(network),
            stray::wake(&self.observed),
        ];
        self.network_wake = wakes.into_iter().flatten().filter(|at| *at > now).min();
    }

    fn settle_pods(&mut self, now: Moment) {
        let due = self.wakes.iter().filter(|(_, at)| now.monotonic >= **at);
        self.pods.extend(due.map(|(uid, _)| uid.clone()));
        while let Some(uid) = self.pods.pop_first() {
            self.settle_pod(&uid, now);
        }
    }

    fn settle_pod(&mut self, uid: &str, now: Moment) {
        self.wakes.remove(uid);
        for round in 0..ROUNDS {
            let settings = &self.apply.sys.settings;
            let plan = pod::plan(uid, &self.pushed.desired, &self.observed, settings, now);
            self.problems.tell(plan.problems);
            if plan.actions.is_empty() || self.maps_retry.is_some() {
                if let Some(at) = plan.wake {
                    // What is due and cannot be done must not keep us busy.
                    self.wakes
                        .insert(uid.to_owned(), at.max(now.monotonic + LEAST_MS));
                }
                break;
            }
            for action in &plan.actions {
                self.act(action, now);
                failpoint::begun(uid, action);
            }
            if self.failed.is_some() {
                return;
            }
            if round + 1 == ROUNDS {
                let first = plan.actions.first().map(name_of).unwrap_or_default();
                tracing::error!(pod = uid, first, "the plan does not converge");
                self.wakes
                    .insert(uid.to_owned(), now.monotonic + MAPS_RETRY_MS);
            }
        }
        let settings = &self.apply.sys.settings;
        if let Some(pod) = self.observed.pods.get_mut(uid)
            && pod.is_told()
        {
            let status = status::of(pod, settings, now);
            pod.conditions.clone_from(&status.conditions);
            self.report.status(status);
        }
    }

    /// Whether `run` is still in memory; else the loop ends.
    fn keeps_secrets(&mut self) -> bool {
        if let Err(lost) = self.apply.sys.in_memory() {
            self.failed.get_or_insert(lost.into());
        }
        self.failed.is_none()
    }

    /// Begins one action.
    fn act(&mut self, action: &Action, now: Moment) {
        if !self.keeps_secrets() {
            return;
        }
        tracing::debug!(action = name_of(action), "begin");
        if let Some(note) = notes::begun(action, &self.observed) {
            self.report.event(note, now.wall);
        }
        self.observed.begin(action, &self.apply.sys.settings);
        if let Action::ReportGone { gone } = action {
            self.report.gone(gone.clone());
        } else if let Action::Forget { uid } = action {
            self.report.forget(uid);
        }
        match self.apply.one(action, &self.observed) {
            Applied::Later | Applied::Done => {}
            Applied::Now(outcome) => {
                for note in self.observed.take(outcome, &self.apply.sys.settings, now) {
                    self.report.event(note, now.wall);
                }
            }
            Applied::Failed(error) => self.write_failed(&error, now.monotonic),
        }
    }

    /// A map or link refused a change: what is in force is not known, and is read again.
    fn write_failed(&mut self, error: &WriteError, now: Monotonic) {
        tracing::error!(%error, "cannot change the data plane; retrying");
        self.maps_retry = Some(now + MAPS_RETRY_MS);
        if let Some(ack) = &mut self.unacknowledged {
            ack.failures.push(v1::Failure {
                kind: "Node".into(),
                key: self.apply.sys.settings.node_name.clone(),
                message: error.to_string(),
            });
        }
    }

    fn reread(&mut self, now: Monotonic) {
        match observe::maps(&mut self.observed, &self.apply.datapath) {
            Ok(()) => {
                self.maps_retry = None;
                self.services.touch(touched::services(&self.pushed.desired));
                self.services.sweep();
                self.network = true;
                self.pods.extend(self.observed.pods.keys().cloned());
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the maps; retrying");
                self.maps_retry = Some(now + MAPS_RETRY_MS);
            }
        }
    }

    /// Acknowledges what is in force, routes included.
    fn acknowledge(&mut self) {
        if self.unacknowledged.is_none() {
            return;
        }
        let waits = !self.services.is_settled()
            || self.maps_retry.is_some()
            || !route::settled(
                &self.pushed.desired,
                &self.observed.network,
                &self.apply.sys.settings,
            );
        // A route that cannot be set must not hold back everything else.
        let pending = &self.observed.network.pending;
        let failed = pending.values().any(|s| s.wake().is_some());
        if waits && !failed {
            return;
        }
        if let Some(ack) = self.unacknowledged.take() {
            self.report.ack(ack);
        }
    }
}
