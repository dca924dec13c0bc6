//! What is refused, with which field and in which words.

use control_api::{admit, find_for};
use serde_json::{Value, json};

use crate::manifest::{deployment, node, pod, refused, service, with};

fn node_port() -> Value {
    with(&service(), "spec.type", json!("NodePort"))
}

fn balancer() -> Value {
    with(&service(), "spec.type", json!("LoadBalancer"))
}

fn affine() -> Value {
    with(&service(), "spec.sessionAffinity", json!("ClientIP"))
}

#[test]
fn refuses_by_field_and_in_kubernetes_words() {
    let c = "spec.containers[0]";
    let rows: Vec<(Value, String, Value, String)> = vec![
        (pod(), "metadata.name".into(), json!("Web_1"), "metadata.name: Invalid value: \"Web_1\": a lowercase RFC 1123 subdomain must consist of".into()),
        (pod(), "metadata.name".into(), json!(null), "metadata.name: Required value: name or generateName is required".into()),
        (pod(), "metadata.labels.app".into(), json!("a b"), "metadata.labels[app]: Invalid value: \"a b\": a valid label must be".into()),
        (pod(), "spec".into(), json!(null), "spec.containers: Required value".into()),
        (pod(), "spec.containers".into(), json!([]), "spec.containers: Required value".into()),
        (pod(), format!("{c}.name"), json!("a.b"), format!("{c}.name: Invalid value: \"a.b\": a lowercase RFC 1123 label")),
        (pod(), format!("{c}.image"), json!(null), format!("{c}.image: Required value")),
        (pod(), format!("{c}.image"), json!("x".repeat(1025)), format!("{c}.image: Too long: may not be more than 1024 bytes")),
        (pod(), format!("{c}.imagePullPolicy"), json!("Sometimes"), format!("{c}.imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"")),
        (pod(), format!("{c}.ports[0].containerPort"), json!(70000), format!("{c}.ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive")),
        (pod(), format!("{c}.ports[0].containerPort"), json!(null), format!("{c}.ports[0].containerPort: Required value")),
        (pod(), format!("{c}.ports[0].protocol"), json!("tcp"), format!("{c}.ports[0].protocol: Unsupported value: \"tcp\"")),
        (pod(), format!("{c}.ports[0].name"), json!("a-name-that-is-long"), format!("{c}.ports[0].name: Invalid value: \"a-name-that-is-long\": must be no more than 15 characters")),
        (pod(), format!("{c}.env[0].name"), json!("A=B"), format!("{c}.env[0].name: Invalid value: \"A=B\": a valid environment variable name")),
        (pod(), format!("{c}.env[0].valueFrom"), json!({"fieldRef": {"fieldPath": "metadata.name"}}), format!("{c}.env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty")),
        (pod(), format!("{c}.env[0]"), json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}), format!("{c}.env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.foo\"")),
        (pod(), format!("{c}.env[0]"), json!({"name": "A", "valueFrom": {}}), format!("{c}.env[0].valueFrom: Invalid value: \"\": must specify one of")),
        (pod(), format!("{c}.resources.requests.cpu"), json!("300m"), format!("{c}.resources.requests: Invalid value: \"300m\": must be less than or equal to cpu limit of 200m")),
        (pod(), format!("{c}.resources.limits.cpu"), json!("lots"), format!("{c}.resources.limits[cpu]: Invalid value: \"lots\": quantities must match the regular expression")),
        (pod(), format!("{c}.resources.limits.cpu"), json!("-1"), format!("{c}.resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0")),
        (pod(), format!("{c}.volumeMounts[0].name"), json!("nope"), format!("{c}.volumeMounts[0].name: Not found: \"nope\"")),
        (pod(), format!("{c}.volumeMounts[0].mountPath"), json!(""), format!("{c}.volumeMounts[0].mountPath: Required value")),
        (pod(), format!("{c}.volumeMounts[0].subPath"), json!("../x"), format!("{c}.volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'")),
        (pod(), format!("{c}.readinessProbe"), json!({}), format!("{c}.readinessProbe: Required value: must specify a handler type")),
        (pod(), format!("{c}.readinessProbe.httpGet.port"), json!("nope"), format!("{c}.readinessProbe.httpGet.port: Invalid value: \"nope\": the container has no port of this name")),
        (pod(), format!("{c}.readinessProbe.periodSeconds"), json!(-1), format!("{c}.readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0")),
        (pod(), format!("{c}.restartPolicy"), json!("Always"), format!("{c}.restartPolicy: Forbidden: may not be set for non-init containers")),
        (pod(), format!("{c}.securityContext.runAsUser"), json!(-5), format!("{c}.securityContext.runAsUser: Invalid value: -5: must be between")),
        (pod(), "spec.restartPolicy".into(), json!("Maybe"), "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"".into()),
        (pod(), "spec.dnsPolicy".into(), json!("None"), "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver".into()),
        (pod(), "spec.volumes[0].emptyDir".into(), json!({}), "spec.volumes[0]: Forbidden: may not specify more than 1 volume type".into()),
        (pod(), "spec.volumes[0].configMap.name".into(), json!(""), "spec.volumes[0].configMap.name: Required value".into()),
        (pod(), "spec.volumes[0].configMap.defaultMode".into(), json!(4096), "spec.volumes[0].configMap.defaultMode: Invalid value: 4096: must be a number between 0 and 0777".into()),
        (pod(), "spec.terminationGracePeriodSeconds".into(), json!(-2), "spec.terminationGracePeriodSeconds: Invalid value: -2".into()),
        (pod(), "spec.activeDeadlineSeconds".into(), json!(0), "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive".into()),
        (deployment(), "spec.template.spec.activeDeadlineSeconds".into(), json!(5), "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported".into()),
        (pod(), "spec.tolerations".into(), json!([{"key": "a", "operator": "In"}]), "spec.tolerations[0].operator: Unsupported value: \"In\": supported values: \"Equal\", \"Exists\"".into()),
        (pod(), "spec.tolerations".into(), json!([{"value": "a"}]), "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty".into()),
        (pod(), "spec.tolerations".into(), json!([{"key": "a", "tolerationSeconds": 1}]), "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute'".into()),
        (node(), "spec.taints".into(), json!([{"key": "a", "effect": "Never"}]), "spec.taints[0].effect: Unsupported value: \"Never\"".into()),
        (node(), "spec.taints".into(), json!([{"key": "a", "effect": "NoExecute"}, {"key": "a", "effect": "NoExecute"}]), "spec.taints[1]: Duplicate value: \"a:NoExecute\"".into()),
        (node(), "spec.podCIDR".into(), json!("10.0.0"), "spec.podCIDRs[0]: Invalid value: \"10.0.0\": must be a valid CIDR value".into()),
        (deployment(), "spec.selector.matchLabels.app".into(), json!("other"), "spec.template.metadata.labels: Invalid value: {\"app\": \"web\"}: `selector` does not match template `labels`".into()),
        (deployment(), "spec.selector".into(), json!({}), "spec.selector: Required value: empty selector is invalid for a workload".into()),
        (deployment(), "spec.selector.matchExpressions".into(), json!([{"key": "a", "operator": "In"}]), "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'".into()),
        (deployment(), "spec.replicas".into(), json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0".into()),
        (deployment(), "spec.strategy".into(), json!({"type": "Blue"}), "spec.strategy.type: Unsupported value: \"Blue\"".into()),
        (deployment(), "spec.strategy".into(), json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}), "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0".into()),
        (deployment(), "spec.strategy".into(), json!({"rollingUpdate": {"maxSurge": "many"}}), "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"many\": a valid percent string".into()),
        (deployment(), "spec.template.spec.restartPolicy".into(), json!("Never"), "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"".into()),
        (deployment(), "spec.template.spec".into(), json!(null), "spec.template.spec: Required value".into()),
        (deployment(), "spec.template.spec.containers[0].image".into(), json!(""), "spec.template.spec.containers[0].image: Required value".into()),
        (deployment(), "spec.minReadySeconds".into(), json!(600), "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds".into()),
        (service(), "metadata.name".into(), json!("1web"), "metadata.name: Invalid value: \"1web\": a DNS-1035 label must consist of".into()),
        (service(), "spec.ports".into(), json!([]), "spec.ports: Required value".into()),
        (service(), "spec.ports".into(), json!([{"port": 1}, {"port": 2}]), "spec.ports[0].name: Required value".into()),
        (service(), "spec.ports".into(), json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]), "spec.ports[1].name: Duplicate value: \"a\"".into()),
        (service(), "spec.ports".into(), json!([{"name": "a", "port": 1}, {"name": "b", "port": 1}]), "spec.ports[1]: Duplicate value: \"1/TCP\"".into()),
        (service(), "spec.ports[0].port".into(), json!(0), "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive".into()),
        (service(), "spec.ports[0].targetPort".into(), json!("Bad_Name"), "spec.ports[0].targetPort: Invalid value: \"Bad_Name\": must contain only".into()),
        (service(), "spec.type".into(), json!("External"), "spec.type: Unsupported value: \"External\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"".into()),
        (service(), "spec.ports[0].nodePort".into(), json!(30080), "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'".into()),
        (node_port(), "spec.clusterIP".into(), json!("None"), "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services".into()),
        (node_port(), "spec.ports[0].nodePort".into(), json!(-1), "spec.ports[0].nodePort: Invalid value: -1: must be between 1 and 65535, inclusive".into()),
        (node_port(), "spec.ports".into(), json!([{"name": "a", "port": 1, "nodePort": 30080}, {"name": "b", "port": 2, "nodePort": 30080}]), "spec.ports[1].nodePort: Duplicate value: 30080".into()),
        (node_port(), "spec.externalTrafficPolicy".into(), json!("Near"), "spec.externalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"".into()),
        (service(), "spec.externalTrafficPolicy".into(), json!("Local"), "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services".into()),
        (service(), "spec.healthCheckNodePort".into(), json!(30000), "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'".into()),
        (service(), "spec.loadBalancerSourceRanges".into(), json!(["10.0.0.0/8"]), "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'".into()),
        (balancer(), "spec.loadBalancerSourceRanges".into(), json!(["10.0.0.0/8", "10.0.0.0"]), "spec.loadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0\": must be a valid CIDR value".into()),
        (balancer(), "spec.loadBalancerSourceRanges".into(), json!(["10.0.0.0/33"]), "spec.loadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0/33\"".into()),
        (service(), "spec.loadBalancerClass".into(), json!("a/b"), "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'".into()),
        (balancer(), "spec.loadBalancerClass".into(), json!("a b"), "spec.loadBalancerClass: Invalid value: \"a b\"".into()),
        (service(), "spec.allocateLoadBalancerNodePorts".into(), json!(true), "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'".into()),
        (service(), "spec.externalIPs".into(), json!(["127.0.0.1"]), "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range".into()),
        (service(), "spec.externalIPs".into(), json!(["169.254.0.1"]), "spec.externalIPs[0]: Invalid value: \"169.254.0.1\": may not be in the link-local range".into()),
        (service(), "spec.externalIPs".into(), json!(["x"]), "spec.externalIPs[0]: Invalid value: \"x\": must be a valid IP address".into()),
        (affine(), "spec.sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 0}}), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400".into()),
        (affine(), "spec.sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 86401}}), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401".into()),
        (service(), "spec.sessionAffinity".into(), json!("Cookie"), "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"".into()),
        (service(), "spec.trafficDistribution".into(), json!("Near"), "spec.trafficDistribution: Unsupported value: \"Near\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"".into()),
        (service(), "spec.internalTrafficPolicy".into(), json!("Near"), "spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"".into()),
        (service(), "metadata.annotations".into(), json!({"hydrofoil.dev/lb-algorithm": "fastest"}), "metadata.annotations[hydrofoil.dev/lb-algorithm]: Unsupported value: \"fastest\": supported values: \"hash\", \"maglev\", \"least-connections\"".into()),
        (pod(), "metadata.annotations".into(), json!({"hydrofoil.dev/weight": "101"}), "metadata.annotations[hydrofoil.dev/weight]: Invalid value: \"101\": must be between 1 and 100, inclusive".into()),
        (service(), "spec.clusterIP".into(), json!("10.0.0"), "spec.clusterIP: Invalid value: \"10.0.0\": must be empty, 'None', or a valid IP address".into()),
    ];
    for (object, path, value, expected) in rows {
        let got = refused(&with(&object, &path, value.clone()), None);
        assert!(
            got.iter().any(|cause| cause.starts_with(&expected)),
            "{path} = {value}:\n  {got:?}\n  {expected}"
        );
    }
}

#[test]
fn refuses_duplicates() {
    let pod = pod();
    let container = pod["spec"]["containers"][0].clone();
    let twice = with(&pod, "spec.containers", json!([container, container]));
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[1].name: Duplicate value: \"main\""]
    );
    let init = with(
        &pod,
        "spec.initContainers",
        json!([{"name": "main", "image": "x"}]),
    );
    assert_eq!(
        refused(&init, None),
        ["spec.initContainers[0].name: Duplicate value: \"main\""]
    );
    let volume = pod["spec"]["volumes"][0].clone();
    let twice = with(&pod, "spec.volumes", json!([volume, volume]));
    assert_eq!(
        refused(&twice, None),
        ["spec.volumes[1].name: Duplicate value: \"data\""]
    );
    let ports =
        json!([{"name": "http", "containerPort": 80}, {"name": "http", "containerPort": 81}]);
    let twice = with(&pod, "spec.containers[0].ports", ports);
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[0].ports[1].name: Duplicate value: \"http\""]
    );
    let mount = pod["spec"]["containers"][0]["volumeMounts"][0].clone();
    let twice = with(
        &pod,
        "spec.containers[0].volumeMounts",
        json!([mount, mount]),
    );
    assert_eq!(
        refused(&twice, None),
        ["spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/data\": must be unique"]
    );
    // Kubernetes takes a variable twice, and says that the later one wins.
    let twice = with(
        &pod,
        "spec.containers[0].env",
        json!([{"name": "A"}, {"name": "A"}]),
    );
    let (_, warnings) = admit(&twice, find_for(&twice).unwrap(), None).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].field, "spec.containers[0].env[1]");
}

#[test]
fn refuses_all_but_the_safe_sysctls() {
    let at = "spec.securityContext.sysctls[0].name";
    let judged = |names: &[&str], more: Value| {
        let names: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "value": "1"}))
            .collect();
        let mut pod = with(&pod(), "spec.securityContext.sysctls", json!(names));
        control_api::patch::merge(&mut pod["spec"], &more);
        refused(&pod, None)
    };
    // Kubernetes' list of safe sysctls, in both spellings.
    for name in [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net/ipv4/tcp_wmem",
    ] {
        assert_eq!(judged(&[name], json!({})), [""; 0], "{name}");
    }
    for name in [
        "net.core.somaxconn",
        "net.ipv4.ip_forward",
        "net/ipv4/ip_forward",
        "kernel.msgmax",
        "kernel.panic",
        "vm.overcommit_memory",
        // Not the safe sysctl: the slash is a part of the word.
        "net.ipv4/tcp_wmem",
    ] {
        let causes = judged(&[name], json!({}));
        assert_eq!(causes.len(), 1, "{name}: {causes:?}");
        assert!(
            causes[0].starts_with(&format!("{at}: Forbidden: unsafe sysctls")),
            "{causes:?}"
        );
    }
    for name in ["Net.ipv4", "net..ipv4", ".net", "net.ipv4.", "-a", "a_"] {
        let causes = judged(&[name], json!({}));
        assert!(
            causes[0].starts_with(&format!("{at}: Invalid value: {name:?}: must have at most")),
            "{causes:?}"
        );
    }
    assert_eq!(judged(&[""], json!({})), [format!("{at}: Required value")]);
    let twice = judged(&["net.ipv4.tcp_wmem", "net/ipv4/tcp_wmem"], json!({}));
    assert_eq!(
        twice,
        ["spec.securityContext.sysctls[1].name: Duplicate value: \"net/ipv4/tcp_wmem\""]
    );
    // A namespace that is the node's.
    let rows = [
        ("net.ipv4.tcp_wmem", "hostNetwork"),
        ("kernel.shm_rmid_forced", "hostIPC"),
    ];
    for (name, field) in rows {
        assert_eq!(
            judged(&[name], json!({field: true})),
            [format!(
                "{at}: Invalid value: {name:?}: may not be specified when '{field}' is true"
            )]
        );
    }
    assert_eq!(
        judged(&["kernel.shm_rmid_forced"], json!({"hostNetwork": true})),
        [""; 0]
    );
}
