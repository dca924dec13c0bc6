//! What a pod asks for, and what a node has: CPU, memory, number of pods.
//!
//! Called by the index (used by whom) and by the scheduler (left where).

use std::collections::BTreeMap;

use control_api::effective::effective;
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
    /// What this pod asks for ([`effective`]), and its overhead.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self {
                pods: 1,
                ..Self::default()
            };
        };
        let [cpu_millis, memory_bytes, scored_cpu, scored_memory] = effective(spec, asked);
        let mut usage = Self {
            cpu_millis,
            memory_bytes,
            pods: 1,
            scored_cpu,
            scored_memory,
        };
        if let Some(overhead) = &spec.overhead {
            usage.add(&Self {
                cpu_millis: cpu(overhead),
                memory_bytes: memory(overhead),
                scored_cpu: cpu(overhead),
                scored_memory: memory(overhead),
                pods: 0,
            });
        }
        usage
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
}

/// CPU, memory, and both as they are scored.
fn asked(container: &Container) -> [u64; 4] {
    let resources = container.resources.as_ref();
    // Admission made a request of each limit that had none.
    let requests = resources.and_then(|r| r.requests.as_ref());
    let find = |name: &str| requests.and_then(|r| r.get(name));
    let cpu = find("cpu").map(|q| amount(q, 1000));
    let memory = find("memory").map(|q| amount(q, 1));
    [
        cpu.unwrap_or(0),
        memory.unwrap_or(0),
        cpu.unwrap_or(SCORED_CPU),
        memory.unwrap_or(SCORED_MEMORY),
    ]
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_pod_asks_for() {
        let container = |cpu: &str, memory: &str, policy: Option<&str>| {
            json!({"name": "x", "resources": {"requests": {"cpu": cpu, "memory": memory}},
                "restartPolicy": policy})
        };
        let rows: Vec<(Value, Value, (u64, u64))> = vec![
            (
                json!([container("100m", "1Ki", None), container("1", "1Ki", None)]),
                json!([]),
                (1100, 2048),
            ),
            // A plain init container runs alone, before the others.
            (
                json!([container("100m", "1Ki", None)]),
                json!([container("1", "1", None)]),
                (1000, 1024),
            ),
            // A sidecar runs beside all that come after it.
            (
                json!([container("100m", "1", None)]),
                json!([container("200m", "2", Some("Always"))]),
                (300, 3),
            ),
            (
                json!([container("100m", "1", None)]),
                json!([
                    container("1", "0", None),
                    container("200m", "2", Some("Always")),
                    container("900m", "0", None)
                ]),
                (1100, 3),
            ),
            (json!([{"name": "x"}]), json!(null), (0, 0)),
        ];
        for (containers, init, expected) in rows {
            let pod = json!({"spec": {"containers": containers, "initContainers": init}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let got = Usage::of(&pod);
            assert_eq!((got.cpu_millis, got.memory_bytes), expected, "{pod:?}");
            assert_eq!(got.pods, 1);
        }
    }
}
