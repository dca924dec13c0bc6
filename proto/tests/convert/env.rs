//! Environment, command line, probes: of containers.

use proto::v1;
use serde_json::{Value, json};

use crate::world::{container, convert, convert_with, pairs, typed};

#[test]
fn resolves_the_environment() {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let resource = |name: &str, divisor: &str| json!({"resourceFieldRef": {"resource": name, "divisor": divisor}});
    let config = |key: &str| json!({"configMapKeyRef": {"name": "settings", "key": key}});
    let rows = [
        (json!({"value": "plain"}), "plain"),
        (json!({}), ""),
        (
            json!({"value": "$(BEFORE)-$(AFTER)-$$(BEFORE)"}),
            "b-$(AFTER)-$(BEFORE)",
        ),
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
fn later_variables_win() {
    let c = container(json!({
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "more"}},
            {"prefix": "P_", "secretRef": {"name": "keys"}}],
        "env": [{"name": "size", "value": "$(size)$(P_password)"}, {"name": "Z", "value": "1"}, {"name": "Z", "value": "2"}],
    }));
    assert_eq!(
        pairs(&c.env),
        [
            ("color", "red"),
            ("size", "9s3cret"),
            ("P_password", "s3cret"),
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
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "$(NOPE)"}]}),
            "missing value for \"$(NOPE)\" in subPathExpr",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/../.."}]}),
            "subPath \"a/../..\" must be a relative path without '..'",
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
fn names_the_services_of_the_namespace() {
    let spec = convert(json!({"containers": [{"name": "a", "env": [
        {"name": "URL", "value": "http://$(MY_DB_SERVICE_HOST)"}, {"name": "MY_DB_PORT", "value": "mine"}]}]}));
    let mut env = pairs(&spec.containers[0].env);
    env.sort_unstable();
    assert_eq!(
        env,
        [
            ("MY_DB_PORT", "mine"),
            ("MY_DB_PORT_53_UDP", "udp://10.96.0.5:53"),
            ("MY_DB_PORT_53_UDP_ADDR", "10.96.0.5"),
            ("MY_DB_PORT_53_UDP_PORT", "53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
            ("MY_DB_PORT_5432_TCP", "tcp://10.96.0.5:5432"),
            ("MY_DB_PORT_5432_TCP_ADDR", "10.96.0.5"),
            ("MY_DB_PORT_5432_TCP_PORT", "5432"),
            ("MY_DB_PORT_5432_TCP_PROTO", "tcp"),
            ("MY_DB_SERVICE_HOST", "10.96.0.5"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_DNS_U", "53"),
            ("MY_DB_SERVICE_PORT_SQL", "5432"),
            ("URL", "http://10.96.0.5"),
        ]
    );
    let without = convert(json!({"enableServiceLinks": false, "containers": [{"name": "a"}]}));
    assert_eq!(without.containers[0].env, []);
}

#[test]
fn the_control_plane_is_named_to_each_pod() {
    let master = |name: &str| {
        typed(
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": {
            "clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
        )
    };
    let named = |name: &str, links: bool| {
        let spec = json!({"enableServiceLinks": links, "containers": [{"name": "a"}]});
        let cluster = v1::ClusterConfig::default();
        let spec = convert_with(spec, &cluster, Some(&master(name)));
        let env = pairs(&spec.containers[0].env);
        let of_name = name.to_uppercase().replace('-', "_");
        let variables = env.iter().filter(|(key, _)| key.starts_with(&of_name));
        let mut variables: Vec<String> = variables
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        variables.sort_unstable();
        variables
    };
    let expected = [
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        "KUBERNETES_PORT_443_TCP_PORT=443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
    ];
    assert_eq!(named("kubernetes", true), expected);
    assert_eq!(named("kubernetes", false), expected);
}

#[test]
fn expands_commands_and_mounts() {
    let c = container(json!({
        "command": ["sh", "-c", "echo $(A) $$(A) $(NOPE)"], "args": ["$(A)"],
        "env": [{"name": "A", "value": "1"}],
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "x/$(A)", "readOnly": true}],
    }));
    assert_eq!(c.command, ["sh", "-c", "echo 1 $(A) $(NOPE)"]);
    assert_eq!(c.args, ["1"]);
    let mount = &c.mounts[0];
    assert_eq!(
        (
            mount.sub_path.as_str(),
            mount.read_only,
            mount.propagation.as_str()
        ),
        ("x/1", true, "None")
    );
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
