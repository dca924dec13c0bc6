//! The layout of every type in a map, against the checked-in listing.
//!
//! Maps outlive the agent that made them: a field that moves is another ABI, so `tests/abi.txt`
//! changes only in a commit that also moves `ABI_VERSION`.

use ebpf_common::abi::MapType;
use ebpf_common::config::NodeConfig;
use ebpf_common::conntrack::{Flow4, Flow6, FlowKey4, FlowKey6, FlowUsage, SweepHead};
use ebpf_common::counter::Count;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint::Endpoint;
use ebpf_common::event::Event;
use ebpf_common::maps::MAPS;
use ebpf_common::name::{Name, NameKey};
use ebpf_common::net::{Addr, Be16, Be32, MacAddr};
use ebpf_common::network::{Network, NetworkKey};
use ebpf_common::service::{
    Affinity, AffinityKey, Backend, BackendStats, Frontend, FrontendKey, SourceRange,
    SourceRangeKey,
};
use ebpf_common::socket::TranslatedSocket;
use tests_harness::workspace;

fn layout<T: MapType>(out: &mut String) {
    // Without the paths, also of a parameter: "FlowKey<Be32>".
    let parts = std::any::type_name::<T>().split('<');
    let parts = parts.map(|part| part.rsplit("::").next().unwrap_or_default());
    let name = parts.collect::<Vec<_>>().join("<");
    out.push_str(&format!("{name} {}\n", size_of::<T>()));
    for field in T::FIELDS {
        out.push_str(&format!(
            "  {} {} {}\n",
            field.offset, field.size, field.name
        ));
    }
}

fn listing() -> String {
    let mut out = format!("version {}\n", ebpf_common::ABI_VERSION);
    for map in MAPS {
        let kind = map.kind.text();
        out.push_str(&format!(
            "map {} {kind} {} {} {} {}\n",
            map.name, map.key, map.value, map.entries, map.flags
        ));
    }
    for reason in Drop::ALL {
        out.push_str(&format!("drop {} {}\n", *reason as u8, reason.name()));
    }
    layout::<Be16>(&mut out);
    layout::<Be32>(&mut out);
    layout::<Addr>(&mut out);
    layout::<MacAddr>(&mut out);
    layout::<NodeConfig>(&mut out);
    layout::<Endpoint>(&mut out);
    layout::<NetworkKey>(&mut out);
    layout::<Network>(&mut out);
    layout::<FrontendKey>(&mut out);
    layout::<Frontend>(&mut out);
    layout::<SourceRange>(&mut out);
    layout::<SourceRangeKey>(&mut out);
    layout::<Backend>(&mut out);
    layout::<BackendStats>(&mut out);
    layout::<AffinityKey>(&mut out);
    layout::<Affinity>(&mut out);
    layout::<TranslatedSocket>(&mut out);
    layout::<FlowKey4>(&mut out);
    layout::<FlowKey6>(&mut out);
    layout::<Flow4>(&mut out);
    layout::<Flow6>(&mut out);
    layout::<FlowUsage>(&mut out);
    layout::<SweepHead>(&mut out);
    layout::<Count>(&mut out);
    layout::<Event>(&mut out);
    layout::<NameKey>(&mut out);
    layout::<Name>(&mut out);
    out
}

#[test]
fn layouts_are_those_of_the_listing() {
    let path = workspace().join("tests/abi.txt");
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let found = listing();
    assert!(wanted == found, "{} should be:\n{found}", path.display());
}
