//! Makes `foil0`, and attaches the programs to the node's own devices: each function spawns a
//! task that ends with one event.
//!
//! Called by `apply.rs`.

use std::sync::Arc;

use agent_plan::link::Role;
use agent_plan::outcome::{LinkRefusal, Outcome};
use agent_plan::settings::ServiceLink;
use agent_sys::bpf::{self, Datapath};
use agent_sys::link::LinkError;

use crate::alone;
use crate::startup::Sys;

/// Makes `foil0` again as it was.
pub(crate) fn put_service_link(sys: &Arc<Sys>, wanted: ServiceLink) {
    let sys = sys.clone();
    tokio::spawn(async move {
        let ServiceLink { ifindex, mac, mtu } = wanted;
        let fixed = Some((ifindex, mac));
        let made = alone::service_link(&sys.netlink, mtu, &sys.owner, fixed).await;
        let result = made.map(drop).map_err(|error| {
            if matches!(error, LinkError::IndexInUse { .. }) {
                LinkRefusal::IndexInUse
            } else {
                LinkRefusal::Refused(error.to_string())
            }
        });
        sys.tell(Outcome::ServiceLink { result }).await;
    });
}

/// What the kernel side calls the role.
pub(crate) fn role_of(role: Role) -> bpf::Role {
    match role {
        Role::Service => bpf::Role::Service,
        Role::Uplink => bpf::Role::Uplink,
    }
}

/// Attaches the programs of its role to a device.
pub(crate) fn attach(
    sys: &Arc<Sys>,
    datapath: &Arc<Datapath>,
    name: &str,
    ifindex: u32,
    role: Role,
) {
    let (sys, datapath, name) = (sys.clone(), datapath.clone(), name.to_owned());
    tokio::spawn(async move {
        let attached = sys.blocking(move |_sys| {
            let attached = datapath.attach(ifindex, role_of(role));
            attached.map_err(|error| error.to_string())
        });
        let result = attached.await;
        sys.tell(Outcome::DeviceAttached { name, result }).await;
    });
}
