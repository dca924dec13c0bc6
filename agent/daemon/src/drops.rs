//! What the programs dropped, in the agent's log: who, to whom, and why.
//!
//! The ring is emptied with each sweep of the flows, and equal drops are one line, so a flood
//! fills no disk. The lossless counts are the map `counters`. Called by `flows`.

use std::collections::BTreeMap;
use std::fmt;

use agent_sys::maps::{Maps, MapsError};
use ebpf_common::drop::Drop;
use ebpf_common::event::{DROPPED, Event};
use ebpf_common::net::Addr;

/// Lines of one sweep; what is over is counted.
const LINES: usize = 20;
/// Events of one sweep: the ring can be filled as fast as it is read.
const EVENTS: usize = 8192;

/// Drops that are told apart. The source port is not: each connection has one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    reason: u8,
    protocol: u8,
    ifindex: u32,
    src: Addr,
    dst: Addr,
    port: u16,
}

impl Kind {
    fn of(event: &Event) -> Self {
        Self {
            reason: event.reason,
            protocol: event.protocol,
            ifindex: event.ifindex,
            src: event.src,
            dst: event.dst,
            port: event.dport.get(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = Drop::from_u8(self.reason).map_or("?", Drop::name);
        let Self {
            src,
            dst,
            port,
            protocol,
            ifindex,
            ..
        } = self;
        write!(
            f,
            "{reason} {src} -> {dst}:{port} protocol {protocol} ifindex {ifindex}"
        )
    }
}

/// Logs what was dropped since the last call.
pub(crate) fn report(maps: &Maps) -> Result<(), MapsError> {
    let mut events = maps.events()?;
    let found = std::iter::from_fn(|| events.next_event()).take(EVENTS);
    let counts = count(found);
    for (kind, packets) in counts.iter().take(LINES) {
        tracing::info!(packets, "dropped: {kind}");
    }
    if counts.len() > LINES {
        let kinds = counts.len() - LINES;
        tracing::info!(kinds, "more kinds of drops; foil bpf counter list has all");
    }
    Ok(())
}

/// Equal drops as one, the most frequent first.
fn count(events: impl Iterator<Item = Event>) -> Vec<(Kind, u64)> {
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    for event in events.filter(|event| event.kind == DROPPED) {
        *counts.entry(Kind::of(&event)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::event::DECIDED;
    use ebpf_common::net::{Be16, Be32};

    fn event(kind: u8, sport: u16, dport: u16) -> Event {
        Event {
            time: 0,
            src: Addr::v4(Be32::new(0x0af4_0002)),
            dst: Addr::v4(Be32::new(0x0a60_0001)),
            sport: Be16::new(sport),
            dport: Be16::new(dport),
            ifindex: 7,
            backend: 0,
            len: 54,
            kind,
            hook: 0,
            reason: Drop::NoFrontend as u8,
            protocol: 6,
            tcp_flags: 2,
            pad: [0; 3],
        }
    }

    #[test]
    fn equal_drops_are_one_line_and_decisions_none() {
        let events = [
            event(DROPPED, 1, 81),
            event(DROPPED, 1, 80),
            event(DROPPED, 2, 80),
            event(DECIDED, 3, 80),
        ];
        let lines: Vec<String> = count(events.into_iter())
            .iter()
            .map(|(kind, packets)| format!("{packets} {kind}"))
            .collect();
        let expected = [
            "2 NO_FRONTEND 10.244.0.2 -> 10.96.0.1:80 protocol 6 ifindex 7",
            "1 NO_FRONTEND 10.244.0.2 -> 10.96.0.1:81 protocol 6 ifindex 7",
        ];
        assert_eq!(lines, expected);
    }
}
