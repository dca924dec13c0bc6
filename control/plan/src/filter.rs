//! The scheduler's filters: which nodes can take a pod, and why the others cannot, in
//! Kubernetes' words.
//!
//! Called by `schedule.rs`; which of them is best is `score.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::hostport::HostPort;
use crate::place::Place;
use crate::pod::lacks_address;
use crate::taint;
use crate::usage::Usage;

/// What keeps a pod off a node, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unfit<'a> {
    /// However much is left there.
    Never(&'static str),
    /// The key and value of a taint.
    Taint(&'a str, &'a str),
    /// It has too little left.
    Full(&'static str),
}

impl std::fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unfit::Never(text) | Unfit::Full(text) => f.write_str(text),
            Unfit::Taint(key, value) => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
        }
    }
}

const NO_ADDRESS: Unfit<'static> = Unfit::Full("node(s) had no free pod IP addresses");

/// Why no node can take a pod.
pub(crate) struct Nowhere {
    pub(crate) message: String,
    /// Some node would take it if it had more left.
    pub(crate) room: bool,
}

pub(crate) fn nowhere(nodes: usize, reasons: &BTreeMap<Unfit<'_>, u32>) -> Nowhere {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(why, n)| format!("{n} {why}"))
        .collect();
    parts.sort_unstable();
    let message = if nodes == 0 {
        "no nodes available to schedule pods".to_owned()
    } else {
        format!("0/{nodes} nodes are available: {}.", parts.join(", "))
    };
    Nowhere {
        message,
        room: reasons.keys().any(|why| matches!(why, Unfit::Full(_))),
    }
}

/// Says all that keeps the pod off this node; nothing: it fits.
pub(crate) fn unfit<'a>(
    pod: &Pod,
    asked: &Usage,
    ports: &[HostPort],
    place: &Place<'a>,
    say: &mut impl FnMut(Unfit<'a>),
) {
    let Some(spec) = &pod.spec else {
        return say(Unfit::Never("node(s) cannot run an empty pod"));
    };
    if let Some(found) = taint::untolerated(place.node, spec, |t| t.effect != "PreferNoSchedule") {
        let value = found.value.as_deref().unwrap_or("");
        return say(Unfit::Taint(&found.key, value));
    }
    if place.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)
        && !taint::tolerates(spec, &taint::unschedulable())
    {
        return say(Unfit::Never("node(s) were unschedulable"));
    }
    if !place.ready || place.free.is_empty() {
        return say(Unfit::Never("node(s) were not ready"));
    }
    let labels = place.node.metadata.labels.as_ref();
    let wanted = spec.node_selector.iter().flatten();
    if wanted
        .into_iter()
        .any(|(k, v)| labels.and_then(|l| l.get(k)) != Some(v))
    {
        return say(Unfit::Never(
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let taken = |port: &HostPort| {
        let before = place.host_ports.is_some_and(|had| had.conflicts(port));
        before || place.new_ports.conflicts(port)
    };
    if ports.iter().any(taken) {
        say(Unfit::Full(
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    if place.addresses == 0 && lacks_address(pod) {
        say(NO_ADDRESS);
    }
    let mut short = |asked: u64, used: u64, offered: u64, text| {
        if asked > 0 && used.saturating_add(asked) > offered {
            say(Unfit::Full(text));
        }
    };
    let (used, offered) = (&place.used, &place.offered);
    short(
        asked.cpu_millis,
        used.cpu_millis,
        offered.cpu_millis,
        "Insufficient cpu",
    );
    short(
        asked.memory_bytes,
        used.memory_bytes,
        offered.memory_bytes,
        "Insufficient memory",
    );
    short(asked.pods, used.pods, offered.pods, "Too many pods");
}
