//! The node as it is when the agent starts: records, shims, namespaces, links,
//! cgroups, maps. What is found is adopted; nothing is changed here.
//!
//! Called once by `main.rs`, before the loop. What is not wanted any more is removed
//! later, by the plan, when all that is wanted is known; whether shims live is asked
//! by the loop, of all of them at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_plan::device;
use agent_plan::link::{self, Cidr, SERVICE_LINK};
use agent_plan::maps::Table;
use agent_plan::record as plan_record;
use agent_plan::step::Step;
use agent_plan::time::Moment;
use agent_plan::world::{Desired, Observed, Pod, parse_container_id};
use agent_sys::bpf::Datapath;
use agent_sys::link::{Hop, LinkError, Observed as Links};
use agent_sys::maps::MapsError;
use agent_sys::{netns, state};
use ebpf_common::counter::Hook;
use proto::v1::change::Change;

use crate::kernel;
use crate::pushed;
use crate::pushed_change;
use crate::pushed_file::{self, Kept};
use crate::record;
use crate::shims;
use crate::startup::Sys;

/// Why the node cannot be observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// Links and routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Maps.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Programs.
    #[error(transparent)]
    Bpf(#[from] agent_sys::bpf::BpfError),
    /// Devices of the node.
    #[error(transparent)]
    Kernel(#[from] kernel::ObserveError),
}

/// What the agent starts from.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where what is pushed is kept.
    pub(crate) journal: pushed_file::Shared,
    /// What is.
    pub(crate) observed: Observed,
    /// What was last wanted, as far as it is on disk.
    pub(crate) desired: Desired,
    /// Where this came from.
    pub(crate) kept: Kept,
}

/// Looks at everything that is ours; the journal and what it kept of the pushed state are given.
pub(crate) async fn observe(
    sys: &Arc<Sys>,
    datapath: &Datapath,
    (journal, before): (pushed_file::Shared, Option<pushed_file::Found>),
    now: Moment,
) -> Result<Found, ObserveError> {
    let links = sys.netlink.observe().await?;
    let attached: BTreeSet<u32> = datapath
        .attached()?
        .into_iter()
        .filter(|a| a.hook == Hook::FromPod)
        .map(|a| a.ifindex)
        .collect();
    let groups = sys.groups.list().unwrap_or_default();
    let mut found = Found {
        journal,
        observed: Observed::default(),
        desired: Desired::default(),
        kept: Kept::default(),
    };
    let mut wanted = BTreeSet::new();
    let mut is_others = false;
    if let Some(pushed_file::Found { kept, changes }) = before {
        found.kept = kept;
        is_others = found.kept.head.agent_version != pushed::VERSION;
        if is_others {
            // The other release may not have known all fields, and kept what it knew.
            found.kept.forget_all();
        }
        for change in changes {
            if let Change::Pod(spec) = change {
                // Its spec is in its record.
                wanted.insert(spec.uid);
            } else {
                pushed_change::restore(&mut found.desired, change);
            }
        }
        found.desired.complete = true;
    }
    for mut pod in record::pods(&sys.layout, &sys.boot_id, now) {
        adopt(sys, &mut pod, &links, &attached, now);
        if is_others {
            // It is sent again with the same generation, and is to be taken all the same.
            Arc::make_mut(&mut pod.spec).generation = 0;
        }
        // The disk may be behind, if the last agent died.
        pod.record.touch();
        found
            .desired
            .pods
            .insert(pod.spec.uid.clone(), pod.spec.clone());
        found.observed.pods.insert(pod.spec.uid.clone(), pod);
    }
    if is_behind(&wanted, &found.observed.pods) {
        found.kept.forget_pods();
    }
    if found.observed.pods.values().any(|pod| pod.withheld) {
        // After a reboot: what was not kept on the disk is to be sent again.
        found.kept.forget_pods();
    }
    strays(sys, &mut found.observed, &links, &groups);
    let seen = kernel::seen(&links, &sys.settings, datapath)?;
    let network = &mut found.observed.network;
    network.routes = seen.routes;
    network.without_address = seen.without_address;
    network.addresses = seen.addresses;
    network.sockets = kernel::node_sockets().await.unwrap_or_default();
    network.devices = device::found(&seen.devices, &sys.settings);
    maps(&mut found.observed, datapath)?;
    Ok(found)
}

/// Whether the pods' records and the journal disagree, so that all is to be sent again: a pod
/// without a record was removed, and the agent died before it could say so; one that the
/// journal does not name is no longer wanted, and the record of its stop was lost, or it was
/// pushed last, and the journal not yet written.
fn is_behind(wanted: &BTreeSet<String>, pods: &BTreeMap<String, Pod>) -> bool {
    wanted.iter().any(|uid| !pods.contains_key(uid))
        || pods
            .iter()
            .any(|(uid, pod)| pod.stop.is_none() && !wanted.contains(uid))
}

fn adopt(sys: &Arc<Sys>, pod: &mut Pod, links: &Links, attached: &BTreeSet<u32>, now: Moment) {
    let uid = pod.spec.uid.clone();
    let mut sandbox = plan_record::Sandbox {
        namespaces: netns::exists(&sys.layout.namespace(&uid)),
        ..Default::default()
    };
    let name = link::name(&uid);
    let routed = |link: &str| {
        let address = pod.address().map(IpAddr::V4);
        links.routes.iter().any(|r| {
            let over = matches!(&r.hop, Hop::Link { name, .. } if name == link);
            over && Some(r.destination.0) == address
        })
    };
    if let Some(link) = links.links.iter().find(|l| l.name == name && l.up)
        && routed(&name)
    {
        sandbox.ifindex = Some(link.index);
        sandbox.programs = attached.contains(&link.index);
    }
    plan_record::adopt_sandbox(pod, &sandbox, now);
    for id in state::list(&sys.layout.bundles(&uid)).unwrap_or_default() {
        if let Some((_, container, attempt)) = parse_container_id(&id) {
            plan_record::adopt_bundle(pod, container, attempt);
        }
    }
}

fn strays(sys: &Sys, observed: &mut Observed, links: &Links, groups: &[String]) {
    let mut uids: BTreeSet<String> = shims::known(sys).into_iter().collect();
    uids.extend(netns::list(&sys.layout.namespaces()).unwrap_or_default());
    uids.extend(state::uids(&sys.layout.pods()).unwrap_or_default());
    uids.extend(state::uids(&sys.layout.records()).unwrap_or_default());
    let logs = state::list(&sys.layout.logs()).unwrap_or_default();
    let of = |name: String| state::uid_of_logs(&name).map(str::to_owned);
    uids.extend(logs.into_iter().filter_map(of));
    uids.extend(groups.iter().cloned());
    for uid in uids {
        if !observed.pods.contains_key(&uid) {
            observed.strays.insert(uid, Step::Absent);
        }
    }
    let names: BTreeSet<String> = observed.pods.keys().map(|uid| link::name(uid)).collect();
    for link in &links.links {
        if !link.name.starts_with(SERVICE_LINK) && !names.contains(&link.name) {
            observed
                .network
                .strays
                .insert(link.name.clone(), Step::Absent);
        }
    }
}

/// The maps as they are; also called after a write that failed half-way.
pub(crate) fn maps(observed: &mut Observed, datapath: &Datapath) -> Result<(), MapsError> {
    let maps = datapath.maps();
    observed.endpoints.entries.clear();
    for endpoint in maps.endpoints()? {
        observed.endpoints.last = observed.endpoints.last.max(endpoint.id);
        observed.endpoints.entries.insert(endpoint.addr, endpoint);
    }
    observed.network.blocks.clear();
    for (key, network) in maps.networks()? {
        if let Some(address) = key.addr.as_v4()
            && let Ok(bits) = u8::try_from(key.prefix_len.saturating_sub(96))
        {
            observed.network.blocks.insert(
                Cidr {
                    address: address.into(),
                    bits,
                },
                network.kind,
            );
        }
    }
    observed.maps = Default::default();
    for (id, backend) in maps.backends()? {
        observed.maps.put_backend(id, backend);
    }
    for found in maps.choices()? {
        let table = Table {
            algorithm: found.algorithm,
            entries: found.entries,
        };
        observed.maps.put_table(found.service_port, table);
    }
    for (key, frontend) in maps.frontends()? {
        observed.maps.put_frontend(key, frontend);
    }
    for range in maps.source_ranges()? {
        observed.maps.put_source_range(range);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agent_plan::time::{Moment, Monotonic};
    use agent_plan::world::Stop;

    use super::*;

    #[test]
    fn records_that_the_journal_does_not_agree_with_are_asked_for_again() {
        let wanted: BTreeSet<String> = ["a".into()].into();
        let pod = || Pod::new(Arc::default(), Moment::default());
        let mut pods: BTreeMap<String, Pod> = [("a".into(), pod())].into();
        assert!(!is_behind(&wanted, &pods));
        pods.insert("b".into(), pod());
        assert!(is_behind(&wanted, &pods), "removed, but never told to stop");
        pods.entry("b".into()).and_modify(|pod| {
            pod.stop = Some(Stop {
                since: Monotonic::from_ms(0),
                deadline: Monotonic::from_ms(0),
            });
        });
        assert!(!is_behind(&wanted, &pods), "about to end");
        pods.remove("a");
        assert!(is_behind(&wanted, &pods), "wanted, and gone");
    }
}
