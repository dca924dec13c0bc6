//! Bounds of what a node says: texts and lists are cut, so that each [`v1::NodeUp`] fits
//! [`NODE_UP_BYTES`], which the control plane refuses to exceed.
//!
//! Agents apply them to what they keep for the control plane and to all that they send;
//! the control plane applies them again, to agents that do not.

use prost::Message as _;

use crate::limits::NODE_UP_BYTES;
use crate::v1::container_state::State;
use crate::v1::node_up::Up;
use crate::v1::{self, NodeUp};

/// Failures in an acknowledgement: the control plane makes Events of no more.
pub const FAILURES: usize = 16;
/// A condition's type, the name of an object, a reason: bytes (Kubernetes' longest
/// qualified name).
pub const NAME: usize = 316;
/// A reason in a container's state or in a condition, bytes.
const REASON: usize = 1024;
/// A message, bytes (kubelet's limit of a termination message).
const MESSAGE: usize = 4096;
/// The termination messages of a pod, bytes (kubelet's limit).
const TERMINATION: usize = 12 << 10;
/// Conditions of an object that are the node's.
const CONDITIONS: usize = 32;
/// Restarts of a container: the largest number that its field has in Kubernetes.
const RESTARTS: u32 = i32::MAX.unsigned_abs();
/// Containers of a pod of one kind.
const CONTAINERS: usize = 256;
/// Addresses of a node, or of a pod.
const ADDRESSES: usize = 16;
/// A fact of the node: the kernel's version, for one. Bytes.
const FACT: usize = 256;
/// An image, with its registry and digest, bytes.
const IMAGE: usize = 1024;
/// An event's reason and message, bytes (Kubernetes' limits).
const EVENT_REASON: usize = 128;
const EVENT_MESSAGE: usize = 1024;
/// Bytes of a message around the status of a pod, at most.
const AROUND: usize = 16;

/// Cuts a text at a character's end, to that many bytes.
pub fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

/// Bounds any message of a node.
pub fn up(message: &mut NodeUp) {
    match &mut message.up {
        Some(Up::Hello(hello)) => {
            version(&mut hello.agent_version);
            if let Some(status) = &mut hello.status {
                node_status(status);
            }
        }
        Some(Up::Ack(up)) => ack(up),
        Some(Up::PodStatus(status)) => pod_status(status),
        Some(Up::NodeStatus(status)) => node_status(status),
        Some(Up::Event(up)) => event(up),
        Some(Up::OpenRefused(refused)) => cut(&mut refused.message, MESSAGE),
        // Of names that the control plane gave.
        Some(Up::PodGone(_) | Up::Heartbeat(_)) | None => {}
    }
}

/// Bounds an acknowledgement.
pub fn ack(ack: &mut v1::Ack) {
    ack.failures.truncate(FAILURES);
    for failure in &mut ack.failures {
        cut(&mut failure.kind, NAME);
        cut(&mut failure.message, MESSAGE);
    }
}

fn conditions(list: &mut Vec<v1::Condition>, part: usize) {
    list.truncate(CONDITIONS);
    for condition in list {
        cut(&mut condition.r#type, NAME);
        cut(&mut condition.status, NAME);
        cut(&mut condition.reason, REASON / part);
        cut(&mut condition.message, MESSAGE / part);
    }
}

/// Bounds what a node says of one of its pods. Where all is at its limit, and does not fit
/// a message, texts are cut shorter.
pub fn pod_status(status: &mut v1::PodStatus) {
    let mut part = 1;
    loop {
        parts_of_pod_status(status, part);
        if status.encoded_len() + AROUND <= NODE_UP_BYTES || part > MESSAGE {
            return;
        }
        part *= 2;
    }
}

/// With each text no longer than that part of its limit.
fn parts_of_pod_status(status: &mut v1::PodStatus, part: usize) {
    cut(&mut status.phase, NAME);
    cut(&mut status.reason, REASON / part);
    cut(&mut status.message, MESSAGE / part);
    cut(&mut status.qos_class, NAME);
    cut(&mut status.host_ip, FACT);
    addresses(&mut status.pod_ips);
    conditions(&mut status.conditions, part);
    let mut left = TERMINATION / part;
    for list in [&mut status.containers, &mut status.init_containers] {
        list.truncate(CONTAINERS);
        for container in list {
            cut(&mut container.image, IMAGE / part);
            cut(&mut container.image_id, IMAGE / part);
            cut(&mut container.container_id, FACT);
            container.restart_count = container.restart_count.min(RESTARTS);
            let states = [&mut container.state, &mut container.last_state];
            for state in states.into_iter().flatten() {
                container_state(state, part, &mut left);
            }
        }
    }
}

fn addresses(list: &mut Vec<String>) {
    list.truncate(ADDRESSES);
    for address in list {
        cut(address, FACT);
    }
}

/// `left`: bytes that the termination messages of the pod may still have.
fn container_state(state: &mut v1::ContainerState, part: usize, left: &mut usize) {
    match &mut state.state {
        None | Some(State::Running(_)) => {}
        Some(State::Waiting(waiting)) => {
            cut(&mut waiting.reason, REASON / part);
            cut(&mut waiting.message, MESSAGE / part);
        }
        Some(State::Terminated(terminated)) => {
            cut(&mut terminated.reason, REASON / part);
            cut(&mut terminated.container_id, FACT);
            cut(&mut terminated.message, (MESSAGE / part).min(*left));
            *left -= terminated.message.len();
        }
    }
}

/// Bounds what a node says of itself.
pub fn node_status(status: &mut v1::NodeStatus) {
    for fact in [
        &mut status.hostname,
        &mut status.kernel_version,
        &mut status.os_image,
        &mut status.architecture,
        &mut status.boot_id,
        &mut status.machine_id,
    ] {
        cut(fact, FACT);
    }
    conditions(&mut status.conditions, 1);
    addresses(&mut status.addresses);
}

/// Bounds an agent's version.
pub fn version(version: &mut String) {
    cut(version, FACT);
}

/// Bounds an event's texts.
pub fn event(event: &mut v1::NodeEvent) {
    cut(&mut event.r#type, NAME);
    cut(&mut event.reason, EVENT_REASON);
    cut(&mut event.message, EVENT_MESSAGE);
    cut(&mut event.field_path, FACT);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long() -> String {
        "x".repeat(2 << 20)
    }

    fn terminated() -> v1::ContainerState {
        v1::ContainerState {
            state: Some(State::Terminated(v1::container_state::Terminated {
                message: long(),
                ..Default::default()
            })),
        }
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        for (text, most, expected) in [("abc", 4, "abc"), ("abc", 2, "ab"), ("aäb", 2, "a")] {
            let mut text = text.to_owned();
            cut(&mut text, most);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn every_message_fits() {
        let condition = v1::Condition {
            r#type: long(),
            status: long(),
            reason: long(),
            message: long(),
            ..Default::default()
        };
        let node = v1::NodeStatus {
            addresses: vec![long(); 17],
            hostname: long(),
            kernel_version: long(),
            conditions: vec![condition.clone(); 4],
            ..Default::default()
        };
        let failure = v1::Failure {
            kind: "Pod".into(),
            key: "u".into(),
            message: long(),
        };
        for message in [
            Up::Hello(v1::Hello {
                agent_version: long(),
                status: Some(node.clone()),
                ..Default::default()
            }),
            Up::NodeStatus(node),
            Up::Ack(v1::Ack {
                revision: 1,
                failures: vec![failure; 20],
            }),
            Up::PodStatus(v1::PodStatus {
                phase: "Pending".into(),
                message: long(),
                conditions: vec![condition; 4],
                ..Default::default()
            }),
            Up::Event(v1::NodeEvent {
                message: long(),
                field_path: long(),
                ..Default::default()
            }),
            Up::OpenRefused(v1::OpenRefused {
                message: long(),
                ..Default::default()
            }),
        ] {
            let mut bounded = NodeUp { up: Some(message) };
            up(&mut bounded);
            assert!(bounded.encoded_len() <= NODE_UP_BYTES, "{bounded:.200?}");
        }
    }

    #[test]
    fn a_pod_of_many_containers_fits_as_well() {
        let waiting = v1::ContainerState {
            state: Some(State::Waiting(v1::container_state::Waiting {
                reason: "x".repeat(REASON),
                message: "x".repeat(MESSAGE),
            })),
        };
        let container = v1::ContainerStatus {
            name: "c".repeat(63),
            image: "x".repeat(IMAGE),
            image_id: "x".repeat(IMAGE),
            container_id: "x".repeat(FACT),
            state: Some(waiting.clone()),
            last_state: Some(waiting),
            restart_count: u32::MAX,
            ..Default::default()
        };
        let status = v1::PodStatus {
            uid: "u".into(),
            containers: vec![container.clone(); CONTAINERS],
            init_containers: vec![container; CONTAINERS],
            ..Default::default()
        };
        let mut message = NodeUp {
            up: Some(Up::PodStatus(status)),
        };
        assert!(message.encoded_len() > NODE_UP_BYTES);
        up(&mut message);
        assert!(message.encoded_len() <= NODE_UP_BYTES);
        let Some(Up::PodStatus(status)) = message.up else {
            panic!("another message");
        };
        assert_eq!(status.containers.len(), CONTAINERS);
        assert!(!status.containers[0].image.is_empty());
        assert_eq!(status.containers[0].restart_count, i32::MAX.unsigned_abs());
    }

    #[test]
    fn termination_messages_of_a_pod_have_a_largest_size() {
        let container = v1::ContainerStatus {
            name: "c".to_owned(),
            state: Some(terminated()),
            last_state: Some(terminated()),
            ..Default::default()
        };
        let mut status = v1::PodStatus {
            containers: vec![container; 8],
            conditions: vec![v1::Condition::default(); 100],
            ..Default::default()
        };
        pod_status(&mut status);
        let messages = |c: &v1::ContainerStatus| {
            let states = [&c.state, &c.last_state].into_iter().flatten();
            let lengths = states.filter_map(|s| match &s.state {
                Some(State::Terminated(t)) => Some(t.message.len()),
                Some(State::Waiting(_) | State::Running(_)) | None => None,
            });
            lengths.sum::<usize>()
        };
        let all: usize = status.containers.iter().map(messages).sum();
        assert_eq!(all, TERMINATION);
        assert_eq!(status.conditions.len(), CONDITIONS);
    }
}
