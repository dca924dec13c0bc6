//! Probes in one line: what is asked, and how often.

use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// "http-get http://:8080/ delay=0s timeout=1s period=10s #success=1 #failure=3"
pub(super) fn line(probe: &Probe) -> String {
    let what = if let Some(exec) = &probe.exec {
        format!(
            "exec [{}]",
            exec.command.as_deref().unwrap_or_default().join(" ")
        )
    } else if let Some(get) = &probe.http_get {
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let host = get.host.as_deref().unwrap_or_default();
        format!(
            "http-get {scheme}://{host}:{}{}",
            port(&get.port),
            get.path.as_deref().unwrap_or("/")
        )
    } else if let Some(socket) = &probe.tcp_socket {
        format!(
            "tcp-socket {}:{}",
            socket.host.as_deref().unwrap_or_default(),
            port(&socket.port)
        )
    } else if let Some(grpc) = &probe.grpc {
        format!(
            "grpc <pod>:{} {}",
            grpc.port,
            grpc.service.as_deref().unwrap_or_default()
        )
        .trim_end()
        .to_string()
    } else {
        "unknown".to_string()
    };
    format!(
        "{what} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay_seconds.unwrap_or(0),
        probe.timeout_seconds.unwrap_or(1),
        probe.period_seconds.unwrap_or(10),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3),
    )
}

fn port(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}
