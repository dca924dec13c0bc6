//! What a pod asks for, and what a node has: CPU, memory, number of pods.
//!
//! Called by the index (used by whom) and by the scheduler (left where).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// An amount of each resource that is scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Number of pods.
    pub pods: u64,
    /// `cpu_millis`, where a pod that asks for nothing counts as 100.
    pub scored_cpu: u64,
    /// `memory_bytes`, where a pod that asks for nothing counts as 200 MiB.
    pub scored_memory: u64,
}

/// What a container that asks for nothing counts as when nodes are compared
/// (Kubernetes' figures): else all such pods would go to one node.
const SCORED_CPU: u64 = 100;
const SCORED_MEMORY: u64 = 200 << 20;

impl Usage {
    /// What this pod asks for: the sum of its containers and sidecars, or the
    /// largest init container if that is more; and its overhead.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self {
                pods: 1,
                ..Self::default()
            };
        };
        let mut sum = Self::default();
        for container in &spec.containers {
            sum.add(&asked(container));
        }
        let mut most = sum;
        let mut sidecars = Self::default();
        for init in spec.init_containers.iter().flatten() {
            let one = asked(init);
            if init.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&one);
                sum.add(&one);
                most = most.max(&sum);
            } else {
                let mut together = sidecars;
                together.add(&one);
                most = most.max(&together);
            }
        }
        let mut usage = most.max(&sum);
        if let Some(overhead) = &spec.overhead {
            usage.add(&Self {
                cpu_millis: cpu(overhead),
                memory_bytes: memory(overhead),
                scored_cpu: cpu(overhead),
                scored_memory: memory(overhead),
                pods: 0,
            });
        }
        Self { pods: 1, ..usage }
    }

    /// What the node offers to pods.
    pub fn allocatable(node: &Node) -> Self {
        let status = node.status.as_ref();
        let offered = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let Some(offered) = offered else {
            return Self::default();
        };
        let pods = offered.get("pods").map_or(0, |q| amount(q, 1));
        Self {
            cpu_millis: cpu(offered),
            memory_bytes: memory(offered),
            pods,
            scored_cpu: cpu(offered),
            scored_memory: memory(offered),
        }
    }

    /// Adds each part.
    pub fn add(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.pods = self.pods.saturating_add(other.pods);
        self.scored_cpu = self.scored_cpu.saturating_add(other.scored_cpu);
        self.scored_memory = self.scored_memory.saturating_add(other.scored_memory);
    }

    /// Takes each part away.
    pub fn sub(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.pods = self.pods.saturating_sub(other.pods);
        self.scored_cpu = self.scored_cpu.saturating_sub(other.scored_cpu);
        self.scored_memory = self.scored_memory.saturating_sub(other.scored_memory);
    }

    fn max(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            pods: self.pods.max(other.pods),
            scored_cpu: self.scored_cpu.max(other.scored_cpu),
            scored_memory: self.scored_memory.max(other.scored_memory),
        }
    }
}

fn asked(container: &Container) -> Usage {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    // A limit without a request is a request.
    let find = |name: &str| {
        requests
            .and_then(|r| r.get(name))
            .or_else(|| limits.and_then(|l| l.get(name)))
    };
    let cpu = find("cpu").map(|q| amount(q, 1000));
    let memory = find("memory").map(|q| amount(q, 1));
    Usage {
        cpu_millis: cpu.unwrap_or(0),
        memory_bytes: memory.unwrap_or(0),
        pods: 0,
        scored_cpu: cpu.unwrap_or(SCORED_CPU),
        scored_memory: memory.unwrap_or(SCORED_MEMORY),
    }
}

fn cpu(amounts: &BTreeMap<String, Quantity>) -> u64 {
    amounts.get("cpu").map_or(0, |q| amount(q, 1000))
}

fn memory(amounts: &BTreeMap<String, Quantity>) -> u64 {
    amounts.get("memory").map_or(0, |q| amount(q, 1))
}

/// Units times `scale` (1000: thousandths), rounded up; what does not parse was
/// refused when it was written, and counts as nothing.
fn amount(quantity: &Quantity, scale: u64) -> u64 {
    let Some(parsed) = control_api::quantity::Quantity::of(quantity) else {
        return 0;
    };
    if scale == 1000 {
        parsed.millis()
    } else {
        parsed.units()
    }
}
