//! `foil bpf flow list`: which flows are wanted, and their rows.
//!
//! Pure: entries come from `bpf.rs`. A node may hold hundreds of thousands of flows, so
//! they are filtered before anything is made of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ebpf_common::address::Address;
use ebpf_common::conntrack::{
    Flow, Flow4, Flow6, FlowKey, FlowKey4, FlowKey6, FlowPad, SCOPE_HOST, SCOPE_NETDEV, action,
    state,
};
use ebpf_common::endpoint::Endpoint;
use ebpf_common::name::{BACKEND, ENDPOINT, SERVICE_PORT};
use ebpf_common::net::Addr;
use ebpf_common::service::Backend;

use super::bpf_error::BpfError;
use super::bpf_rows::{Names, Row, protocol_name, row, socket};

/// A flow of either family; addresses of IPv4 are mapped.
pub(super) type AnyFlow = (FlowKey6, Flow6);

/// States of connections that are over.
const OVER: [u8; 2] = [state::TIME_WAIT, state::CLOSED];

/// Which flows to print; all options have to match.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// Only flows from or to this pod: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only flows to this service: NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT-NAME
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only flows in these states: estab, syn-sent, time-wait, udp, ...
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state_of)]
    state: Vec<u8>,
    /// Only flows with this port on either side, before or after translation
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Also print closed connections (TIME-WAIT, CLOSED)
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// Print only the number of flows
    #[arg(long)]
    pub(super) count: bool,
}

/// The state of that name, in any letter case.
fn state_of(word: &str) -> Result<u8, String> {
    let known = || (0..=u8::MAX).filter(|state| state::text(*state) != "?");
    let found = known().find(|state| state::text(*state).eq_ignore_ascii_case(word));
    found.ok_or_else(|| {
        let names: Vec<String> = known()
            .map(|state| state::text(state).to_lowercase())
            .collect();
        format!("states are {}", names.join(", "))
    })
}

/// What the numbers in a flow stand for.
pub(super) struct Context<'c> {
    names: &'c Names,
    /// Pods by interface.
    pods: HashMap<u32, String>,
    /// Names of service ports by backend.
    services: HashMap<u32, String>,
}

impl<'c> Context<'c> {
    pub(super) fn new(
        endpoints: &[Endpoint],
        backends: &[(u32, Backend)],
        names: &'c Names,
    ) -> Self {
        let pod = |one: &Endpoint| (one.ifindex, names.get(ENDPOINT, one.id.into()));
        let service = |(id, one): &(u32, Backend)| (*id, names.get(SERVICE_PORT, one.service_port));
        Self {
            names,
            pods: endpoints
                .iter()
                .map(pod)
                .filter(|(_, name)| !name.is_empty())
                .collect(),
            services: backends.iter().map(service).collect(),
        }
    }

    fn device(&self, ifindex: u32) -> String {
        let pod = self.pods.get(&ifindex).cloned();
        pod.unwrap_or_else(|| format!("if{ifindex}"))
    }

    fn from<A: Address>(&self, key: &FlowKey<A>) -> String {
        match key.from() {
            SCOPE_NETDEV => "netdev".to_string(),
            SCOPE_HOST => "host".to_string(),
            ifindex => self.device(ifindex),
        }
    }

    fn to<A: Address>(&self, flow: &Flow<A>) -> String {
        if flow.action & action::MASK == action::PASS {
            String::new()
        } else {
            self.device(flow.ifindex)
        }
    }

    /// "default/web-1", or its number; empty where none was chosen.
    fn backend(&self, id: u32) -> String {
        match (id, self.names.get(BACKEND, id)) {
            (0, _) => String::new(),
            (_, name) if name.is_empty() => format!("#{id}"),
            (_, name) => name,
        }
    }

    fn row(&self, key: &FlowKey6, flow: &Flow6) -> Row {
        let side = |address: Addr, port: u16| socket(IpAddr::from(address), port);
        let (source, destination) = (
            side(key.src, key.sport.get()),
            side(key.dst, key.dport.get()),
        );
        let becomes = (
            side(flow.src, flow.sport.get()),
            side(flow.dst, flow.dport.get()),
        );
        let translated = match (becomes.0 != source, becomes.1 != destination) {
            (false, false) => String::new(),
            (true, false) => format!("{} ->", becomes.0),
            (false, true) => format!("-> {}", becomes.1),
            (true, true) => format!("{} -> {}", becomes.0, becomes.1),
        };
        let direction = if flow.is_reply() { "reply" } else { "forward" };
        row()
            .with("from", self.from(key))
            .with("protocol", protocol_name(key.protocol()))
            .with("source", source)
            .with("destination", destination)
            .with("translated", translated)
            .with("action", action::text(flow.action))
            .with("to", self.to(flow))
            .with("state", state::text(flow.state))
            .with("direction", direction)
            .with("backend", self.backend(flow.backend))
            .with("packets", flow.packets)
            .with("bytes", flow.bytes)
    }
}

impl Filter {
    /// The flows of both families that match, the one that was seen last at the end.
    pub(super) fn apply(
        &self,
        flows: Vec<(FlowKey4, Flow4)>,
        flows6: Vec<AnyFlow>,
        context: &Context<'_>,
    ) -> Vec<AnyFlow> {
        let of_service: Option<HashSet<u32>> = self.service.as_deref().map(|wanted| {
            let ids = context.services.iter();
            ids.filter(|(_, name)| is_service(name, wanted))
                .map(|(id, _)| *id)
                .collect()
        });
        let of_service = of_service.as_ref();
        let four = flows.into_iter();
        let four = four.filter(|(key, flow)| self.matches(key, flow, of_service, context));
        let six = flows6.into_iter();
        let six = six.filter(|(key, flow)| self.matches(key, flow, of_service, context));
        let mut all: Vec<AnyFlow> = four.map(|(key, flow)| mapped(&key, &flow)).collect();
        all.extend(six);
        // The clock wraps: times are compared by their distance to one of them.
        let pivot = all.first().map_or(0, |(_, flow)| flow.last_seen);
        all.sort_by_key(|(key, flow)| (flow.last_seen.wrapping_sub(pivot).cast_signed(), *key));
        all
    }

    fn matches<A: Address>(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        of_service: Option<&HashSet<u32>>,
        context: &Context<'_>,
    ) -> bool {
        let pod = self.pod.as_deref();
        self.has_state(flow.state)
            && self.port.is_none_or(|port| has_port(key, flow, port))
            && of_service.is_none_or(|ids| ids.contains(&flow.backend))
            && pod.is_none_or(|pod| has_pod(context, key, flow, pod))
    }

    /// An error for a name that nothing on this node has.
    pub(super) fn check(&self, names: &Names) -> Result<(), BpfError> {
        if let Some(wanted) = &self.service
            && !names.all(SERVICE_PORT).any(|name| is_service(name, wanted))
        {
            let name = wanted.clone();
            return Err(BpfError::NoService { name });
        }
        let mut pods = names.all(ENDPOINT).chain(names.all(BACKEND));
        if let Some(wanted) = &self.pod
            && !pods.any(|name| is_named(name, wanted))
        {
            let name = wanted.clone();
            return Err(BpfError::NoPod { name });
        }
        Ok(())
    }

    /// What is said when no flow matches.
    pub(super) fn nothing(&self) -> &'static str {
        if self.all || !self.state.is_empty() {
            "No flows found."
        } else {
            "No open flows found; --all includes closed connections (TIME-WAIT, CLOSED)."
        }
    }

    fn has_state(&self, state: u8) -> bool {
        if self.state.is_empty() {
            self.all || !OVER.contains(&state)
        } else {
            self.state.contains(&state)
        }
    }
}

/// The same flow, with mapped addresses.
fn mapped(key: &FlowKey4, flow: &Flow4) -> AnyFlow {
    let FlowKey {
        src,
        dst,
        sport,
        dport,
        scope,
    } = *key;
    let (src, dst) = (src.to_addr(), dst.to_addr());
    let key = FlowKey {
        src,
        dst,
        sport,
        dport,
        scope,
    };
    let flow = Flow {
        epoch: flow.epoch,
        last_seen: flow.last_seen,
        packets: flow.packets,
        bytes: flow.bytes,
        backend: flow.backend,
        backend_gen: flow.backend_gen,
        route_gen: flow.route_gen,
        ifindex: flow.ifindex,
        nexthop: flow.nexthop.to_addr(),
        src: flow.src.to_addr(),
        dst: flow.dst.to_addr(),
        sport: flow.sport,
        dport: flow.dport,
        peer: flow.peer,
        addr_delta: flow.addr_delta,
        port_delta: flow.port_delta,
        action: flow.action,
        state: flow.state,
        pad: FlowPad::default(),
    };
    (key, flow)
}

/// Packets and bytes from clients by backend.
pub(super) type Traffic = HashMap<u32, (u64, u64)>;

/// Adds those of flows that are in the map. The programs add them to the backend's counters when a
/// flow is removed.
pub(super) fn add_open_traffic<A: Address>(flows: &[(FlowKey<A>, Flow<A>)], all: &mut Traffic) {
    for (_, flow) in flows {
        if flow.backend != 0 && !flow.is_reply() {
            let (packets, bytes) = all.entry(flow.backend).or_default();
            *packets += flow.packets;
            *bytes += flow.bytes;
        }
    }
}

pub(super) fn rows(flows: &[AnyFlow], context: &Context<'_>) -> Vec<Row> {
    flows
        .iter()
        .map(|(key, flow)| context.row(key, flow))
        .collect()
}

fn has_port<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, port: u16) -> bool {
    [key.sport, key.dport, flow.sport, flow.dport]
        .iter()
        .any(|one| one.get() == port)
}

fn has_pod<A: Address>(
    context: &Context<'_>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    wanted: &str,
) -> bool {
    [
        context.from(key),
        context.to(flow),
        context.backend(flow.backend),
    ]
    .iter()
    .any(|name| is_named(name, wanted))
}

/// "default/web" is named "web" and "default/web".
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.split_once('/').is_some_and(|(_, name)| name == wanted)
}

/// "default/web:http" is of the services "web", "default/web" and "default/web:http".
fn is_service(name: &str, wanted: &str) -> bool {
    let service = name.split(':').next().unwrap_or_default();
    name == wanted || is_named(service, wanted)
}

#[cfg(test)]
mod tests {
    use ebpf_common::abi::MapType as _;
    use ebpf_common::conntrack::scope;
    use ebpf_common::name::{Name, NameKey};
    use ebpf_common::net::{Be16, Be32, MacAddr, protocol};
    use ebpf_common::service::ACTIVE;

    use super::*;

    fn ip(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn names() -> Names {
        let name = |kind, id, text: &str| (NameKey { kind, id }, Name::new(text));
        Names::new(vec![
            name(SERVICE_PORT, 7, "default/web:http"),
            name(BACKEND, 3, "default/web-a"),
            name(ENDPOINT, 2, "default/client"),
        ])
    }

    fn endpoint() -> Endpoint {
        Endpoint {
            addr: ip("10.244.1.4"),
            addr6: Addr::default(),
            ifindex: 12,
            identity: 9,
            id: 2,
            mac: MacAddr {
                bytes: [2, 0, 0, 0, 0, 1],
            },
        }
    }

    fn backend() -> Backend {
        Backend {
            addr: ip("10.244.2.5"),
            service_port: 7,
            port: Be16::new(8080),
            protocol: protocol::TCP,
            state: ACTIVE,
            weight: 1,
            ..Backend::default()
        }
    }

    /// A flow of the client, with what tells it from others.
    fn flow(sport: u16, backend: u32, state: u8, last_seen: u32) -> (FlowKey4, Flow4) {
        let v4 = |a, b, c, d| Be32::from_octets([a, b, c, d]);
        let key = FlowKey4 {
            src: v4(10, 244, 1, 4),
            dst: v4(10, 96, 0, 9),
            sport: Be16::new(sport),
            dport: Be16::new(80),
            scope: scope(12, protocol::TCP),
        };
        let flow = Flow4 {
            packets: 6,
            bytes: 500,
            backend,
            backend_gen: 0,
            route_gen: 0,
            epoch: 0,
            last_seen,
            ifindex: 4,
            nexthop: v4(172, 31, 0, 12),
            src: v4(10, 244, 1, 4),
            dst: v4(10, 244, 2, 5),
            sport: Be16::new(sport),
            dport: Be16::new(8080),
            peer: 0,
            addr_delta: 0,
            port_delta: 0,
            action: action::NEIGH | action::NAT,
            state,
            pad: FlowPad::default(),
        };
        (key, flow)
    }

    /// Both families in one list, by time, each with its own addresses.
    #[test]
    fn flows_of_both_families() {
        let names = names();
        let context = Context::new(&[endpoint()], &[(3, backend())], &names);
        let old = flow(1, 3, state::ESTABLISHED, 10);
        let new = flow(3, 3, state::ESTABLISHED, 30);
        let between = (
            FlowKey6 {
                src: ip("fd00::4"),
                dst: ip("fd00:96::9"),
                sport: Be16::new(2),
                dport: Be16::new(80),
                scope: scope(12, protocol::TCP),
            },
            Flow6 {
                last_seen: 20,
                state: state::ESTABLISHED,
                src: ip("fd00::4"),
                dst: ip("fd00::5"),
                sport: Be16::new(2),
                dport: Be16::new(8080),
                backend: 3,
                ..Flow6::zeroed()
            },
        );
        let filter = Filter {
            service: Some("web".to_owned()),
            pod: Some("client".to_owned()),
            ..Filter::default()
        };
        let found = filter.apply(vec![old, new], vec![between], &context);
        let ports: Vec<u16> = found.iter().map(|(key, _)| key.sport.get()).collect();
        assert_eq!(ports, [1, 2, 3]);
        let rows = rows(&found, &context);
        let text = |row: usize, cell: usize| rows[row].cells[cell].text.as_str();
        assert_eq!(text(0, 2), "10.244.1.4:1");
        assert_eq!(text(1, 2), "[fd00::4]:2");
        assert_eq!(text(1, 4), "-> [fd00::5]:8080");
    }

    /// Source ports of what passes the filter.
    fn ports(filter: &Filter, all: Vec<(FlowKey4, Flow4)>) -> Vec<u16> {
        let names = names();
        let context = Context::new(&[endpoint()], &[(3, backend())], &names);
        let found = filter.apply(all, Vec::new(), &context);
        found.iter().map(|(key, _)| key.sport.get()).collect()
    }

    #[test]
    fn open_flows_count_for_their_backend() {
        let (key, mut reply) = flow(40002, 3, state::ESTABLISHED, 0);
        reply.action |= action::REPLY;
        let flows = [
            flow(40000, 3, state::ESTABLISHED, 0),
            flow(40001, 3, state::CLOSED, 0),
            (key, reply),
            flow(40003, 0, state::ESTABLISHED, 0),
        ];
        let mut all = Traffic::new();
        add_open_traffic(&flows, &mut all);
        assert_eq!(all, HashMap::from([(3, (12, 1000))]));
    }

    #[test]
    fn a_row_has_the_names() {
        let names = names();
        let context = Context::new(&[endpoint()], &[(3, backend())], &names);
        let one = vec![flow(40000, 3, state::ESTABLISHED, 0)];
        let found = Filter::default().apply(one, Vec::new(), &context);
        let rows = rows(&found, &context);
        let texts: Vec<&str> = rows[0]
            .cells
            .iter()
            .map(|cell| cell.text.as_str())
            .collect();
        assert_eq!(
            texts.join("|"),
            "default/client|TCP|10.244.1.4:40000|10.96.0.9:80|-> 10.244.2.5:8080|neigh|if4|ESTAB|forward|default/web-a|6|500"
        );
    }

    #[test]
    fn filters() {
        let all = || {
            vec![
                flow(1, 3, state::ESTABLISHED, 10),
                flow(2, 0, state::SYN_SENT, 10),
                flow(3, 3, state::TIME_WAIT, 10),
                flow(4, 3, state::CLOSED, 10),
            ]
        };
        let none = Filter::default();
        let some = |word: &str| Some(word.to_owned());
        for (filter, want) in [
            (none.clone(), &[1, 2][..]),
            (
                Filter {
                    all: true,
                    ..none.clone()
                },
                &[1, 2, 3, 4],
            ),
            (
                Filter {
                    state: vec![state_of("time-wait").unwrap()],
                    ..none.clone()
                },
                &[3],
            ),
            (
                Filter {
                    service: some("web"),
                    ..none.clone()
                },
                &[1],
            ),
            (
                Filter {
                    service: some("default/web:http"),
                    ..none.clone()
                },
                &[1],
            ),
            (
                Filter {
                    service: some("other/web"),
                    ..none.clone()
                },
                &[],
            ),
            (
                Filter {
                    pod: some("client"),
                    ..none.clone()
                },
                &[1, 2],
            ),
            (
                Filter {
                    pod: some("default/web-a"),
                    ..none.clone()
                },
                &[1],
            ),
            (
                Filter {
                    pod: some("web"),
                    ..none.clone()
                },
                &[],
            ),
            (
                Filter {
                    port: Some(8080),
                    ..none.clone()
                },
                &[1, 2],
            ),
            (
                Filter {
                    port: Some(2),
                    ..none.clone()
                },
                &[2],
            ),
            (
                Filter {
                    port: Some(9),
                    ..none.clone()
                },
                &[],
            ),
        ] {
            assert_eq!(ports(&filter, all()), want, "{filter:?}");
        }
        let refused = state_of("open").unwrap_err();
        assert!(
            refused.contains("estab") && refused.contains("time-wait"),
            "{refused}"
        );
    }

    #[test]
    fn unknown_names_are_refused() {
        let names = names();
        let service = |name: &str| Filter {
            service: Some(name.to_owned()),
            ..Filter::default()
        };
        let pod = |name: &str| Filter {
            pod: Some(name.to_owned()),
            ..Filter::default()
        };
        for (filter, error) in [
            (service("web"), ""),
            (service("default/web:http"), ""),
            (service("default/web:dns"), "no service \"default/web:dns\""),
            (service("client"), "no service \"client\""),
            (pod("default/client"), ""),
            (pod("web-a"), ""),
            (pod("web"), "no pod \"web\""),
        ] {
            let refused = filter.check(&names).err();
            let text = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(text.starts_with(error), "{filter:?}: {text}");
            assert_eq!(text.is_empty(), error.is_empty(), "{filter:?}: {text}");
        }
    }

    #[test]
    fn newest_is_last_also_when_the_clock_wraps() {
        let at = |sport, last_seen| flow(sport, 0, state::ESTABLISHED, last_seen);
        let all = vec![at(1, 5), at(2, u32::MAX - 5), at(3, u32::MAX), at(4, 2)];
        assert_eq!(ports(&Filter::default(), all), [2, 3, 4, 1]);
    }
}
