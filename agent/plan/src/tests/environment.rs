//! When the variables of a container are made, and of what.

use proto::v1;

use super::{Node, creates};
use crate::action::Action;
use crate::simulate::pod_spec;
use crate::volume::Source;

fn service(name: &str, address: &str) -> v1::Service {
    v1::Service {
        namespace: "default".into(),
        name: name.into(),
        cluster_ips: vec![address.into()],
        ports: vec![v1::ServicePort {
            port: 80,
            protocol: "TCP".into(),
            ..v1::ServicePort::default()
        }],
        ..v1::Service::default()
    }
}

fn put(node: &mut Node, name: &str, address: &str) {
    let key = format!("default/{name}");
    node.desired.services.insert(key, service(name, address));
}

/// Of each container that was made: the variables that name services' addresses.
fn hosts(node: &Node) -> Vec<Vec<String>> {
    let made = node.log.iter().filter_map(|action| {
        let Action::CreateContainer { create, .. } = action else {
            return None;
        };
        let hosts = create.env.iter().filter(|e| e.contains("_SERVICE_HOST="));
        Some(hosts.cloned().collect())
    });
    made.collect()
}

#[test]
fn a_container_names_the_services_that_are_there_when_it_is_made() {
    let mut node = Node::new();
    put(&mut node, "a", "10.96.0.1");
    let mut spec = pod_spec("u", 1);
    spec.enable_service_links = true;
    node.want(spec);
    node.settle();
    let record = crate::record::of(&node.observed.pods["u"], "boot");
    let (before, begun) = (node.log.len(), vec!["A_SERVICE_HOST=10.96.0.1".to_owned()]);
    assert_eq!(hosts(&node), std::slice::from_ref(&begun));
    // One that comes, and one that changes, are no reason to do anything.
    put(&mut node, "b", "10.96.0.2");
    put(&mut node, "a", "10.96.0.3");
    node.settle();
    let of_pod = |a: &Action| {
        !matches!(
            a,
            Action::PutFrontend { .. } | Action::PutTable { .. } | Action::PutBackend { .. }
        )
    };
    assert!(!node.log[before..].iter().any(of_pod));
    assert_eq!(
        crate::record::of(&node.observed.pods["u"], "boot"),
        record,
        "of a container that runs"
    );
    // The next instance has them.
    node.exit("u", "c0", 1);
    node.pass(60_000);
    assert_eq!(node.phase("u"), "Running");
    let next = ["A_SERVICE_HOST=10.96.0.3", "B_SERVICE_HOST=10.96.0.2"];
    assert_eq!(hosts(&node), [begun, next.map(str::to_owned).to_vec()]);
}

#[test]
fn no_container_is_made_before_the_services_are_known() {
    let mut node = Node::new();
    node.desired.complete = false;
    let mut spec = pod_spec("u", 1);
    spec.enable_service_links = true;
    node.want(spec);
    node.pass(60_000);
    assert!(node.places(creates("c0")).is_empty());
    put(&mut node, "a", "10.96.0.1");
    node.desired.complete = true;
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    assert_eq!(hosts(&node), [["A_SERVICE_HOST=10.96.0.1"]]);
}

#[test]
fn a_sub_path_waits_for_its_variable() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.containers[0].mounts = vec![v1::VolumeMount {
        volume: "v".into(),
        mount_path: "/v".into(),
        sub_path_expr: "$(A_SERVICE_HOST)/$(B)".into(),
        ..v1::VolumeMount::default()
    }];
    spec.enable_service_links = true;
    put(&mut node, "a", "10.96.0.1");
    node.want(spec);
    node.settle();
    assert_eq!(node.waiting("u", 0), "CreateContainerConfigError");
    // Refused again and again: the next try is minutes away, but it does not wait for that.
    node.pass(1_000_000);
    assert_eq!(node.waiting("u", 0), "CreateContainerConfigError");
    node.change("u", |spec| {
        spec.containers[0].env = vec![v1::EnvVar {
            name: "B".into(),
            value: "b".into(),
            expand: false,
        }];
    });
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    let is_there = |action: &Action| {
        let Action::CreateContainer { mounts, .. } = action else {
            return false;
        };
        let source = Source::Volume {
            volume: "v".into(),
            sub_path: "10.96.0.1/b".into(),
        };
        mounts.iter().any(|mount| mount.source == source)
    };
    assert_eq!(node.places(is_there).len(), 1);
}
