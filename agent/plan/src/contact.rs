//! What is known of a pod's shim. Asking it has three outcomes: it lives, it is dead,
//! or it has not answered. One that has not answered is not dead: it is asked again,
//! and until it answers nothing of its pod is made, ended or removed, unless the pod
//! shall end and its grace is over.
//!
//! The values are a part of `Observed`; `take.rs` hands the outcomes on to here.

use crate::action::{Action, HookKind, Instance};
use crate::event::{self, Note};
use crate::lost;
use crate::outcome::{Answer, Call};
use crate::reboot;
use crate::record;
use crate::step::Step;
use crate::steps::Steps;
use crate::time::{Moment, Monotonic};
use crate::world::{Contact, Hook, Life, Observed, Pod, Silence};

/// Between a question that was not answered and the next one, milliseconds. The
/// question itself waits for some seconds.
const AGAIN_MS: i64 = 1_000;

/// The next question to a shim of which nothing is known.
pub fn plan(pod: &Pod, silence: &Silence, now: Monotonic, steps: &mut Steps) {
    if silence.asking {
        return;
    }
    if now < silence.ask {
        steps.wake(silence.ask);
        return;
    }
    steps.actions.push(Action::AskShim {
        uid: pod.spec.uid.clone(),
        listen: silence.deaf,
    });
}

impl Contact {
    /// Nothing is known until the shim has answered. `deaf`: neither how its
    /// containers end.
    fn lose(&mut self, deaf: bool, now: Monotonic) {
        match self {
            Contact::Heard => {
                *self = Contact::Unknown(Silence {
                    deaf,
                    ask: now,
                    ..Silence::default()
                });
            }
            Contact::Unknown(silence) => silence.deaf |= deaf,
        }
    }
}

impl Observed {
    /// A shim has not answered in time, or the connection to it broke.
    pub(crate) fn unanswered(&mut self, uid: &str, now: Monotonic) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.contact.lose(false, now);
        }
    }

    /// What was asked of a shim may have been done or not: it is as if it had not been
    /// asked, and is asked again once the shim is heard.
    pub(crate) fn unanswered_call(&mut self, instance: &Instance, call: Call, now: Monotonic) {
        self.unanswered(&instance.uid, now);
        if call == Call::Delete {
            let pod = self.pods.get_mut(&instance.uid);
            let container = pod.and_then(|p| p.containers.get_mut(&instance.container));
            if let Some(step) = container.and_then(|c| c.remains.get_mut(&instance.attempt)) {
                *step = Step::Absent;
            }
            return;
        }
        let Some(c) = self.container_mut(instance) else {
            return;
        };
        match (call, &mut c.kill) {
            (Call::Signal(9), Some(kill)) => kill.killed = None,
            (Call::Signal(_), Some(kill)) => kill.asked = None,
            (Call::Hook(HookKind::PreStop), Some(kill)) => kill.pre_stop = Hook::Waiting,
            (Call::Hook(HookKind::PostStart), _) => c.post_start = Hook::Waiting,
            (Call::Probe(kind), _) => {
                let probe = c.probes.get_mut(kind);
                probe.running = false;
                probe.last = Some(now);
            }
            (Call::Signal(_) | Call::Hook(HookKind::PreStop), None) | (Call::Delete, _) => {}
        }
    }

    /// The shim no longer tells how its containers end: it has ended, or closed the
    /// connection.
    pub(crate) fn deaf(&mut self, uid: &str, now: Monotonic) {
        if let Some(pod) = self.pods.get_mut(uid)
            && pod.shim == Step::Ready
            && pod.teardown.sandbox == Step::Absent
        {
            pod.contact.lose(true, now);
        }
    }

    /// Records what came of asking a shim.
    pub(crate) fn answered(
        &mut self,
        uid: &str,
        listens: bool,
        answer: Answer,
        moment: Moment,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        let Some(pod) = self.pods.get_mut(uid) else {
            return notes;
        };
        let Contact::Unknown(silence) = &mut pod.contact else {
            return notes;
        };
        silence.asking = false;
        let was_silent = silence.since.is_some();
        match answer {
            Answer::Silent => {
                silence.ask = moment.monotonic + AGAIN_MS;
                if !was_silent {
                    silence.since = Some(moment);
                    notes.push(event::silent(&pod.spec));
                }
                return notes;
            }
            // The connection that told how containers end broke after the question.
            Answer::Alive(_) if silence.deaf && !listens => {
                silence.ask = moment.monotonic;
                return notes;
            }
            Answer::Alive(found) => {
                let first = silence.deaf;
                pod.contact = Contact::Heard;
                if !pod.shim.busy() {
                    pod.shim = Step::Ready;
                }
                let listed: Vec<_> = found
                    .iter()
                    .map(|f| (f.container.clone(), f.attempt))
                    .collect();
                for instance in found {
                    record::adopt(pod, &instance.container, instance.attempt, instance.life);
                }
                if first {
                    record::settle(pod);
                }
                for (name, c) in &mut pod.containers {
                    let known = listed.iter().any(|(n, a)| n == name && *a == c.attempt);
                    match c.life {
                        Life::Starting | Life::Running { .. } if !known => {
                            lost::end(c, moment, "when its shim was asked for it");
                            pod.record.touch();
                        }
                        // Never started: it is made again under the same number.
                        Life::Created if !known => c.life = Life::None,
                        Life::Created
                        | Life::Starting
                        | Life::Running { .. }
                        | Life::None
                        | Life::Creating
                        | Life::Exited(_)
                        | Life::Refused { .. } => {}
                    }
                }
                if was_silent {
                    notes.push(event::heard(&pod.spec));
                }
            }
            // Its successor is being started, or all of it removed: the question was about
            // one of which that is known already.
            Answer::Dead | Answer::SandboxLost
                if pod.shim.busy() || pod.leftovers != Step::Ready =>
            {
                pod.contact = Contact::Heard;
            }
            Answer::SandboxLost => reboot::begin_anew(pod, moment),
            Answer::Dead => {
                pod.contact = Contact::Heard;
                // One of a pod that ends is not made anew.
                let ends = pod.stop.is_some() || pod.finished.is_some();
                if pod.shim == Step::Ready && !ends {
                    notes.push(event::sandbox_changed(&pod.spec));
                }
                pod.shim = Step::Absent;
                pod.record.touch();
                for c in pod.containers.values_mut() {
                    let begun = c.life == Life::None && !c.image_id.is_empty();
                    if begun || crate::container::alive(c) {
                        lost::end(c, moment, "when the pod's shim had ended");
                    }
                }
            }
        }
        notes
    }
}
