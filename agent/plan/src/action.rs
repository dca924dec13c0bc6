//! Everything that a plan can ask for, as values, and what it cannot bring about.
//!
//! `apply.rs` of the daemon is the only interpreter; `simulate.rs` the model of
//! what each does. An action that fails comes back as an `Outcome`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proto::v1;

use crate::conflict::Conflicts;
use crate::endpoint::Endpoint;
use crate::link::{Cidr, PodLink, Role, Route};
use crate::maps::{Backend, Frontend, FrontendKey, SourceRangeKey, Table};
use crate::probe;
use crate::restart::Backoff;
use crate::settings::ServiceLink;
use crate::time::{Moment, Monotonic};
use crate::user::User;
use crate::volume::Mount;
use crate::world::{Finished, ImageFacts, Stop, Why};

/// One instance of one container of one pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// The pod.
    pub uid: String,
    /// The container.
    pub container: String,
    /// Number of the instance.
    pub attempt: u32,
}

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// After the start.
    PostStart,
    /// Before the end.
    PreStop,
}

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    // Decisions: no effect but in `Observed` and, by the next `Record`, on disk.
    /// A pod is taken in, or its spec changed.
    Take {
        /// What is wanted of it.
        spec: Arc<v1::PodSpec>,
        /// Its start, as status tells it.
        now: Moment,
    },
    /// The pod shall end.
    Stop {
        /// The pod.
        uid: String,
        /// Since when, until when.
        stop: Stop,
    },
    /// The pod ended by itself, for good.
    Finish {
        /// The pod.
        uid: String,
        /// How.
        finished: Finished,
    },
    /// The next instance of a container shall be made: another one after an end,
    /// the same number again after a refusal.
    Restart {
        /// The next instance.
        instance: Instance,
        /// The delays from here on.
        backoff: Backoff,
    },
    /// The containers after an init container wait for it no more.
    Pass {
        /// The init container's instance.
        instance: Instance,
    },
    /// An instance shall end.
    BeginKill {
        /// Which.
        instance: Instance,
        /// Why.
        why: Why,
        /// When its grace period began.
        since: Monotonic,
        /// When its grace period is over; not after `since`: no hook.
        deadline: Monotonic,
    },
    /// The image is not here and may not be pulled.
    RefuseImage {
        /// For which.
        instance: Instance,
        /// When.
        now: Monotonic,
    },
    /// The instance cannot be asked for: CreateContainerConfigError.
    RefuseConfig {
        /// Which.
        instance: Instance,
        /// Why, in words.
        message: String,
        /// When.
        now: Monotonic,
    },

    // Pods.
    /// Tell who else uses ports of the node that a pod wants.
    ReportHostPorts {
        /// The pod.
        uid: String,
        /// All of them; empty: none any more.
        conflicts: Conflicts,
    },
    /// Write what must survive the agent: spec, restarts, ends.
    Record {
        /// The pod.
        uid: String,
    },
    /// Make and pin net, IPC and UTS namespaces.
    PinNamespaces {
        /// The pod.
        uid: String,
        /// Its hostname.
        hostname: String,
    },
    /// Make the veth pair, addresses, routes, neighbours.
    CreateLink {
        /// The pod.
        uid: String,
        /// All of it.
        link: PodLink,
    },
    /// Attach the programs to the host's end.
    AttachPrograms {
        /// The pod.
        uid: String,
        /// Interface index of the host's end.
        ifindex: u32,
    },
    /// Make the endpoint known to the programs.
    PutEndpoint {
        /// All of it.
        endpoint: Endpoint,
        /// "namespace/name" of the pod.
        name: String,
    },
    /// The reverse of [`Action::PutEndpoint`] and [`Action::AttachPrograms`].
    DeleteEndpoint {
        /// All of it.
        endpoint: Endpoint,
    },
    /// Make the pod's cgroup.
    CreateCgroup {
        /// The pod.
        uid: String,
        /// Of all its containers together.
        limits: v1::ShimResources,
    },
    /// Start the pod's shim.
    StartShim {
        /// The pod.
        uid: String,
        /// It had one before, which may still run and be out of reach.
        again: bool,
    },
    /// Ask a shim whether it lives and what it has.
    AskShim {
        /// The pod.
        uid: String,
        /// From then on it shall tell how containers end.
        listen: bool,
    },
    /// Make the volumes and the node's own files.
    MakeVolumes {
        /// The pod.
        uid: String,
        /// What it was wanted to be.
        spec: Arc<v1::PodSpec>,
    },
    /// Look for an image in the node's store.
    FindImage {
        /// For which.
        instance: Instance,
        /// As in the manifest.
        image: String,
    },
    /// Ask the registry for an image.
    PullImage {
        /// For which.
        instance: Instance,
        /// As in the manifest.
        image: String,
        /// Credentials by registry.
        secrets: Vec<v1::PullSecret>,
    },
    /// Stop asking the registry: the container will not run.
    CancelPull {
        /// For which.
        instance: Instance,
    },
    /// Mount the root and have the shim make the container.
    CreateContainer {
        /// Which.
        instance: Instance,
        /// What it is made from.
        image: Arc<ImageFacts>,
        /// What the shim is told, but for paths and user.
        create: Box<v1::ShimCreate>,
        /// Who it runs as.
        user: User,
        /// What is mounted into it.
        mounts: Vec<Mount>,
        /// Logs of instances before this one are removed.
        oldest_log: u32,
    },
    /// Let the program run.
    StartContainer {
        /// Which.
        instance: Instance,
    },
    /// Send a signal.
    Signal {
        /// Which.
        instance: Instance,
        /// Number.
        signal: i32,
        /// To all of its processes.
        all: bool,
        /// When.
        now: Monotonic,
    },
    /// Remove what is left of an ended instance, except its log.
    DeleteContainer {
        /// Which.
        instance: Instance,
    },
    /// Run a hook.
    RunHook {
        /// Of which.
        instance: Instance,
        /// Which.
        kind: HookKind,
        /// What to do.
        handler: v1::Handler,
        /// Where requests go: the pod's address.
        address: Ipv4Addr,
        /// How long it may take, milliseconds.
        timeout_ms: i64,
    },
    /// Probe once.
    Probe {
        /// Which.
        instance: Instance,
        /// Which of its probes.
        kind: probe::Kind,
        /// What to do.
        handler: v1::Handler,
        /// Where requests go: the pod's address.
        address: Ipv4Addr,
        /// How long it may take, milliseconds.
        timeout_ms: i64,
    },
    /// Remove shim, link, namespaces, roots and cgroup of a pod that ends: all that is
    /// left but its folders.
    RemoveSandbox {
        /// The pod.
        uid: String,
        /// Name of the host's end of its link.
        link: String,
    },
    /// As [`Action::RemoveSandbox`], of a sandbox that the pod has lost, before another
    /// one is made for it.
    RemoveLeftovers {
        /// The pod.
        uid: String,
        /// Name of the host's end of its link.
        link: String,
    },
    /// Remove a pod's volumes, logs and record.
    RemoveFolders {
        /// The pod.
        uid: String,
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// Remove all that is left of a pod that nothing else is known of: as
    /// [`Action::RemoveSandbox`], and its volumes and logs.
    RemoveStray {
        /// The pod.
        uid: String,
        /// Name of the host's end of its link.
        link: String,
    },
    /// Tell the control plane that nothing of the pod is left.
    ReportGone {
        /// What it was.
        gone: v1::PodGone,
    },
    /// The control plane has forgotten the pod: so may we.
    Forget {
        /// The pod.
        uid: String,
    },

    // The node's network.
    /// Delete a link with our mark that no pod has.
    DeleteLink {
        /// Its name.
        name: String,
    },
    /// Remove what is pinned for an interface that is gone.
    DetachPrograms {
        /// The interface.
        ifindex: u32,
    },
    /// Make `foil0`, or make it whole, with the index that it had.
    PutServiceLink {
        /// All of it.
        link: ServiceLink,
    },
    /// Attach the programs to a device of the node.
    AttachDevice {
        /// Its name.
        name: String,
        /// Its index.
        ifindex: u32,
        /// What it is.
        role: Role,
    },
    /// Add the route, or change the one to the same destination.
    PutRoute {
        /// All of it.
        route: Route,
    },
    /// Delete the route.
    DeleteRoute {
        /// All of it.
        route: Route,
    },

    /// Tell the programs what a block of addresses is.
    PutNetwork {
        /// The block.
        range: Cidr,
        /// `ebpf_common::network::{PODS, SERVICES, LOCAL, NODE}`
        kind: u32,
    },
    /// The reverse.
    DeleteNetwork {
        /// The block.
        range: Cidr,
    },

    // Services.
    /// Let clients use the load balancer addresses of a service.
    PutSourceRange {
        /// Service and clients.
        range: SourceRangeKey,
    },
    /// The reverse.
    DeleteSourceRange {
        /// Service and clients.
        range: SourceRangeKey,
    },
    /// Write a backend: a new one, or another state of it.
    PutBackend {
        /// Its slot.
        id: u32,
        /// All of it.
        backend: Backend,
        /// "namespace/name" of its pod.
        name: String,
    },
    /// Free a backend's slot: its generation moves, so that each flow notices.
    DeleteBackend {
        /// Its slot.
        id: u32,
    },
    /// Replace the choice table of a service port in one step.
    PutTable {
        /// The service port.
        port_id: u32,
        /// All of it: the backends that take new connections.
        table: Table,
    },
    /// Remove a choice table.
    DeleteTable {
        /// The service port.
        port_id: u32,
    },
    /// Write a frontend.
    PutFrontend {
        /// Address, port, protocol.
        key: FrontendKey,
        /// What is behind it.
        frontend: Frontend,
        /// "namespace/service:port"
        name: String,
    },
    /// Remove a frontend.
    DeleteFrontend {
        /// Address, port, protocol.
        key: FrontendKey,
    },
}

/// What a plan cannot bring about: data, not failure. Becomes an event and a line
/// in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Not an IPv4 range.
    Range {
        /// Node, or "cluster".
        of: String,
        /// As it was written.
        text: String,
    },
    /// A node without an IPv4 address.
    NoNextHop {
        /// The node.
        node: String,
    },
    /// A pod without an IPv4 address.
    NoAddress {
        /// The pod.
        uid: String,
    },
    /// No endpoint id is free.
    NoEndpoint {
        /// The pod.
        uid: String,
    },
    /// A service port that the data plane cannot have.
    ServicePort {
        /// "namespace/name"
        service: String,
        /// As in the manifest.
        port: String,
        /// Why.
        reason: &'static str,
    },
    /// More backends than the map holds.
    BackendsFull {
        /// "namespace/name"
        service: String,
        /// Slots in all.
        capacity: u32,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Range { of, text } => write!(f, "{of}: {text:?} is no IPv4 range"),
            Problem::NoNextHop { node } => write!(f, "node {node} has no IPv4 address"),
            Problem::NoAddress { uid } => write!(f, "pod {uid} has no IPv4 address"),
            Problem::NoEndpoint { uid } => write!(f, "no endpoint id is free for pod {uid}"),
            Problem::ServicePort {
                service,
                port,
                reason,
            } => {
                write!(f, "service {service}, port {port}: {reason}")
            }
            Problem::BackendsFull { service, capacity } => {
                write!(
                    f,
                    "service {service}: all {capacity} backend slots are taken"
                )
            }
        }
    }
}
