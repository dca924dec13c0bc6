//! The controllers against a model of store and nodes, with seeded chance:
//! whatever happened, they come to the wanted state, and then write nothing.
//!
//! Writes are refused when they are stale, tasks run in any order, nodes go
//! silent and come back, and the controllers are started anew in the middle.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use control_plan::{Name, Object, object};
use k8s_openapi::api::core::v1::Pod;

use model::{Cluster, deployment, image_of, service};

const DEPLOYMENTS: [&str; 3] = ["web", "db", "cache"];

/// One random thing that people or machines do.
fn disturb(cluster: &mut Cluster) {
    let which = DEPLOYMENTS[cluster.chance(DEPLOYMENTS.len())];
    match cluster.chance(12) {
        0 => {
            let replicas = i32::try_from(cluster.chance(7)).unwrap();
            cluster.edit_deployment(which, |d| {
                d.spec.as_mut().unwrap().replicas = Some(replicas)
            });
        }
        1 => {
            let image = format!("v{}", cluster.chance(4));
            cluster.edit_deployment(which, |d| {
                let template = &mut d.spec.as_mut().unwrap().template;
                template.spec.as_mut().unwrap().containers[0].image = Some(image);
            });
        }
        2 => cluster.create(deployment(which, 2, "v0")),
        3 => cluster.delete("apps", "Deployment", which),
        4 => cluster.create(service(which)),
        5 => cluster.delete("", "Service", which),
        6 | 7 => {
            let pods: Vec<Name> = cluster.pods().map(|p| Name::of(&p.metadata)).collect();
            if !pods.is_empty() {
                let at = cluster.chance(pods.len());
                cluster.delete("", "Pod", &pods[at].name);
            }
        }
        8 => {
            let node = cluster.chance(3);
            cluster.silence(node);
        }
        9 => {
            let node = cluster.chance(3);
            cluster.wake(node);
        }
        10 => cluster.restart_controllers(),
        _ => cluster.relabel_some_pod(),
    }
}

/// What must be true when nothing is left to do.
fn judge(cluster: &Cluster, seed: u64) {
    let pods: Vec<&Pod> = cluster.pods().collect();
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        let address = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
        let address = address.unwrap_or_else(|| panic!("seed {seed}: no address: {pod:#?}"));
        assert!(addresses.insert(address), "seed {seed}: an address twice");
        assert!(object::pod_ready(pod), "seed {seed}: not ready: {pod:#?}");
        assert!(!object::deleting(&pod.metadata), "seed {seed}: left over");
    }
    let mut owned: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
    for set in cluster.replica_sets() {
        let replicas = set.spec.as_ref().unwrap().replicas.unwrap();
        let uid = object::uid(&set.metadata);
        let mine: Vec<&Pod> = pods
            .iter()
            .filter(|p| object::controller(&p.metadata).is_some_and(|c| c.uid == uid))
            .copied()
            .collect();
        assert_eq!(
            mine.len(),
            usize::try_from(replicas).unwrap(),
            "seed {seed}"
        );
        let owner = object::controller(&set.metadata).unwrap_or_else(|| {
            panic!("seed {seed}: a replica set that nobody owns: {set:#?}");
        });
        owned.entry(owner.name.clone()).or_default().extend(mine);
    }
    for name in DEPLOYMENTS {
        let mine = owned.remove(name).unwrap_or_default();
        let Some(deployment) = cluster.deployment(name) else {
            assert!(
                mine.is_empty(),
                "seed {seed}: pods of a deployment that is gone"
            );
            continue;
        };
        let spec = deployment.spec.as_ref().unwrap();
        assert_eq!(
            mine.len(),
            usize::try_from(spec.replicas.unwrap()).unwrap(),
            "seed {seed}"
        );
        let image = image_of(&spec.template);
        for pod in mine {
            let spec = pod.spec.as_ref().unwrap();
            assert_eq!(
                spec.containers[0].image.as_deref(),
                Some(image),
                "seed {seed}"
            );
        }
    }
    for name in DEPLOYMENTS {
        let endpoints: BTreeSet<String> = cluster.endpoints(name);
        let selected = |p: &&&Pod| p.metadata.labels.as_ref().unwrap()["app"] == name;
        let wanted: BTreeSet<String> = match cluster.object("", "Service", name) {
            Some(_) => pods
                .iter()
                .filter(selected)
                .map(|p| p.status.as_ref().unwrap().pod_ip.clone().unwrap())
                .collect(),
            None => BTreeSet::new(),
        };
        assert_eq!(endpoints, wanted, "seed {seed}: endpoints of {name}");
    }
    // One identity for each set of labels, and at most one that nobody has.
    let mut identities: BTreeMap<String, u32> = BTreeMap::new();
    for pod in &pods {
        let number = control_plan::identity::of(pod);
        let known = identities
            .entry(control_plan::identity::canonical(pod))
            .or_insert(number);
        assert_eq!(*known, number, "seed {seed}");
    }
    let distinct: BTreeSet<u32> = identities.values().copied().collect();
    assert_eq!(
        distinct.len(),
        identities.len(),
        "seed {seed}: an identity twice"
    );
    let claimed = cluster.identities();
    assert!(claimed.is_superset(&distinct), "seed {seed}");
    assert!(
        claimed.len() <= distinct.len() + 1,
        "seed {seed}: {claimed:?} {distinct:?}"
    );
    let claimed = cluster.claimed_pod_addresses();
    assert_eq!(claimed, addresses, "seed {seed}: claims and addresses");
    for object in cluster.objects() {
        for owner in object.meta().owner_references.iter().flatten() {
            assert!(
                cluster.has_uid(&owner.uid),
                "seed {seed}: an owner that is gone: {object:?}"
            );
        }
        if let Object::EndpointSlice(slice) = object {
            assert!(
                !slice.endpoints.is_empty() || slice.ports.is_none(),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn whatever_happens_it_converges_and_then_is_quiet() {
    for seed in 0..150 {
        let mut cluster = Cluster::new(seed);
        for name in DEPLOYMENTS {
            cluster.create(deployment(name, 3, "v0"));
            cluster.create(service(name));
        }
        for _ in 0..40 {
            disturb(&mut cluster);
            let steps = cluster.chance(12);
            for _ in 0..steps {
                cluster.step();
            }
        }
        cluster.settle(seed);
        judge(&cluster, seed);
        cluster.restart_controllers();
        assert_eq!(
            cluster.writes_wanted(),
            Vec::<String>::new(),
            "seed {seed}: not quiet"
        );
    }
}

#[test]
fn a_rolling_update_stays_within_its_limits_at_every_step() {
    for seed in 0..50 {
        let mut cluster = Cluster::new(seed);
        cluster.create(deployment("web", 4, "v0"));
        cluster.settle(seed);
        cluster.edit_deployment("web", |d| {
            let template = &mut d.spec.as_mut().unwrap().template;
            template.spec.as_mut().unwrap().containers[0].image = Some("v1".to_owned());
        });
        while cluster.step() {
            let live = || cluster.pods().filter(|p| !object::deleting(&p.metadata));
            let ready = live().filter(|p| object::pod_ready(p)).count();
            // 25 % of 4, both ways.
            assert!(ready >= 3, "seed {seed}: {ready} ready");
            assert!(live().count() <= 5, "seed {seed}: {} pods", live().count());
        }
        cluster.settle(seed);
        judge(&cluster, seed);
    }
}
