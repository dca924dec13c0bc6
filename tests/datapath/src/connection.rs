//! Connections of a node's pods: how a test opens them, and what the maps have about them.

use crate::node::Node;
use crate::packet::{At, REDIRECT, tcp};
use agent_sys::bpf::Swept;
use agent_sys::maps::Counted;
use ebpf_common::conntrack::{Flow4, FlowKey4, state};
use ebpf_logic::parse::flag::{ACK, SYN};

impl Node {
    /// Opens a connection of pod `client.0` to `to`, which pod `server.0` accepts.
    ///
    /// # Panics
    /// If a packet of it is not forwarded.
    pub fn open(&self, client: (usize, At), to: At, server: (usize, At)) {
        for (pod, from, to, flags) in [
            (client.0, client.1, to, SYN),
            (server.0, server.1, client.1, SYN | ACK),
            (client.0, client.1, to, ACK),
        ] {
            let ran = self.from_pod(pod, &tcp(from, to, flags, b""));
            assert_eq!(ran.verdict, REDIRECT, "{from} to {to}");
        }
    }

    /// One pass over the flows; expired ones are removed.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn sweep(&self) -> Swept {
        let mut all = self.datapath.sweep().expect("sweep");
        while !all.complete {
            let piece = self.datapath.sweep().expect("sweep");
            all.seen += piece.seen;
            all.removed += piece.removed;
            all.longest = all.longest.max(piece.longest);
            all.complete = piece.complete;
        }
        all
    }

    /// Changes both directions of the flow with this key, as if time had passed.
    ///
    /// # Panics
    /// If there is no such flow.
    pub fn change(&self, key: &FlowKey4, change: impl Fn(&mut Flow4)) {
        let maps = self.datapath.maps();
        let flow = maps.flow(key).expect("flow").expect("an entry");
        for key in [*key, flow.answer_key(key)] {
            let mut flow = maps.flow(&key).expect("flow").expect("an entry");
            change(&mut flow);
            maps.put_flows(&[(key, flow)]).expect("put flow");
        }
    }

    /// The state of a flow, and of its answers.
    ///
    /// # Panics
    /// If one of them is not there.
    pub fn states(&self, key: &FlowKey4) -> [&'static str; 2] {
        let maps = self.datapath.maps();
        let flow = maps.flow(key).expect("flow").expect("an entry");
        let back = maps.flow(&flow.answer_key(key)).expect("flow");
        [flow, back.expect("the answers' entry")].map(|flow| state::text(flow.state))
    }

    /// Packets that took the slow path, at all hooks.
    pub fn slow(&self) -> u64 {
        let all = self.counters().into_iter();
        all.filter(|(what, _, _)| matches!(what, Counted::Decided))
            .map(|(_, _, packets)| packets)
            .sum()
    }
}
