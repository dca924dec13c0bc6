//! Requests and limits to cgroup values and `oom_score_adj`, by kubelet's rules
//! (pkg/kubelet/cm/helpers_linux.go and qos/policy.go in Kubernetes).
//!
//! Values are in cgroup v1 terms; the runtime converts them for v2.
//! Called by `container.rs` when it makes a container, and by `pod.rs`.

use proto::v1;

use crate::settings::Settings;

/// Period of the CPU quota, microseconds.
const PERIOD_US: u64 = 100_000;
/// Shortest quota that the kernel takes, microseconds.
const MIN_QUOTA_US: u64 = 1_000;
/// `cpu.shares` below this are refused.
const MIN_SHARES: u64 = 2;
/// `cpu.shares` above this are refused.
const MAX_SHARES: u64 = 262_144;

/// `cpu.shares` of a request.
pub fn shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.cfs_quota_us` of a limit; 0: no limit.
pub fn quota_us(millis: u64) -> i64 {
    if millis == 0 {
        return 0;
    }
    let quota = (millis.saturating_mul(PERIOD_US) / 1000).max(MIN_QUOTA_US);
    i64::try_from(quota).unwrap_or(i64::MAX)
}

/// The values of one container.
pub fn container(
    qos_class: &str,
    resources: &v1::Resources,
    settings: &Settings,
) -> v1::ShimResources {
    v1::ShimResources {
        swap_limit: swap(qos_class, resources, settings),
        // As kubelet since 1.28: what is left of a container after one of its processes
        // was killed is rarely of use.
        oom_group: true,
        ..values(resources)
    }
}

/// Swap of a container, bytes, by kubelet's LimitedSwap: a Burstable container gets the
/// part of the swap that its request is of the memory; one that may not use more memory
/// than it asks for, and all others, get none.
fn swap(qos_class: &str, resources: &v1::Resources, settings: &Settings) -> i64 {
    let request = resources.memory_request_bytes;
    let node = settings.capacity.memory_bytes;
    if qos_class != "Burstable" || request == resources.memory_limit_bytes || node == 0 {
        return 0;
    }
    let part = u128::from(settings.swap_bytes) * u128::from(request) / u128::from(node);
    i64::try_from(part).unwrap_or(i64::MAX)
}

/// The values of the group of all pods: what may be allocated, as kubelet's
/// enforceNodeAllocatable has it.
pub fn parent(settings: &Settings) -> v1::ShimResources {
    let all = settings.capacity.less(settings.reserved, 0);
    v1::ShimResources {
        swap_limit: -1,
        ..values(&v1::Resources {
            cpu_request_millis: all.cpu_millis,
            memory_limit_bytes: all.memory_bytes,
            ..v1::Resources::default()
        })
    }
}

fn values(resources: &v1::Resources) -> v1::ShimResources {
    // Without a request the limit stands in for it, as defaulting has it.
    let request = match (resources.cpu_request_millis, resources.cpu_limit_millis) {
        (0, limit) => limit,
        (request, _) => request,
    };
    v1::ShimResources {
        cpu_shares: shares(request),
        cpu_quota: quota_us(resources.cpu_limit_millis),
        cpu_period: if resources.cpu_limit_millis == 0 {
            0
        } else {
            PERIOD_US
        },
        memory_limit: i64::try_from(resources.memory_limit_bytes).unwrap_or(i64::MAX),
        ..v1::ShimResources::default()
    }
}

/// The values of a pod's own group: the sum of its containers' requests; limits
/// only where every container has one. Processes are limited for the pod as a whole.
pub fn pod(spec: &v1::PodSpec, settings: &Settings) -> v1::ShimResources {
    let all: Vec<v1::Resources> = spec
        .containers
        .iter()
        .chain(
            spec.init_containers
                .iter()
                .filter(|c| c.restart_policy == "Always"),
        )
        .map(|c| c.resources.unwrap_or_default())
        .collect();
    let sum = |of: fn(&v1::Resources) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
    // An init container runs alone, and may need more than all others together.
    let most = |sum: u64, of: fn(&v1::Resources) -> u64| {
        let alone = spec
            .init_containers
            .iter()
            .filter(|c| c.restart_policy != "Always");
        alone
            .map(|c| of(&c.resources.unwrap_or_default()))
            .fold(sum, u64::max)
    };
    let limit = |of: fn(&v1::Resources) -> u64| {
        let bounded = all.iter().all(|r| of(r) != 0)
            && spec
                .init_containers
                .iter()
                .all(|c| of(&c.resources.unwrap_or_default()) != 0);
        if bounded { most(sum(of), of) } else { 0 }
    };
    v1::ShimResources {
        pids_limit: settings.pod_pids_limit.into(),
        // Each container has its own.
        swap_limit: -1,
        ..values(&v1::Resources {
            cpu_request_millis: most(sum(|r| r.cpu_request_millis), |r| r.cpu_request_millis),
            cpu_limit_millis: limit(|r| r.cpu_limit_millis),
            memory_request_bytes: 0,
            memory_limit_bytes: limit(|r| r.memory_limit_bytes),
        })
    }
}

/// `oom_score_adj` of a container: the less memory was asked for, the sooner it
/// goes. Guaranteed: -997; BestEffort: 1000; Burstable between.
pub fn oom_score_adj(qos_class: &str, resources: &v1::Resources, node_bytes: u64) -> i32 {
    match qos_class {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            if node_bytes == 0 {
                return 999;
            }
            let part = u128::from(resources.memory_request_bytes) * 1000 / u128::from(node_bytes);
            let score = 1000 - i32::try_from(part).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Resources;
    use crate::simulate::settings;

    #[test]
    fn shares_and_quota() {
        // (millicores, shares, quota)
        let rows = [
            (0, 2, 0),
            (1, 2, 1_000),
            (5, 5, 1_000),
            (100, 102, 10_000),
            (250, 256, 25_000),
            (1_000, 1_024, 100_000),
            (2_500, 2_560, 250_000),
            (1_000_000, 262_144, 100_000_000),
        ];
        for (millis, expected_shares, expected_quota) in rows {
            assert_eq!(shares(millis), expected_shares, "{millis}m");
            assert_eq!(quota_us(millis), expected_quota, "{millis}m");
        }
    }

    #[test]
    fn limit_stands_in_for_request() {
        let resources = v1::Resources {
            cpu_limit_millis: 500,
            memory_limit_bytes: 64 << 20,
            ..v1::Resources::default()
        };
        let values = container("Burstable", &resources, &settings());
        assert_eq!(values.cpu_shares, 512);
        assert_eq!(values.cpu_quota, 50_000);
        assert_eq!(values.cpu_period, 100_000);
        assert_eq!(values.memory_limit, 64 << 20);
        assert!(values.oom_group);
    }

    #[test]
    fn a_pod_is_bounded_when_all_its_containers_are() {
        let one = |request, limit, memory| v1::ContainerSpec {
            resources: Some(v1::Resources {
                cpu_request_millis: request,
                cpu_limit_millis: limit,
                memory_limit_bytes: memory,
                memory_request_bytes: 0,
            }),
            ..Default::default()
        };
        let mut spec = v1::PodSpec {
            containers: vec![one(100, 200, 64), one(300, 400, 0)],
            init_containers: vec![one(1000, 1000, 32)],
            ..Default::default()
        };
        let node = Settings {
            pod_pids_limit: 77,
            ..settings()
        };
        let values = pod(&spec, &node);
        assert_eq!((values.pids_limit, values.swap_limit), (77, -1));
        assert_eq!(values.cpu_shares, 1024);
        assert_eq!(values.cpu_quota, 100_000);
        assert_eq!(values.memory_limit, 0);
        spec.containers[1] = one(300, 0, 64);
        let values = pod(&spec, &node);
        assert_eq!((values.cpu_quota, values.memory_limit), (0, 128));
    }

    #[test]
    fn swap_is_for_burstable_containers_in_proportion() {
        let node = Settings {
            capacity: Resources {
                cpu_millis: 1000,
                memory_bytes: 8 << 30,
            },
            swap_bytes: 4 << 30,
            ..settings()
        };
        let none = Settings {
            swap_bytes: 0,
            ..node.clone()
        };
        // (class, request, limit, swap)
        let rows = [
            ("Burstable", 2 << 30, 0, 1 << 30),
            ("Burstable", 2 << 30, 3 << 30, 1 << 30),
            ("Burstable", 2 << 30, 2 << 30, 0),
            ("Burstable", 0, 1 << 30, 0),
            ("Guaranteed", 2 << 30, 2 << 30, 0),
            ("BestEffort", 0, 0, 0),
        ];
        for (class, memory_request_bytes, memory_limit_bytes, expected) in rows {
            let resources = v1::Resources {
                memory_request_bytes,
                memory_limit_bytes,
                ..v1::Resources::default()
            };
            let found = container(class, &resources, &node).swap_limit;
            assert_eq!(found, expected, "{class} {resources:?}");
            assert_eq!(container(class, &resources, &none).swap_limit, 0);
        }
    }

    #[test]
    fn all_pods_together_get_what_may_be_allocated() {
        let node = Settings {
            capacity: Resources {
                cpu_millis: 4000,
                memory_bytes: 8 << 30,
            },
            reserved: Resources {
                cpu_millis: 500,
                memory_bytes: 1 << 30,
            },
            ..settings()
        };
        let values = parent(&node);
        assert_eq!(values.memory_limit, 7 << 30);
        assert_eq!((values.cpu_shares, values.cpu_quota), (3584, 0));
        assert_eq!((values.swap_limit, values.pids_limit), (-1, 0));
    }

    #[test]
    fn oom_scores() {
        let node = 8_000_000_000;
        let resources = |memory_request_bytes| v1::Resources {
            memory_request_bytes,
            ..v1::Resources::default()
        };
        // (class, request, score)
        let rows = [
            ("Guaranteed", 1_000_000_000, -997),
            ("BestEffort", 0, 1000),
            ("Burstable", 0, 999),
            ("Burstable", 4_000_000_000, 500),
            ("Burstable", 8_000_000_000, 3),
            ("Burstable", 80_000_000_000, 3),
            ("Burstable", 1, 999),
        ];
        for (class, request, expected) in rows {
            assert_eq!(
                oom_score_adj(class, &resources(request), node),
                expected,
                "{class} {request}"
            );
        }
        assert_eq!(oom_score_adj("Burstable", &resources(1), 0), 999);
    }
}
