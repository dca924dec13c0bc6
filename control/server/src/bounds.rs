//! Bounds on what a node says of itself and of its pods, so that no node fills the
//! store or gives itself another's address.
//!
//! Texts and lists are cut by `proto::bounds`, and what makes no sense is refused here.
//! Whose pod it is is not judged here (`report.rs`). Called by `session.rs`.

use std::net::IpAddr;

use control_plan::Settings;
use proto::bounds::{self, NAME};
use proto::v1;

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

/// Bounds what a node says of one of its pods.
pub fn pod_status(status: &mut v1::PodStatus) -> Result<(), OutOfBounds> {
    if !matches!(
        status.phase.as_str(),
        "Pending" | "Running" | "Succeeded" | "Failed" | "Unknown"
    ) {
        let mut phase = status.phase.clone();
        bounds::cut(&mut phase, NAME);
        return Err(OutOfBounds::Phase { phase });
    }
    bounds::pod_status(status);
    Ok(())
}

/// Bounds what a node says of itself.
pub fn node_status(status: &mut v1::NodeStatus, settings: &Settings) -> Result<(), OutOfBounds> {
    bounds::node_status(status);
    for address in &status.addresses {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_one_of_kubernetes() {
        for (phase, good) in [("Running", true), ("Sleeping", false)] {
            let mut status = v1::PodStatus {
                phase: phase.to_owned(),
                ..Default::default()
            };
            assert_eq!(pod_status(&mut status).is_ok(), good, "{phase}");
        }
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
