//! What goes up to the control plane, kept while it cannot be reached: the last
//! status of each pod, pods that are gone, events (the newest), the last
//! acknowledgement.
//!
//! Owned by the loop. Bounded: statuses by the number of pods, events by a limit,
//! above which the oldest are shed and counted, and each by [`proto::bounds`].

use std::collections::{BTreeMap, VecDeque};

use agent_plan::event::Note;
use agent_plan::pressure::NodeNote;
use agent_plan::time::Wall;
use proto::v1::node_up::Up;
use proto::{bounds, v1};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

/// Events that are kept while the control plane is away.
const EVENTS: usize = 1000;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Report {
    stream: Option<Sender<v1::NodeUp>>,
    /// Last status of the node, and whether it is to be told.
    node: Option<(v1::NodeStatus, bool)>,
    /// Last status told or to be told, by uid; true: to be told.
    statuses: BTreeMap<String, (v1::PodStatus, bool)>,
    /// Pods that are gone, until the control plane has forgotten them; true: to be told.
    gone: BTreeMap<String, (v1::PodGone, bool)>,
    events: VecDeque<v1::NodeEvent>,
    shed: u64,
    ack: Option<v1::Ack>,
}

impl Report {
    /// The control plane is there: all that it may have missed is told again.
    pub(crate) fn connected(&mut self, stream: Sender<v1::NodeUp>) {
        self.stream = Some(stream);
        // Its greeting had one, which may be older.
        self.node.iter_mut().for_each(|(_, due)| *due = true);
        self.statuses.values_mut().for_each(|(_, due)| *due = true);
        self.gone.values_mut().for_each(|(_, due)| *due = true);
    }

    /// It is not there any more. An acknowledgement was for that stream.
    pub(crate) fn disconnected(&mut self) {
        self.stream = None;
        self.ack = None;
    }

    /// The node's status.
    pub(crate) fn node(&mut self, mut status: v1::NodeStatus) {
        bounds::node_status(&mut status);
        self.node = Some((status, true));
    }

    /// A pod's status; told only if it says something new.
    pub(crate) fn status(&mut self, mut status: v1::PodStatus) {
        bounds::pod_status(&mut status);
        match self.statuses.get_mut(&status.uid) {
            Some((last, _)) if *last == status => {}
            Some(entry) => *entry = (status, true),
            None => {
                self.statuses.insert(status.uid.clone(), (status, true));
            }
        }
    }

    /// Nothing of the pod is left.
    pub(crate) fn gone(&mut self, gone: v1::PodGone) {
        self.statuses.remove(&gone.uid);
        self.gone.insert(gone.uid.clone(), (gone, true));
    }

    /// The control plane has forgotten the pod.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.statuses.remove(uid);
        self.gone.remove(uid);
    }

    /// An event about a pod, or about the node and its network.
    pub(crate) fn event(&mut self, note: Note, now: Wall) {
        let object = match note.namespace.as_str() {
            "" => format!("{} {}", note.kind, note.name),
            namespace => format!("{} {namespace}/{}", note.kind, note.name),
        };
        if note.warning {
            tracing::warn!(object, reason = note.reason, "{}", note.message);
        } else {
            tracing::info!(object, reason = note.reason, "{}", note.message);
        }
        self.push(v1::NodeEvent {
            kind: note.kind.into(),
            namespace: note.namespace,
            name: note.name,
            uid: note.uid,
            r#type: type_of(note.warning),
            reason: note.reason.into(),
            message: note.message,
            time_ms: now.ms(),
            field_path: note.field_path,
        });
    }

    /// Events about the node itself.
    pub(crate) fn node_events(&mut self, node: &str, notes: Vec<NodeNote>, now: Wall) {
        for note in notes {
            self.node_event(node, note, now);
        }
    }

    fn node_event(&mut self, node: &str, note: NodeNote, now: Wall) {
        if note.warning {
            tracing::warn!(reason = note.reason, "{}", note.message);
        } else {
            tracing::info!(reason = note.reason, "{}", note.message);
        }
        self.push(v1::NodeEvent {
            kind: "Node".into(),
            name: node.to_owned(),
            r#type: type_of(note.warning),
            reason: note.reason.into(),
            message: note.message,
            time_ms: now.ms(),
            ..v1::NodeEvent::default()
        });
    }

    fn push(&mut self, mut event: v1::NodeEvent) {
        bounds::event(&mut event);
        if self.events.len() >= EVENTS {
            self.events.pop_front();
            self.shed += 1;
        }
        self.events.push_back(event);
    }

    /// All up to there is in force.
    pub(crate) fn ack(&mut self, mut ack: v1::Ack) {
        // One that is still queued has failures that must be sent.
        let mut failures = self.ack.take().map(|a| a.failures).unwrap_or_default();
        failures.append(&mut ack.failures);
        ack.failures = failures;
        bounds::ack(&mut ack);
        self.ack = Some(ack);
    }

    /// Sends what can be sent without waiting; true when something had to stay.
    pub(crate) fn flush(&mut self) -> bool {
        let Some(stream) = self.stream.clone() else {
            return false;
        };
        let mut full = false;
        let mut closed = false;
        let mut send = |up: Up| -> bool {
            if full || closed {
                return false;
            }
            match stream.try_send(v1::NodeUp { up: Some(up) }) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    full = true;
                    false
                }
                Err(TrySendError::Closed(_)) => {
                    closed = true;
                    false
                }
            }
        };
        if let Some(ack) = self.ack.clone()
            && send(Up::Ack(ack))
        {
            self.ack = None;
        }
        if let Some((status, due)) = &mut self.node
            && *due
        {
            *due = !send(Up::NodeStatus(status.clone()));
        }
        for (status, due) in self.statuses.values_mut().filter(|(_, due)| *due) {
            *due = !send(Up::PodStatus(status.clone()));
        }
        for (gone, due) in self.gone.values_mut().filter(|(_, due)| *due) {
            *due = !send(Up::PodGone(gone.clone()));
        }
        if self.shed > 0 {
            tracing::warn!(
                count = self.shed,
                "events were dropped while there was no connection to the control plane"
            );
            self.shed = 0;
        }
        while let Some(event) = self.events.front() {
            if !send(Up::Event(event.clone())) {
                break;
            }
            self.events.pop_front();
        }
        if closed {
            self.stream = None;
        }
        full
    }
}

/// Kubernetes' type of an event.
fn type_of(warning: bool) -> String {
    if warning { "Warning" } else { "Normal" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, phase: &str) -> v1::PodStatus {
        v1::PodStatus {
            uid: uid.into(),
            phase: phase.into(),
            ..Default::default()
        }
    }

    fn note(message: String) -> Note {
        Note {
            kind: "Pod",
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
            field_path: String::new(),
            warning: false,
            reason: "Pulled",
            message,
        }
    }

    fn received(stream: &mut tokio::sync::mpsc::Receiver<v1::NodeUp>) -> Vec<Up> {
        std::iter::from_fn(|| stream.try_recv().ok().and_then(|up| up.up)).collect()
    }

    #[test]
    fn a_status_is_told_once_and_again_to_a_new_stream() {
        let mut report = Report::default();
        report.status(status("u", "Pending"));
        let (sender, mut stream) = tokio::sync::mpsc::channel(8);
        report.connected(sender);
        report.status(status("u", "Running"));
        report.status(status("u", "Running"));
        assert!(!report.flush());
        assert_eq!(
            received(&mut stream),
            [Up::PodStatus(status("u", "Running"))]
        );
        report.flush();
        assert_eq!(received(&mut stream), []);
        let (sender, mut stream) = tokio::sync::mpsc::channel(8);
        report.connected(sender);
        report.flush();
        assert_eq!(received(&mut stream).len(), 1);
    }

    #[test]
    fn the_nodes_status_is_told_when_it_changes_and_to_a_new_stream() {
        let node = |boot_id: &str| v1::NodeStatus {
            boot_id: boot_id.into(),
            ..Default::default()
        };
        let mut report = Report::default();
        let connect = |report: &mut Report| {
            let (sender, stream) = tokio::sync::mpsc::channel(8);
            report.connected(sender);
            report.flush();
            stream
        };
        let mut stream = connect(&mut report);
        assert_eq!(received(&mut stream), []);
        report.node(node("a"));
        report.flush();
        report.flush();
        assert_eq!(received(&mut stream), [Up::NodeStatus(node("a"))]);
        let mut stream = connect(&mut report);
        assert_eq!(received(&mut stream), [Up::NodeStatus(node("a"))]);
    }

    #[test]
    fn what_does_not_fit_stays_in_order() {
        let mut report = Report::default();
        let (sender, mut stream) = tokio::sync::mpsc::channel(2);
        report.connected(sender);
        for n in 0..5 {
            report.event(note(n.to_string()), Wall::default());
        }
        let mut seen = Vec::new();
        while report.flush() {
            seen.extend(received(&mut stream));
        }
        seen.extend(received(&mut stream));
        let texts: Vec<_> = seen
            .iter()
            .map(|up| {
                if let Up::Event(event) = up {
                    event.message.as_str()
                } else {
                    "other"
                }
            })
            .collect();
        assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn what_is_kept_fits_a_message() {
        let long = || "x".repeat(2 << 20);
        let mut report = Report::default();
        let (sender, mut stream) = tokio::sync::mpsc::channel(8);
        report.connected(sender);
        let of_image = v1::ContainerStatus {
            image: long(),
            ..Default::default()
        };
        report.status(v1::PodStatus {
            message: long(),
            containers: vec![of_image],
            ..status("u", "Pending")
        });
        report.event(note(long()), Wall::default());
        report.node(v1::NodeStatus {
            os_image: long(),
            ..Default::default()
        });
        let failure = v1::Failure {
            message: long(),
            ..Default::default()
        };
        report.ack(v1::Ack {
            revision: 1,
            failures: vec![failure],
        });
        report.flush();
        let sent = received(&mut stream);
        assert_eq!(sent.len(), 4);
        for up in sent {
            let length = proto::Message::encoded_len(&v1::NodeUp { up: Some(up) });
            assert!(length <= proto::limits::NODE_UP_BYTES, "{length}");
        }
    }

    #[test]
    fn the_newest_events_are_kept() {
        let mut report = Report::default();
        for n in 0..EVENTS + 3 {
            report.event(note(n.to_string()), Wall::default());
        }
        assert_eq!(report.events.len(), EVENTS);
        assert_eq!(report.shed, 3);
        assert_eq!(report.events[0].message, "3");
    }
}
