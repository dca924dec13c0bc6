//! ReplicaSets: how many pods of how many.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow, wide, workload};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("DESIRED"),
        narrow("CURRENT"),
        narrow("READY"),
        narrow("AGE"),
        wide("CONTAINERS"),
        wide("IMAGES"),
        wide("SELECTOR"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let set = ReplicaSet::deserialize(object)?;
    let spec = set.spec.unwrap_or_default();
    let status = set.status.unwrap_or_default();
    let template = spec.template.unwrap_or_default();
    let (containers, images) = workload::containers_and_images(template.spec.as_ref());
    Ok(vec![
        set.metadata.name.unwrap_or_default(),
        spec.replicas.unwrap_or(1).to_string(),
        status.replicas.to_string(),
        status.ready_replicas.unwrap_or(0).to_string(),
        age::since(set.metadata.creation_timestamp.as_ref(), now),
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
        let object = json!({"metadata": {"name": "web-5f", "creationTimestamp": "2026-01-01T00:09:30Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "app", "image": "foil/app:1"}]}}},
            "status": {"replicas": 2, "readyReplicas": 1}});
        assert_eq!(
            line(&PRINTER, &object),
            "web-5f|3|2|1|30s|app|foil/app:1|app=web"
        );
    }
}
