//! Hooks: defaults and rules. Not running them. Called by `container`.

use k8s_openapi::api::core::v1::{Container, Lifecycle, LifecycleHandler};

use crate::invalid::{Causes, Field};
use crate::probe;

pub(crate) fn set_defaults(hooks: &mut Lifecycle) {
    for hook in [&mut hooks.post_start, &mut hooks.pre_stop]
        .into_iter()
        .flatten()
    {
        if let Some(get) = &mut hook.http_get {
            probe::set_http_defaults(get);
        }
    }
}

pub(crate) fn validate(hooks: &Lifecycle, container: &Container, at: &Field, causes: &mut Causes) {
    let both = [
        ("postStart", &hooks.post_start),
        ("preStop", &hooks.pre_stop),
    ];
    for (field, hook) in both {
        if let Some(hook) = hook {
            validate_hook(hook, container, &at.child(field), causes);
        }
    }
}

fn validate_hook(hook: &LifecycleHandler, container: &Container, at: &Field, causes: &mut Causes) {
    let handlers = [
        hook.exec.is_some(),
        hook.http_get.is_some(),
        hook.tcp_socket.is_some(),
        hook.sleep.is_some(),
    ];
    match handlers.iter().filter(|there| **there).count() {
        0 => causes.required(at, "must specify a handler type"),
        1 => {}
        _several => causes.forbidden(at, "may not specify more than 1 handler type"),
    }
    if let Some(exec) = &hook.exec
        && exec
            .command
            .as_ref()
            .is_none_or(|command| command.is_empty())
    {
        causes.required(&at.child("exec.command"), "");
    }
    if let Some(get) = &hook.http_get {
        probe::validate_http(get, container, &at.child("httpGet"), causes);
    }
    if let Some(tcp) = &hook.tcp_socket {
        probe::validate_port(&tcp.port, container, &at.child("tcpSocket.port"), causes);
    }
    if let Some(sleep) = &hook.sleep
        && sleep.seconds < 0
    {
        let detail = "must be greater than or equal to 0";
        causes.invalid(&at.child("sleep.seconds"), sleep.seconds, detail);
    }
}
