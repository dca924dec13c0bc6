//! What is of the pod as a whole.

use k8s_openapi::api::core::v1::Pod;
use proto::Message as _;
use proto::convert::pod::references;
use proto::v1;
use serde_json::json;

use crate::world::{convert, convert_in, pairs, typed};

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
        let mut spec = json!({"containers": [{"name": "a"}]});
        spec.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let dns = convert_in(spec, &cluster).dns.unwrap();
        assert_eq!(dns.nameservers, servers, "{fields}");
        assert_eq!(dns.searches, searches, "{fields}");
        assert_eq!(dns.options, options, "{fields}");
        assert_eq!(dns.from_node, from_node, "{fields}");
    }
    let dns = convert(json!({"containers": [{"name": "a"}]})).dns.unwrap();
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
        "securityContext": {"fsGroup": 5, "runAsNonRoot": true, "supplementalGroupsPolicy": "Strict", "sysctls": [{"name": "net/ipv4/tcp_wmem", "value": "1"}]},
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "activeDeadlineSeconds": 60,
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
    assert_eq!(spec.active_deadline_seconds, Some(60));
    assert!(spec.security.as_ref().unwrap().strict_groups);
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
        security
            .sysctls
            .get("net.ipv4.tcp_wmem")
            .map(String::as_str),
        Some("1")
    );

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

/// Objects have a largest size, but a pod may name one of them often.
#[test]
fn what_a_pod_names_often_is_bounded_while_it_is_made() {
    let key = json!({"name": "large", "key": "long"});
    let env: Vec<_> = (0..100)
        .map(|n| json!({"name": format!("V{n}"), "valueFrom": {"configMapKeyRef": key}}))
        .collect();
    let from: Vec<_> = (0..100)
        .map(|n| json!({"prefix": format!("P{n}_"), "configMapRef": {"name": "large"}}))
        .collect();
    let items: Vec<_> = (0..100)
        .map(|n| json!({"key": "long", "path": format!("f{n}")}))
        .collect();
    let volume = json!({"name": "v", "configMap": {"name": "large", "items": items}});
    let rows = [
        ("env", json!({"containers": [{"name": "main", "env": env}]})),
        (
            "envFrom",
            json!({"containers": [{"name": "main", "envFrom": from}]}),
        ),
        (
            "volume",
            json!({"containers": [{"name": "main"}], "volumes": [volume]}),
        ),
    ];
    for (row, spec) in rows {
        let pod = convert(spec);
        let said = &pod.containers[0].config_error;
        assert!(said.contains("bytes are allowed"), "{row}: {said}");
        assert!(pod.encoded_len() < 2 << 20, "{row}");
    }
    let few = json!([{"configMapRef": {"name": "more"}}]);
    let pod = convert(json!({"containers": [{"name": "main", "envFrom": few}]}));
    assert_eq!(pod.containers[0].config_error, "");
}
