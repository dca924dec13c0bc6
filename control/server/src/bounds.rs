//! Bounds on what a node says of itself and of its pods, so that no node fills the
//! store or gives itself another's address.
//!
//! Texts are cut, lists are cut, and what makes no sense is refused. Whose pod it is
//! is not judged here (`report.rs`). Called by `session.rs`.

use std::net::IpAddr;

use control_plan::Settings;
use proto::v1;
use proto::v1::container_state::State;

/// A condition's type, a reason: bytes (Kubernetes' longest qualified name).
const NAME: usize = 316;
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

/// What a node must not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// An address that is no node's.
    #[error("{address:?} cannot be the address of a node: {reason}")]
    Address {
        /// As it was said.
        address: String,
        /// Why not.
        reason: &'static str,
    },
    /// A phase that Kubernetes does not know.
    #[error("{phase:?} is no phase of a pod")]
    Phase {
        /// As it was said.
        phase: String,
    },
}

/// Cuts a text at a character's end.
fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

fn conditions(list: &mut Vec<v1::Condition>) {
    list.truncate(CONDITIONS);
    for condition in list {
        cut(&mut condition.r#type, NAME);
        cut(&mut condition.status, NAME);
        cut(&mut condition.reason, REASON);
        cut(&mut condition.message, MESSAGE);
    }
}

/// Bounds what a node says of one of its pods.
pub fn pod_status(status: &mut v1::PodStatus) -> Result<(), OutOfBounds> {
    if !matches!(
        status.phase.as_str(),
        "Pending" | "Running" | "Succeeded" | "Failed" | "Unknown"
    ) {
        let mut phase = status.phase.clone();
        cut(&mut phase, NAME);
        return Err(OutOfBounds::Phase { phase });
    }
    cut(&mut status.reason, REASON);
    cut(&mut status.message, MESSAGE);
    cut(&mut status.qos_class, NAME);
    conditions(&mut status.conditions);
    let mut left = TERMINATION;
    for list in [&mut status.containers, &mut status.init_containers] {
        list.truncate(CONTAINERS);
        for container in list {
            cut(&mut container.image, IMAGE);
            cut(&mut container.image_id, IMAGE);
            cut(&mut container.container_id, FACT);
            container.restart_count = container.restart_count.min(RESTARTS);
            let states = [&mut container.state, &mut container.last_state];
            for state in states.into_iter().flatten() {
                container_state(state, &mut left);
            }
        }
    }
    Ok(())
}

/// `left`: bytes that the termination messages of the pod may still have.
fn container_state(state: &mut v1::ContainerState, left: &mut usize) {
    match &mut state.state {
        None | Some(State::Running(_)) => {}
        Some(State::Waiting(waiting)) => {
            cut(&mut waiting.reason, REASON);
            cut(&mut waiting.message, MESSAGE);
        }
        Some(State::Terminated(terminated)) => {
            cut(&mut terminated.reason, REASON);
            cut(&mut terminated.container_id, FACT);
            cut(&mut terminated.message, MESSAGE.min(*left));
            *left -= terminated.message.len();
        }
    }
}

/// Bounds what a node says of itself.
pub fn node_status(status: &mut v1::NodeStatus, settings: &Settings) -> Result<(), OutOfBounds> {
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
    conditions(&mut status.conditions);
    status.addresses.truncate(ADDRESSES);
    for address in &mut status.addresses {
        cut(address, FACT);
        node_address(address, settings)?;
    }
    Ok(())
}

/// As kubelet's `--node-ip`, and none of pods or services.
fn node_address(text: &str, settings: &Settings) -> Result<(), OutOfBounds> {
    let refused = |reason| {
        Err(OutOfBounds::Address {
            address: text.to_owned(),
            reason,
        })
    };
    let Ok(address) = text.parse::<IpAddr>() else {
        return refused("it is no IP address");
    };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_loopback() || address.is_multicast() || address.is_unspecified() || link_local {
        return refused("other machines cannot reach it");
    }
    if settings.pod_cidr.contains(&address) {
        return refused("it is in the range of the pods");
    }
    if settings.service_cidr.contains(&address) {
        return refused("it is in the range of the services");
    }
    Ok(())
}

/// Bounds an agent's version.
pub fn version(version: &mut String) {
    cut(version, FACT);
}

/// Bounds an event's texts.
pub fn event(event: &mut v1::NodeEvent) {
    cut(&mut event.reason, EVENT_REASON);
    cut(&mut event.message, EVENT_MESSAGE);
    cut(&mut event.field_path, FACT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_a_character() {
        for (text, most, expected) in [("abc", 4, "abc"), ("abc", 2, "ab"), ("aäb", 2, "a")] {
            let mut text = text.to_owned();
            cut(&mut text, most);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_pod_s_status_has_a_largest_size() {
        let long = || "x".repeat(1 << 16);
        let terminated = || v1::ContainerState {
            state: Some(State::Terminated(v1::container_state::Terminated {
                message: long(),
                ..Default::default()
            })),
        };
        let container = v1::ContainerStatus {
            name: "c".to_owned(),
            image: long(),
            image_id: long(),
            state: Some(terminated()),
            last_state: Some(terminated()),
            ..Default::default()
        };
        let condition = v1::Condition {
            r#type: long(),
            message: long(),
            ..Default::default()
        };
        let mut status = v1::PodStatus {
            phase: "Running".to_owned(),
            message: long(),
            containers: vec![container; 8],
            conditions: vec![condition; 100],
            ..Default::default()
        };
        pod_status(&mut status).unwrap();
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
        assert!(proto::Message::encoded_len(&status) < 256 << 10);
        status.phase = "Sleeping".to_owned();
        assert!(pod_status(&mut status).is_err());
    }

    #[test]
    fn numbers_fit_the_types_that_read_them_back() {
        let container = v1::ContainerStatus {
            name: "c".to_owned(),
            restart_count: u32::MAX,
            ..Default::default()
        };
        let mut status = v1::PodStatus {
            phase: "Running".to_owned(),
            containers: vec![container.clone()],
            init_containers: vec![container],
            ..Default::default()
        };
        pod_status(&mut status).unwrap();
        let json = proto::convert::status::pod_status(&status, &serde_json::Value::Null);
        let read: k8s_openapi::api::core::v1::PodStatus = serde_json::from_value(json).unwrap();
        for list in [read.container_statuses, read.init_container_statuses] {
            assert_eq!(list.unwrap()[0].restart_count, i32::MAX);
        }
    }

    #[test]
    fn a_node_s_address_is_one_that_others_reach_it_by() {
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        for (address, good) in [
            ("192.0.2.1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("10.244.3.4", false),
            ("10.96.0.10", false),
            ("n1", false),
        ] {
            let mut status = v1::NodeStatus {
                addresses: vec![address.to_owned()],
                ..Default::default()
            };
            let got = node_status(&mut status, &config.settings());
            assert_eq!(got.is_ok(), good, "{address}: {got:?}");
        }
    }
}
