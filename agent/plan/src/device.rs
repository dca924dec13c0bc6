//! The node's own devices: `foil0`, which the agent makes, and the uplinks, which the operator
//! makes. Both shall be there, with the programs attached to them.
//!
//! `foil0` is made again with the interface index and the Ethernet address that it had when the
//! agent started: programs and flows hold both. An uplink that comes back may have another
//! index; the flows that hold the old one ask for their route again, as its loss was a change
//! of routes. Called by `seen.rs`, which has what the kernel has, and by the daemon's loop.

use std::collections::BTreeMap;

use crate::action::Action;
use crate::event::{self, Note};
use crate::link::{Device, Granted, Network, Role, SERVICE_LINK, Shape, role};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::Monotonic;

/// Names of all devices of the node.
pub fn names(settings: &Settings) -> impl Iterator<Item = &str> {
    let uplinks = settings.uplinks.iter().map(String::as_str);
    std::iter::once(SERVICE_LINK).chain(uplinks)
}

/// True if the device is as it shall be. How an uplink is, is the operator's matter.
fn fits(shape: &Shape, name: &str, settings: &Settings) -> bool {
    let wanted = &settings.service;
    match role(name) {
        Role::Uplink => true,
        Role::Service => {
            shape.ifindex == wanted.ifindex && shape.mac == wanted.mac && shape.up && shape.paired
        }
    }
}

/// The devices when the agent starts.
pub fn found(shapes: &BTreeMap<String, Shape>, settings: &Settings) -> BTreeMap<String, Device> {
    let device = |name: &str| match shapes.get(name).filter(|s| fits(s, name, settings)) {
        None => Device::default(),
        Some(shape) => Device {
            ifindex: Some(shape.ifindex),
            link: Step::Ready,
            programs: if shape.attached {
                Step::Ready
            } else {
                Step::Absent
            },
        },
    };
    names(settings)
        .map(|name| (name.to_owned(), device(name)))
        .collect()
}

/// Records how the devices are; what is to be told of it.
pub(crate) fn compare(
    network: &mut Network,
    expected: &BTreeMap<String, Granted>,
    shapes: &BTreeMap<String, Shape>,
    settings: &Settings,
) -> Vec<Note> {
    let mut notes = Vec::new();
    for (name, device) in &mut network.devices {
        let same = expected.get(name) == Some(&(device.ifindex, device.link.clone()));
        // Its own outcome says how it is, and the kernel is asked again after it.
        if !same || device.link.busy() {
            continue;
        }
        let before = device.ifindex;
        let Some(shape) = shapes.get(name).filter(|s| fits(s, name, settings)) else {
            if before.is_some() {
                notes.push(event::device_lost(settings, name));
                device.link = Step::Absent;
            }
            device.ifindex = None;
            device.programs.touch();
            leave(&mut network.dead, name, before);
            continue;
        };
        if before == Some(shape.ifindex) {
            if device.programs == Step::Ready && !shape.attached {
                notes.push(event::device_lost(settings, name));
                device.programs.touch();
            }
            continue;
        }
        if before.is_some() {
            notes.push(event::device_lost(settings, name));
        }
        device.ifindex = Some(shape.ifindex);
        device.link = Step::Ready;
        device.programs.touch();
        leave(&mut network.dead, name, before);
        // It may have come back from another namespace, with the index that it had.
        if network.dead.get(&shape.ifindex).is_some_and(|s| !s.busy()) {
            network.dead.remove(&shape.ifindex);
        }
    }
    notes
}

/// What is pinned for the index of an uplink is to go; that of `foil0` is pinned again.
fn leave(dead: &mut BTreeMap<u32, Step>, name: &str, ifindex: Option<u32>) {
    if let (Role::Uplink, Some(ifindex)) = (role(name), ifindex) {
        dead.insert(ifindex, Step::Absent);
    }
}

/// What makes the devices whole.
pub fn plan(network: &Network, settings: &Settings, now: Monotonic) -> Vec<Action> {
    let mut actions = Vec::new();
    for (name, device) in &network.devices {
        let role = role(name);
        if role == Role::Service && device.link.due(now) {
            let link = settings.service;
            actions.push(Action::PutServiceLink { link });
            continue;
        }
        let Some(ifindex) = device.ifindex else {
            continue;
        };
        // Pins of that index that are being removed would be the new ones.
        let leaving = network.dead.get(&ifindex).is_some_and(Step::busy);
        if device.link == Step::Ready && device.programs.due(now) && !leaving {
            let name = name.clone();
            actions.push(Action::AttachDevice {
                name,
                ifindex,
                role,
            });
        }
    }
    actions
}

/// True if a device has the index: what is pinned for it is not to go.
pub fn has(network: &Network, ifindex: u32) -> bool {
    let mut devices = network.devices.values();
    devices.any(|device| device.ifindex == Some(ifindex))
}

/// When time alone makes something due.
pub fn wake(network: &Network) -> Option<Monotonic> {
    let devices = network.devices.values();
    devices
        .flat_map(|device| [device.link.wake(), device.programs.wake()])
        .flatten()
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{settings, simulate};
    use crate::time::Moment;
    use crate::world::Observed;

    const UPLINK: u32 = 3;

    fn shapes() -> BTreeMap<String, Shape> {
        let service = settings().service;
        let shape = |ifindex, mac| Shape {
            ifindex,
            up: true,
            mac,
            paired: true,
            attached: true,
        };
        BTreeMap::from([
            (SERVICE_LINK.into(), shape(service.ifindex, service.mac)),
            ("eth0".into(), shape(UPLINK, [2; 6])),
        ])
    }

    fn observed() -> Observed {
        let mut observed = Observed::default();
        observed.network.devices = found(&shapes(), &settings());
        observed
    }

    fn take(observed: &mut Observed, shapes: &BTreeMap<String, Shape>) -> Vec<&'static str> {
        let expected = observed.network.granted();
        let notes = compare(&mut observed.network, &expected, shapes, &settings());
        notes.into_iter().map(|note| note.reason).collect()
    }

    fn actions(observed: &Observed) -> Vec<Action> {
        plan(&observed.network, &settings(), Monotonic::default())
    }

    fn attach(name: &str, ifindex: u32) -> Action {
        Action::AttachDevice {
            name: name.into(),
            ifindex,
            role: role(name),
        }
    }

    #[test]
    fn nothing_is_done_to_devices_that_are_whole() {
        let mut observed = observed();
        assert_eq!(actions(&observed), []);
        assert_eq!(take(&mut observed, &shapes()), [""; 0]);
        assert_eq!(actions(&observed), []);
    }

    #[test]
    fn foil0_is_made_again_as_it_was_whatever_is_wrong_with_it() {
        type Change = fn(&mut BTreeMap<String, Shape>);
        let changes: [(&str, Change); 5] = [
            ("gone", |all| all.retain(|name, _| name != SERVICE_LINK)),
            ("another index", |all| one(all).ifindex += 10),
            ("another address", |all| one(all).mac[5] ^= 1),
            ("down", |all| one(all).up = false),
            ("alone", |all| one(all).paired = false),
        ];
        fn one(all: &mut BTreeMap<String, Shape>) -> &mut Shape {
            all.get_mut(SERVICE_LINK).unwrap()
        }
        for (what, change) in changes {
            let mut observed = observed();
            let mut shapes = shapes();
            change(&mut shapes);
            assert_eq!(
                take(&mut observed, &shapes),
                ["NetworkDeviceLost"],
                "{what}"
            );
            assert_eq!(take(&mut observed, &shapes), [""; 0], "{what}, told once");
            let link = settings().service;
            let put = Action::PutServiceLink { link };
            assert_eq!(actions(&observed), std::slice::from_ref(&put), "{what}");
            simulate(&mut observed, &put, Moment::default());
            let attach = attach(SERVICE_LINK, link.ifindex);
            assert_eq!(actions(&observed), std::slice::from_ref(&attach), "{what}");
            simulate(&mut observed, &attach, Moment::default());
            assert_eq!(actions(&observed), [], "{what}");
            assert!(
                observed.network.dead.is_empty(),
                "{what}: the pin is in use"
            );
        }
    }

    #[test]
    fn an_uplink_is_awaited_and_programs_follow_it_to_its_new_index() {
        let mut observed = observed();
        let mut shapes = shapes();
        let uplink = shapes.remove("eth0").unwrap();
        assert_eq!(take(&mut observed, &shapes), ["NetworkDeviceLost"]);
        assert_eq!(actions(&observed), []);
        assert_eq!(observed.network.dead.len(), 1, "its pins are to go");
        let (ifindex, attached) = (9, false);
        let again = Shape {
            ifindex,
            attached,
            ..uplink
        };
        shapes.insert("eth0".into(), again);
        assert_eq!(take(&mut observed, &shapes), [""; 0]);
        assert_eq!(actions(&observed), [attach("eth0", ifindex)]);
        simulate(&mut observed, &attach("eth0", ifindex), Moment::default());
        assert_eq!(actions(&observed), []);
        assert!(!has(&observed.network, UPLINK));
    }

    #[test]
    fn an_uplink_that_is_replaced_before_anybody_looked_is_noticed() {
        for (ifindex, dead) in [(9, 1), (UPLINK, 0)] {
            let mut observed = observed();
            let mut shapes = shapes();
            let uplink = shapes.get_mut("eth0").unwrap();
            uplink.ifindex = ifindex;
            uplink.attached = false;
            assert_eq!(take(&mut observed, &shapes), ["NetworkDeviceLost"]);
            assert_eq!(actions(&observed), [attach("eth0", ifindex)]);
            assert_eq!(observed.network.dead.len(), dead);
        }
    }

    #[test]
    fn two_changes_during_one_action_end_with_the_last_state() {
        let mut observed = observed();
        let mut all = shapes();
        all.get_mut("eth0").unwrap().ifindex = 9;
        take(&mut observed, &all);
        let first = attach("eth0", 9);
        observed.begin(&first, &settings());
        // Replaced again while the programs are attached to the first one.
        all.get_mut("eth0").unwrap().ifindex = 10;
        take(&mut observed, &all);
        assert_eq!(actions(&observed), [], "one at a time");
        let outcome = crate::simulate::success(&first, Moment::default()).unwrap();
        observed.take(outcome, &settings(), Moment::default());
        assert_eq!(actions(&observed), [attach("eth0", 10)]);
    }

    #[test]
    fn what_was_seen_before_an_action_ended_is_not_believed() {
        let mut observed = observed();
        let mut all = shapes();
        let service = all.remove(SERVICE_LINK).unwrap();
        take(&mut observed, &all);
        let expected = observed.network.granted();
        let link = settings().service;
        let put = Action::PutServiceLink { link };
        simulate(&mut observed, &put, Moment::default());
        let notes = compare(&mut observed.network, &expected, &all, &settings());
        assert_eq!(notes, []);
        assert_eq!(actions(&observed), [attach(SERVICE_LINK, service.ifindex)]);
    }

    #[test]
    fn pins_that_are_being_removed_are_waited_for_and_others_kept() {
        let mut observed = observed();
        let mut all = shapes();
        let uplink = all.remove("eth0").unwrap();
        take(&mut observed, &all);
        let detach = Action::DetachPrograms { ifindex: UPLINK };
        observed.begin(&detach, &settings());
        // It comes back with the index that it had.
        all.insert("eth0".into(), uplink.clone());
        take(&mut observed, &all);
        assert_eq!(actions(&observed), []);
        let outcome = crate::simulate::success(&detach, Moment::default()).unwrap();
        observed.take(outcome, &settings(), Moment::default());
        assert_eq!(actions(&observed), [attach("eth0", UPLINK)]);

        let mut observed = super::tests::observed();
        all.remove("eth0");
        take(&mut observed, &all);
        all.insert("eth0".into(), uplink);
        take(&mut observed, &all);
        assert!(observed.network.dead.is_empty());
        assert_eq!(actions(&observed), [attach("eth0", UPLINK)]);
    }
}
