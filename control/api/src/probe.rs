//! Probes: defaults and rules. Not probing. Called by `container`.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::invalid::{Causes, Field};
use crate::name;

pub(crate) fn set_defaults(probe: &mut Probe) {
    let positive = |field: &mut Option<i32>, default: i32| {
        if field.is_none_or(|value| value == 0) {
            *field = Some(default);
        }
    };
    positive(&mut probe.timeout_seconds, 1);
    positive(&mut probe.period_seconds, 10);
    positive(&mut probe.success_threshold, 1);
    positive(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        set_http_defaults(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

pub(crate) fn set_http_defaults(get: &mut HTTPGetAction) {
    get.path.get_or_insert_with(|| "/".to_owned());
    get.scheme.get_or_insert_with(|| "HTTP".to_owned());
}

pub(crate) fn validate(
    probe: &Probe,
    readiness: bool,
    container: &Container,
    at: &Field,
    causes: &mut Causes,
) {
    let handlers = [
        probe.exec.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
        probe.grpc.is_some(),
    ];
    match handlers.iter().filter(|there| **there).count() {
        0 => causes.required(at, "must specify a handler type"),
        1 => {}
        _several => causes.forbidden(at, "may not specify more than 1 handler type"),
    }
    if let Some(exec) = &probe.exec
        && exec
            .command
            .as_ref()
            .is_none_or(|command| command.is_empty())
    {
        causes.required(&at.child("exec.command"), "");
    }
    if let Some(get) = &probe.http_get {
        validate_http(get, container, &at.child("httpGet"), causes);
    }
    if let Some(tcp) = &probe.tcp_socket {
        validate_port(&tcp.port, container, &at.child("tcpSocket.port"), causes);
    }
    if let Some(grpc) = &probe.grpc
        && let Err(detail) = name::port(grpc.port)
    {
        causes.invalid(&at.child("grpc.port"), grpc.port, detail);
    }
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (field, number) in numbers {
        if let Some(number) = number.filter(|number| *number < 0) {
            causes.invalid(
                &at.child(field),
                number,
                "must be greater than or equal to 0",
            );
        }
    }
    if !readiness
        && probe
            .success_threshold
            .is_some_and(|threshold| threshold != 1)
    {
        let threshold = probe.success_threshold.unwrap_or_default();
        causes.invalid(&at.child("successThreshold"), threshold, "must be 1");
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let at = at.child("terminationGracePeriodSeconds");
        if readiness {
            causes.invalid(&at, seconds, "must not be set for readinessProbes");
        } else if seconds <= 0 {
            causes.invalid(&at, seconds, "must be greater than 0");
        }
    }
}

pub(crate) fn validate_http(
    get: &HTTPGetAction,
    container: &Container,
    at: &Field,
    causes: &mut Causes,
) {
    if get.path.as_deref().unwrap_or_default().is_empty() {
        causes.required(&at.child("path"), "");
    }
    validate_port(&get.port, container, &at.child("port"), causes);
    let scheme = get.scheme.as_deref().unwrap_or_default();
    if !["HTTP", "HTTPS"].contains(&scheme) {
        causes.unsupported(&at.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for (i, header) in get.http_headers.iter().flatten().enumerate() {
        let token = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if header.name.is_empty() || !header.name.chars().all(token) {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
            causes.invalid(
                &at.child("httpHeaders").index(i).child("name"),
                &header.name,
                detail,
            );
        }
    }
}

/// A number, or the name of a port of the container.
pub(crate) fn validate_port(
    port: &IntOrString,
    container: &Container,
    at: &Field,
    causes: &mut Causes,
) {
    match port {
        IntOrString::Int(number) => {
            if let Err(detail) = name::port(*number) {
                causes.invalid(at, number, detail);
            }
        }
        IntOrString::String(text) => {
            let mut ports = container.ports.iter().flatten();
            if let Err(detail) = name::port_name(text) {
                causes.invalid(at, text, detail);
            } else if !ports.any(|port| port.name.as_deref() == Some(text)) {
                causes.invalid(at, text, "the container has no port of this name");
            }
        }
    }
}
