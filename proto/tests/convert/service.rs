//! Services and their endpoints.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proto::convert::service::{ServiceIds, service};
use proto::v1::backend::State;
use serde_json::{Value, json};

use crate::world::typed;

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
        external: &|_name| 0,
    };
    let message = service(&web, &slices.each_ref(), &ids, 4).unwrap();
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

    // Nothing is ready: those that terminate and still serve take new connections.
    let one = |conditions: Value| {
        slice(
            json!([{"name": "http", "port": 1, "protocol": "TCP"}]),
            json!([
                end(
                    "10.0.0.1",
                    json!({"ready": false, "serving": true, "terminating": true})
                ),
                end(
                    "10.0.0.2",
                    json!({"ready": false, "serving": false, "terminating": true})
                ),
                end("10.0.0.3", conditions),
            ]),
        )
    };
    use State::{Active, Terminating};
    let rows = [
        (
            json!({"ready": false, "serving": false}),
            [Active, Terminating, Terminating],
        ),
        (
            json!({"ready": false, "serving": true, "terminating": true}),
            [Active, Terminating, Active],
        ),
        (json!({"ready": true}), [Terminating, Terminating, Active]),
        // publishNotReadyAddresses
        (
            json!({"ready": true, "serving": false, "terminating": true}),
            [Terminating, Terminating, Active],
        ),
        (
            json!({"ready": false, "serving": true}),
            [Active, Terminating, Terminating],
        ),
    ];
    for (third, expected) in rows {
        let message = service(&web, &[&one(third.clone())], &ids, 1).unwrap();
        let states: Vec<State> = message.ports[0]
            .backends
            .iter()
            .map(|b| b.state())
            .collect();
        assert_eq!(states, expected, "{third}");
    }

    for ip in [json!(""), json!(null)] {
        let mut without = web.clone();
        without.spec.as_mut().unwrap().cluster_ip = serde_json::from_value(ip.clone()).unwrap();
        assert_eq!(service(&without, &slices.each_ref(), &ids, 1), None, "{ip}");
    }
}

#[test]
fn services_without_an_address_are_sent_for_dns() {
    let none = ServiceIds {
        service: 0,
        port: &|_name| 0,
        external: &|_name| 0,
    };
    let alias: Service = typed(json!({"metadata": {"name": "db", "namespace": "team"},
        "spec": {"type": "ExternalName", "externalName": "db.example"}}));
    let message = service(&alias, &[], &none, 1).unwrap();
    assert_eq!(
        (message.external_name.as_str(), message.id),
        ("db.example", 0)
    );

    let headless: Service = typed(json!({"metadata": {"name": "db", "namespace": "team"},
        "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}));
    let slice = |port: Value, endpoints: Value| -> EndpointSlice {
        typed(json!({"addressType": "IPv4", "ports": [port], "endpoints": endpoints}))
    };
    let sql = json!({"name": "sql", "port": 5432, "protocol": "TCP"});
    let admin = json!({"name": "admin", "port": 81, "protocol": "TCP"});
    let slices = [
        slice(
            sql.clone(),
            json!([
                {"addresses": ["10.244.1.9"], "hostname": "db-1"},
                {"addresses": ["10.244.1.10"], "conditions": {"ready": true}},
                {"addresses": ["10.244.1.11"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["example.com"]},
            ]),
        ),
        slice(
            admin,
            json!([{"addresses": ["10.244.1.9"], "hostname": "db-1"}]),
        ),
    ];
    let message = service(&headless, &slices.each_ref(), &none, 1).unwrap();
    assert!(message.cluster_ips.is_empty() && message.ports.is_empty());
    let found: Vec<(&str, &str, Vec<u32>)> = message
        .endpoints
        .iter()
        .map(|e| {
            let ports = e.ports.iter().map(|p| p.port).collect();
            (e.address.as_str(), e.hostname.as_str(), ports)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("10.244.1.9", "db-1", vec![5432, 81]),
            ("10.244.1.10", "", vec![5432]),
        ]
    );
}
