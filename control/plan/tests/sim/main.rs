//! The controllers against a model of store and nodes, with seeded chance:
//! after any faults, they reach the wanted state, and then write nothing.
//!
//! Writes are refused when they are stale, tasks run in any order, nodes go
//! silent and come back, and the controllers are started anew in the middle.
#![cfg(test)]

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use control_plan::{Name, Object, object};
use k8s_openapi::api::core::v1::Pod;

use model::{Cluster, deployment, image_of, service};

const DEPLOYMENTS: [&str; 3] = ["web", "db", "cache"];

/// So many seeds, or `$HYDROFOIL_SEEDS` times as many.
fn seeds(usual: u64) -> Range<u64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no config file; more seeds are for people who look for failures"
    )]
    let times = std::env::var("HYDROFOIL_SEEDS").ok();
    let times = times.map_or(1, |text| text.parse().expect("HYDROFOIL_SEEDS is a number"));
    0..usual * times
}

/// One random thing that people or machines do.
fn disturb(cluster: &mut Cluster) {
    let which = DEPLOYMENTS[cluster.chance(DEPLOYMENTS.len())];
    match cluster.chance(15) {
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
        11 | 12 => {
            let seconds = i64::try_from(cluster.chance(8)).unwrap();
            cluster.pass(seconds);
        }
        13 => {
            let node = cluster.chance(3);
            cluster.delete_node(node);
        }
        _ => cluster.relabel_some_pod(),
    }
}

/// What must be true when nothing is left to do.
fn judge_all(cluster: &Cluster, seed: u64) {
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
            panic!("seed {seed}: a replica set without an owner: {set:#?}");
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
    // One identity for each set of labels, and at most one that is unused.
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
fn after_any_faults_it_converges_and_then_is_quiet() {
    for seed in seeds(60) {
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
        judge_all(&cluster, seed);
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
    for seed in seeds(20) {
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
        judge_all(&cluster, seed);
    }
}

/// With strategy Recreate there are never pods of two templates at a time.
#[test]
fn recreate_never_runs_two_templates_at_a_time() {
    for seed in seeds(30) {
        let mut cluster = Cluster::new(seed);
        cluster.create(deployment("web", 3, "v0"));
        cluster.edit_deployment("web", |d| {
            let strategy = d.spec.as_mut().unwrap().strategy.get_or_insert_default();
            strategy.type_ = Some("Recreate".to_owned());
            strategy.rolling_update = None;
        });
        let judge = |cluster: &Cluster| {
            let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone();
            let alive = cluster.pods().filter(|p| !object::pod_finished(p));
            let images: BTreeSet<Option<String>> = alive.map(image).collect();
            assert!(images.len() <= 1, "seed {seed}: {images:?}");
        };
        for round in 1..8 {
            let steps = cluster.chance(60);
            for _ in 0..steps {
                cluster.step();
                judge(&cluster);
            }
            let (image, replicas) = (format!("v{}", round % 3), cluster.chance(5));
            cluster.edit_deployment("web", |d| {
                let spec = d.spec.as_mut().unwrap();
                spec.replicas = Some(i32::try_from(replicas).unwrap());
                spec.template.spec.as_mut().unwrap().containers[0].image = Some(image);
            });
            if cluster.chance(4) == 0 {
                let sets: Vec<String> = (cluster.replica_sets())
                    .filter_map(|s| s.metadata.name.clone())
                    .collect();
                if !sets.is_empty() {
                    let at = cluster.chance(sets.len());
                    cluster.delete("apps", "ReplicaSet", &sets[at]);
                }
            }
        }
        while cluster.step() {
            judge(&cluster);
        }
        cluster.settle(seed);
        judge_all(&cluster, seed);
    }
}

/// A control plane that hears no node for long, and then one after the other, and
/// is started anew in the middle: no pod is moved, and none leaves its service.
#[test]
fn a_control_plane_that_was_cut_off_moves_no_pod() {
    for seed in seeds(20) {
        let mut cluster = Cluster::new(seed);
        for name in DEPLOYMENTS {
            cluster.create(deployment(name, 3, "v0"));
            cluster.create(service(name));
        }
        cluster.settle(seed);
        let pods = |cluster: &Cluster| -> Vec<(Option<String>, bool)> {
            let all = cluster.pods();
            all.map(|p| (p.metadata.uid.clone(), object::pod_ready(p)))
                .collect()
        };
        let before = pods(&cluster);
        (0..3).for_each(|node| cluster.silence(node));
        for _ in 0..60 {
            cluster.pass(10);
            while cluster.step() {}
            if cluster.chance(20) == 0 {
                cluster.restart_controllers();
            }
            assert_eq!(pods(&cluster), before, "seed {seed}: cut off");
        }
        for node in 0..3 {
            cluster.wake(node);
            cluster.pass(1);
            while cluster.step() {}
            assert_eq!(pods(&cluster), before, "seed {seed}: node {node} is back");
        }
        cluster.settle(seed);
        assert_eq!(pods(&cluster), before, "seed {seed}");
        judge_all(&cluster, seed);
    }
}
