//! Which backend a packet to a service address goes to.

use crate::flow::{Origin, Target, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::send;
use ebpf_common::conntrack::FlowKey4;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, protocol};
use ebpf_common::network;
use ebpf_common::service::{FREE, FrontendKey};
use ebpf_logic::parse::{HEADERS, L4, Packet, flag};
use ebpf_logic::{refuse as answer, service};

/// The frontend that a packet's destination would be.
#[inline(always)]
pub(crate) fn frontend_key(packet: &Packet) -> FrontendKey {
    FrontendKey {
        addr: Addr::v4(packet.dst),
        port: packet.dport,
        protocol: packet.protocol,
        pad: 0,
    }
}

/// Where the packet goes: to a backend, or where it says itself.
#[inline(always)]
pub(crate) fn target(origin: &Origin, packet: &Packet, key: &FlowKey4) -> Result<Target, Drop> {
    let direct = Target {
        src: packet.src,
        dst: packet.dst,
        dport: packet.dport,
        backend: 0,
        backend_gen: maps::backend_gen(0),
    };
    if matches!(origin.hook, Hook::ToPod) {
        return Ok(direct);
    }
    let Some(frontend) = maps::frontend(&frontend_key(packet)) else {
        let nowhere =
            matches!(origin.hook, Hook::ToNetdev) || maps::network(packet.dst) == network::SERVICES;
        return if nowhere {
            Err(Drop::NoFrontend)
        } else {
            Ok(direct)
        };
    };
    if matches!(origin.hook, Hook::FromNetdev) {
        return Err(Drop::ExternalService);
    }
    let config = maps::config();
    let count = maps::choice(frontend.service_port, 0);
    let index = service::choose(service::hash(key, config.seed), count);
    if index == 0 {
        return Err(Drop::NoBackend);
    }
    let id = maps::choice(frontend.service_port, index);
    // Before the backend: if it goes in between, the flow is stale at once.
    let backend_gen = maps::backend_gen(id);
    let Some(backend) = maps::backend(id) else {
        return Err(Drop::NoBackend);
    };
    let dst = match backend.addr.as_v4() {
        Some(dst) if backend.state != FREE => dst,
        _ => return Err(Drop::NoBackend),
    };
    Ok(Target {
        // A pod that is its own backend would answer itself and never come past here.
        src: if dst.be == packet.src.be {
            config.hairpin
        } else {
            packet.src
        },
        dst,
        dport: backend.port,
        backend: id,
        backend_gen,
    })
}

/// Tells a sender of this node that nobody is there; others are not told.
#[inline(always)]
pub(crate) fn refuse(
    skb: &Skb,
    origin: &Origin,
    packet: &Packet,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let told = match reason {
        Drop::NoBackend | Drop::NoFrontend | Drop::BackendGone => true,
        Drop::Truncated
        | Drop::NotIp
        | Drop::BadIpHeader
        | Drop::BadIpLength
        | Drop::IpOptions
        | Drop::BadTcpHeader
        | Drop::BadTcpFlags
        | Drop::BadUdpLength
        | Drop::Fragment
        | Drop::SpoofedSource
        | Drop::NoEndpoint
        | Drop::NoRoute
        | Drop::NoPort
        | Drop::NoFlowEntry
        | Drop::RewriteFailed
        | Drop::ExternalService
        | Drop::IcmpNoFlow => false,
    };
    let here = matches!(origin.hook, Hook::FromPod | Hook::ToNetdev);
    if !told || !here {
        return Err(reason);
    }
    if packet.protocol == protocol::TCP {
        // A reset is never answered by one.
        if packet.flags & flag::RST != 0 {
            return Err(reason);
        }
        let bytes = answer::reset(packet);
        if !skb.resize(HEADERS as u32) || !skb.store(14, &bytes) {
            return Err(Drop::RewriteFailed);
        }
    } else {
        let mut quoted = [0; answer::QUOTED];
        if !skb.load(14, &mut quoted) {
            return Err(Drop::RewriteFailed);
        }
        let bytes = answer::port_unreachable(packet, &quoted);
        let len = 14 + answer::UNREACHABLE as u32;
        if !skb.resize(len) || !skb.store(14, &bytes) {
            return Err(Drop::RewriteFailed);
        }
    }
    const { assert!(L4 + 20 == HEADERS) }
    Ok(Verdict::Refused(reason, send::back(skb, origin)?))
}
