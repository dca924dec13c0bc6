//! A namespace with ConfigMaps and Secrets, and a pod in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use proto::convert::input::{NodeFacts, PodInput};
use proto::convert::pod::pod_spec;
use proto::v1;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// The pod as admission leaves it, which is where defaults come from. What it
/// refuses is converted as it is: the conversion is total.
fn stored(mut pod: Value) -> Pod {
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"][list].as_array_mut();
        for container in containers.into_iter().flatten() {
            if container.get("image").is_none() {
                container["image"] = json!("x");
            }
        }
    }
    let kind = control_api::find_for(&pod).unwrap();
    match control_api::admit(&pod, kind, None) {
        Ok((mut stored, _)) => {
            stored["metadata"]["uid"] = pod["metadata"]["uid"].clone();
            typed(stored)
        }
        Err(_refused) => typed(pod),
    }
}

/// The message of a pod with this spec, in a namespace with four ConfigMaps and two
/// Secrets.
pub(crate) fn convert(spec: Value) -> v1::PodSpec {
    convert_in(spec, &v1::ClusterConfig::default())
}

pub(crate) fn convert_in(spec: Value, cluster: &v1::ClusterConfig) -> v1::PodSpec {
    let pod = stored(json!({
        "apiVersion": "v1", "kind": "Pod",
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
        ("literal", typed(json!({"data": {"reference": "$(A)"}}))),
        (
            "large",
            typed(json!({"data": {"long": "x".repeat(1 << 20)}})),
        ),
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
        node: &node,
        cluster,
        ips: vec!["10.244.1.7".to_owned()],
        identity: 42,
        generation: 3,
        stop_grace_seconds: None,
    })
}

pub(crate) fn container(fields: Value) -> v1::ContainerSpec {
    let mut container = json!({"name": "main", "image": "x"});
    container
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    convert(json!({"containers": [container]}))
        .containers
        .remove(0)
}

pub(crate) fn pairs(env: &[v1::EnvVar]) -> Vec<(&str, &str)> {
    env.iter()
        .map(|env| (env.name.as_str(), env.value.as_str()))
        .collect()
}
