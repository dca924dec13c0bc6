//! Services of a node: backends, choice tables and frontends, as the agent writes them.

use crate::node::{Node, frontend_key};
use agent_sys::maps::ChoiceTable;
use ebpf_common::net::{Addr, Be16};
use ebpf_common::service::{ACTIVE, Backend, Frontend, FrontendKey, algorithm};
use std::net::{Ipv4Addr, SocketAddrV4};

impl Node {
    /// A service port on `vip` for `protocol` with these backends, whose ids are given.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_service(
        &self,
        vip: Ipv4Addr,
        id: u32,
        protocol: u8,
        backends: &[(u32, Ipv4Addr, u16)],
    ) {
        for (backend, addr, port) in backends {
            self.put_backend(id, protocol, (*backend, *addr, *port), 1);
        }
        let ids: Vec<u32> = backends.iter().map(|(id, _, _)| *id).collect();
        self.put_choices(id, algorithm::HASH, &ids);
        self.put_frontend(vip, id, protocol, 0);
    }

    /// One backend of a service port, with its weight.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_backend(
        &self,
        service_port: u32,
        protocol: u8,
        (id, addr, port): (u32, Ipv4Addr, u16),
        weight: u16,
    ) {
        let value = Backend {
            addr: Addr::from(addr),
            service_port,
            port: Be16::new(port),
            protocol,
            state: ACTIVE,
            weight,
            ..Backend::default()
        };
        let maps = self.datapath.maps();
        maps.put_backend(id, &value, &format!("test/backend-{id}"))
            .expect("put backend");
    }

    /// The choice table of a service port.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_choices(&self, service_port: u32, algorithm: u8, entries: &[u32]) {
        let table = table(service_port, algorithm, entries);
        let maps = self.datapath.maps();
        maps.put_choices(&[table]).expect("put choices");
    }

    /// The frontend of a service port on `vip`; `affinity` is in seconds.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_frontend(&self, vip: Ipv4Addr, id: u32, protocol: u8, affinity: u32) {
        let frontend = Frontend {
            service_port: id,
            external: 0,
            service: id,
            affinity,
            flags: 0,
        };
        let maps = self.datapath.maps();
        maps.put_frontend(&frontend_key(vip, protocol), &frontend, "test/service:port")
            .expect("put frontend");
    }

    /// A service port that clients outside reach at `addr`, or at the node's addresses if that is
    /// unspecified. `external` is the choice table for them, which has the same backends unless it
    /// was put before.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_external(
        &self,
        addr: SocketAddrV4,
        protocol: u8,
        frontend: Frontend,
        backends: &[(u32, Ipv4Addr, u16)],
    ) {
        let table = frontend.service_port;
        for (backend, addr, port) in backends {
            self.put_backend(table, protocol, (*backend, *addr, *port), 1);
        }
        let ids: Vec<u32> = backends.iter().map(|(id, _, _)| *id).collect();
        self.put_choices(table, algorithm::HASH, &ids);
        let key = FrontendKey {
            addr: Addr::from(*addr.ip()),
            port: Be16::new(addr.port()),
            protocol,
            pad: 0,
        };
        let maps = self.datapath.maps();
        maps.put_frontend(&key, &frontend, "test/external:port")
            .expect("put frontend");
    }
}

/// A frontend whose clients outside get the same backends as all others.
pub fn external(id: u32) -> Frontend {
    Frontend {
        service_port: id,
        external: id,
        service: id,
        affinity: 0,
        flags: 0,
    }
}

/// A choice table.
pub fn table(service_port: u32, algorithm: u8, entries: &[u32]) -> ChoiceTable {
    ChoiceTable {
        service_port,
        algorithm,
        entries: entries.to_vec(),
    }
}
