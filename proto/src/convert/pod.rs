//! A pod, ready to run. Called by `control-server` for each pod of a node, when
//! it or one of the objects that it names has changed.

use std::collections::BTreeSet;

use control_api::podspec;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec};

use super::budget::Budget;
use super::input::PodInput;
use super::{container, pull, volume};
use crate::Message as _;
use crate::limits::CHANGE_BYTES;
use crate::v1;

/// Names of the objects that a pod's message is made of besides the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// What `pod` names, in its own namespace.
pub fn references(pod: &Pod) -> References {
    let mut found = References::default();
    let Some(spec) = &pod.spec else { return found };
    let (maps, secrets) = (&mut found.config_maps, &mut found.secrets);
    for c in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        for source in c.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
        }
        for from in c
            .env
            .iter()
            .flatten()
            .filter_map(|env| env.value_from.as_ref())
        {
            maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    for v in spec.volumes.iter().flatten() {
        maps.extend(v.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(
            v.secret
                .iter()
                .filter_map(|source| source.secret_name.clone()),
        );
        let sources = v
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten());
        for source in sources {
            maps.extend(source.config_map.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret.iter().map(|r| r.name.clone()));
        }
    }
    secrets.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .map(|r| r.name.clone()),
    );
    found
}

/// The message. Total: a pod without a spec gives one without containers; one that
/// is too long for a node with what it names gives containers that are not created.
pub fn pod_spec(input: &PodInput<'_>) -> v1::PodSpec {
    let budget = Budget::new(CHANGE_BYTES);
    let resolved = resolved(input, &budget);
    bounded(resolved, &budget)
}

/// Leaves out of a message that is longer than its budget all that was resolved for it.
/// If that is not enough, containers keep only their names.
fn bounded(mut pod: v1::PodSpec, budget: &Budget) -> v1::PodSpec {
    if !budget.is_exceeded() && pod.encoded_len() <= budget.most {
        return pod;
    }
    let error = budget.error();
    pod.volumes.clear();
    pod.pull_secrets.clear();
    for container in pod.containers.iter_mut().chain(&mut pod.init_containers) {
        container.env.clear();
        container.command.clear();
        container.args.clear();
        container.mounts.clear();
        container.config_error.clone_from(&error);
    }
    if pod.encoded_len() > budget.most {
        for container in pod.containers.iter_mut().chain(&mut pod.init_containers) {
            *container = v1::ContainerSpec {
                name: std::mem::take(&mut container.name),
                config_error: error.clone(),
                ..v1::ContainerSpec::default()
            };
        }
    }
    pod
}

fn resolved(input: &PodInput<'_>, budget: &Budget) -> v1::PodSpec {
    let meta = &input.pod.metadata;
    let none = PodSpec::default();
    let spec = input.pod.spec.as_ref().unwrap_or(&none);
    let host_network = spec.host_network.unwrap_or_default();
    let fqdn = fqdn(input, spec);
    let as_fqdn = spec.set_hostname_as_fqdn == Some(true) && !fqdn.is_empty();
    let containers = |list: &[Container]| -> Vec<v1::ContainerSpec> {
        list.iter()
            .map(|c| container::container(input, c, budget))
            .collect()
    };
    let pull_secrets = spec.image_pull_secrets.iter().flatten();
    let mut credentials = Vec::new();
    for reference in pull_secrets {
        let found = (input.secret)(&reference.name).map(|secret| pull::pull_secrets(&secret));
        for credential in found.into_iter().flatten() {
            if budget.take(credential.encoded_len()).is_ok() {
                credentials.push(credential);
            }
        }
    }
    v1::PodSpec {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: input.namespace().to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        generation: input.generation,
        labels: meta
            .labels
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        annotations: meta
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        ips: if host_network {
            Vec::new()
        } else {
            input.ips.clone()
        },
        identity: input.identity,
        host_network,
        host_pid: spec.host_pid.unwrap_or_default(),
        host_ipc: spec.host_ipc.unwrap_or_default(),
        share_process_namespace: spec.share_process_namespace.unwrap_or_default(),
        hostname: if as_fqdn {
            fqdn.clone()
        } else {
            hostname(input.pod, spec)
        },
        fqdn,
        restart_policy: spec.restart_policy.clone().unwrap_or_default(),
        termination_grace_period_seconds: spec.termination_grace_period_seconds.unwrap_or_default(),
        stop_grace_seconds: input.stop_grace_seconds,
        active_deadline_seconds: spec.active_deadline_seconds,
        init_containers: containers(spec.init_containers.as_deref().unwrap_or_default()),
        containers: containers(&spec.containers),
        volumes: spec
            .volumes
            .iter()
            .flatten()
            .map(|v| volume::volume(input, v, budget))
            .collect(),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|alias| v1::HostAlias {
                ip: alias.ip.clone(),
                hostnames: alias.hostnames.clone().unwrap_or_default(),
            })
            .collect(),
        dns: Some(dns(input, spec)),
        security: Some(security(spec.security_context.as_ref())),
        pull_secrets: credentials,
        qos_class: podspec::qos_class(spec).to_owned(),
        readiness_gates: spec
            .readiness_gates
            .iter()
            .flatten()
            .map(|gate| gate.condition_type.clone())
            .collect(),
        enable_service_links: spec.enable_service_links != Some(false),
    }
}

/// "" with hostNetwork: the node's own. Else up to 63 characters, as the kernel takes it.
fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    if spec.host_network == Some(true) {
        return String::new();
    }
    let own = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let name = own.or(pod.metadata.name.as_deref()).unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's name in its subdomain; "" if it names none, or has the node's name.
fn fqdn(input: &PodInput<'_>, spec: &PodSpec) -> String {
    let hostname = hostname(input.pod, spec);
    match spec.subdomain.as_deref() {
        None | Some("") => String::new(),
        Some(_) if hostname.is_empty() => String::new(),
        Some(subdomain) => {
            let (namespace, domain) = (input.namespace(), domain(input));
            format!("{hostname}.{subdomain}.{namespace}.svc.{domain}")
        }
    }
}

fn domain<'a>(input: &'a PodInput<'_>) -> &'a str {
    match input.cluster.cluster_domain.as_str() {
        "" => "cluster.local",
        domain => domain,
    }
}

/// As kubelet makes it from `dnsPolicy` and `dnsConfig` (pkg/kubelet/network/dns).
fn dns(input: &PodInput<'_>, spec: &PodSpec) -> v1::Dns {
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _other => false,
    };
    let domain = domain(input);
    // Without a DNS server of the cluster, pods ask whom the node asks.
    let mut dns = if cluster && !input.cluster.dns_servers.is_empty() {
        v1::Dns {
            nameservers: input.cluster.dns_servers.clone(),
            searches: vec![
                format!("{}.svc.{domain}", input.namespace()),
                format!("svc.{domain}"),
                domain.to_owned(),
            ],
            options: vec!["ndots:5".to_owned()],
            from_node: false,
            node_searches: true,
        }
    } else {
        v1::Dns {
            from_node: policy != "None",
            ..Default::default()
        }
    };
    let Some(config) = &spec.dns_config else {
        return dns;
    };
    let extend = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
        for item in more.iter().flatten() {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    };
    extend(&mut dns.nameservers, &config.nameservers);
    extend(&mut dns.searches, &config.searches);
    for option in config.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        dns.options
            .retain(|there| there.split(':').next() != Some(name.as_str()));
        dns.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        });
    }
    dns
}

fn security(context: Option<&PodSecurityContext>) -> v1::PodSecurity {
    let Some(context) = context else {
        return v1::PodSecurity::default();
    };
    let sysctls = context.sysctls.iter().flatten();
    v1::PodSecurity {
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        run_as_non_root: context.run_as_non_root.unwrap_or_default(),
        supplemental_groups: context.supplemental_groups.clone().unwrap_or_default(),
        fs_group: context.fs_group,
        sysctls: sysctls
            .map(|s| (s.name.replace('/', "."), s.value.clone()))
            .collect(),
        seccomp: context
            .seccomp_profile
            .as_ref()
            .map(|p| p.type_.clone())
            .unwrap_or_default(),
        strict_groups: context.supplemental_groups_policy.as_deref() == Some("Strict"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_too_long_says_so_and_is_not_created() {
        let container = |name: &str, (env, args, rest)| v1::ContainerSpec {
            name: name.to_owned(),
            env: vec![v1::EnvVar {
                name: "X".to_owned(),
                value: "x".repeat(env),
                expand: false,
            }],
            args: vec!["x".repeat(args)],
            working_dir: "x".repeat(rest),
            ..v1::ContainerSpec::default()
        };
        let rows = [
            (100, 0, 0, true),
            (600, 0, 0, false),
            (0, 600, 0, false),
            (0, 0, 600, false),
        ];
        for (env, args, rest, fits) in rows {
            let length = (env, args, rest);
            let pod = v1::PodSpec {
                uid: "u".to_owned(),
                init_containers: vec![container("init", length)],
                containers: vec![container("main", length)],
                ..v1::PodSpec::default()
            };
            let sent = bounded(pod.clone(), &Budget::new(1000));
            assert_eq!(sent == pod, fits);
            assert!(sent.encoded_len() < 1000);
            for container in sent.init_containers.iter().chain(&sent.containers) {
                let said = &container.config_error;
                assert_eq!(
                    said.contains("at most 1000 bytes are allowed"),
                    !fits,
                    "{said}"
                );
            }
        }
    }
}
