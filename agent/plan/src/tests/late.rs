//! Plans beside actions that take their time, fail, are done without an answer, or come
//! back when the pod is another one already: what is begun never disagrees with what is
//! on its way, no container runs twice, and at the end what is known is what is.

use std::collections::BTreeMap;

use proto::v1;

use super::machine::{How, Machine, at_once, is_quick, with_image};
use super::*;
use crate::container::alive;
use crate::record::{self, Sandbox};

/// A begun action, with the record as it was then.
#[derive(Debug)]
struct Flight {
    action: Action,
    record: Option<v1::PodRecord>,
}

struct Late {
    node: Node,
    machine: Machine,
    flights: Vec<Flight>,
    boot: u32,
}

#[derive(Debug, Clone)]
enum Event {
    /// The action that was begun n-th, of those that are on their way, comes back.
    Return(usize, How),
    /// The next piece of news of the shim arrives.
    Hear,
    /// Programs that were slow to begin do.
    Execute,
    Exit(usize, i32),
    Pass(i64),
    Image(usize, u8),
    ConfigError(bool),
    Volumes(u8),
    Stop(i64),
    Remove,
    KillShim,
    /// The agent dies; of each action that is on its way: is it done all the same?
    RestartAgent(u64),
    Reboot,
    /// The folder of what lives as long as the machine is up is emptied.
    LoseRun,
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        8 => Just(How::Done),
        1 => Just(How::Failed),
        1 => Just(How::DoneSilently),
        1 => Just(How::Lost),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let code = prop_oneof![Just(0), Just(1), Just(137)];
    prop_oneof![
        30 => (0_usize..8, how()).prop_map(|(at, how)| Event::Return(at, how)),
        10 => Just(Event::Hear),
        3 => Just(Event::Execute),
        4 => (0_usize..4, code).prop_map(|(at, code)| Event::Exit(at, code)),
        6 => (1_i64..40_000).prop_map(Event::Pass),
        2 => (0_usize..2, 0_u8..3).prop_map(|(at, image)| Event::Image(at, image)),
        1 => any::<bool>().prop_map(Event::ConfigError),
        1 => (0_u8..3).prop_map(Event::Volumes),
        1 => (0_i64..60).prop_map(Event::Stop),
        1 => Just(Event::Remove),
        1 => Just(Event::KillShim),
        2 => any::<u64>().prop_map(Event::RestartAgent),
        1 => Just(Event::Reboot),
        1 => Just(Event::LoseRun),
    ]
}

/// What an action works on, if two at a time would disturb each other.
fn place(action: &Action) -> Option<String> {
    let text = format!("{action:?}");
    let name = text.split(' ').next().unwrap_or_default();
    let of = |instance: &Instance| Some(format!("{name} {instance:?}"));
    if let Action::CreateContainer { instance, .. }
    | Action::StartContainer { instance }
    | Action::DeleteContainer { instance } = action
    {
        return of(instance);
    }
    if let Action::RunHook { instance, kind, .. } = action {
        return Some(format!("{name} {instance:?} {kind:?}"));
    }
    if let Action::Probe { instance, kind, .. } = action {
        return Some(format!("{name} {instance:?} {kind:?}"));
    }
    let shared = matches!(
        action,
        Action::Signal { .. } | Action::FindImage { .. } | Action::PullImage { .. }
    );
    (!shared).then(|| name.to_owned())
}

/// True for what makes a part of the sandbox, or something in it.
fn makes(action: &Action) -> bool {
    matches!(
        action,
        Action::PinNamespaces { .. }
            | Action::CreateLink { .. }
            | Action::AttachPrograms { .. }
            | Action::CreateCgroup { .. }
            | Action::StartShim { .. }
            | Action::MakeVolumes { .. }
            | Action::CreateContainer { .. }
    )
}

fn removes(action: &Action) -> bool {
    matches!(
        action,
        Action::RemoveSandbox { .. } | Action::RemoveLeftovers { .. }
    )
}

fn folders(action: &Action) -> bool {
    matches!(action, Action::RemoveFolders { .. })
}

fn writes(action: &Action) -> bool {
    matches!(action, Action::Record { .. } | Action::MakeVolumes { .. })
}

/// True if a container is made by one while the other makes or deletes instances of it
/// that the first may meet.
fn meet(one: &Action, other: &Action) -> bool {
    let Action::CreateContainer { instance: made, .. } = one else {
        return false;
    };
    if let Action::CreateContainer { instance, .. } = other {
        return instance.container == made.container;
    }
    matches!(other, Action::DeleteContainer { instance } if instance == made)
}

/// True if two actions must not be on their way together.
fn disagree(one: &Action, other: &Action) -> bool {
    if meet(one, other) {
        return true;
    }
    let pairs = [
        (removes(one), makes(other) || removes(other)),
        (folders(one), writes(other) || removes(other)),
    ];
    pairs.iter().any(|(a, b)| *a && *b) || place(one).is_some_and(|p| place(other) == Some(p))
}

impl Late {
    fn new(spec: v1::PodSpec) -> Late {
        let mut node = Node::new();
        node.want(spec);
        let mut late = Late {
            node,
            machine: Machine::default(),
            flights: Vec::new(),
            boot: 0,
        };
        late.begin();
        late
    }

    fn boot_id(&self) -> String {
        format!("boot {}", self.boot)
    }

    /// Begins all that is due; nothing comes back meanwhile.
    fn begin(&mut self) {
        for _ in 0..64 {
            let node = &mut self.node;
            let moment = node.moment();
            let (actions, _) = plan(&node.desired, &node.observed, &settings(), moment);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                for flight in &self.flights {
                    let bad =
                        disagree(&action, &flight.action) || disagree(&flight.action, &action);
                    assert!(!bad, "{action:?} beside {:?}", flight.action);
                }
                if let Action::StartContainer { instance } = &action {
                    self.is_recorded(instance);
                }
                let node = &mut self.node;
                node.log.push(action.clone());
                node.observed.begin(&action, &settings());
                if is_quick(&action) {
                    at_once(&mut node.observed, &action, moment);
                    continue;
                }
                let pod = node.observed.pods.get("u");
                let record = matches!(action, Action::Record { .. })
                    .then(|| pod.map(|pod| record::of(pod, &format!("boot {}", self.boot))))
                    .flatten();
                self.flights.push(Flight { action, record });
            }
        }
        let last: Vec<_> = self.node.log.iter().rev().take(6).collect();
        panic!("does not converge: {last:?}");
    }

    /// What only the image knows is on disk before an instance runs.
    fn is_recorded(&self, instance: &Instance) {
        let record = self.machine.record.as_ref().expect("a record");
        let mut containers = record.containers.iter();
        let c = containers.find(|c| c.name == instance.container);
        let c = c.expect("a container");
        let known = c.attempt == instance.attempt && !c.image_id.is_empty();
        assert!(known && !c.made_from.is_empty(), "{instance:?} {c:?}");
    }

    fn finish(&mut self, at: usize, how: How) {
        let Flight { action, record } = self.flights.remove(at);
        let now = self.node.moment();
        let outcome = self.machine.carry_out(&action, record.as_ref(), how, now);
        if let Some(outcome) = outcome {
            self.node.take(outcome);
        }
    }

    fn hear(&mut self) {
        if !self.machine.news.is_empty() {
            let news = self.machine.news.remove(0);
            self.node.take(news);
        }
    }

    /// A new agent finds the record, and what is there.
    fn adopt(&mut self) {
        self.machine.lose_agent();
        self.flights.clear();
        let now = self.node.moment();
        let endpoints = self.node.observed.endpoints.clone();
        let gone = self.node.observed.gone.clone();
        self.node.observed = Observed {
            endpoints,
            gone,
            ..Observed::default()
        };
        let Some(kept) = self.machine.record.clone() else {
            // Whatever is left belongs to no pod that is known.
            if !self.machine.is_bare() || self.machine.folders {
                let strays = &mut self.node.observed.strays;
                strays.insert("u".into(), crate::step::Step::Absent);
            }
            return;
        };
        let mut pod = record::restore(kept, Kept::Whole, &self.boot_id(), now).unwrap();
        let found = Sandbox {
            namespaces: self.machine.namespaces,
            ifindex: self.machine.link.then_some(7),
            programs: self.machine.programs,
        };
        record::adopt_sandbox(&mut pod, &found, now);
        self.node.observed.pods.insert("u".into(), pod);
    }

    fn happen(&mut self, event: &Event, names: &[String]) {
        let wanted = self.node.desired.pods.get("u").cloned();
        match event {
            Event::Return(at, how) if !self.flights.is_empty() => {
                self.finish(at % self.flights.len(), *how);
            }
            Event::Hear => self.hear(),
            Event::Execute => {
                let now = self.node.moment();
                self.machine.execute(now);
            }
            Event::Exit(at, code) => {
                let name = &names[at % names.len()];
                let runs = self.machine.running().into_iter().find(|k| k.0 == *name);
                if let Some(key) = runs {
                    let now = self.node.moment();
                    self.machine.exit(&key, *code, now);
                }
            }
            Event::Pass(ms) => self.node.now = self.node.now + *ms,
            Event::Image(at, image) => {
                if let Some(spec) = wanted {
                    self.node.want(with_image(&spec, *at, *image));
                }
            }
            Event::ConfigError(is) if wanted.is_some() => self.node.change("u", |spec| {
                let text = if *is { "configmap \"x\" not found" } else { "" };
                spec.containers[0].config_error = text.into();
            }),
            Event::Volumes(number) if wanted.is_some() => self.node.change("u", |spec| {
                spec.volumes = vec![files(&number.to_string())];
            }),
            Event::Stop(grace) if wanted.is_some() => {
                self.node
                    .change("u", |s| s.stop_grace_seconds = Some(*grace));
            }
            Event::Remove => self.node.desired.pods.clear(),
            Event::KillShim => self.machine.kill_shim(),
            Event::LoseRun => self.machine.lose_run(),
            Event::RestartAgent(done) => {
                for (at, flight) in std::mem::take(&mut self.flights).into_iter().enumerate() {
                    if done >> (at % 64) & 1 == 1 {
                        let now = self.node.moment();
                        let record = flight.record.as_ref();
                        let how = How::DoneSilently;
                        self.machine.carry_out(&flight.action, record, how, now);
                    }
                }
                self.adopt();
            }
            Event::Reboot => {
                self.machine.reboot();
                self.node.observed.endpoints = Default::default();
                self.boot += 1;
                self.adopt();
            }
            Event::Return(..) | Event::ConfigError(_) | Event::Volumes(_) | Event::Stop(_) => {}
        }
        self.begin();
    }

    /// All goes well from now on, for so long at the most.
    fn calm(&mut self, ms: i64) {
        let end = self.node.now + ms;
        for _ in 0..20_000 {
            self.begin();
            if !self.flights.is_empty() {
                self.finish(0, How::Done);
                continue;
            }
            let now = self.node.moment();
            self.machine.execute(now);
            if !self.machine.news.is_empty() {
                self.hear();
                continue;
            }
            let node = &self.node;
            let uids = node.desired.pods.keys().chain(node.observed.pods.keys());
            let wakes = uids.filter_map(|uid| {
                pod::plan(
                    uid,
                    &node.desired,
                    &node.observed,
                    &settings(),
                    node.moment(),
                )
                .wake
            });
            let strays = node.observed.strays.values().filter_map(|s| s.wake());
            match wakes.chain(strays).min() {
                Some(wake) if wake <= end => {
                    assert!(wake > node.now, "a wake that is due is no wake");
                    self.node.now = wake;
                }
                Some(_) | None => return,
            }
        }
        panic!(
            "never quiet: {:?}",
            self.node.log.iter().rev().take(6).collect::<Vec<_>>()
        );
    }

    /// What is known is what is.
    fn agrees(&self) {
        let known: std::collections::BTreeSet<_> = self
            .node
            .observed
            .pods
            .get("u")
            .iter()
            .flat_map(|pod| &pod.containers)
            .filter(|(_, c)| matches!(c.life, Life::Running { .. }))
            .map(|(name, c)| (name.clone(), c.attempt))
            .collect();
        assert_eq!(known, self.machine.running());
        assert!(self.machine.orphans.is_empty(), "{:?}", self.machine);
        for (name, attempt) in self.machine.shim.iter().flat_map(BTreeMap::keys) {
            let c = &self.node.observed.pods["u"].containers[name];
            let known = c.attempt == *attempt && alive(c);
            assert!(known, "{name} {attempt} is left in the shim: {c:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn late_lost_and_failed_actions_break_nothing(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0_usize..3,
        sidecar in any::<bool>(),
        hooks in any::<bool>(),
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let mut spec = any_pod(policy, inits, sidecar);
        if hooks {
            spec.containers[0].pre_stop = Some(v1::Handler::default());
            spec.containers[1].post_start = Some(v1::Handler::default());
            spec.containers[1].readiness = Some(v1::Probe {
                period_seconds: 1000,
                handler: Some(v1::Handler::default()),
                ..v1::Probe::default()
            });
        }
        let names = names(&spec);
        let mut late = Late::new(spec);
        for event in &events {
            late.happen(event, &names);
        }
        // Init containers that are not sidecars have run for long enough.
        for _ in 0..8 {
            late.calm(400_000);
            late.agrees();
            let is_init = |name: &str| name.starts_with('i') && !(sidecar && name == "i0");
            let inits: Vec<_> = late.machine.running().into_iter().filter(|k| is_init(&k.0)).collect();
            for key in inits {
                let now = late.node.moment();
                late.machine.exit(&key, 0, now);
            }
        }
        late.calm(400_000);
        late.agrees();
        let wanted = late.node.desired.pods.get("u");
        let runs = wanted.is_some_and(|spec| {
            spec.stop_grace_seconds.is_none()
                && spec.restart_policy == "Always"
                && spec.containers.iter().all(|c| c.config_error.is_empty())
        });
        if runs {
            let running = late.machine.running();
            for name in ["c0", "c1"] {
                prop_assert!(running.iter().any(|k| k.0 == name), "{name} does not run: {running:?}");
            }
            let pod = &late.node.observed.pods["u"];
            for c in &pod.spec.containers {
                prop_assert_eq!(&pod.containers[&c.name].made_from, &c.image);
            }
        }
        late.node.desired.pods.clear();
        late.calm(400_000);
        prop_assert!(late.node.observed.pods.is_empty(), "{:?}", late.node.observed.pods);
        prop_assert!(late.node.observed.strays.is_empty());
        prop_assert!(late.node.observed.endpoints.entries.is_empty());
        prop_assert!(late.machine.is_bare(), "{:?}", late.machine);
        prop_assert!(late.machine.record.is_none());
        prop_assert!(!late.machine.folders);
    }
}
