//! Services of IPv6, as `balance` makes those of IPv4.

use crate::node::{Node, PORT};
use crate::six::addr6;
use agent_sys::maps::ChoiceTable;
use ebpf_common::net::Be16;
use ebpf_common::service::{ACTIVE, Backend, Frontend, FrontendKey, algorithm};
use std::net::Ipv4Addr;

impl Node {
    /// A service of IPv6, beside `vip`, with these backends, beside their addresses.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put_service6(
        &self,
        vip: Ipv4Addr,
        id: u32,
        protocol: u8,
        backends: &[(u32, Ipv4Addr, u16)],
        affinity: u32,
    ) {
        let maps = self.datapath.maps();
        for (backend, addr, port) in backends {
            let value = Backend {
                addr: addr6(*addr),
                service_port: id,
                port: Be16::new(*port),
                protocol,
                state: ACTIVE,
                weight: 1,
                ..Backend::default()
            };
            maps.put_backend(*backend, &value, &format!("test/backend-{backend}"))
                .expect("put backend");
        }
        let table = ChoiceTable {
            service_port: id,
            algorithm: algorithm::HASH,
            entries: backends.iter().map(|(id, _, _)| *id).collect(),
        };
        maps.put_choices(&[table]).expect("put choices");
        let frontend = Frontend {
            service_port: id,
            service: id,
            affinity,
            external: 0,
            flags: 0,
        };
        let key = FrontendKey {
            addr: addr6(vip),
            port: Be16::new(PORT),
            protocol,
            pad: 0,
        };
        maps.put_frontend(&key, &frontend, "test/service:port")
            .expect("put frontend");
    }
}
