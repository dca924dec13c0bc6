//! Addresses of Services of the type LoadBalancer: picked from the cluster's pools, told
//! in `status.loadBalancer`, given back when the type or the class changes.
//!
//! A Service with a `loadBalancerClass` is left to another controller. Nodes answer at
//! what the status says; that packets reach a node is up to the network. Called by
//! [`crate::plan`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use control_api::service_type::balanced;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service};

use crate::action::{Notice, Plan, Severity, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::object::{self, Key, Name};
use crate::pool::Pool;
use crate::registry::Object;
use crate::world::World;

const COMPONENT: &str = "service-controller";

/// Gives addresses to all Services that wait for any. One plan for all, so that no two
/// pick the same.
pub fn assign(world: &World) -> Plan {
    let mut plan = Plan::default();
    let pools = &world.settings.load_balancer_pools;
    let draw = |pool: &IpNet| world.claims().draw(Pool::LoadBalancers(*pool));
    let waiting = &world.indexes.waiting_balancers;
    let services = waiting.iter().filter_map(|name| world.services.get(name));
    let named: BTreeSet<IpAddr> = services.clone().filter_map(|s| asked(s)).collect();
    let is_left = |(key, _): &(ClaimKey, u64)| !matches!(key, ClaimKey::LoadBalancerAddress(address) if named.contains(address));
    let mut free = pools.iter().flat_map(draw).filter(is_left);
    for service in services.filter(|s| !object::deleting(&s.metadata)) {
        let holds = held(world, object::uid(&service.metadata)).next().is_some();
        if asked(service).is_some() || holds {
            continue;
        }
        if let Some((ClaimKey::LoadBalancerAddress(address), revision)) = free.next() {
            give(world, service, address, revision, &mut plan);
        } else if pools.is_empty() {
            refuse(
                service,
                "the control plane has no load_balancer_pools",
                &mut plan,
            );
        } else {
            refuse(
                service,
                "no address of load_balancer_pools is left",
                &mut plan,
            );
        }
    }
    plan
}

/// Gives one Service the address that it asks for, or takes back what it has no use for.
pub fn plan(world: &World, name: &Name) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = world.services.get(name) else {
        // Its claims are released as all of an object that is gone.
        return plan;
    };
    if object::deleting(&service.metadata) {
        return plan;
    }
    let owner = object::uid(&service.metadata);
    let held: Vec<IpAddr> = held(world, owner).collect();
    if balanced(service).is_none() {
        give_up(world, service, &held, &mut plan);
        return plan;
    }
    let asked = asked(service);
    let keeps = |address: &&IpAddr| {
        is_of_pools(world, **address) && asked.is_none_or(|asked| asked == **address)
    };
    if let Some(address) = held.iter().find(keeps) {
        // Another one is held still if `loadBalancerIP` has changed.
        let others = held.iter().filter(|other| *other != address);
        let claims = others.filter_map(|other| released(world, *other, owner));
        put(service, Some(*address), claims.collect(), &mut plan);
        return plan;
    }
    if let Some(address) = asked {
        match pick(world, address) {
            Ok(revision) => give(world, service, address, revision, &mut plan),
            Err(reason) => {
                refuse(service, &reason, &mut plan);
                if !held.iter().any(|address| is_of_pools(world, *address)) {
                    give_up(world, service, &held, &mut plan);
                }
            }
        }
    } else {
        // The pools have changed: it waits for another one.
        give_up(world, service, &held, &mut plan);
    }
    plan
}

fn is_of_pools(world: &World, address: IpAddr) -> bool {
    let pools = &world.settings.load_balancer_pools;
    pools.iter().any(|pool| pool.contains(&address))
}

/// The address that the service asks for.
fn asked(service: &Service) -> Option<IpAddr> {
    let asked = service.spec.as_ref()?.load_balancer_ip.as_deref()?;
    asked.parse().ok()
}

/// Gives it this address instead of what it holds.
fn give(world: &World, service: &Arc<Service>, address: IpAddr, revision: u64, plan: &mut Plan) {
    let owner = object::uid(&service.metadata);
    let mut claims = vec![ClaimWrite {
        key: ClaimKey::LoadBalancerAddress(address),
        revision,
        owner: owner.to_owned(),
    }];
    claims.extend(held(world, owner).filter_map(|old| released(world, old, owner)));
    put(service, Some(address), claims, plan);
    let message = format!("Assigned load balancer address {address}");
    plan.tell(notice(
        service,
        Severity::Normal,
        "EnsuredLoadBalancer",
        message,
    ));
}

fn refuse(service: &Service, reason: &str, plan: &mut Plan) {
    let message = format!("Error syncing load balancer: {reason}");
    let told = notice(
        service,
        Severity::Warning,
        "SyncLoadBalancerFailed",
        message,
    );
    plan.notices.push(told);
}

/// Addresses that the service with this uid holds.
fn held<'a>(world: &'a World, owner: &str) -> impl Iterator<Item = IpAddr> + 'a {
    let claims = world.indexes.claims_by_owner.get(owner);
    claims.into_iter().flatten().filter_map(|key| {
        if let ClaimKey::LoadBalancerAddress(address) = key {
            Some(*address)
        } else {
            None
        }
    })
}

/// The revision of the claim of an address that is free; or why it is not.
fn pick(world: &World, address: IpAddr) -> Result<u64, String> {
    if !is_of_pools(world, address) {
        return Err(format!(
            "{address} is not an address of load_balancer_pools"
        ));
    }
    match world.claims().get(&ClaimKey::LoadBalancerAddress(address)) {
        None => Ok(0),
        Some(claim) if claim.owner.is_empty() => Ok(claim.revision),
        Some(_) => Err(format!("{address} is already allocated")),
    }
}

fn released(world: &World, address: IpAddr, owner: &str) -> Option<ClaimWrite> {
    let key = ClaimKey::LoadBalancerAddress(address);
    let claim = world.claims().get(&key).filter(|c| c.owner == owner)?;
    Some(ClaimWrite {
        revision: claim.revision,
        owner: String::new(),
        key,
    })
}

/// Takes back what was given here. The status of another controller stays.
fn give_up(world: &World, service: &Arc<Service>, held: &[IpAddr], plan: &mut Plan) {
    if held.is_empty() {
        return;
    }
    let owner = object::uid(&service.metadata);
    let claims = held.iter().filter_map(|a| released(world, *a, owner));
    put(service, None, claims.collect(), plan);
}

/// Writes the status that names this address, with the claims.
fn put(service: &Arc<Service>, address: Option<IpAddr>, claims: Vec<ClaimWrite>, plan: &mut Plan) {
    let mut changed = Service::clone(service);
    let ingress = address.map(|address| {
        vec![LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        }]
    });
    let status = changed.status.get_or_insert_default();
    status.load_balancer = Some(LoadBalancerStatus { ingress });
    if changed == **service && claims.is_empty() {
        return;
    }
    plan.writes.push(Write::Put {
        object: Object::Service(Arc::new(changed)),
        claims,
    });
}

fn notice(service: &Service, severity: Severity, reason: &'static str, message: String) -> Notice {
    Notice {
        about: Key::new("", "Service", Name::of(&service.metadata)),
        uid: object::uid(&service.metadata).to_owned(),
        severity,
        reason,
        message,
        component: COMPONENT,
        write: None,
    }
}

/// True when the service waits for an address of the pools.
pub(crate) fn waits(service: &Service) -> bool {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let mut ingress = status.iter().flat_map(|b| b.ingress.iter().flatten());
    balanced(service).is_some() && ingress.next().is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::claim::Claim;
    use crate::for_tests::{meta, now, typed, world};
    use crate::task::Task;

    fn put_service(
        world: &mut World,
        name: &str,
        spec: serde_json::Value,
        status: serde_json::Value,
    ) {
        let value = json!({"metadata": meta(name, &[]), "spec": spec, "status": status});
        world.put(Object::Service(Arc::new(typed(value))));
    }

    /// Plans and stores, until nothing is due. What was told.
    fn settle(world: &mut World) -> Vec<String> {
        let mut told = Vec::new();
        let mut revision = 10;
        loop {
            let mut due = world.take_due();
            due.retain(|t| matches!(t, Task::LoadBalancer(_) | Task::LoadBalancers));
            if due.is_empty() {
                return told;
            }
            for task in due {
                let outcome = crate::plan(world, &task, now());
                let notices = outcome.notices.iter();
                told.extend(notices.map(|n| format!("{}: {}", n.about.name.name, n.reason)));
                for write in outcome.writes {
                    let Write::Put { object, claims } = write else {
                        panic!("{write:?}")
                    };
                    for claim in claims {
                        revision += 1;
                        let owner = claim.owner;
                        world.put_claim(claim.key, Some(Claim { owner, revision }));
                    }
                    world.put(object);
                }
                assert_eq!(
                    crate::plan(world, &task, now()).writes,
                    [],
                    "not quiet: {task:?}"
                );
            }
        }
    }

    fn addresses(world: &World, name: &str) -> Vec<String> {
        let service = &world.services[&Name::new("default", name)];
        let status = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.clone());
        let ingress = status.and_then(|b| b.ingress).unwrap_or_default();
        ingress.into_iter().filter_map(|i| i.ip).collect()
    }

    #[test]
    fn addresses_of_the_pool() {
        // 203.0.113.0 to .3
        let mut world = world();
        let balancer = json!({"type": "LoadBalancer"});
        let none = json!({"loadBalancer": {}});
        for name in ["a", "b", "c"] {
            put_service(&mut world, name, balancer.clone(), none.clone());
        }
        settle(&mut world);
        assert_eq!(addresses(&world, "a"), ["203.0.113.0"]);
        assert_eq!(addresses(&world, "c"), ["203.0.113.2"]);
        // Asked for: one that is taken, one of elsewhere, a free one; then none is left.
        let asks = |ip: &str| json!({"type": "LoadBalancer", "loadBalancerIP": ip});
        put_service(&mut world, "d", asks("203.0.113.1"), none.clone());
        put_service(&mut world, "e", asks("203.0.114.1"), none.clone());
        put_service(&mut world, "f", asks("203.0.113.3"), none.clone());
        put_service(&mut world, "g", balancer.clone(), none.clone());
        let told = settle(&mut world);
        let failed = |name: &str| told.contains(&format!("{name}: SyncLoadBalancerFailed"));
        assert!(
            failed("d") && failed("e") && !failed("f") && failed("g"),
            "{told:?}"
        );
        assert_eq!(addresses(&world, "f"), ["203.0.113.3"]);
        // One that is given up goes to who waits for it.
        let status = serde_json::to_value(&world.services[&Name::new("default", "b")].status);
        put_service(
            &mut world,
            "b",
            json!({"type": "ClusterIP"}),
            status.unwrap(),
        );
        settle(&mut world);
        assert!(addresses(&world, "b").is_empty());
        assert_eq!(addresses(&world, "d"), ["203.0.113.1"]);
        assert!(addresses(&world, "g").is_empty());
        // Also one whose service is deleted.
        let gone = Key::new("", "Service", Name::new("default", "a"));
        world.remove(&gone);
        for write in crate::ipam::release(&world).writes {
            let Write::Claims(claims) = write else {
                panic!("{write:?}")
            };
            for claim in claims {
                let owner = claim.owner;
                world.put_claim(
                    claim.key,
                    Some(Claim {
                        owner,
                        revision: 99,
                    }),
                );
            }
        }
        settle(&mut world);
        assert_eq!(addresses(&world, "g"), ["203.0.113.0"]);
    }

    #[test]
    fn another_address_is_asked_for_later() {
        let mut world = world();
        let none = json!({"loadBalancer": {}});
        put_service(&mut world, "a", json!({"type": "LoadBalancer"}), none);
        settle(&mut world);
        let status = serde_json::to_value(&world.services[&Name::new("default", "a")].status);
        let asks = json!({"type": "LoadBalancer", "loadBalancerIP": "203.0.113.2"});
        put_service(&mut world, "a", asks, status.unwrap());
        settle(&mut world);
        assert_eq!(addresses(&world, "a"), ["203.0.113.2"]);
        let first = ClaimKey::LoadBalancerAddress("203.0.113.0".parse().unwrap());
        assert_eq!(world.claim_owner(&first), None);
    }

    /// The configuration of a control plane that starts again.
    #[test]
    fn an_address_of_no_pool_any_more_is_replaced() {
        let mut world = world();
        let none = json!({"loadBalancer": {}});
        put_service(
            &mut world,
            "a",
            json!({"type": "LoadBalancer"}),
            none.clone(),
        );
        let asks = json!({"type": "LoadBalancer", "loadBalancerIP": "203.0.113.2"});
        put_service(&mut world, "b", asks, none);
        settle(&mut world);
        assert_eq!(addresses(&world, "b"), ["203.0.113.2"]);
        world.settings.load_balancer_pools = vec!["198.51.100.0/30".parse().unwrap()];
        for name in ["a", "b"] {
            let service = world.services[&Name::new("default", name)].clone();
            world.put(Object::Service(service));
            world.make_due(Task::LoadBalancer(Name::new("default", name)));
        }
        let told = settle(&mut world);
        assert_eq!(addresses(&world, "a"), ["198.51.100.0"]);
        assert_eq!(addresses(&world, "b"), [""; 0]);
        assert!(
            told.contains(&"b: SyncLoadBalancerFailed".to_owned()),
            "{told:?}"
        );
        for address in ["203.0.113.0", "203.0.113.2"] {
            let key = ClaimKey::LoadBalancerAddress(address.parse().unwrap());
            assert_eq!(world.claim_owner(&key), None);
        }
    }

    #[test]
    fn a_class_is_left_to_its_controller() {
        let mut world = world();
        let spec = json!({"type": "LoadBalancer", "loadBalancerClass": "example.org/lb"});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        put_service(&mut world, "a", spec, status);
        assert_eq!(settle(&mut world), [""; 0]);
        assert_eq!(addresses(&world, "a"), ["198.51.100.1"]);
    }
}
