//! What the world is after an action, if all goes well: the model that the
//! properties of the plans are tested on.
//!
//! It proves that plans converge and are quiet; what an action really does is
//! anchored by the tests on a real kernel.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proto::v1;

use crate::action::Action;
use crate::outcome::{Answer, Found, Outcome, Part};
use crate::settings::{Resources, ServiceLink, Settings};
use crate::time::Moment;
use crate::world::{ImageFacts, Life, Observed};

/// Settings of a node that exists in tests only.
pub fn settings() -> Settings {
    Settings {
        node_name: "n1".into(),
        node_ip: Ipv4Addr::new(172, 31, 0, 11),
        uplink: "eth0".into(),
        uplinks: vec!["eth0".into()],
        service: ServiceLink {
            ifindex: 2,
            mac: [0x0e, 0x58, 0, 0, 0, 1],
            mtu: 1500,
        },
        mtu: 1500,
        capacity: Resources {
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
        },
        reserved: Resources::default(),
        restart_backoff_base_ms: 10_000,
        restart_backoff_max_ms: 300_000,
        image_backoff_base_ms: 10_000,
        image_backoff_max_ms: 300_000,
        log_max_bytes: 0,
        pod_pids_limit: 4096,
        swap_bytes: 0,
    }
}

/// A pod with so many containers "c0", "c1", ...
pub fn pod_spec(uid: &str, containers: usize) -> v1::PodSpec {
    v1::PodSpec {
        uid: uid.into(),
        namespace: "default".into(),
        name: uid.into(),
        generation: 1,
        ips: vec!["10.244.1.5".into()],
        hostname: uid.into(),
        restart_policy: "Always".into(),
        termination_grace_period_seconds: 30,
        containers: (0..containers)
            .map(|i| v1::ContainerSpec {
                name: format!("c{i}"),
                image: "busybox".into(),
                image_pull_policy: "IfNotPresent".into(),
                command: vec!["/bin/true".into()],
                ..v1::ContainerSpec::default()
            })
            .collect(),
        ..v1::PodSpec::default()
    }
}

/// Begins an action and lets it succeed at once.
pub fn simulate(observed: &mut Observed, action: &Action, now: Moment) {
    let settings = settings();
    observed.begin(action, &settings);
    if let Some(outcome) = heard(observed, action).or_else(|| success(action, now)) {
        observed.take(outcome, &settings, now);
    }
}

/// The answer of a shim that has all that is thought to be in it.
fn heard(observed: &Observed, action: &Action) -> Option<Outcome> {
    let Action::AskShim { uid, listen } = action else {
        return None;
    };
    let containers = observed.pods.get(uid)?.containers.iter();
    let found = containers
        .filter(|(_, c)| matches!(c.life, Life::Created | Life::Running { .. }))
        .map(|(name, c)| Found {
            container: name.clone(),
            attempt: c.attempt,
            life: c.life.clone(),
        });
    Some(Outcome::ShimAnswered {
        uid: uid.clone(),
        listens: *listen,
        answer: Answer::Alive(found.collect()),
    })
}

/// What comes back when an action succeeds; `None` where nothing does, or where it
/// depends on more than the action.
pub fn success(action: &Action, now: Moment) -> Option<Outcome> {
    let part = |uid: &String, part| {
        Some(Outcome::Part {
            uid: uid.clone(),
            part,
            result: Ok(()),
        })
    };
    match action {
        Action::Take { .. }
        | Action::Stop { .. }
        | Action::Finish { .. }
        | Action::Restart { .. }
        | Action::Pass { .. }
        | Action::BeginKill { .. }
        | Action::RefuseImage { .. }
        | Action::RefuseConfig { .. }
        | Action::ReportHostPorts { .. }
        | Action::AskShim { .. }
        | Action::CancelPull { .. }
        | Action::ReportGone { .. }
        | Action::Forget { .. } => None,
        Action::DeleteContainer { instance } => Some(Outcome::Deleted {
            instance: instance.clone(),
            result: Ok(()),
        }),
        Action::Record { uid } => part(uid, Part::Record),
        Action::PinNamespaces { uid, .. } => part(uid, Part::Namespaces),
        Action::AttachPrograms { uid, .. } => part(uid, Part::Programs),
        Action::CreateCgroup { uid, .. } => part(uid, Part::Cgroup),
        Action::StartShim { uid, .. } => part(uid, Part::Shim),
        Action::MakeVolumes { uid, .. } => part(uid, Part::Volumes),
        Action::RemoveSandbox { uid, .. } => part(uid, Part::NoSandbox),
        Action::RemoveLeftovers { uid, .. } => part(uid, Part::NoLeftovers),
        Action::RemoveFolders { uid, .. } => part(uid, Part::NoFolders),
        Action::RemoveStray { uid, .. } => part(uid, Part::NoStray),
        Action::CreateLink { uid, .. } => Some(Outcome::Link {
            uid: uid.clone(),
            result: Ok(7),
        }),
        Action::FindImage { instance, image } => Some(Outcome::ImageFound {
            instance: instance.clone(),
            image: image.clone(),
            result: Ok(None),
        }),
        Action::PullImage {
            instance, image, ..
        } => Some(Outcome::ImagePulled {
            instance: instance.clone(),
            image: image.clone(),
            took_ms: 1,
            result: Ok(Arc::new(ImageFacts {
                image_id: "i".into(),
                ..ImageFacts::default()
            })),
        }),
        Action::CreateContainer { instance, .. } => Some(Outcome::Created {
            instance: instance.clone(),
            result: Ok(Vec::new()),
        }),
        Action::StartContainer { instance } => Some(Outcome::Started {
            instance: instance.clone(),
            result: Ok(now),
        }),
        // A program that ends when it is asked to.
        Action::Signal {
            instance, signal, ..
        } => Some(Outcome::Exited {
            instance: instance.clone(),
            exit: crate::world::Exit {
                code: 128 + signal,
                signal: *signal,
                reason: "Error".into(),
                finished: now,
                attempt: instance.attempt,
                ..Default::default()
            },
        }),
        Action::RunHook { instance, kind, .. } => Some(Outcome::HookDone {
            instance: instance.clone(),
            kind: *kind,
            result: Ok(()),
        }),
        Action::Probe { instance, kind, .. } => Some(Outcome::Probed {
            instance: instance.clone(),
            kind: *kind,
            result: Ok(()),
        }),
        Action::DeleteLink { name } => Some(Outcome::LinkDeleted {
            name: name.clone(),
            result: Ok(()),
        }),
        Action::DetachPrograms { ifindex } => Some(Outcome::Detached {
            ifindex: *ifindex,
            result: Ok(()),
        }),
        Action::PutServiceLink { .. } => Some(Outcome::ServiceLink { result: Ok(()) }),
        Action::AttachDevice { name, .. } => Some(Outcome::DeviceAttached {
            name: name.clone(),
            result: Ok(()),
        }),
        Action::PutRoute { route } => Some(Outcome::Route {
            route: route.clone(),
            deleted: false,
            result: Ok(()),
        }),
        Action::DeleteRoute { route } => Some(Outcome::Route {
            route: route.clone(),
            deleted: true,
            result: Ok(()),
        }),
        Action::PutEndpoint { .. }
        | Action::DeleteEndpoint { .. }
        | Action::PutNetwork { .. }
        | Action::DeleteNetwork { .. }
        | Action::PutSourceRange { .. }
        | Action::DeleteSourceRange { .. }
        | Action::PutBackend { .. }
        | Action::DeleteBackend { .. }
        | Action::PutTable { .. }
        | Action::DeleteTable { .. }
        | Action::PutFrontend { .. }
        | Action::DeleteFrontend { .. } => Some(Outcome::Written {
            action: Box::new(action.clone()),
        }),
    }
}
