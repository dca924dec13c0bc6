//! Pins: what is adopted, what is refused and how it is said, and what is left behind.

use crate::node::{Folder, Node};
use agent_sys::bpf::{BpfError, Config, Datapath, FlowEntries, NodeFacts, remove};
use agent_sys::maps::{Maps, MapsError};
use ebpf_common::ABI_VERSION;
use ebpf_common::abi::MapType as _;
use ebpf_common::conntrack::{Flow6, FlowKey6};
use ebpf_common::maps::{MAPS, name as map};
use ebpf_common::net::Be16;
use std::net::Ipv4Addr;
use std::path::Path;
use tests_harness::{binary, process};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

fn config(folder: &Path) -> Config {
    Config {
        object: binary("hydrofoil.bpf.o"),
        folder: folder.to_owned(),
        flow_entries: FlowEntries::Exactly(4096),
        node: NodeFacts {
            address: Ipv4Addr::new(172, 31, 0, 11),
            address6: None,
            service_device: None,
            flow_events: false,
        },
    }
}

/// Every map of the table is pinned under its name, with its types.
#[test]
fn every_map_is_pinned_and_has_btf() {
    let node = Node::dual(Ipv4Addr::new(172, 31, 0, 11), &[CLIENT]);
    for shape in MAPS {
        let path = node.folder().join(shape.name);
        assert!(path.exists(), "{}", shape.name);
    }
    let path = node.folder().join("endpoints").display().to_string();
    let mut bpftool = std::process::Command::new("bpftool");
    let dump = process::run(bpftool.args(["map", "dump", "pinned", &path])).success();
    for field in ["ifindex", "identity", "mac", "words"] {
        assert!(dump.contains(field), "{field} in {dump}");
    }
}

/// A second opening adopts what is there.
#[test]
fn maps_are_adopted() {
    let node = Node::new(&[CLIENT]);
    let before = node.datapath.maps().endpoints().unwrap();
    let again = node.netns.enter(|| Datapath::open(&node.config()).unwrap());
    assert_eq!(again.maps().endpoints().unwrap(), before);
    assert_eq!(again.attached().unwrap().len(), 5);
    // As tools read it, without an agent.
    assert_eq!(
        Maps::open(node.folder()).unwrap().endpoints().unwrap(),
        before
    );
}

/// A map of another shape is refused, by name and difference, and nothing is touched.
#[test]
fn a_map_of_another_shape_is_refused() {
    let folder = Folder::new();
    let datapath = Datapath::open(&config(folder.path())).unwrap();
    drop(datapath);
    let path = folder.path().join("endpoints");
    std::fs::remove_file(&path).unwrap();
    let mut bpftool = std::process::Command::new("bpftool");
    let text = path.display().to_string();
    process::run(bpftool.args([
        "map",
        "create",
        &text,
        "type",
        "hash",
        "key",
        "4",
        "value",
        "8",
        "entries",
        "4096",
        "name",
        "endpoints",
        "flags",
        "1",
    ]))
    .success();
    let error = Datapath::open(&config(folder.path())).unwrap_err();
    let BpfError::Maps(MapsError::Differs {
        map, what, found, ..
    }) = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!((*map, *what, *found), ("endpoints", "value size", 8));
    assert!(error.to_string().contains("endpoints"), "{error}");
    assert!(Maps::open(folder.path()).is_err());
}

/// The flow map has the size that is configured, until it is removed.
#[test]
fn the_flow_map_keeps_its_size() {
    let folder = Folder::new();
    let mut config = config(folder.path());
    let datapath = Datapath::open(&config).unwrap();
    assert_eq!(datapath.maps().flow_entries().unwrap(), 4096);
    drop(datapath);
    config.flow_entries = FlowEntries::Exactly(8192);
    let error = Datapath::open(&config).unwrap_err();
    let BpfError::Maps(MapsError::Differs { map, what, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!((*map, *what), ("flows", "max entries"));
    config.flow_entries = FlowEntries::IfNew(8192);
    let datapath = Datapath::open(&config).unwrap();
    assert_eq!(datapath.maps().flow_entries().unwrap(), 4096);
    drop(datapath);
    remove(folder.path()).unwrap();
    let datapath = Datapath::open(&config).unwrap();
    assert_eq!(datapath.maps().flow_entries().unwrap(), 8192);
}

/// The flows of IPv6 have a map of the configured size from when it is switched on, and none from when
/// it is switched off.
#[test]
fn ipv6_may_be_switched_on_and_off() {
    let folder = Folder::new();
    let mut config = config(folder.path());
    let pin = folder.path().join(map::FLOWS6);
    for _ in 0..2 {
        config.node.address6 = None;
        Datapath::open(&config).unwrap();
        assert!(!pin.exists());
        assert_eq!(Maps::open(folder.path()).unwrap().flows6().unwrap(), []);
        config.node.address6 = Some("fd00::1".parse().unwrap());
        let datapath = Datapath::open(&config).unwrap();
        assert!(pin.exists());
        let key = FlowKey6::zeroed();
        let maps = datapath.maps();
        for port in 1..=100 {
            let sport = Be16::new(port);
            let flow = (FlowKey6 { sport, ..key }, Flow6::zeroed());
            maps.put_flows6(&[flow]).unwrap();
        }
        assert_eq!(maps.flows6().unwrap().len(), 100);
        // As after a restart of the agent.
        drop(datapath);
        let datapath = Datapath::open(&config).unwrap();
        assert_eq!(datapath.maps().flows6().unwrap().len(), 100);
    }
}

/// The same sizes, but fields that mean something else, and a map that the other version does
/// not have: it is refused by its version, and nothing is added to its maps.
#[test]
fn maps_of_another_version_are_refused() {
    let folder = Folder::new();
    drop(Datapath::open(&config(folder.path())).unwrap());
    let path = folder.path().join("names").display().to_string();
    let mut bpftool = std::process::Command::new("bpftool");
    let mut value = vec!["0".to_owned(); 128];
    value[0] = "57".to_owned();
    let key = ["0"; 8];
    process::run(
        bpftool
            .args(["map", "update", "pinned", &path, "key"])
            .args(key)
            .arg("value")
            .args(value),
    )
    .success();
    let epoch = folder.path().join("epoch");
    std::fs::remove_file(&epoch).unwrap();
    let error = Maps::open(folder.path()).unwrap_err();
    assert!(matches!(error, MapsError::AbiVersion { .. }), "{error}");
    let error = Datapath::open(&config(folder.path())).unwrap_err();
    assert!(!epoch.exists());
    let text = error.to_string();
    let wanted = format!("ABI version 9, this build needs {ABI_VERSION}");
    assert!(text.contains(&wanted), "{text}");
}

#[test]
fn a_folder_without_maps_says_so() {
    let error = Maps::open(Path::new("/nowhere/hydrofoil")).unwrap_err();
    assert!(
        matches!(
            error,
            MapsError::NotPinned {
                map: "endpoints",
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn an_object_that_is_none_is_refused() {
    let folder = Folder::new();
    let mut config = config(folder.path());
    config.object = "/etc/hostname".into();
    assert!(matches!(
        Datapath::open(&config),
        Err(BpfError::Load { .. })
    ));
    config.object = "/nowhere".into();
    assert!(matches!(
        Datapath::open(&config),
        Err(BpfError::Object { .. })
    ));
}

/// Also while somebody has the folder open.
#[test]
fn removal_leaves_nothing() {
    let folder = Folder::new();
    drop(Datapath::open(&config(folder.path())).unwrap());
    let open = std::fs::File::open(folder.path()).unwrap();
    remove(folder.path()).unwrap();
    drop(open);
    assert!(!folder.path().exists());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()));
}
