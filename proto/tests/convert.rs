//! Kubernetes objects to node specs, by rows: environment, files, probes, DNS,
//! services, and status back.
#![cfg(feature = "convert")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proto::convert::pod::{NodeFacts, PodInput, pod_spec, references};
use proto::convert::service::{ServiceIds, service};
use proto::convert::status;
use proto::v1;
use proto::v1::backend::State;
use proto::v1::volume::Source;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// The message of a pod with this spec, in a namespace with two ConfigMaps, two
/// Secrets and three Services.
fn convert(spec: Value) -> v1::PodSpec {
    convert_in(spec, &v1::ClusterConfig::default())
}

fn convert_in(spec: Value, cluster: &v1::ClusterConfig) -> v1::PodSpec {
    let pod: Pod = typed(json!({
        "metadata": {
            "name": "web-0", "namespace": "team", "uid": "u-1",
            "labels": {"app": "web", "tier": "a"}, "annotations": {"note": "say \"hi\"\n"},
        },
        "spec": spec,
    }));
    let maps: BTreeMap<&str, ConfigMap> = [
        (
            "settings",
            typed(json!({"data": {"color": "blue", "size": "9"}, "binaryData": {"raw": "AAE="}})),
        ),
        ("more", typed(json!({"data": {"color": "red"}}))),
    ]
    .into();
    let auth = "eyJhdXRocyI6eyJyLmV4YW1wbGUiOnsidXNlcm5hbWUiOiJ1IiwicGFzc3dvcmQiOiJwIn19fQ==";
    let secrets: BTreeMap<&str, Secret> = [
        ("keys", typed(json!({"data": {"password": "czNjcmV0"}}))),
        (
            "registry",
            typed(json!({"data": {".dockerconfigjson": auth}})),
        ),
    ]
    .into();
    let services: Vec<Service> = vec![
        typed(
            json!({"metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.96.0.5", "ports": [
            {"name": "sql", "port": 5432, "protocol": "TCP"}, {"name": "dns-u", "port": 53, "protocol": "UDP"}]}}),
        ),
        typed(
            json!({"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}),
        ),
        typed(json!({"metadata": {"name": "pending"}, "spec": {"ports": [{"port": 1}]}})),
    ];
    let node = NodeFacts {
        name: "n1".to_owned(),
        addresses: vec!["172.31.0.11".to_owned()],
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
    };
    pod_spec(&PodInput {
        pod: &pod,
        config_map: &|name| maps.get(name).cloned(),
        secret: &|name| secrets.get(name).cloned(),
        services: &services,
        node: &node,
        cluster,
        ips: vec!["10.244.1.7".to_owned()],
        identity: 42,
        generation: 3,
        stop_grace_seconds: None,
    })
}

fn container(fields: Value) -> v1::ContainerSpec {
    let mut container = json!({"name": "main", "image": "x"});
    container
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    convert(json!({"enableServiceLinks": false, "containers": [container]}))
        .containers
        .remove(0)
}

fn pairs(env: &[v1::EnvVar]) -> Vec<(&str, &str)> {
    env.iter()
        .map(|env| (env.name.as_str(), env.value.as_str()))
        .collect()
}

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
        (json!({"valueFrom": resource("requests.cpu", "1m")}), "0"),
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

/// path, contents, mode; or the error.
fn files(volume: Value) -> (Vec<(String, String, u32)>, bool, String) {
    let mut volume = volume;
    volume["name"] = json!("v");
    let spec = convert(json!({"volumes": [volume], "containers": [
        {"name": "main", "resources": {"limits": {"memory": "64Mi"}}}]}));
    let Some(Source::Files(files)) = spec.volumes[0].source.clone() else {
        panic!("no files: {:?}", spec.volumes)
    };
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    let list = files
        .files
        .iter()
        .map(|f| (f.path.clone(), text(&f.data), f.mode))
        .collect();
    (list, files.tmpfs, files.error)
}

#[test]
fn resolves_volumes_to_files() {
    let file = |path: &str, data: &str, mode: u32| (path.to_owned(), data.to_owned(), mode);
    let item = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let memory = json!({"path": "m", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}});
    let rows = [
        (
            json!({"configMap": {"name": "settings", "defaultMode": 0o644}}),
            false,
            "",
            vec![
                file("color", "blue", 0o644),
                file("raw", "\0\u{1}", 0o644),
                file("size", "9", 0o644),
            ],
        ),
        (
            json!({"configMap": {"name": "settings", "defaultMode": 0o400, "items": [
                {"key": "color", "path": "a/b"}, {"key": "size", "path": "s", "mode": 0o755}]}}),
            false,
            "",
            vec![file("a/b", "blue", 0o400), file("s", "9", 0o755)],
        ),
        (
            json!({"configMap": {"name": "none"}}),
            false,
            "configmap \"none\" not found",
            vec![],
        ),
        (
            json!({"configMap": {"name": "none", "optional": true}}),
            false,
            "",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "items": [{"key": "k", "path": "p"}]}}),
            false,
            "references non-existent config key: k",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "optional": true, "items": [{"key": "k", "path": "p"}]}}),
            false,
            "",
            vec![],
        ),
        (
            json!({"configMap": {"name": "settings", "items": [{"key": "color", "path": "../p"}]}}),
            false,
            "path \"../p\" must be relative and must not contain '..'",
            vec![],
        ),
        (
            json!({"secret": {"secretName": "keys"}}),
            true,
            "",
            vec![file("password", "s3cret", 0o644)],
        ),
        (
            json!({"secret": {"secretName": "none"}}),
            true,
            "secret \"none\" not found",
            vec![],
        ),
        (
            json!({"secret": {"secretName": "keys", "items": [{"key": "k", "path": "p"}]}}),
            true,
            "references non-existent secret key: k",
            vec![],
        ),
        (
            json!({"downwardAPI": {"items": [item("l", "metadata.labels"), item("n", "metadata.annotations"), memory]}}),
            true,
            "",
            vec![
                file("l", "app=\"web\"\ntier=\"a\"", 0o644),
                file("n", "note=\"say \\\"hi\\\"\\n\"", 0o644),
                file("m", "64", 0o644),
            ],
        ),
        (
            json!({"projected": {"defaultMode": 0o440, "sources": [
                {"configMap": {"name": "settings", "items": [{"key": "color", "path": "c"}]}},
                {"secret": {"name": "keys"}},
                {"configMap": {"name": "more", "items": [{"key": "color", "path": "c"}]}},
                {"downwardAPI": {"items": [item("name", "metadata.name")]}}]}}),
            true,
            "",
            vec![
                file("c", "red", 0o440),
                file("name", "web-0", 0o440),
                file("password", "s3cret", 0o440),
            ],
        ),
        (
            json!({"projected": {"sources": [{"secret": {"name": "none"}}]}}),
            true,
            "secret \"none\" not found",
            vec![],
        ),
        (
            json!({"persistentVolumeClaim": {"claimName": "x"}}),
            false,
            "the volume's source is not supported by Hydrofoil yet",
            vec![],
        ),
    ];
    for (volume, tmpfs, error, expected) in rows {
        assert_eq!(
            files(volume.clone()),
            (expected, tmpfs, error.to_owned()),
            "{volume}"
        );
    }
}

#[test]
fn passes_node_volumes_on() {
    let spec = convert(json!({"containers": [], "volumes": [
        {"name": "a", "emptyDir": {}},
        {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "c", "hostPath": {"path": "/srv", "type": "Directory"}}]}));
    let [a, b, c] = spec.volumes.as_slice() else {
        panic!("{:?}", spec.volumes)
    };
    assert!(
        matches!(&a.source, Some(Source::EmptyDir(dir)) if !dir.memory && dir.size_limit_bytes == 0)
    );
    assert!(
        matches!(&b.source, Some(Source::EmptyDir(dir)) if dir.memory && dir.size_limit_bytes == 1 << 20)
    );
    assert!(
        matches!(&c.source, Some(Source::HostPath(host)) if host.path == "/srv" && host.r#type == "Directory")
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

#[test]
fn dns_by_policy() {
    let cluster = v1::ClusterConfig {
        dns_servers: vec!["10.96.0.10".to_owned()],
        ..Default::default()
    };
    let searches = [
        "team.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
    ];
    let none: [&str; 0] = [];
    let rows = [
        (
            json!({}),
            &["10.96.0.10"][..],
            &searches[..],
            &["ndots:5"][..],
            false,
        ),
        (
            json!({"dnsPolicy": "Default"}),
            &none[..],
            &none[..],
            &none[..],
            true,
        ),
        (
            json!({"hostNetwork": true}),
            &none[..],
            &none[..],
            &none[..],
            true,
        ),
        (
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            &["10.96.0.10"][..],
            &searches[..],
            &["ndots:5"][..],
            false,
        ),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            &["1.1.1.1"][..],
            &["x"][..],
            &["ndots:2", "edns0"][..],
            false,
        ),
        (
            json!({"dnsConfig": {"searches": ["cluster.local", "x"], "options": [{"name": "ndots", "value": "2"}]}}),
            &["10.96.0.10"][..],
            &[
                "team.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "x",
            ][..],
            &["ndots:2"][..],
            false,
        ),
    ];
    for (fields, servers, searches, options, from_node) in rows {
        let mut spec = json!({"containers": []});
        spec.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let dns = convert_in(spec, &cluster).dns.unwrap();
        assert_eq!(dns.nameservers, servers, "{fields}");
        assert_eq!(dns.searches, searches, "{fields}");
        assert_eq!(dns.options, options, "{fields}");
        assert_eq!(dns.from_node, from_node, "{fields}");
    }
    let dns = convert(json!({"containers": []})).dns.unwrap();
    assert!(
        dns.from_node,
        "without a DNS server in the cluster the node's is used"
    );
}

#[test]
fn carries_the_rest_of_the_pod() {
    let spec = convert(json!({
        "containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "0.1"}},
            "securityContext": {"runAsUser": 7, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seccompProfile": {"type": "Unconfined"}}}],
        "initContainers": [{"name": "b", "restartPolicy": "Always"}],
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}],
        "imagePullSecrets": [{"name": "registry"}, {"name": "none"}],
        "securityContext": {"fsGroup": 5, "runAsNonRoot": true, "sysctls": [{"name": "net/ipv4/x", "value": "1"}]},
        "readinessGates": [{"conditionType": "example.com/ready"}],
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
    }));
    assert_eq!(
        (
            spec.uid.as_str(),
            spec.namespace.as_str(),
            spec.name.as_str()
        ),
        ("u-1", "team", "web-0")
    );
    assert_eq!(
        (spec.generation, spec.identity, spec.hostname.as_str()),
        (3, 42, "web-0")
    );
    assert_eq!(
        (
            spec.restart_policy.as_str(),
            spec.termination_grace_period_seconds
        ),
        ("Never", 5)
    );
    assert_eq!(
        (spec.stop_grace_seconds, spec.qos_class.as_str()),
        (None, "Burstable")
    );
    assert_eq!(spec.labels.len(), 2);
    let resources = spec.containers[0].resources.unwrap();
    let numbers = (
        resources.cpu_request_millis,
        resources.cpu_limit_millis,
        resources.memory_request_bytes,
        resources.memory_limit_bytes,
    );
    assert_eq!(
        numbers,
        (100, 500, 1 << 30, 1 << 30),
        "a limit without a request is a request"
    );
    let security = spec.containers[0].security.clone().unwrap();
    assert_eq!(
        (security.run_as_user, security.seccomp.as_str()),
        (Some(7), "Unconfined")
    );
    assert_eq!(
        (security.capabilities_add, security.capabilities_drop),
        (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()])
    );
    assert_eq!(spec.init_containers[0].restart_policy, "Always");
    assert_eq!(spec.host_aliases[0].hostnames, ["x", "y"]);
    assert_eq!(
        spec.pull_secrets.len(),
        1,
        "a secret that is not there gives nothing"
    );
    assert_eq!(spec.pull_secrets[0].registry, "r.example");
    let security = spec.security.unwrap();
    assert_eq!(
        (security.fs_group, security.run_as_non_root),
        (Some(5), true)
    );
    assert_eq!(
        security.sysctls.get("net.ipv4.x").map(String::as_str),
        Some("1")
    );
    assert_eq!(spec.readiness_gates, ["example.com/ready"]);

    let host = convert(
        json!({"hostNetwork": true, "containers": [{"name": "a", "env": [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}]}),
    );
    assert_eq!((host.ips.len(), host.hostname.as_str()), (0, ""));
    assert!(pairs(&host.containers[0].env).contains(&("IP", "172.31.0.11")));
}

#[test]
fn names_what_a_pod_refers_to() {
    let pod: Pod = typed(json!({"spec": {
        "containers": [{"name": "a",
            "envFrom": [{"configMapRef": {"name": "c1"}}, {"secretRef": {"name": "s1"}}],
            "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
                {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}]}],
        "initContainers": [{"name": "b", "envFrom": [{"configMapRef": {"name": "c3"}}]}],
        "volumes": [{"name": "v", "configMap": {"name": "c4"}}, {"name": "w", "secret": {"secretName": "s3"}},
            {"name": "p", "projected": {"sources": [{"configMap": {"name": "c5"}}, {"secret": {"name": "s4"}}]}}],
        "imagePullSecrets": [{"name": "s5"}],
    }}));
    let found = references(&pod);
    assert_eq!(
        found.config_maps.iter().collect::<Vec<_>>(),
        ["c1", "c2", "c3", "c4", "c5"]
    );
    assert_eq!(
        found.secrets.iter().collect::<Vec<_>>(),
        ["s1", "s2", "s3", "s4", "s5"]
    );
}

#[test]
fn joins_services_and_endpoints() {
    let web: Service = typed(
        json!({"metadata": {"name": "web", "namespace": "team"}, "spec": {"clusterIP": "10.96.0.5", "ports": [
        {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
    );
    let slice = |ports: Value, endpoints: Value| -> EndpointSlice {
        typed(json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
    };
    let http = json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "TCP"}]);
    let end = |ip: &str, conditions: Value| {
        json!({"addresses": [ip], "conditions": conditions, "nodeName": "n1",
            "targetRef": {"kind": "Pod", "uid": format!("u-{ip}"), "namespace": "team", "name": "p"}})
    };
    let slices = [
        slice(
            http.clone(),
            json!([
                end("10.244.1.10", json!({"ready": true})),
                end("10.244.1.9", json!({})),
                end(
                    "10.244.1.11",
                    json!({"ready": false, "serving": true, "terminating": true})
                ),
                end("10.244.1.12", json!({"ready": false})),
            ]),
        ),
        slice(
            http,
            json!([
                end("10.244.1.11", json!({"ready": true})),
                end("not an address", json!({}))
            ]),
        ),
    ];
    let port_ids = |name: &str| if name == "http" { 5 } else { 6 };
    let ids = ServiceIds {
        service: 9,
        port: &port_ids,
    };
    let message = service(&web, &slices, &ids, 4).unwrap();
    assert_eq!(
        (message.id, message.generation, message.name.as_str()),
        (9, 4, "web")
    );
    assert_eq!(message.cluster_ips, ["10.96.0.5"]);
    let [first, second] = message.ports.as_slice() else {
        panic!("{:?}", message.ports)
    };
    assert_eq!(
        (first.id, first.port, first.protocol.as_str()),
        (5, 80, "TCP")
    );
    let backends: Vec<(&str, u32, State)> = first
        .backends
        .iter()
        .map(|b| (b.address.as_str(), b.port, b.state()))
        .collect();
    assert_eq!(
        backends,
        [
            ("10.244.1.9", 8080, State::Active),
            ("10.244.1.10", 8080, State::Active),
            ("10.244.1.11", 8080, State::Active),
            ("10.244.1.12", 8080, State::Terminating),
        ]
    );
    assert_eq!(
        (
            first.backends[0].pod.as_str(),
            first.backends[0].pod_name.as_str(),
            first.backends[0].node.as_str()
        ),
        ("u-10.244.1.9", "team/p", "n1")
    );
    assert_eq!(
        (second.id, second.backends.len()),
        (6, 0),
        "another protocol is another port"
    );

    for ip in [json!("None"), json!(""), json!(null)] {
        let mut without = web.clone();
        without.spec.as_mut().unwrap().cluster_ip = serde_json::from_value(ip.clone()).unwrap();
        assert_eq!(service(&without, &slices, &ids, 1), None, "{ip}");
    }
}

#[test]
fn status_is_kubernetes_own() {
    use proto::v1::container_state::{self as state, State as Is};
    let ran = v1::ContainerState {
        state: Some(Is::Terminated(state::Terminated {
            exit_code: 137,
            signal: 9,
            reason: "OOMKilled".to_owned(),
            started_ms: 1_767_323_045_000,
            finished_ms: 1_767_323_046_999,
            ..Default::default()
        })),
    };
    let running = v1::ContainerState {
        state: Some(Is::Running(state::Running {
            started_ms: 1_767_323_047_000,
        })),
    };
    let message = v1::PodStatus {
        phase: "Running".to_owned(),
        pod_ips: vec!["10.244.1.7".to_owned()],
        host_ip: "172.31.0.11".to_owned(),
        start_time_ms: 1_767_323_045_000,
        conditions: vec![v1::Condition {
            r#type: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_ms: 1_767_323_047_000,
            ..Default::default()
        }],
        containers: vec![v1::ContainerStatus {
            name: "a".to_owned(),
            image: "x".to_owned(),
            container_id: "foil://1".to_owned(),
            ready: true,
            started: true,
            restart_count: 1,
            state: Some(running),
            last_state: Some(ran),
            ..Default::default()
        }],
        qos_class: "Burstable".to_owned(),
        ..Default::default()
    };
    let old = json!({"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]});
    let got = status::pod_status(&message, Some(&old));
    assert_eq!(
        got,
        json!({
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:07Z"},
            ],
            "hostIP": "172.31.0.11", "hostIPs": [{"ip": "172.31.0.11"}],
            "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}],
            "startTime": "2026-01-02T03:04:05Z",
            "containerStatuses": [{
                "name": "a", "ready": true, "started": true, "restartCount": 1, "image": "x", "imageID": "",
                "containerID": "foil://1",
                "state": {"running": {"startedAt": "2026-01-02T03:04:07Z"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "signal": 9,
                    "startedAt": "2026-01-02T03:04:05Z", "finishedAt": "2026-01-02T03:04:06Z"}},
            }],
            "qosClass": "Burstable",
        })
    );
    let kind = control_api::find("", "v1", "Pod").unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}, "status": got});
    control_api::admit_status(&pod, kind, &pod).unwrap();
}

#[test]
fn node_status_and_events_are_admitted() {
    let message = v1::NodeStatus {
        addresses: vec!["172.31.0.11".to_owned()],
        hostname: "n1".to_owned(),
        cpu_millis: 2500,
        memory_bytes: 8 << 30,
        max_pods: 110,
        conditions: vec![v1::Condition {
            r#type: "Ready".to_owned(),
            status: "True".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let got = status::node_status(&message, "0.0.0", None);
    assert_eq!(
        got["capacity"],
        json!({"cpu": "2500m", "memory": "8388608Ki", "pods": "110"})
    );
    assert_eq!(
        got["addresses"][0],
        json!({"type": "InternalIP", "address": "172.31.0.11"})
    );
    let kind = control_api::find("", "v1", "Node").unwrap();
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": got});
    control_api::admit_status(&node, kind, &node).unwrap();

    let kind = control_api::find("", "v1", "Event").unwrap();
    for (about, namespace) in [("Pod", "team"), ("Node", "")] {
        let event = v1::NodeEvent {
            kind: about.to_owned(),
            namespace: namespace.to_owned(),
            name: "web-0".to_owned(),
            r#type: "Warning".to_owned(),
            reason: "BackOff".to_owned(),
            time_ms: 1_767_323_045_000,
            ..Default::default()
        };
        let object = status::event(&event, "n1");
        assert_eq!(object["lastTimestamp"], "2026-01-02T03:04:05Z");
        control_api::admit(&object, kind, None).unwrap_or_else(|error| panic!("{error}"));
    }
}
