//! What is wanted of this node, and what is: the two arguments of every plan.
//!
//! `Desired` comes from the control plane (or from what it last pushed, kept on
//! disk); `Observed` from the kernel, the shims and the outcomes of actions.
//! Neither is written here: `begin.rs` and `take.rs` are
//! the only writers of `Observed`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use proto::v1;

use crate::conflict::Conflicts;
use crate::endpoint::Endpoints;
use crate::link::Network;
use crate::maps::Maps;
use crate::probe::Probes;
use crate::restart::Backoff;
use crate::step::Step;
use crate::time::{Moment, Monotonic, Wall};

/// What the node shall be.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Facts of the cluster: address ranges of pods and services.
    pub config: v1::ClusterConfig,
    /// Pods that the node shall run, by uid.
    pub pods: BTreeMap<String, Arc<v1::PodSpec>>,
    /// Services of the cluster, by "namespace/name".
    pub services: BTreeMap<String, v1::Service>,
    /// The other nodes, by name.
    pub routes: BTreeMap<String, v1::NodeRoute>,
    /// True once this is all that is wanted (a whole snapshot, or the state kept
    /// on disk). Before that nothing may be removed for being absent here.
    pub complete: bool,
}

/// Id of a container instance, unique on the node: what shims and logs call it.
pub fn container_id(uid: &str, container: &str, attempt: u32) -> String {
    format!("{uid}_{container}_{attempt}")
}

/// The parts of a [`container_id`]; `None` if it is not one.
pub fn parse_container_id(id: &str) -> Option<(&str, &str, u32)> {
    // Neither uids nor container names (DNS labels) contain an underscore.
    let (rest, attempt) = id.rsplit_once('_')?;
    let (uid, container) = rest.split_once('_')?;
    Some((uid, container, attempt.parse().ok()?))
}

/// What the node is.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Pods of which anything is left on the node, by uid.
    pub pods: BTreeMap<String, Pod>,
    /// uids of which something is left on the node, and no record: a pod whose
    /// removal was cut short.
    pub strays: BTreeMap<String, Step>,
    /// Links and routes of the node itself.
    pub network: Network,
    /// The endpoint map.
    pub endpoints: Endpoints,
    /// The service maps.
    pub maps: Maps,
    /// Pods that are gone and that the control plane has not forgotten yet.
    pub gone: BTreeSet<String>,
}

/// One pod as it is.
#[derive(Debug, Clone)]
pub struct Pod {
    /// What was last wanted of it.
    pub spec: Arc<v1::PodSpec>,
    /// When the node first saw it: status.startTime, from which the active deadline counts.
    pub seen: Moment,
    /// What must survive the agent is written as it is here.
    pub record: Step,
    /// After a reboot: `spec` is a skeleton, and the pod waits for the control plane to
    /// send it whole.
    pub withheld: bool,
    /// Net, IPC and UTS namespaces pinned.
    pub namespaces: Step,
    /// The veth pair, its addresses and routes.
    pub link: Step,
    /// Interface index of the host's end, once there is one.
    pub ifindex: Option<u32>,
    /// Our programs are attached to the host's end.
    pub programs: Step,
    /// Who else uses its ports of the node, as last told.
    pub host_ports: Conflicts,
    /// The process that runs the containers.
    pub shim: Step,
    /// Whether that process is heard.
    pub contact: Contact,
    /// Folders and files that the containers mount.
    pub volumes: Step,
    /// The pod's cgroup.
    pub cgroup: Step,
    /// Containers by name, init containers among them.
    pub containers: BTreeMap<String, Container>,
    /// Set once the pod shall end.
    pub stop: Option<Stop>,
    /// The pod ended by itself and will not run again: its phase, for good.
    pub finished: Option<Finished>,
    /// The conditions last told, for the times of their transitions.
    pub conditions: Vec<v1::Condition>,
    /// What is left to remove, once nothing runs.
    pub teardown: Teardown,
    /// `Ready` unless something may be left of a sandbox that the pod has lost (by a
    /// reboot, say), which is removed before anything is made.
    pub leftovers: Step,
}

/// Whether a pod's shim is heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Contact {
    /// What it has is known, and it tells what changes; or there is none yet.
    #[default]
    Heard,
    /// Whether it lives is not known.
    Unknown(Silence),
}

/// A shim that has not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Silence {
    /// It does not tell how its containers end: this agent has not heard it before, or
    /// the connection for that broke.
    pub deaf: bool,
    /// A question is on its way.
    pub asking: bool,
    /// When the next question is due.
    pub ask: Monotonic,
    /// Since when questions are not answered in time; `None`: none has failed yet.
    pub since: Option<Moment>,
}

/// Why and until when a pod may still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// When the end was asked for.
    pub since: Monotonic,
    /// When SIGKILL comes.
    pub deadline: Monotonic,
}

/// The end that a pod came to without being asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// All containers ended with exit code 0.
    Succeeded,
    /// At least one did not.
    Failed,
    /// Its active deadline was over: it failed, and what runs is ended from then on.
    Overdue {
        /// When that was found.
        since: Monotonic,
    },
}

/// Removal is best effort and complete: one action, repeated until it succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Teardown {
    /// Shim, link, endpoint, namespaces, mounts, cgroup.
    pub sandbox: Step,
    /// Volumes, logs and the record.
    pub folders: Step,
}

impl Pod {
    /// A pod of which nothing is there yet.
    pub fn new(spec: Arc<v1::PodSpec>, now: Moment) -> Pod {
        let containers = spec
            .init_containers
            .iter()
            .chain(&spec.containers)
            .map(|c| (c.name.clone(), Container::default()))
            .collect();
        Pod {
            spec,
            seen: now,
            record: Step::Absent,
            withheld: false,
            namespaces: Step::Absent,
            link: Step::Absent,
            ifindex: None,
            programs: Step::Absent,
            host_ports: Conflicts::new(),
            shim: Step::Absent,
            contact: Contact::Heard,
            volumes: Step::Absent,
            cgroup: Step::Absent,
            containers,
            stop: None,
            finished: None,
            conditions: Vec::new(),
            teardown: Teardown::default(),
            leftovers: Step::Ready,
        }
    }

    /// The spec of a container, init containers among them.
    pub fn container_spec(&self, name: &str) -> Option<&v1::ContainerSpec> {
        container_spec(&self.spec, name)
    }

    /// False while an agent that has just started has yet to hear what runs: what was
    /// told last stands until then.
    pub fn is_told(&self) -> bool {
        match &self.contact {
            Contact::Heard => true,
            Contact::Unknown(silence) => !silence.deaf || silence.since.is_some(),
        }
    }

    /// True once an instance of any of its containers was made, in this sandbox or in
    /// one before it.
    pub fn has_begun(&self) -> bool {
        let mut all = self.containers.values();
        all.any(|c| c.attempt > 0 || c.life != Life::None || !c.image_id.is_empty())
    }

    /// The pod's own IPv4 address; `None` on the host's network.
    pub fn address(&self) -> Option<Ipv4Addr> {
        address(&self.spec)
    }
}

/// A container of a pod's spec, init containers among them.
pub fn container_spec<'a>(spec: &'a v1::PodSpec, name: &str) -> Option<&'a v1::ContainerSpec> {
    let mut all = spec.init_containers.iter().chain(&spec.containers);
    all.find(|c| c.name == name)
}

/// The IPv4 address that control allocated; `None` on the host's network.
pub fn address(spec: &v1::PodSpec) -> Option<Ipv4Addr> {
    if spec.host_network {
        return None;
    }
    spec.ips.iter().find_map(|ip| ip.parse().ok())
}

/// One container of a pod as it is.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// The image of the next instance.
    pub image: Image,
    /// Delay after the last failed pull, milliseconds; 0: none failed.
    pub image_delay_ms: i64,
    /// Of the image of the current or last instance, for its status.
    pub image_id: String,
    /// Number of the current instance, from 0: status.restartCount.
    pub attempt: u32,
    /// Where the current instance is in its life.
    pub life: Life,
    /// Number of the instance whose making is on its way. It may outlast the pod's shim,
    /// and the instance's `life` with it, and arrive at the shim after that one.
    pub making: Option<u32>,
    /// As the manifest named the image that the current instance was made from; empty: it
    /// was not made yet.
    pub made_from: String,
    /// Of an init container: those after it do not wait for it any more.
    pub passed: bool,
    /// The last instance was ended to be replaced: the next one comes at once and under
    /// every restart policy.
    pub replace: bool,
    /// How the instance before ended.
    pub last: Option<Exit>,
    /// Delays between restarts.
    pub backoff: Backoff,
    /// Hook after the start.
    pub post_start: Hook,
    /// Set while the instance is being ended.
    pub kill: Option<Kill>,
    /// Startup, liveness and readiness.
    pub probes: Probes,
    /// Instances of which something is left (in the shim, mounts), by attempt number,
    /// with their removal. The current one is among them.
    pub remains: BTreeMap<u32, Step>,
}

/// Where the image of a container's next instance is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Image {
    /// Not looked for.
    #[default]
    Unknown,
    /// Looking into the store.
    Looking,
    /// Not in the store.
    Missing,
    /// Being pulled.
    Pulling,
    /// In the store.
    Ready(Arc<ImageFacts>),
    /// Could not be had.
    Failed {
        /// Why.
        reason: ImageReason,
        /// Why, in words.
        message: String,
        /// When that was.
        at: Monotonic,
        /// Delay before the next try, milliseconds.
        delay_ms: i64,
    },
}

/// What a container needs to know of its image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFacts {
    /// "docker.io/library/busybox@sha256:..."
    pub image_id: String,
    /// What the root is mounted from: opaque to plans.
    pub digest: String,
    /// The image's entry point.
    pub entrypoint: Vec<String>,
    /// The image's arguments.
    pub cmd: Vec<String>,
    /// "NAME=value"
    pub env: Vec<String>,
    /// The image's working directory.
    pub working_dir: String,
    /// "uid", "uid:gid", "name", "name:group" or empty.
    pub user: String,
    /// Signal number that asks it to end; 0: SIGTERM.
    pub stop_signal: i32,
}

/// Why a container waits for its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageReason {
    /// It could not be had.
    Pull,
    /// It could not be had, and the next try is held back.
    BackOff,
    /// It is not on the node and may not be pulled.
    NeverPull,
    /// Its name does not parse.
    InvalidName,
}

impl ImageReason {
    /// In Kubernetes' words.
    pub fn text(self) -> &'static str {
        match self {
            ImageReason::Pull => "ErrImagePull",
            ImageReason::BackOff => "ImagePullBackOff",
            ImageReason::NeverPull => "ErrImageNeverPull",
            ImageReason::InvalidName => "InvalidImageName",
        }
    }
}

/// Why an instance could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its settings cannot be had, or contradict each other.
    Config,
    /// The kernel or the runtime refused.
    Create,
}

impl Refused {
    /// In Kubernetes' words.
    pub fn text(self) -> &'static str {
        match self {
            Refused::Config => "CreateContainerConfigError",
            Refused::Create => "CreateContainerError",
        }
    }
}

/// The life of one instance of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Life {
    /// No instance yet.
    #[default]
    None,
    /// The shim is making it.
    Creating,
    /// It is there and has not run yet.
    Created,
    /// The shim is starting it.
    Starting,
    /// It runs.
    Running {
        /// Since when.
        started: Moment,
    },
    /// It ended, or could not start.
    Exited(Exit),
    /// It could not be made.
    Refused {
        /// Why.
        reason: Refused,
        /// Why, in words.
        message: String,
        /// When that was.
        at: Monotonic,
    },
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// 0 unless a signal ended it.
    pub signal: i32,
    /// "Completed", "Error", "OOMKilled", "StartError", "ContainerStatusUnknown"
    pub reason: String,
    /// The container's last words.
    pub message: String,
    /// When the program was started.
    pub started: Wall,
    /// When it ended; the back-off counts from there.
    pub finished: Moment,
    /// Number of the instance.
    pub attempt: u32,
}

/// A hook of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hook {
    /// Not run.
    #[default]
    Waiting,
    /// Running.
    Running,
    /// Ended, or there is none.
    Done,
}

/// Why an instance is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its pod ends.
    Pod,
    /// It never became, or no longer is, what its probes ask for.
    Probe,
    /// Its hook after the start failed.
    Hook,
    /// The pod's spec names another image for it.
    Image,
}

/// The end of an instance, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Why.
    pub why: Why,
    /// When the grace period began.
    pub since: Monotonic,
    /// When the grace period is over.
    pub deadline: Monotonic,
    /// The hook before the end.
    pub pre_stop: Hook,
    /// When SIGTERM was sent.
    pub asked: Option<Monotonic>,
    /// When SIGKILL was sent.
    pub killed: Option<Monotonic>,
}

impl Kill {
    /// An end that has just begun.
    pub fn new(why: Why, since: Monotonic, deadline: Monotonic) -> Kill {
        Kill {
            why,
            since,
            deadline,
            pre_stop: Hook::Waiting,
            asked: None,
            killed: None,
        }
    }
}
