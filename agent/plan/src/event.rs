//! What users are told of a pod's life, in kubelet's words.
//!
//! Called by `outcome.rs`; the daemon's `report.rs` sends them upstream.

use proto::v1;

use crate::action::{Action, HookKind, Instance};
use crate::conflict;
use crate::outcome::{ImageFailure, Part, Refusal};
use crate::probe::Kind;
use crate::settings::Settings;
use crate::step::Step;
use crate::world::{Finished, ImageReason, Observed, Why};

/// Of a pod whose active deadline is over.
pub(crate) const OVERDUE: &str = "Pod was active on the node longer than the specified deadline";

/// An event without its time, which the daemon adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// "Pod" or "Node".
    pub kind: &'static str,
    /// uid of the pod; of a node its name, as kubelet does it.
    pub uid: String,
    /// Namespace of the pod; a node has none.
    pub namespace: String,
    /// Name of the pod or node.
    pub name: String,
    /// "spec.containers{name}", or empty for the pod itself.
    pub field_path: String,
    /// Something is wrong.
    pub warning: bool,
    /// "Pulled", "Created", ...
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

fn of_pod(pod: &v1::PodSpec, warning: bool, reason: &'static str, message: String) -> Note {
    Note {
        kind: "Pod",
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        field_path: String::new(),
        warning,
        reason,
        message,
    }
}

fn of_node(settings: &Settings, warning: bool, reason: &'static str, message: String) -> Note {
    Note {
        kind: "Node",
        uid: settings.node_name.clone(),
        namespace: String::new(),
        name: settings.node_name.clone(),
        field_path: String::new(),
        warning,
        reason,
        message,
    }
}

fn of(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    warning: bool,
    reason: &'static str,
    message: String,
) -> Note {
    let init = pod.init_containers.iter().any(|c| c.name == container.name);
    let list = if init { "initContainers" } else { "containers" };
    let field_path = format!("spec.{list}{{{}}}", container.name);
    Note {
        field_path,
        ..of_pod(pod, warning, reason, message)
    }
}

/// What is told when an action begins; asked before it is marked as begun.
pub fn begun(action: &Action, observed: &Observed) -> Option<Note> {
    let found = |instance: &Instance| {
        let pod = observed.pods.get(&instance.uid)?;
        let of = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let container = of.into_iter().find(|c| c.name == instance.container)?;
        Some((pod, container))
    };
    if let Action::PullImage { instance, .. } = action {
        let (pod, container) = found(instance)?;
        Some(pulling(&pod.spec, container))
    } else if let Action::BeginKill { instance, why, .. } = action {
        let (pod, container) = found(instance)?;
        let again = pod.containers.get(&instance.container)?.kill.is_some();
        (!again).then(|| killing(&pod.spec, container, *why))
    } else if let Action::RefuseConfig {
        instance, message, ..
    } = action
    {
        let (pod, container) = found(instance)?;
        let refusal = Refusal::Config(message.clone());
        Some(refused(&pod.spec, container, &refusal))
    } else if let Action::Finish {
        uid,
        finished: Finished::Overdue { .. },
    } = action
    {
        let pod = observed.pods.get(uid)?;
        Some(of_pod(&pod.spec, false, "DeadlineExceeded", OVERDUE.into()))
    } else if let Action::ReportHostPorts { uid, conflicts } = action {
        let pod = observed.pods.get(uid)?;
        let news = conflict::news(&pod.host_ports, conflicts)?;
        Some(of_pod(&pod.spec, true, "HostPortConflict", news))
    } else if let Action::RemoveLeftovers { uid, .. } = action {
        let pod = observed.pods.get(uid)?;
        (pod.leftovers == Step::Absent).then(|| sandbox_changed(&pod.spec))
    } else {
        None
    }
}

/// A part of the sandbox could not be made.
pub fn part_failed(pod: &v1::PodSpec, part: Part, message: &str) -> Option<Note> {
    match part {
        Part::Volumes => {
            let message = format!("MountVolume.SetUp failed: {message}");
            Some(of_pod(pod, true, "FailedMount", message))
        }
        Part::Record | Part::Namespaces | Part::Programs | Part::Cgroup | Part::Shim => {
            Some(sandbox_failed(pod, message))
        }
        Part::NoSandbox | Part::NoLeftovers | Part::NoFolders => {
            let message = format!("error killing pod: {message}");
            Some(of_pod(pod, true, "FailedKillPod", message))
        }
        // There is no pod that an event could be about.
        Part::NoStray => None,
    }
}

/// The sandbox could not be made.
pub fn sandbox_failed(pod: &v1::PodSpec, message: &str) -> Note {
    let message = format!("Failed to create pod sandbox: {message}");
    of_pod(pod, true, "FailedCreatePodSandBox", message)
}

/// The shim died, or all of the sandbox is lost.
pub fn sandbox_changed(pod: &v1::PodSpec) -> Note {
    let message = "Pod sandbox changed, it will be killed and re-created.".into();
    of_pod(pod, false, "SandboxChanged", message)
}

/// The shim does not answer.
pub fn silent(pod: &v1::PodSpec) -> Note {
    let message = "The pod's shim does not answer; it is asked again, and the containers are \
                   left as they are."
        .into();
    of_pod(pod, true, "ShimNotResponding", message)
}

/// The shim answers again.
pub fn heard(pod: &v1::PodSpec) -> Note {
    let message = "The pod's shim answers again.".into();
    of_pod(pod, false, "ShimResponding", message)
}

/// Somebody else deleted or changed the pod's link.
pub fn link_changed(pod: &v1::PodSpec) -> Note {
    let message = "The pod's network interface was changed from outside, it will be restored.";
    of_pod(pod, true, "NetworkChanged", message.into())
}

/// The image is in the store.
pub fn present(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Note {
    let message = format!(
        "Container image {:?} already present on machine",
        container.image
    );
    of(pod, container, false, "Pulled", message)
}

/// A pull began.
pub fn pulling(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Note {
    of(
        pod,
        container,
        false,
        "Pulling",
        format!("Pulling image {:?}", container.image),
    )
}

/// A pull ended well.
pub fn pulled(pod: &v1::PodSpec, container: &v1::ContainerSpec, took_ms: i64) -> Note {
    let (seconds, rest) = (took_ms / 1000, took_ms % 1000);
    let message = format!(
        "Successfully pulled image {:?} in {seconds}.{rest:03}s",
        container.image
    );
    of(pod, container, false, "Pulled", message)
}

/// A pull failed.
pub fn pull_failed(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    failure: &ImageFailure,
) -> Vec<Note> {
    let image = &container.image;
    let why = match failure.reason {
        ImageReason::InvalidName => format!(
            "Failed to apply default image tag {image:?}: {}",
            failure.message
        ),
        ImageReason::Pull | ImageReason::BackOff | ImageReason::NeverPull => {
            format!("Failed to pull image {image:?}: {}", failure.message)
        }
    };
    vec![
        of(pod, container, true, "Failed", why),
        of(
            pod,
            container,
            true,
            "Failed",
            format!("Error: {}", failure.reason.text()),
        ),
        of(
            pod,
            container,
            false,
            "BackOff",
            format!("Back-off pulling image {image:?}"),
        ),
    ]
}

/// A container was made.
pub fn created(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Note {
    of(
        pod,
        container,
        false,
        "Created",
        format!("Created container: {}", container.name),
    )
}

/// A container goes without something that the machine refused.
pub fn limited(pod: &v1::PodSpec, container: &v1::ContainerSpec, text: &str) -> Note {
    of(
        pod,
        container,
        true,
        "Limited",
        format!("Container {}: {text}", container.name),
    )
}

/// A container runs.
pub fn started(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Note {
    of(
        pod,
        container,
        false,
        "Started",
        format!("Started container {}", container.name),
    )
}

/// A container could not be made or started.
pub fn refused(pod: &v1::PodSpec, container: &v1::ContainerSpec, refusal: &Refusal) -> Note {
    let message = match refusal {
        Refusal::Config(message)
        | Refusal::Command(message)
        | Refusal::Memory(message)
        | Refusal::Runtime(message)
        | Refusal::Unanswered(message)
        | Refusal::Begun(message) => message,
    };
    of(pod, container, true, "Failed", format!("Error: {message}"))
}

/// An instance is being ended.
pub fn killing(pod: &v1::PodSpec, container: &v1::ContainerSpec, why: Why) -> Note {
    let name = &container.name;
    let message = match why {
        Why::Image => format!("Container {name} definition changed, will be restarted"),
        Why::Pod | Why::Probe | Why::Hook => format!("Stopping container {name}"),
    };
    of(pod, container, false, "Killing", message)
}

/// A restart is held back.
pub fn back_off(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Note {
    let message = format!(
        "Back-off restarting failed container {} in pod {}_{}({})",
        container.name, pod.name, pod.namespace, pod.uid
    );
    of(pod, container, true, "BackOff", message)
}

/// A hook failed.
pub fn hook_failed(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    kind: HookKind,
    message: &str,
) -> Note {
    let (reason, name) = match kind {
        HookKind::PostStart => ("FailedPostStartHook", "PostStartHook"),
        HookKind::PreStop => ("FailedPreStopHook", "PreStopHook"),
    };
    of(
        pod,
        container,
        true,
        reason,
        format!("{name} failed: {message}"),
    )
}

/// A probe failed.
pub fn unhealthy(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    kind: Kind,
    message: &str,
) -> Note {
    of(
        pod,
        container,
        true,
        "Unhealthy",
        format!("{} probe failed: {message}", kind.name()),
    )
}

/// A probe's verdict ends the container.
pub fn probe_kills(pod: &v1::PodSpec, container: &v1::ContainerSpec, kind: Kind) -> Note {
    let message = format!(
        "Container {} failed {} probe, will be restarted",
        container.name,
        kind.name().to_lowercase()
    );
    of(pod, container, false, "Killing", message)
}

/// A device of the node is gone, or is another one.
pub fn device_lost(settings: &Settings, device: &str) -> Note {
    let message = format!("network device {device} was removed or replaced");
    of_node(settings, true, "NetworkDeviceLost", message)
}

/// A device of the node could not be made whole.
pub fn device_failed(settings: &Settings, device: &str, error: &str) -> Note {
    let message = format!("network device {device} is not in use: {error}");
    of_node(settings, true, "NetworkDeviceFailed", message)
}

/// A device of the node is in use again.
pub fn device_back(settings: &Settings, device: &str) -> Note {
    let message = format!("network device {device} is in use again");
    of_node(settings, false, "NetworkDeviceRestored", message)
}

/// The node's address is gone, or there again.
pub fn address_changed(settings: &Settings, there: bool) -> Note {
    let address = settings.node_ip;
    if there {
        let message = format!("a link has the node's address {address} again");
        of_node(settings, false, "NodeAddressRestored", message)
    } else {
        let message = format!("no link has the node's address {address}");
        of_node(settings, true, "NodeAddressLost", message)
    }
}
