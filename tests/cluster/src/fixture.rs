//! What several cases begin with. Each is made, or found as it must be, so that a case does
//! not depend on another: in a namespace of its own, or in one that others have used.

use crate::objects::{self, Pod};
use crate::scene::Scene;

/// The Deployment and Service `web`: 3 ready replicas of the first image, in each node's maps.
pub(crate) fn web(scene: &mut Scene<'_>) -> Vec<Pod> {
    scene.apply("web");
    // Or the pods would be those of an earlier template, which are about to go.
    objects::rolled_out(scene.cluster, "web");
    let pods = objects::ready_count(scene.cluster, "web", 3);
    objects::backends_are(scene.cluster, "web", &pods);
    pods
}

/// [`web`], then the pod `client`, whose environment has the service's variables, and the
/// service's address and port.
pub(crate) fn web_and_client(scene: &mut Scene<'_>) -> (Vec<Pod>, String) {
    let pods = web(scene);
    let address = objects::cluster_ip(scene.cluster, "web");
    scene.apply("client");
    objects::ready(scene.cluster, "client");
    (pods, format!("{address}:80"))
}

/// Deletes a pod, and waits until it is gone.
pub(crate) fn delete_pod(scene: &mut Scene<'_>, name: &str) {
    // Not the 30 s after which a shell that ignores SIGTERM is killed.
    scene.foil(&["delete", "pod", name, "--grace-period", "1"]);
    objects::gone(scene.cluster, name);
}
