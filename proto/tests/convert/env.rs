//! Environment, command line, probes: of containers.

use proto::v1;
use serde_json::{Value, json};

use crate::world::{container, convert, pairs};

#[test]
fn resolves_the_environment() {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let resource = |name: &str, divisor: &str| json!({"resourceFieldRef": {"resource": name, "divisor": divisor}});
    let config = |key: &str| json!({"configMapKeyRef": {"name": "settings", "key": key}});
    let rows = [
        (json!({"value": "plain"}), "plain"),
        (json!({}), ""),
        (json!({"valueFrom": config("color")}), "blue"),
        (
            json!({"valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}),
            "s3cret",
        ),
        (json!({"valueFrom": field("metadata.name")}), "web-0"),
        (json!({"valueFrom": field("metadata.namespace")}), "team"),
        (json!({"valueFrom": field("metadata.uid")}), "u-1"),
        (json!({"valueFrom": field("metadata.labels['app']")}), "web"),
        (
            json!({"valueFrom": field("metadata.annotations['none']")}),
            "",
        ),
        (json!({"valueFrom": field("spec.nodeName")}), "n1"),
        (json!({"valueFrom": field("status.podIP")}), "10.244.1.7"),
        (json!({"valueFrom": field("status.hostIP")}), "172.31.0.11"),
        (json!({"valueFrom": resource("limits.cpu", "1m")}), "1500"),
        (json!({"valueFrom": resource("limits.cpu", "0")}), "2"),
        (json!({"valueFrom": resource("requests.cpu", "1m")}), "1500"),
        (json!({"valueFrom": resource("requests.memory", "1")}), "0"),
        (
            json!({"valueFrom": resource("limits.memory", "1Mi")}),
            "8192",
        ),
    ];
    for (source, expected) in rows {
        let mut variable = json!({"name": "X"});
        variable
            .as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        let c = container(json!({
            "env": [{"name": "BEFORE", "value": "b"}, variable, {"name": "AFTER", "value": "a"}],
            "resources": {"limits": {"cpu": "1500m"}},
        }));
        assert_eq!(c.config_error, "", "{source}");
        assert_eq!(
            pairs(&c.env),
            [("BEFORE", "b"), ("X", expected), ("AFTER", "a")],
            "{source}"
        );
    }
}

#[test]
fn variables_are_in_the_order_in_which_later_ones_win() {
    let c = container(json!({
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "more"}},
            {"prefix": "P_", "secretRef": {"name": "keys"}}],
        "env": [{"name": "size", "value": "$(size)$(P_password)"}, {"name": "Z", "value": "1"}, {"name": "Z", "value": "2"}],
    }));
    assert_eq!(
        pairs(&c.env),
        [
            ("color", "blue"),
            ("size", "9"),
            ("color", "red"),
            ("P_password", "s3cret"),
            ("size", "$(size)$(P_password)"),
            ("Z", "1"),
            ("Z", "2")
        ]
    );
}

#[test]
fn says_what_is_missing() {
    let from = |from: Value| json!({"env": [{"name": "A", "valueFrom": from}]});
    let key = |kind: &str, name: &str, key: &str, optional: bool| json!({kind: {"name": name, "key": key, "optional": optional}});
    let rows = [
        (
            from(key("configMapKeyRef", "none", "k", false)),
            "configmap \"none\" not found",
        ),
        (
            from(key("configMapKeyRef", "settings", "k", false)),
            "couldn't find key k in ConfigMap team/settings",
        ),
        (
            from(key("secretKeyRef", "none", "k", false)),
            "secret \"none\" not found",
        ),
        (
            from(key("secretKeyRef", "keys", "k", false)),
            "couldn't find key k in Secret team/keys",
        ),
        (from(key("configMapKeyRef", "none", "k", true)), ""),
        (from(key("configMapKeyRef", "settings", "k", true)), ""),
        (from(key("secretKeyRef", "keys", "k", true)), ""),
        (
            json!({"envFrom": [{"configMapRef": {"name": "none"}}]}),
            "configmap \"none\" not found",
        ),
        (
            json!({"envFrom": [{"secretRef": {"name": "none"}}]}),
            "secret \"none\" not found",
        ),
        (
            json!({"envFrom": [{"secretRef": {"name": "none", "optional": true}}]}),
            "",
        ),
        (
            from(json!({"fieldRef": {"fieldPath": "spec.odd"}})),
            "unsupported fieldPath: spec.odd",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": "nope"}}}),
            "couldn't find port: nope",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 0}}}),
            "couldn't find port: 0",
        ),
    ];
    for (fields, expected) in rows {
        let c = container(fields.clone());
        assert_eq!(c.config_error, expected, "{fields}");
        if expected.is_empty() {
            assert_eq!(c.env, [], "an optional variable is not set: {fields}");
        }
    }
}

#[test]
fn references_are_sent_as_they_are() {
    let c = container(json!({
        "command": ["sh", "-c", "echo $(A) $$(A) $(NOPE)"], "args": ["$(A)"],
        "env": [{"name": "A", "value": "$(WEB_SERVICE_HOST)"}, {"name": "B", "value": "1"},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "literal", "key": "reference"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "x/$(A)", "readOnly": true},
            {"name": "v", "mountPath": "/w", "subPath": "$(A)"}],
    }));
    assert_eq!(c.config_error, "");
    assert_eq!(c.command, ["sh", "-c", "echo $(A) $$(A) $(NOPE)"]);
    assert_eq!(c.args, ["$(A)"]);
    // What an object holds is no reference.
    let env = [
        ("A", "$(WEB_SERVICE_HOST)", true),
        ("B", "1", false),
        ("C", "$(A)", false),
    ];
    let sent: Vec<_> = c
        .env
        .iter()
        .map(|e| (&*e.name, &*e.value, e.expand))
        .collect();
    assert_eq!(sent, env);
    let mounts: Vec<_> = c
        .mounts
        .iter()
        .map(|m| {
            (
                &*m.sub_path,
                &*m.sub_path_expr,
                m.read_only,
                &*m.propagation,
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [("", "x/$(A)", true, "None"), ("$(A)", "", false, "None")]
    );
}

/// The agent adds them when it makes a container.
#[test]
fn variables_of_services_are_asked_for_and_not_sent() {
    for links in [true, false] {
        let spec = convert(json!({"enableServiceLinks": links, "containers": [{"name": "a"}]}));
        assert_eq!(spec.enable_service_links, links);
        assert_eq!(spec.containers[0].env, []);
    }
    let by_default = convert(json!({"containers": [{"name": "a"}]}));
    assert!(by_default.enable_service_links);
}

#[test]
fn resolves_ports_of_probes_and_hooks() {
    use proto::v1::handler::Handler;
    let c = container(json!({
        "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": "http", "path": "/ok", "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 7},
        "readinessProbe": {"tcpSocket": {"port": 9}},
        "startupProbe": {"grpc": {"port": 5}, "failureThreshold": 30},
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}, "preStop": {"sleep": {"seconds": 4}}},
    }));
    let liveness = c.liveness.unwrap();
    assert_eq!(liveness.period_seconds, 7);
    let Some(Handler::HttpGet(get)) = liveness.handler.unwrap().handler else {
        panic!("no httpGet")
    };
    assert_eq!(
        (get.port, get.path.as_str(), get.scheme.as_str()),
        (8080, "/ok", "HTTP")
    );
    assert_eq!(pairs(&get.headers), [("A", "b")]);
    let handler = |probe: Option<v1::Probe>| probe.unwrap().handler.unwrap().handler.unwrap();
    assert!(matches!(handler(c.readiness), Handler::TcpSocket(tcp) if tcp.port == 9));
    assert!(matches!(handler(c.startup), Handler::Grpc(grpc) if grpc.port == 5));
    assert!(
        matches!(c.post_start.unwrap().handler, Some(Handler::Exec(exec)) if exec.command == ["x"])
    );
    assert!(
        matches!(c.pre_stop.unwrap().handler, Some(Handler::Sleep(sleep)) if sleep.seconds == 4)
    );
}
