//! Requests and limits: defaults, rules, quality of service. Not what they
//! become in a cgroup. Called by `container` and `podspec`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceFieldSelector, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::invalid::{Causes, Field};
use crate::quantity::{Quantity, canonicalise};

type List = BTreeMap<String, Text>;

pub(crate) fn set_defaults(r: &mut ResourceRequirements) {
    for list in [&mut r.requests, &mut r.limits] {
        for quantity in list.iter_mut().flatten().map(|(_, quantity)| quantity) {
            canonicalise(quantity);
        }
    }
}

/// A limit without a request is a request: all that read a pod's requests rely on
/// it. For pods, not for templates: a template's limit may be changed later, and
/// the request would stay.
pub(crate) fn set_requests(r: &mut ResourceRequirements) {
    for (name, limit) in r.limits.clone().unwrap_or_default() {
        r.requests
            .get_or_insert_default()
            .entry(name)
            .or_insert(limit);
    }
}

pub(crate) fn validate(r: &ResourceRequirements, at: &Field, causes: &mut Causes) {
    let (requests, limits) = (r.requests.as_ref(), r.limits.as_ref());
    for (field, list) in [("requests", requests), ("limits", limits)] {
        for (name, text) in list.into_iter().flatten() {
            validate_quantity(name, text, &at.child(field).key(name), causes);
        }
    }
    for (name, request) in requests.into_iter().flatten() {
        let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
            continue;
        };
        let (Some(asked), Some(most)) = (Quantity::of(request), Quantity::of(limit)) else {
            continue;
        };
        // By value: "1" and "1000m" are the same.
        if asked > most {
            let detail = format!("must be less than or equal to {name} limit of {}", limit.0);
            causes.invalid(&at.child("requests"), &request.0, detail);
        }
    }
}

fn validate_quantity(name: &str, text: &Text, at: &Field, causes: &mut Causes) {
    let known = ["cpu", "memory", "ephemeral-storage"];
    if !known.contains(&name) {
        causes.invalid(at, name, "resource not supported by Hydrofoil yet");
    }
    match Quantity::of(text) {
        None => causes.invalid(at, &text.0, crate::quantity::QuantityError),
        Some(q) if q.is_negative() => {
            causes.invalid(at, &text.0, "must be greater than or equal to 0");
        }
        Some(q) if name != "cpu" && !q.is_whole() => {
            causes.invalid(at, &text.0, "fractional byte value is not allowed");
        }
        Some(q) if name == "cpu" && !q.is_milli() => {
            causes.invalid(at, &text.0, "cpu must be a multiple of 1m");
        }
        Some(_) => {}
    }
}

/// Rules for a `resourceFieldRef`; in a volume it must name its container.
pub(crate) fn validate_field_ref(
    r: &ResourceFieldSelector,
    named: bool,
    at: &Field,
    causes: &mut Causes,
) {
    if named && r.container_name.as_deref().unwrap_or_default().is_empty() {
        causes.required(&at.child("containerName"), "");
    }
    let known = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = r.resource.as_str();
    if resource.is_empty() {
        causes.required(&at.child("resource"), "");
    } else if !known.contains(&resource) {
        causes.unsupported(&at.child("resource"), resource, &known);
    }
    let divisors: &[&str] = if resource.ends_with("cpu") {
        &["", "0", "1m", "1"]
    } else {
        &[
            "", "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi",
            "1Ei",
        ]
    };
    let divisor = r.divisor.as_ref().map(|d| d.0.as_str()).unwrap_or_default();
    if !divisors.contains(&divisor) {
        causes.unsupported(&at.child("divisor"), divisor, divisors);
    }
}

/// "Guaranteed": limits of CPU and memory everywhere, equal to the requests.
/// "BestEffort": neither anywhere. "Burstable": the rest.
pub(crate) fn qos_class<'a>(
    all: impl Iterator<Item = &'a Option<ResourceRequirements>>,
) -> &'static str {
    let (mut guaranteed, mut nothing, mut any) = (true, true, false);
    for r in all {
        any = true;
        let find = |list: Option<&List>, name: &str| {
            list.and_then(|list| list.get(name))
                .and_then(Quantity::of)
                .filter(|q| !q.is_zero())
        };
        for name in ["cpu", "memory"] {
            let limit = find(r.as_ref().and_then(|r| r.limits.as_ref()), name);
            let request = find(r.as_ref().and_then(|r| r.requests.as_ref()), name);
            nothing &= limit.is_none() && request.is_none();
            let equal = match (limit, request) {
                (Some(limit), Some(request)) => limit == request,
                (Some(_), None) | (None, Some(_)) | (None, None) => false,
            };
            guaranteed &= equal;
        }
    }
    match (any, guaranteed, nothing) {
        (true, true, _) => "Guaranteed",
        (_, _, true) => "BestEffort",
        (true | false, true | false, false) => "Burstable",
    }
}
