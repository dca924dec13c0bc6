//! The one check of what the control plane sends: that names which become paths,
//! links and cgroups cannot lead anywhere else.
//!
//! Not whether a spec makes sense: control has validated the objects, and what the
//! node cannot do is a plan's problem. Called by `pushed.rs`.

use std::collections::BTreeSet;

use agent_sys::state::{is_label as label, is_subdomain as subdomain};
use proto::v1;

/// Why a pod is refused, in words.
pub(crate) fn pod(spec: &v1::PodSpec) -> Result<(), String> {
    if !label(&spec.uid) {
        return Err(format!("uid {:?} is not a DNS label", spec.uid));
    }
    if !subdomain(&spec.name) || !label(&spec.namespace) {
        return Err(format!(
            "name {:?}/{:?} is not a DNS name",
            spec.namespace, spec.name
        ));
    }
    let mut names = BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        if !label(&container.name) {
            return Err(format!(
                "container name {:?} is not a DNS label",
                container.name
            ));
        }
        if !names.insert(&container.name) {
            return Err(format!("two containers are called {:?}", container.name));
        }
        for mount in &container.mounts {
            if !mount.mount_path.starts_with('/') {
                return Err(format!("mount path {:?} is not absolute", mount.mount_path));
            }
            if !spec.volumes.iter().any(|v| v.name == mount.volume) {
                return Err(format!("volume {:?} does not exist", mount.volume));
            }
        }
    }
    for volume in &spec.volumes {
        if !label(&volume.name) {
            return Err(format!("volume name {:?} is not a DNS label", volume.name));
        }
        if let Some(v1::volume::Source::HostPath(host)) = &volume.source
            && (!host.path.starts_with('/') || host.path.split('/').any(|part| part == ".."))
        {
            return Err(format!(
                "host path {:?} is not absolute, or has \"..\"",
                host.path
            ));
        }
    }
    Ok(())
}

/// Why a service is refused, in words.
pub(crate) fn service(service: &v1::Service) -> Result<(), String> {
    if service.id == 0 && !service.cluster_ips.is_empty() {
        return Err("the service has no id".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> v1::PodSpec {
        v1::PodSpec {
            uid: "6f1a-b2".into(),
            namespace: "default".into(),
            name: "web-0.a".into(),
            containers: vec![v1::ContainerSpec {
                name: "c".into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert_eq!(pod(&good()), Ok(()));
        let rows: [fn(&mut v1::PodSpec); 9] = [
            |s| s.uid = "../x".into(),
            |s| s.uid = String::new(),
            |s| s.uid = "a_b".into(),
            |s| s.name = "a/b".into(),
            |s| s.namespace = "..".into(),
            |s| s.containers[0].name = "a_b".into(),
            |s| s.containers.push(s.containers[0].clone()),
            |s| {
                s.volumes.push(v1::Volume {
                    name: "../v".into(),
                    source: None,
                })
            },
            |s| {
                s.containers[0].mounts.push(v1::VolumeMount {
                    volume: "none".into(),
                    mount_path: "/a".into(),
                    ..Default::default()
                });
            },
        ];
        for (i, spoil) in rows.into_iter().enumerate() {
            let mut spec = good();
            spoil(&mut spec);
            assert!(pod(&spec).is_err(), "row {i}: {spec:?}");
        }
    }
}
