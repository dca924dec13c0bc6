//! Deleted objects leave no trace, first while the agents run, then without them.

use super::web_and_client;
use crate::{demo, objects};
use tests_harness::{Cluster, wait_until};

pub(super) fn deleting_everything_leaves_nothing(cluster: &mut Cluster) {
    web_and_client(cluster);
    for kind in ["deployments", "services", "pods", "configmaps", "secrets"] {
        for object in cluster.list(kind, objects::NAMESPACE) {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let out = cluster.foil(&["delete", kind, name, "--grace-period", "1"]);
            // A pod of a Deployment may have gone with it.
            assert!(
                out.code == 0 || out.stderr.to_lowercase().contains("not found"),
                "{out:?}"
            );
        }
    }
    wait_until("no pods", || match objects::pods(cluster) {
        pods if pods.is_empty() => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    for index in 0..cluster.nodes().len() {
        wait_until(&format!("no trace on node {index}"), || {
            let traces = demo::remove::traces(cluster, index);
            if traces.is_empty() {
                Ok(())
            } else {
                Err(traces.join("\n"))
            }
        });
    }
    let (said, left) = cluster.tear_down();
    for out in said {
        assert_eq!(out.code, 0, "{out:?}");
    }
    assert!(left.is_empty(), "{}", left.join("\n"));
}
