//! Carries out actions: the one match over them. What is quick and belongs to the
//! loop's own handles (maps, programs, records) is done at once; slow work is
//! spawned and comes back as an event.
//!
//! Decides nothing: what an action leaves open is a defect of the plan.

use std::sync::Arc;

use agent_plan::action::Action;
use agent_plan::link::Cidr;
use agent_plan::maps::Table;
use agent_plan::outcome::{Outcome, Part};
use agent_plan::world::Observed;
use agent_sys::bpf::Datapath;
use agent_sys::maps::{ChoiceTable, MapsError};
use ebpf_common::network::NetworkKey;

use crate::devices;
use crate::images;
use crate::probes;
use crate::record;
use crate::sandbox;
use crate::shims;
use crate::startup::Sys;
use crate::workload;

/// What the loop needs to carry out actions.
#[derive(Debug)]
pub(crate) struct Apply {
    /// What tasks share.
    pub(crate) sys: Arc<Sys>,
    /// Programs and maps. Maps are written by the loop alone; tasks attach and
    /// detach programs, for which the kernel takes its time.
    pub(crate) datapath: Arc<Datapath>,
}

/// A write into the maps failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// A map.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// What came of an action at once.
#[derive(Debug)]
pub(crate) enum Applied {
    /// It comes back as an event.
    Later,
    /// It is done; nothing comes back.
    Done,
    /// It is done, or has failed.
    Now(Outcome),
    /// A map refused. What is in the maps is not what was thought.
    Failed(WriteError),
}

fn written(action: &Action, result: Result<(), impl Into<WriteError>>) -> Applied {
    match result {
        Ok(()) => Applied::Now(Outcome::Written {
            action: Box::new(action.clone()),
        }),
        Err(error) => Applied::Failed(error.into()),
    }
}

fn block(range: Cidr) -> NetworkKey {
    NetworkKey::new(range.address.into(), range.bits.into())
}

impl Apply {
    /// Carries out one action. `observed` is as it is after the action was begun.
    pub(crate) fn one(&mut self, action: &Action, observed: &Observed) -> Applied {
        let sys = &self.sys;
        match action {
            // In `Observed` already, and on disk with the next record.
            Action::Take { .. }
            | Action::Stop { .. }
            | Action::Finish { .. }
            | Action::Restart { .. }
            | Action::Pass { .. }
            | Action::BeginKill { .. }
            | Action::RefuseImage { .. }
            | Action::RefuseConfig { .. }
            | Action::ReportHostPorts { .. } => Applied::Done,
            Action::Record { uid } => {
                record::write(sys, observed.pods.get(uid));
                Applied::Later
            }
            Action::PinNamespaces { uid, hostname } => {
                sandbox::pin_namespaces(sys, uid, hostname);
                Applied::Later
            }
            Action::CreateLink { uid, link } => {
                sandbox::create_link(sys, uid, link);
                Applied::Later
            }
            Action::AttachPrograms { uid, ifindex } => {
                sandbox::attach(sys, &self.datapath, uid, *ifindex);
                Applied::Later
            }
            Action::PutEndpoint { endpoint, name } => {
                written(action, self.datapath.maps().put_endpoint(endpoint, name))
            }
            // The programs go with the link; an interface without an endpoint passes
            // nothing.
            Action::DeleteEndpoint { endpoint } => written(
                action,
                self.datapath.maps().delete_endpoint(endpoint.ifindex),
            ),
            Action::CreateCgroup { uid, limits } => {
                sandbox::create_cgroup(sys, uid, *limits);
                Applied::Later
            }
            Action::StartShim { uid, again } => {
                sandbox::start_shim(sys, uid, *again);
                Applied::Later
            }
            Action::AskShim { uid, listen } => {
                shims::ask(sys, uid, *listen);
                Applied::Later
            }
            Action::MakeVolumes { uid, spec } => {
                sandbox::make_volumes(sys, uid, spec);
                Applied::Later
            }
            Action::FindImage { instance, image } => {
                images::find(sys, instance, image);
                Applied::Later
            }
            Action::PullImage {
                instance,
                image,
                secrets,
            } => {
                images::pull(sys, instance, image, secrets.clone());
                Applied::Later
            }
            Action::CancelPull { instance } => {
                sys.pulls.cancel(instance);
                Applied::Done
            }
            Action::CreateContainer {
                instance,
                image,
                create,
                user,
                mounts,
                oldest_log,
            } => {
                let make = workload::Make {
                    instance: instance.clone(),
                    digest: image.digest.clone(),
                    create: (**create).clone(),
                    user: user.clone(),
                    mounts: mounts.clone(),
                    oldest_log: *oldest_log,
                };
                workload::create(sys, make, observed.pods.get(&instance.uid));
                Applied::Later
            }
            Action::StartContainer { instance } => {
                workload::start(sys, instance);
                Applied::Later
            }
            Action::Signal {
                instance,
                signal,
                all,
                now: _,
            } => {
                workload::signal(sys, instance, *signal, *all);
                Applied::Later
            }
            Action::DeleteContainer { instance } => {
                workload::delete(sys, instance);
                Applied::Later
            }
            Action::RunHook {
                instance,
                kind,
                handler,
                address,
                timeout_ms,
            } => {
                let probe = probes::Request::new(handler, *address, *timeout_ms);
                probes::hook(sys, instance, *kind, probe);
                Applied::Later
            }
            Action::Probe {
                instance,
                kind,
                handler,
                address,
                timeout_ms,
            } => {
                let probe = probes::Request::new(handler, *address, *timeout_ms);
                probes::probe(sys, instance, *kind, probe);
                Applied::Later
            }
            Action::RemoveSandbox { uid, link } => {
                let ifindex = observed.pods.get(uid).and_then(|p| p.ifindex);
                sandbox::remove(sys, &self.datapath, (uid, Part::NoSandbox), link, ifindex);
                Applied::Later
            }
            Action::RemoveLeftovers { uid, link } => {
                let ifindex = observed.pods.get(uid).and_then(|p| p.ifindex);
                sandbox::remove(sys, &self.datapath, (uid, Part::NoLeftovers), link, ifindex);
                Applied::Later
            }
            Action::RemoveFolders {
                uid,
                namespace,
                name,
            } => {
                sandbox::remove_folders(sys, uid, namespace, name);
                Applied::Later
            }
            Action::RemoveStray { uid, link } => {
                sandbox::remove_stray(sys, &self.datapath, uid, link);
                Applied::Later
            }
            // The loop's report sends it.
            Action::ReportGone { .. } | Action::Forget { .. } => Applied::Done,
            Action::DeleteLink { name } => {
                sandbox::delete_link(sys, name);
                Applied::Later
            }
            Action::DetachPrograms { ifindex } => {
                sandbox::detach(sys, &self.datapath, *ifindex);
                Applied::Later
            }
            Action::PutServiceLink { link } => {
                devices::put_service_link(sys, *link);
                Applied::Later
            }
            Action::AttachDevice {
                name,
                ifindex,
                role,
            } => {
                devices::attach(sys, &self.datapath, name, *ifindex, *role);
                Applied::Later
            }
            Action::PutRoute { route } => {
                sandbox::put_route(sys, route);
                Applied::Later
            }
            Action::DeleteRoute { route } => {
                sandbox::delete_route(sys, route);
                Applied::Later
            }
            Action::PutNetwork { range, kind } => written(
                action,
                self.datapath.maps().put_network(&block(*range), *kind),
            ),
            Action::DeleteNetwork { range } => {
                written(action, self.datapath.maps().delete_network(&block(*range)))
            }
            Action::PutSourceRange { range } => {
                written(action, self.datapath.maps().put_source_range(range))
            }
            Action::DeleteSourceRange { range } => {
                written(action, self.datapath.maps().delete_source_range(range))
            }
            Action::PutBackend { id, backend, name } => {
                written(action, self.datapath.maps().put_backend(*id, backend, name))
            }
            Action::DeleteBackend { id } => {
                written(action, self.datapath.maps().delete_backend(*id))
            }
            Action::PutTable { port_id, table } => {
                let tables = [choice_table(*port_id, table)];
                written(action, self.datapath.maps().put_choices(&tables))
            }
            Action::DeleteTable { port_id } => {
                written(action, self.datapath.maps().delete_choices(&[*port_id]))
            }
            Action::PutFrontend {
                key,
                frontend,
                name,
            } => written(
                action,
                self.datapath.maps().put_frontend(key, frontend, name),
            ),
            Action::DeleteFrontend { key } => {
                written(action, self.datapath.maps().delete_frontend(key))
            }
        }
    }

    /// Choice tables of several services in one call: each call that deletes waits for the
    /// kernel's readers, however many tables it brings.
    pub(crate) fn tables(
        &mut self,
        put: &[(u32, Table)],
        delete: &[u32],
    ) -> Result<(), WriteError> {
        if !put.is_empty() {
            let tables: Vec<ChoiceTable> = put
                .iter()
                .map(|(port_id, table)| choice_table(*port_id, table))
                .collect();
            self.datapath.maps().put_choices(&tables)?;
        }
        if !delete.is_empty() {
            self.datapath.maps().delete_choices(delete)?;
        }
        Ok(())
    }
}

fn choice_table(port_id: u32, table: &Table) -> ChoiceTable {
    ChoiceTable {
        service_port: port_id,
        algorithm: table.algorithm,
        entries: table.entries.clone(),
    }
}
