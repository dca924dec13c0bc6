//! `foil bpf maglev list` and `foil bpf affinity list`: how backends are chosen, as rows.
//!
//! Pure: entries come from `bpf.rs`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use agent_sys::maps::ChoiceTable;
use ebpf_common::name::{BACKEND, SERVICE_PORT};
use ebpf_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, algorithm};
use serde_json::json;

use super::bpf_rows::{Names, Row, row, socket};

fn address(backends: &HashMap<u32, &Backend>, id: u32) -> String {
    backends.get(&id).map_or_else(
        || format!("#{id}"),
        |found| socket(found.addr.into(), found.port.get()),
    )
}

fn by_id(backends: &[(u32, Backend)]) -> HashMap<u32, &Backend> {
    backends.iter().map(|(id, found)| (*id, found)).collect()
}

/// Entries of each backend in the table of its service port.
pub(super) fn shares(
    tables: &[ChoiceTable],
    backends: &[(u32, Backend)],
    names: &Names,
) -> Vec<Row> {
    let backends = by_id(backends);
    let mut rows = Vec::new();
    for table in tables {
        let mut shares: BTreeMap<u32, usize> = BTreeMap::new();
        for id in &table.entries {
            *shares.entry(*id).or_default() += 1;
        }
        let size = table.entries.len();
        for (id, entries) in shares {
            let percent = 100.0 * entries as f64 / size as f64;
            rows.push(
                row()
                    .with("service", names.get(SERVICE_PORT, table.service_port))
                    .with("id", table.service_port)
                    .with("algorithm", algorithm::text(table.algorithm))
                    .with("backend", address(&backends, id))
                    .with("pod", names.get(BACKEND, id))
                    .with("entries", entries)
                    .with("size", size)
                    .with_text("share", format!("{percent:.1}%"), json!(percent)),
            );
        }
    }
    rows
}

/// Clients that keep a backend, the last user at the end; not those whose time is over. `now` is
/// `CLOCK_MONOTONIC` in milliseconds.
pub(super) fn affinities(
    all: Vec<(AffinityKey, Affinity)>,
    frontends: &[(FrontendKey, Frontend)],
    backends: &[(u32, Backend)],
    now: i64,
    names: &Names,
) -> Vec<Row> {
    let backends = by_id(backends);
    let timeouts: HashMap<u32, u32> = frontends
        .iter()
        .map(|(_, frontend)| (frontend.service_port, frontend.affinity))
        .collect();
    let now = u64::try_from(now).unwrap_or_default();
    let left = |(key, given): &(AffinityKey, Affinity)| -> Option<u64> {
        let timeout = timeouts.get(&key.service_port)?;
        let idle = now.saturating_sub(given.last_used / 1_000_000) / 1_000;
        u64::from(*timeout)
            .checked_sub(idle)
            .filter(|left| *left > 0)
    };
    let mut kept: Vec<(u64, AffinityKey, Affinity)> = all
        .into_iter()
        .filter_map(|one| Some((left(&one)?, one.0, one.1)))
        .collect();
    kept.sort_by_key(|(_, key, given)| (given.last_used, *key));
    let to_row = |(left, key, given): (u64, AffinityKey, Affinity)| {
        row()
            .with("service", names.get(SERVICE_PORT, key.service_port))
            .with("id", key.service_port)
            .with("client", IpAddr::from(key.client).to_string())
            .with("backend", address(&backends, given.backend))
            .with("pod", names.get(BACKEND, given.backend))
            .with_text("expires", format!("{left}s"), json!(left))
    };
    kept.into_iter().map(to_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::name::{Name, NameKey};
    use ebpf_common::net::{Addr, Be16};
    use ebpf_common::service::ACTIVE;

    fn ip(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn names() -> Names {
        let name = |kind, id, text| (NameKey { kind, id }, Name::new(text));
        Names::new(vec![
            name(SERVICE_PORT, 7, "default/web:http"),
            name(BACKEND, 3, "default/web-a"),
        ])
    }

    fn backends() -> Vec<(u32, Backend)> {
        let backend = Backend {
            addr: ip("10.244.1.5"),
            service_port: 7,
            port: Be16::new(8080),
            protocol: 6,
            state: ACTIVE,
            weight: 1,
            ..Backend::default()
        };
        vec![(3, backend)]
    }

    fn texts(rows: &[Row]) -> Vec<String> {
        let text = |row: &Row| {
            let cells: Vec<_> = row.cells.iter().map(|cell| cell.text.clone()).collect();
            cells.join("|")
        };
        rows.iter().map(text).collect()
    }

    #[test]
    fn share_rows() {
        let table = ChoiceTable {
            service_port: 7,
            algorithm: algorithm::MAGLEV,
            entries: vec![3, 4, 3],
        };
        assert_eq!(
            texts(&shares(&[table], &backends(), &names())),
            [
                "default/web:http|7|maglev|10.244.1.5:8080|default/web-a|2|3|66.7%",
                "default/web:http|7|maglev|#4|-|1|3|33.3%",
            ]
        );
    }

    #[test]
    fn affinity_rows() {
        let given = |client: &str, service_port, seconds: u64| {
            let key = AffinityKey {
                client: ip(client),
                service_port,
            };
            let given = Affinity {
                last_used: seconds * 1_000_000_000,
                backend: 3,
                backend_gen: 1,
            };
            (key, given)
        };
        let key = FrontendKey {
            addr: ip("10.96.0.9"),
            port: Be16::new(80),
            protocol: 6,
            pad: 0,
        };
        let frontend = Frontend {
            service_port: 7,
            external: 0,
            service: 1,
            affinity: 60,
            flags: 0,
        };
        let all = vec![
            given("10.244.1.9", 7, 90),
            given("10.244.1.8", 7, 41),
            // Over, and of a service without affinity.
            given("10.244.1.7", 7, 40),
            given("10.244.1.6", 8, 99),
        ];
        let rows = affinities(all, &[(key, frontend)], &backends(), 100_000, &names());
        assert_eq!(
            texts(&rows),
            [
                "default/web:http|7|10.244.1.8|10.244.1.5:8080|default/web-a|1s",
                "default/web:http|7|10.244.1.9|10.244.1.5:8080|default/web-a|50s",
            ]
        );
    }
}
