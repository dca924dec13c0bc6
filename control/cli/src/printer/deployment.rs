//! Deployments: how far they are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow, wide, workload};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("READY"),
        narrow("UP-TO-DATE"),
        narrow("AVAILABLE"),
        narrow("AGE"),
        wide("CONTAINERS"),
        wide("IMAGES"),
        wide("SELECTOR"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let deployment = Deployment::deserialize(object)?;
    let spec = deployment.spec.unwrap_or_default();
    let status = deployment.status.unwrap_or_default();
    let (containers, images) = workload::containers_and_images(spec.template.spec.as_ref());
    Ok(vec![
        deployment.metadata.name.unwrap_or_default(),
        format!(
            "{}/{}",
            status.ready_replicas.unwrap_or(0),
            spec.replicas.unwrap_or(1)
        ),
        status.updated_replicas.unwrap_or(0).to_string(),
        status.available_replicas.unwrap_or(0).to_string(),
        age::since(deployment.metadata.creation_timestamp.as_ref(), now),
        containers,
        images,
        workload::selector(&spec.selector),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        let object = json!({"metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]},
                "template": {"spec": {"containers": [{"name": "app", "image": "foil/app:1"}, {"name": "log", "image": "busybox"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}});
        assert_eq!(
            line(&PRINTER, &object),
            "web|2/3|3|1|10m|app,log|foil/app:1,busybox|app=web,tier in (a,b)"
        );
    }
}
