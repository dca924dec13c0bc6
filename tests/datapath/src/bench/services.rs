//! The services of a measured node.

use crate::{CYCLE, PODS};
use agent_sys::maps::ChoiceTable;
use ebpf_common::net::{Addr, Be16};
use ebpf_common::service::{ACTIVE, Backend, Frontend, FrontendKey, algorithm};
use std::net::Ipv4Addr;
use tests_datapath::balance::table;
use tests_datapath::node::{Node, TCP};

/// Backends of each service, if there are numbers for so many.
const SERVICE_BACKENDS: u32 = 10;
/// Backends of all of them, at most.
const ALL_BACKENDS: u32 = 120_000;

/// Address of a service by number.
pub(crate) fn service(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 96, high, low)
}

/// Services that are put into the maps together.
pub(crate) struct Services {
    backends: Vec<(u32, Backend)>,
    choices: Vec<ChoiceTable>,
    frontends: Vec<(FrontendKey, Frontend)>,
    service: u32,
    backend: u32,
}

impl Services {
    /// Numbers of services and backends begin here.
    pub(crate) fn after(service: u32, backend: u32) -> Self {
        Self {
            backends: Vec::new(),
            choices: Vec::new(),
            frontends: Vec::new(),
            service,
            backend,
        }
    }

    pub(crate) fn add(&mut self, vip: (Ipv4Addr, u16), to: &[(Ipv4Addr, u16)]) {
        let id = self.service;
        let mut ids = Vec::new();
        for (addr, port) in to {
            let backend = Backend {
                addr: (*addr).into(),
                service_port: id,
                port: Be16::new(*port),
                protocol: TCP,
                state: ACTIVE,
                weight: 1,
                ..Backend::default()
            };
            self.backends.push((self.backend, backend));
            ids.push(self.backend);
            self.backend += 1;
        }
        self.choices.push(table(id, algorithm::HASH, &ids));
        let key = FrontendKey {
            addr: Addr::from(vip.0),
            port: Be16::new(vip.1),
            protocol: TCP,
            pad: 0,
        };
        let value = Frontend {
            service_port: id,
            external: 0,
            service: id,
            affinity: 0,
            flags: 0,
        };
        self.frontends.push((key, value));
        self.service += 1;
    }

    pub(crate) fn put(&self, node: &Node) {
        let maps = node.datapath.maps();
        maps.put_new_backends(&self.backends).expect("put backends");
        maps.put_choices(&self.choices).expect("put choices");
        maps.put_frontends(&self.frontends).expect("put frontends");
    }
}

/// So many services, and the two that translate into each other.
pub(crate) fn fill(node: &Node, services: u32) {
    let mut all = Services::after(1, 1);
    all.add(CYCLE[0], &CYCLE[1..]);
    all.add(CYCLE[1], &CYCLE[..1]);
    let each = (ALL_BACKENDS / services.max(1)).min(SERVICE_BACKENDS) as usize;
    for number in 0..services {
        let pods = [PODS[1], PODS[2]].into_iter().cycle();
        let to: Vec<_> = pods.zip(7000..).take(each).collect();
        all.add((service(number), 80), &to);
    }
    all.put(node);
}
