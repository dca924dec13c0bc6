//! What of a pod's record may lie on a disk: no environment, no secret, no password.
//!
//! The complete record is kept in memory only (a tmpfs), which is what an agent that
//! restarts needs. The disk is for what comes after a reboot: how the pod ended, how
//! often its containers were restarted, and its spec if there is nothing to hide in it.
//! Else its skeleton is kept, and the pod waits for the control plane to send it again.
//! All or nothing: without its environment no container can be made.
//! Called by the daemon's `record.rs`.

use proto::v1;
use v1::handler::Handler;
use v1::volume::Source;

/// The record as it may lie on a disk.
pub fn for_disk(mut record: v1::PodRecord) -> v1::PodRecord {
    if let Some(spec) = record.spec.take() {
        if is_plain(&spec) {
            record.spec = Some(spec);
        } else {
            record.spec = Some(skeleton(&spec));
            record.withheld = true;
        }
    }
    record
}

/// True if nothing in a spec has to be hidden. Names all fields, so that a new one is
/// thought of here.
fn is_plain(spec: &v1::PodSpec) -> bool {
    let v1::PodSpec {
        uid: _,
        namespace: _,
        name: _,
        generation: _,
        labels: _,
        annotations: _,
        ips: _,
        identity: _,
        host_network: _,
        host_pid: _,
        host_ipc: _,
        share_process_namespace: _,
        hostname: _,
        fqdn: _,
        restart_policy: _,
        termination_grace_period_seconds: _,
        stop_grace_seconds: _,
        active_deadline_seconds: _,
        init_containers,
        containers,
        volumes,
        host_aliases: _,
        dns: _,
        security: _,
        pull_secrets,
        qos_class: _,
        readiness_gates: _,
        enable_service_links: _,
    } = spec;
    let secret = |volume: &v1::Volume| match &volume.source {
        Some(Source::Files(files)) => files.tmpfs,
        Some(Source::EmptyDir(_) | Source::HostPath(_)) | None => false,
    };
    pull_secrets.is_empty()
        && !volumes.iter().any(secret)
        && init_containers
            .iter()
            .chain(containers)
            .all(is_plain_container)
}

fn is_plain_container(container: &v1::ContainerSpec) -> bool {
    let v1::ContainerSpec {
        name: _,
        image: _,
        image_pull_policy: _,
        // Not expanded: they name variables, and have no values of them.
        command: _,
        args: _,
        working_dir: _,
        env,
        resources: _,
        mounts: _,
        ports: _,
        security: _,
        liveness,
        readiness,
        startup,
        post_start,
        pre_stop,
        stdin: _,
        stdin_once: _,
        tty: _,
        termination_message_path: _,
        termination_message_policy: _,
        restart_policy: _,
        config_error: _,
    } = container;
    let probes = [liveness, readiness, startup].into_iter().flatten();
    let handlers = probes.filter_map(|probe| probe.handler.as_ref());
    let mut handlers = handlers.chain(post_start).chain(pre_stop);
    env.is_empty() && !handlers.any(has_headers)
}

/// A header may be a credential.
fn has_headers(handler: &v1::Handler) -> bool {
    match &handler.handler {
        Some(Handler::HttpGet(get)) => !get.headers.is_empty(),
        Some(Handler::Exec(_) | Handler::TcpSocket(_) | Handler::Grpc(_) | Handler::Sleep(_))
        | None => false,
    }
}

/// What a pod is called and consists of: enough to say how it ended, and to remove it.
fn skeleton(spec: &v1::PodSpec) -> v1::PodSpec {
    let containers = |list: &[v1::ContainerSpec]| {
        list.iter()
            .map(|c| v1::ContainerSpec {
                name: c.name.clone(),
                image: c.image.clone(),
                restart_policy: c.restart_policy.clone(),
                ..v1::ContainerSpec::default()
            })
            .collect()
    };
    v1::PodSpec {
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        generation: spec.generation,
        ips: spec.ips.clone(),
        identity: spec.identity,
        host_network: spec.host_network,
        restart_policy: spec.restart_policy.clone(),
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
        stop_grace_seconds: spec.stop_grace_seconds,
        active_deadline_seconds: spec.active_deadline_seconds,
        init_containers: containers(&spec.init_containers),
        containers: containers(&spec.containers),
        qos_class: spec.qos_class.clone(),
        ..v1::PodSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::pod_spec;
    use proto::Message;

    const SECRET: &str = "hunter2";

    fn kept(spec: v1::PodSpec) -> v1::PodRecord {
        let record = v1::PodRecord {
            spec: Some(spec),
            finished: "Failed".into(),
            ..v1::PodRecord::default()
        };
        for_disk(record)
    }

    #[test]
    fn a_spec_without_secrets_is_kept() {
        let mut spec = pod_spec("u", 2);
        spec.volumes = vec![v1::Volume {
            name: "config".into(),
            source: Some(Source::Files(v1::volume::Files::default())),
        }];
        let record = kept(spec.clone());
        assert_eq!((record.spec, record.withheld), (Some(spec), false));
        // What was withheld once stays so.
        let again = for_disk(v1::PodRecord {
            withheld: true,
            spec: Some(pod_spec("u", 1)),
            ..v1::PodRecord::default()
        });
        assert!(again.withheld);
    }

    #[test]
    fn nothing_of_a_secret_is_kept() {
        let variable = || v1::EnvVar {
            name: "PASSWORD".into(),
            value: SECRET.into(),
            expand: false,
        };
        let get = || v1::Handler {
            handler: Some(Handler::HttpGet(v1::handler::HttpGet {
                headers: vec![variable()],
                ..Default::default()
            })),
        };
        type Spoil<'a> = &'a dyn Fn(&mut v1::PodSpec);
        let rows: [(&str, Spoil<'_>); 6] = [
            ("env, which is in the arguments too", &|s| {
                s.containers[0].env.push(variable());
                s.containers[0].args = vec![format!("--password={SECRET}")];
            }),
            ("env of an init container", &|s| {
                s.init_containers = pod_spec("x", 1).containers;
                s.init_containers[0].env.push(variable());
            }),
            ("pull secret", &|s| {
                s.pull_secrets = vec![v1::PullSecret {
                    password: SECRET.into(),
                    ..Default::default()
                }];
            }),
            ("volume", &|s| {
                let files = v1::volume::Files {
                    files: vec![v1::File {
                        data: SECRET.into(),
                        ..Default::default()
                    }],
                    tmpfs: true,
                    ..Default::default()
                };
                s.volumes = vec![v1::Volume {
                    name: "secret".into(),
                    source: Some(Source::Files(files)),
                }];
            }),
            ("probe", &|s| {
                s.containers[1].liveness = Some(v1::Probe {
                    handler: Some(get()),
                    ..Default::default()
                });
            }),
            ("hook", &|s| s.containers[1].pre_stop = Some(get())),
        ];
        for (what, spoil) in rows {
            let mut spec = pod_spec("u", 2);
            spoil(&mut spec);
            let whole = spec.encode_to_vec();
            let holds = |bytes: &[u8]| {
                let mut windows = bytes.windows(SECRET.len());
                windows.any(|w| w == SECRET.as_bytes())
            };
            assert!(holds(&whole), "{what}: nothing to hide");
            let record = kept(spec.clone());
            assert!(record.withheld, "{what}");
            assert!(!holds(&record.encode_to_vec()), "{what}");
            // What is known of it all the same.
            assert_eq!(record.finished, "Failed");
            let kept = record.spec.unwrap();
            assert_eq!((&kept.uid, kept.generation), (&spec.uid, spec.generation));
            assert_eq!(kept.containers.len(), spec.containers.len());
        }
    }
}
