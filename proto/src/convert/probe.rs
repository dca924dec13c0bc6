//! Probes and hooks, with named ports resolved to numbers. Called by `container`.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::v1;
use crate::v1::handler::{self, Handler as Kind};

/// A probe; the error names a port that the container does not have.
pub fn probe(probe: &Probe, container: &Container) -> Result<v1::Probe, String> {
    let handler = if let Some(exec) = &probe.exec {
        Some(of_exec(exec))
    } else if let Some(get) = &probe.http_get {
        Some(of_http(get, container)?)
    } else if let Some(tcp) = &probe.tcp_socket {
        Some(of_tcp(tcp, container)?)
    } else {
        probe.grpc.as_ref().map(|grpc| {
            Kind::Grpc(handler::GrpcProbe {
                port: number(Some(grpc.port)),
                service: grpc.service.clone().unwrap_or_default(),
            })
        })
    };
    Ok(v1::Probe {
        handler: Some(v1::Handler { handler }),
        initial_delay_seconds: number(probe.initial_delay_seconds),
        period_seconds: number(probe.period_seconds),
        timeout_seconds: number(probe.timeout_seconds),
        success_threshold: number(probe.success_threshold),
        failure_threshold: number(probe.failure_threshold),
        termination_grace_period_seconds: probe.termination_grace_period_seconds,
    })
}

/// A hook; the error names a port that the container does not have.
pub fn hook(hook: &LifecycleHandler, container: &Container) -> Result<v1::Handler, String> {
    let handler = if let Some(exec) = &hook.exec {
        Some(of_exec(exec))
    } else if let Some(get) = &hook.http_get {
        Some(of_http(get, container)?)
    } else if let Some(tcp) = &hook.tcp_socket {
        Some(of_tcp(tcp, container)?)
    } else {
        hook.sleep.as_ref().map(|sleep| {
            Kind::Sleep(handler::Sleep {
                seconds: sleep.seconds,
            })
        })
    };
    Ok(v1::Handler { handler })
}

/// Not below zero.
fn number(value: Option<i32>) -> u32 {
    u32::try_from(value.unwrap_or_default()).unwrap_or_default()
}

fn of_exec(exec: &ExecAction) -> Kind {
    Kind::Exec(handler::Exec {
        command: exec.command.clone().unwrap_or_default(),
    })
}

fn of_http(get: &HTTPGetAction, container: &Container) -> Result<Kind, String> {
    let headers = get.http_headers.iter().flatten();
    let headers = headers.map(|header| v1::EnvVar {
        name: header.name.clone(),
        value: header.value.clone(),
        expand: false,
    });
    Ok(Kind::HttpGet(handler::HttpGet {
        host: get.host.clone().unwrap_or_default(),
        port: port(&get.port, container)?,
        path: get.path.clone().unwrap_or_default(),
        scheme: get.scheme.clone().unwrap_or_default(),
        headers: headers.collect(),
    }))
}

fn of_tcp(tcp: &TCPSocketAction, container: &Container) -> Result<Kind, String> {
    Ok(Kind::TcpSocket(handler::TcpSocket {
        host: tcp.host.clone().unwrap_or_default(),
        port: port(&tcp.port, container)?,
    }))
}

fn port(port: &IntOrString, container: &Container) -> Result<u32, String> {
    let found = match port {
        IntOrString::Int(port) => Some(*port),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port)
        }
    };
    let shown = match port {
        IntOrString::Int(port) => port.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    let valid = found.filter(|port| (1..=65535).contains(port));
    valid
        .map(|port| number(Some(port)))
        .ok_or_else(|| format!("couldn't find port: {shown}"))
}
