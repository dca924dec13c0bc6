//! Map entries as rows: for a table, and with the same keys as JSON.
//!
//! Pure: entries come from `bpf.rs`. Numbers get the names that the agent wrote
//! beside them; without one they stay numbers.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_sys::maps::{ChoiceTable, Counted, Counter};
use ebpf_common::endpoint::Endpoint;
use ebpf_common::name::{BACKEND, ENDPOINT, Name, NameKey, SERVICE_PORT};
use ebpf_common::net::protocol;
use ebpf_common::network::{LOCAL, Network, NetworkKey, PODS, SERVICES};
use ebpf_common::service::{
    ACTIVE, Backend, BackendStats, Frontend, FrontendKey, TERMINATING, algorithm,
};
use serde_json::{Value, json};

/// One column of a row.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) key: &'static str,
    pub(super) text: String,
    pub(super) value: Value,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
}

/// Begins a row.
pub(super) fn row() -> Row {
    Row { cells: Vec::new() }
}

impl Row {
    /// Adds a cell that reads the same in both forms.
    pub(super) fn with(self, key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let text = match &value {
            Value::String(text) if text.is_empty() => "-".to_string(),
            Value::String(text) => text.clone(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => value.to_string(),
        };
        self.with_text(key, text, value)
    }

    /// Adds a cell that a table words differently.
    pub(super) fn with_text(mut self, key: &'static str, text: String, value: Value) -> Self {
        self.cells.push(Cell { key, text, value });
        self
    }
}

/// What the agent calls the numbers.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<(u32, u32), String>);

impl Names {
    pub(super) fn new(all: Vec<(NameKey, Name)>) -> Self {
        Self(
            all.into_iter()
                .map(|(key, name)| ((key.kind, key.id), name.as_str().to_string()))
                .collect(),
        )
    }

    /// Empty when there is none.
    pub(super) fn get(&self, kind: u32, id: u32) -> String {
        self.0.get(&(kind, id)).cloned().unwrap_or_default()
    }

    /// All names of a kind.
    pub(super) fn all(&self, kind: u32) -> impl Iterator<Item = &str> {
        let of_kind = self.0.iter().filter(move |((k, _), _)| *k == kind);
        of_kind.map(|(_, name)| name.as_str())
    }
}

pub(super) fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::ICMP => "ICMP".into(),
        other => other.to_string(),
    }
}

fn state_name(state: u8) -> &'static str {
    match state {
        ACTIVE => "active",
        TERMINATING => "terminating",
        _ => "free",
    }
}

pub(super) fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// "10800s"; a dash for none.
fn seconds(seconds: u32) -> String {
    match seconds {
        0 => "-".into(),
        _ => format!("{seconds}s"),
    }
}

/// Service addresses with the backends that take new connections.
pub(super) fn services(
    mut frontends: Vec<(FrontendKey, Frontend)>,
    choices: &[ChoiceTable],
    backends: &[(u32, Backend)],
    names: &Names,
) -> Vec<Row> {
    let choices: HashMap<u32, &ChoiceTable> = choices
        .iter()
        .map(|table| (table.service_port, table))
        .collect();
    let backends: HashMap<u32, &Backend> = backends
        .iter()
        .map(|(id, backend)| (*id, backend))
        .collect();
    frontends.sort_by_key(|(key, _)| (IpAddr::from(key.addr), key.port.get(), key.protocol));
    let to_row = |(key, frontend): (FrontendKey, Frontend)| {
        let table = choices.get(&frontend.service_port);
        let mut ids = table.map(|table| table.entries.clone()).unwrap_or_default();
        // A backend may stand in the table more than once.
        ids.sort_unstable();
        ids.dedup();
        let address = |id: &u32| {
            backends.get(id).map_or_else(
                || format!("#{id}"),
                |found| socket(found.addr.into(), found.port.get()),
            )
        };
        let addresses: Vec<String> = ids.iter().map(address).collect();
        let text = if addresses.is_empty() {
            "<none>".into()
        } else {
            addresses.join(",")
        };
        row()
            .with("address", IpAddr::from(key.addr).to_string())
            .with("port", key.port.get())
            .with("protocol", protocol_name(key.protocol))
            .with("service", names.get(SERVICE_PORT, frontend.service_port))
            .with("id", frontend.service_port)
            .with(
                "algorithm",
                table.map_or("", |table| algorithm::text(table.algorithm)),
            )
            .with_text(
                "affinity",
                seconds(frontend.affinity),
                json!(frontend.affinity),
            )
            .with_text("backends", text, json!(addresses))
    };
    frontends.into_iter().map(to_row).collect()
}

/// One backend with its counters.
pub(super) struct BackendUse {
    pub(super) id: u32,
    pub(super) backend: Backend,
    pub(super) stats: BackendStats,
    /// Connections that have not ended.
    pub(super) open: u64,
}

/// Backends with what went to them from this node.
pub(super) fn backends(all: Vec<BackendUse>, names: &Names) -> Vec<Row> {
    let to_row = |one: BackendUse| {
        let BackendUse {
            id,
            backend,
            stats,
            open,
        } = one;
        row()
            .with("id", id)
            .with("address", IpAddr::from(backend.addr).to_string())
            .with("port", backend.port.get())
            .with("protocol", protocol_name(backend.protocol))
            .with("state", state_name(backend.state))
            .with("service", names.get(SERVICE_PORT, backend.service_port))
            .with("pod", names.get(BACKEND, id))
            .with("connections", stats.connections)
            .with("packets", stats.packets)
            .with("bytes", stats.bytes)
            .with("open", open)
            .with("weight", backend.weight)
    };
    all.into_iter().map(to_row).collect()
}

/// The pods of this node, by id.
pub(super) fn endpoints(mut all: Vec<Endpoint>, names: &Names) -> Vec<Row> {
    all.sort_by_key(|endpoint| endpoint.id);
    let to_row = |endpoint: Endpoint| {
        row()
            .with("id", endpoint.id)
            .with("pod", names.get(ENDPOINT, endpoint.id.into()))
            .with("address", IpAddr::from(endpoint.addr).to_string())
            .with("ifindex", endpoint.ifindex)
            .with("mac", endpoint.mac.to_string())
            .with("identity", endpoint.identity)
    };
    all.into_iter().map(to_row).collect()
}

/// Why packets did not go on, and where.
pub(super) fn counters(all: &[Counter]) -> Vec<Row> {
    let to_row = |counter: &Counter| {
        let (name, meaning) = match counter.what {
            Counted::Decided => (
                "DECIDED".to_string(),
                "Forwarded by the slow path: first packets, and those that the fast path does not handle.",
            ),
            Counted::Dropped(reason) => (reason.name().to_string(), reason.sentence()),
            Counted::EventShed => (
                "EVENT_SHED".to_string(),
                "Events lost because the ring buffer was full; no packet was dropped.",
            ),
            Counted::Unknown(number) => (
                format!("REASON_{number}"),
                "A reason that this version of foil does not know.",
            ),
        };
        row()
            .with("reason", name)
            .with("hook", counter.hook.text())
            .with("packets", counter.count.packets)
            .with("bytes", counter.count.bytes)
            .with("meaning", meaning)
    };
    all.iter().map(to_row).collect()
}

/// Layout version, address blocks, and how full the maps are.
pub(super) fn config(
    networks: &[(NetworkKey, Network)],
    full: &[(&str, usize, usize)],
) -> Vec<Row> {
    let mut rows = vec![
        row()
            .with("name", "abi")
            .with("value", ebpf_common::ABI_VERSION.to_string()),
    ];
    for (key, network) in networks {
        let name = match network.kind {
            PODS => "pod network",
            SERVICES => "service network",
            LOCAL => "answered by the node",
            _ => "network",
        };
        let mapped = if key.addr.as_v4().is_some() { 96 } else { 0 };
        let prefix = key.prefix_len.saturating_sub(mapped);
        rows.push(
            row()
                .with("name", name)
                .with("value", format!("{}/{prefix}", IpAddr::from(key.addr))),
        );
    }
    for (name, used, most) in full {
        rows.push(
            row()
                .with("name", *name)
                .with("value", format!("{used} of {most}")),
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use ebpf_common::net::{Addr, Be16, MacAddr};

    use super::*;

    fn ip(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn names() -> Names {
        Names::new(vec![
            (
                NameKey {
                    kind: SERVICE_PORT,
                    id: 7,
                },
                Name::new("default/web:http"),
            ),
            (
                NameKey {
                    kind: BACKEND,
                    id: 3,
                },
                Name::new("default/web-a"),
            ),
            (
                NameKey {
                    kind: ENDPOINT,
                    id: 2,
                },
                Name::new("default/client"),
            ),
        ])
    }

    fn texts(rows: &[Row]) -> Vec<String> {
        rows.iter()
            .map(|row| {
                row.cells
                    .iter()
                    .map(|cell| cell.text.clone())
                    .collect::<Vec<_>>()
                    .join("|")
            })
            .collect()
    }

    fn backend(address: &str) -> Backend {
        Backend {
            addr: ip(address),
            service_port: 7,
            port: Be16::new(8080),
            protocol: protocol::TCP,
            state: ACTIVE,
            weight: 1,
            ..Backend::default()
        }
    }

    #[test]
    fn service_rows() {
        let key = |address: &str, port| FrontendKey {
            addr: ip(address),
            port: Be16::new(port),
            protocol: protocol::TCP,
            pad: 0,
        };
        let frontend = |service_port, affinity| Frontend {
            service_port,
            external: 0,
            service: 1,
            affinity,
            flags: 0,
        };
        let rows = services(
            vec![
                (key("10.96.0.9", 443), frontend(8, 0)),
                (key("10.96.0.9", 80), frontend(7, 60)),
            ],
            &[ChoiceTable {
                service_port: 7,
                algorithm: algorithm::MAGLEV,
                entries: vec![4, 3, 4],
            }],
            &[(3, backend("10.244.1.5"))],
            &names(),
        );
        assert_eq!(
            texts(&rows),
            [
                "10.96.0.9|80|TCP|default/web:http|7|maglev|60s|10.244.1.5:8080,#4",
                "10.96.0.9|443|TCP|-|8|-|-|<none>"
            ]
        );
    }

    #[test]
    fn backend_rows() {
        let stats = BackendStats {
            connections: 100,
            packets: 5,
            bytes: 600,
            ended: 90,
        };
        let one = BackendUse {
            id: 3,
            backend: backend("10.244.1.5"),
            stats,
            open: 10,
        };
        let rows = backends(vec![one], &names());
        assert_eq!(
            texts(&rows),
            ["3|10.244.1.5|8080|TCP|active|default/web:http|default/web-a|100|5|600|10|1"]
        );
    }

    #[test]
    fn endpoint_rows() {
        let endpoint = Endpoint {
            addr: ip("10.244.1.4"),
            addr6: Addr::default(),
            ifindex: 12,
            identity: 9,
            id: 2,
            mac: MacAddr {
                bytes: [2, 0, 0, 0, 0, 1],
            },
        };
        assert_eq!(
            texts(&endpoints(vec![endpoint], &names())),
            ["2|default/client|10.244.1.4|12|02:00:00:00:00:01|9"]
        );
    }

    #[test]
    fn config_rows() {
        let network =
            |address: &str, bits, kind| (NetworkKey::new(ip(address), bits), Network { kind });
        let rows = config(
            &[
                network("10.244.0.0", 16, PODS),
                network("fd00::", 64, SERVICES),
            ],
            &[("flows", 2, 10)],
        );
        assert_eq!(
            texts(&rows),
            [
                format!("abi|{}", ebpf_common::ABI_VERSION).as_str(),
                "pod network|10.244.0.0/16",
                "service network|fd00::/64",
                "flows|2 of 10"
            ]
        );
    }
}
