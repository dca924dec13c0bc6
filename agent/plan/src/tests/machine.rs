//! A machine that does what a plan asks for, later, or not, or without an answer: the
//! truth that a plan knows by outcomes only.
//!
//! Driven by `late.rs`. Of one pod "u".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::v1;

use crate::action::{Action, Instance};
use crate::outcome::{Answer, Call, Found, ImageFailure, Outcome, Refusal};
use crate::simulate::success;
use crate::time::Moment;
use crate::world::{Exit, ImageReason, Life, Observed};

/// How an action goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It is done, and says so.
    Done,
    /// It is refused, and says so.
    Failed,
    /// It is done, and the answer is lost.
    DoneSilently,
    /// It never arrives.
    Lost,
}

/// An instance: container and attempt.
type Key = (String, u32);

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// What the shim has, if there is one.
    pub(super) shim: Option<BTreeMap<Key, Life>>,
    /// Instances that run without a shim: theirs has died.
    pub(super) orphans: BTreeSet<Key>,
    pub(super) namespaces: bool,
    pub(super) link: bool,
    pub(super) programs: bool,
    pub(super) folders: bool,
    /// The record as it was last written.
    pub(super) record: Option<v1::PodRecord>,
    /// Somebody listens to the shim.
    pub(super) heard: bool,
    /// What the shim has told since, oldest first.
    pub(super) news: Vec<Outcome>,
}

fn key(instance: &Instance) -> Key {
    (instance.container.clone(), instance.attempt)
}

/// It is a program, or is about to be one.
fn runs(life: &Life) -> bool {
    matches!(life, Life::Starting | Life::Running { .. })
}

impl Machine {
    /// Instances that run.
    pub(super) fn running(&self) -> BTreeSet<Key> {
        let in_shim = self.shim.iter().flatten();
        let in_shim = in_shim.filter(|(_, life)| runs(life)).map(|(k, _)| k);
        in_shim.chain(&self.orphans).cloned().collect()
    }

    /// True if nothing is there but folders.
    pub(super) fn is_bare(&self) -> bool {
        self.shim.is_none()
            && self.orphans.is_empty()
            && !(self.namespaces || self.link || self.programs)
    }

    /// A program ends.
    pub(super) fn exit(&mut self, of: &Key, code: i32, now: Moment) {
        let Some(life) = self.shim.as_mut().and_then(|shim| shim.get_mut(of)) else {
            self.orphans.remove(of);
            return;
        };
        if matches!(life, Life::Exited(_)) {
            return;
        }
        let reason = if code == 0 { "Completed" } else { "Error" };
        let exit = Exit {
            code,
            reason: reason.into(),
            finished: now,
            attempt: of.1,
            ..Exit::default()
        };
        *life = Life::Exited(exit.clone());
        if self.heard {
            let instance = instance(of);
            self.news.push(Outcome::Exited { instance, exit });
        }
    }

    /// The shim is killed; its containers are not.
    pub(super) fn kill_shim(&mut self) {
        let lives = self.shim.take().into_iter().flatten();
        let left = lives.filter(|(_, life)| runs(life)).map(|(k, _)| k);
        self.orphans.extend(left);
        if std::mem::take(&mut self.heard) {
            self.news.push(Outcome::ShimLost { uid: "u".into() });
        }
    }

    /// Nobody listens any more, and what was told is lost.
    pub(super) fn lose_agent(&mut self) {
        self.heard = false;
        self.news.clear();
    }

    fn clear(&mut self) {
        self.kill_shim();
        self.orphans.clear();
        (self.namespaces, self.link, self.programs) = (false, false, false);
    }

    /// What keeps the sandbox together goes: its pins, and the shim's socket.
    pub(super) fn lose_run(&mut self) {
        self.kill_shim();
        self.namespaces = false;
    }

    /// Power goes, and comes again.
    pub(super) fn reboot(&mut self) {
        self.clear();
        self.lose_agent();
    }

    /// Does an action; what comes back, if anything does.
    pub(super) fn carry_out(
        &mut self,
        action: &Action,
        record: Option<&v1::PodRecord>,
        how: How,
        now: Moment,
    ) -> Option<Outcome> {
        let answer = match how {
            How::Lost => None,
            How::Failed => self.refused(action, now),
            How::Done | How::DoneSilently => self.done(action, record, how, now),
        };
        match how {
            How::Done | How::Failed => answer.or_else(|| no_answer(action)),
            How::DoneSilently | How::Lost => no_answer(action),
        }
    }

    /// All programs that were told to be executed are.
    pub(super) fn execute(&mut self, now: Moment) {
        for (key, life) in self.shim.iter_mut().flatten() {
            if *life == Life::Starting {
                *life = Life::Running { started: now };
                if self.heard {
                    let (instance, result) = (instance(key), Ok(now));
                    self.news.push(Outcome::Started { instance, result });
                }
            }
        }
    }

    fn done(
        &mut self,
        action: &Action,
        record: Option<&v1::PodRecord>,
        how: How,
        now: Moment,
    ) -> Option<Outcome> {
        if let Action::Record { .. } = action {
            self.record = record.cloned();
            self.folders = true;
        } else if let Action::PinNamespaces { .. } = action {
            self.namespaces = true;
        } else if let Action::CreateLink { .. } = action {
            self.link = true;
        } else if let Action::AttachPrograms { .. } = action {
            self.programs = true;
        } else if let Action::MakeVolumes { .. } = action {
            self.folders = true;
        } else if let Action::StartShim { .. } = action {
            // What the one before it told may still be on its way.
            self.kill_shim();
            self.orphans.clear();
            self.shim = Some(BTreeMap::new());
            self.heard = true;
        } else if let Action::RemoveSandbox { .. } | Action::RemoveLeftovers { .. } = action {
            self.clear();
        } else if let Action::RemoveFolders { .. } = action {
            self.record = None;
            self.folders = false;
        } else if let Action::AskShim { uid, listen } = action {
            return Some(self.answer(uid, *listen));
        } else if let Action::CreateContainer { instance, .. } = action {
            let shim = self.shim.as_mut()?;
            if shim.contains_key(&key(instance)) {
                return refusal(action, Refusal::Runtime("there already".into()));
            }
            shim.insert(key(instance), Life::Created);
        } else if let Action::StartContainer { instance } = action {
            let life = self.shim.as_mut()?.get_mut(&key(instance));
            if life != Some(&mut Life::Created) {
                return refusal(action, Refusal::Begun("not waiting".into()));
            }
            assert!(
                self.link && self.programs,
                "without an address: {instance:?}"
            );
            let beside = self.running();
            let twice = beside.iter().any(|(name, _)| *name == instance.container);
            assert!(!twice, "{instance:?} beside {beside:?}");
            self.shim.as_mut()?.insert(key(instance), Life::Starting);
            // Whose answer is given up is slow.
            if how == How::Done {
                self.execute(now);
            }
        } else if let Action::Signal {
            instance, signal, ..
        } = action
        {
            self.shim.as_ref()?;
            self.exit(&key(instance), 128 + signal, now);
            return None;
        } else if let Action::DeleteContainer { instance } = action {
            let shim = self.shim.as_mut()?;
            if shim.get(&key(instance)).is_some_and(runs) {
                let result = Err("has not ended".into());
                let instance = instance.clone();
                return Some(Outcome::Deleted { instance, result });
            }
            shim.remove(&key(instance));
        } else if let Action::RunHook { .. } | Action::Probe { .. } = action {
            self.shim.as_ref()?;
        }
        success(action, now)
    }

    fn answer(&mut self, uid: &str, listen: bool) -> Outcome {
        self.heard |= listen && self.shim.is_some();
        let found = |shim: &BTreeMap<Key, Life>| {
            let list = shim.iter().map(|((container, attempt), life)| Found {
                container: container.clone(),
                attempt: *attempt,
                life: life.clone(),
            });
            Answer::Alive(list.collect())
        };
        Outcome::ShimAnswered {
            uid: uid.into(),
            listens: listen && self.shim.is_some(),
            answer: match &self.shim {
                Some(shim) => found(shim),
                None if self.namespaces => Answer::Dead,
                None => Answer::SandboxLost,
            },
        }
    }

    fn refused(&mut self, action: &Action, now: Moment) -> Option<Outcome> {
        let why = || "no".to_owned();
        let failure = || ImageFailure {
            reason: ImageReason::Pull,
            message: why(),
        };
        if let Action::StartContainer { instance } = action {
            // It could not be executed, and its process has ended.
            let life = self.shim.as_mut()?.get_mut(&key(instance));
            if life != Some(&mut Life::Created) {
                return refusal(action, Refusal::Begun("not waiting".into()));
            }
            self.exit(&key(instance), 128, now);
            return refusal(action, Refusal::Command(why()));
        }
        if let Action::CreateContainer { instance, .. } = action {
            let known = self.shim.as_ref()?.contains_key(&key(instance));
            assert!(!known, "made twice: {instance:?}");
            return refusal(action, Refusal::Runtime(why()));
        }
        // A removal that fails may have done all that it could.
        if let Action::RemoveSandbox { .. } | Action::RemoveLeftovers { .. } = action {
            self.clear();
        }
        let outcome = success(action, now)?;
        Some(failing(outcome, why(), failure()))
    }
}

fn instance(of: &Key) -> Instance {
    Instance {
        uid: "u".into(),
        container: of.0.clone(),
        attempt: of.1,
    }
}

fn refusal(action: &Action, refusal: Refusal) -> Option<Outcome> {
    if let Action::CreateContainer { instance, .. } = action {
        return Some(Outcome::Created {
            instance: instance.clone(),
            result: Err(refusal),
        });
    }
    if let Action::StartContainer { instance } = action {
        return Some(Outcome::Started {
            instance: instance.clone(),
            result: Err(refusal),
        });
    }
    None
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others cannot fail, or are refused elsewhere"
)]
fn failing(outcome: Outcome, why: String, failure: ImageFailure) -> Outcome {
    match outcome {
        Outcome::Part { uid, part, .. } => Outcome::Part {
            uid,
            part,
            result: Err(why),
        },
        Outcome::Link { uid, .. } => Outcome::Link {
            uid,
            result: Err(why),
        },
        Outcome::ImageFound {
            instance, image, ..
        } => Outcome::ImageFound {
            instance,
            image,
            result: Err(failure),
        },
        Outcome::ImagePulled {
            instance, image, ..
        } => Outcome::ImagePulled {
            instance,
            image,
            took_ms: 1,
            result: Err(failure),
        },
        Outcome::HookDone { instance, kind, .. } => Outcome::HookDone {
            instance,
            kind,
            result: Err(why),
        },
        Outcome::Probed { instance, kind, .. } => Outcome::Probed {
            instance,
            kind,
            result: Err(why),
        },
        Outcome::Deleted { instance, .. } => Outcome::Deleted {
            instance,
            result: Err(why),
        },
        other => other,
    }
}

/// What comes of a call that a shim has not answered; work that asks no shim says how
/// it went, whatever happens.
pub(super) fn no_answer(action: &Action) -> Option<Outcome> {
    let unanswered = |instance: &Instance, call| {
        Some(Outcome::Unanswered {
            instance: instance.clone(),
            call,
        })
    };
    if let Action::CreateContainer { .. } | Action::StartContainer { .. } = action {
        refusal(action, Refusal::Unanswered("no answer".into()))
    } else if let Action::DeleteContainer { instance } = action {
        unanswered(instance, Call::Delete)
    } else if let Action::Signal {
        instance, signal, ..
    } = action
    {
        unanswered(instance, Call::Signal(*signal))
    } else if let Action::RunHook { instance, kind, .. } = action {
        unanswered(instance, Call::Hook(*kind))
    } else if let Action::Probe { instance, kind, .. } = action {
        unanswered(instance, Call::Probe(*kind))
    } else if let Action::AskShim { uid, .. } = action {
        Some(Outcome::ShimAnswered {
            uid: uid.clone(),
            listens: false,
            answer: Answer::Silent,
        })
    } else {
        success(action, Moment::default())
            .map(|outcome| failing(outcome, "cut off".into(), lost_image()))
    }
}

fn lost_image() -> ImageFailure {
    ImageFailure {
        reason: ImageReason::Pull,
        message: "cut off".into(),
    }
}

/// True if nothing comes back of an action: it is done at once.
pub(super) fn is_quick(action: &Action) -> bool {
    let ask = matches!(action, Action::AskShim { .. });
    let written = matches!(
        success(action, Moment::default()),
        None | Some(Outcome::Written { .. })
    );
    written && !ask
}

/// What is done at once.
pub(super) fn at_once(observed: &mut Observed, action: &Action, now: Moment) {
    let settings = crate::simulate::settings();
    if let Some(outcome) = success(action, now) {
        observed.take(outcome, &settings, now);
    }
}

/// As the manifest names images.
pub(super) fn image(number: u8) -> String {
    format!("image-{number}")
}

/// The spec with another image.
pub(super) fn with_image(spec: &Arc<v1::PodSpec>, container: usize, number: u8) -> v1::PodSpec {
    let mut spec = (**spec).clone();
    let count = spec.containers.len();
    spec.containers[container % count].image = image(number);
    spec.generation += 1;
    spec
}
