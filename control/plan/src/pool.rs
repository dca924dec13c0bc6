//! All claims, and what is free in the pools that they are picked from.
//!
//! What was released is given out again as late as possible: first what never
//! was given out, then what has been free for longest. Picking costs the same
//! however many claims there are. Used by `ipam.rs` and the scheduler.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::IpNet;

use crate::claim::{Claim, ClaimKey};

/// Numbers of services and ports are below this: they are keys of BPF arrays.
const MOST_IDS: u64 = 65_536;
/// Addresses at the start of a range that are not given out: the network's, and
/// the first one, a gateway's by custom.
const RESERVED: u64 = 2;

/// The ports that may be given, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// How many there are.
    pub fn size(self) -> u64 {
        (u64::from(self.last) + 1).saturating_sub(u64::from(self.first))
    }

    /// Ports at the start that are given last, so that services may ask for them by
    /// number (KEP-3668: between 16 and 128, a 32nd of the range).
    pub(crate) fn set_apart(self) -> u64 {
        match self.size() {
            small if small < 32 => 0,
            size => (size / 32).clamp(16, 128),
        }
    }

    /// True when the port belongs to it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What claims of one kind are picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    /// Addresses of pods in one range.
    PodAddresses(IpNet),
    /// Addresses of services.
    ServiceAddresses(IpNet),
    /// Parts of the cluster's range, of this prefix length.
    NodeRanges(IpNet, u8),
    /// Numbers of services.
    ServiceIds,
    /// Numbers of service ports.
    PortIds,
    /// Ports of every node.
    NodePorts(PortRange),
    /// Addresses of load balancers; all of the range, it has no gateway.
    LoadBalancers(IpNet),
}

/// The number of an address in a range, from its network address.
fn offset(range: &IpNet, address: IpAddr) -> Option<u64> {
    if !range.contains(&address) {
        return None;
    }
    match (range, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => {
            Some(u64::from(u32::from(address) - u32::from(net.network())))
        }
        (IpNet::V6(net), IpAddr::V6(address)) => {
            u64::try_from(u128::from(address) - u128::from(net.network())).ok()
        }
        (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Address number `offset` of a range; `None` behind its end.
fn address(range: &IpNet, offset: u64) -> Option<IpAddr> {
    let address = match range {
        IpNet::V4(net) => {
            let offset = u32::try_from(offset).ok()?;
            IpAddr::V4(Ipv4Addr::from(
                u32::from(net.network()).checked_add(offset)?,
            ))
        }
        IpNet::V6(net) => {
            let base = u128::from(net.network());
            IpAddr::V6(Ipv6Addr::from(base.checked_add(u128::from(offset))?))
        }
    };
    range.contains(&address).then_some(address)
}

/// 2 to the power of `bits`, or the most that there is.
fn power(bits: u8) -> u64 {
    1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX)
}

impl Pool {
    /// How many members it has.
    pub fn size(&self) -> u64 {
        match self {
            Pool::PodAddresses(range) | Pool::ServiceAddresses(range) => {
                // The last address of an IPv4 range is for broadcasts.
                let last = u64::from(matches!(range, IpNet::V4(_)));
                let all = power(range.max_prefix_len() - range.prefix_len());
                all.saturating_sub(RESERVED + last)
            }
            Pool::NodeRanges(range, length) => match length.checked_sub(range.prefix_len()) {
                Some(bits) => power(bits),
                None => 0,
            },
            // Number 0 means none.
            Pool::ServiceIds | Pool::PortIds => MOST_IDS - 1,
            Pool::NodePorts(range) => range.size(),
            Pool::LoadBalancers(range) => power(range.max_prefix_len() - range.prefix_len()),
        }
    }

    /// Member number `at`, from 0.
    fn member(&self, at: u64) -> Option<ClaimKey> {
        if at >= self.size() {
            return None;
        }
        match self {
            Pool::PodAddresses(range) => address(range, at + RESERVED).map(ClaimKey::PodAddress),
            Pool::ServiceAddresses(range) => {
                address(range, at + RESERVED).map(ClaimKey::ServiceAddress)
            }
            Pool::NodeRanges(range, length) => {
                let bits = range.max_prefix_len().checked_sub(*length)?;
                let first = address(range, at.checked_shl(u32::from(bits))?)?;
                IpNet::new(first, *length).ok().map(ClaimKey::NodeRange)
            }
            Pool::ServiceIds => u32::try_from(at + 1).ok().map(ClaimKey::ServiceId),
            Pool::PortIds => u32::try_from(at + 1).ok().map(ClaimKey::PortId),
            Pool::NodePorts(range) => {
                let offset = (at + range.set_apart()) % range.size();
                let port = u64::from(range.first) + offset;
                u16::try_from(port).ok().map(ClaimKey::NodePort)
            }
            Pool::LoadBalancers(range) => address(range, at).map(ClaimKey::LoadBalancerAddress),
        }
    }

    /// The reverse of [`Pool::member`]; `None` for a claim that is never picked
    /// from this pool.
    fn position(&self, key: &ClaimKey) -> Option<u64> {
        let at = match (self, key) {
            (Pool::PodAddresses(range), ClaimKey::PodAddress(address))
            | (Pool::ServiceAddresses(range), ClaimKey::ServiceAddress(address)) => {
                offset(range, *address)?.checked_sub(RESERVED)?
            }
            (Pool::NodeRanges(range, length), ClaimKey::NodeRange(part)) => {
                if part.prefix_len() != *length {
                    return None;
                }
                let bits = range.max_prefix_len().checked_sub(*length)?;
                offset(range, part.addr())?.checked_shr(u32::from(bits))?
            }
            (Pool::ServiceIds, ClaimKey::ServiceId(number))
            | (Pool::PortIds, ClaimKey::PortId(number)) => u64::from(*number).checked_sub(1)?,
            (Pool::NodePorts(range), ClaimKey::NodePort(port)) => {
                let offset = u64::from(port.checked_sub(range.first)?);
                (offset < range.size()).then_some(())?;
                (offset + range.size() - range.set_apart()) % range.size()
            }
            (Pool::LoadBalancers(range), ClaimKey::LoadBalancerAddress(address)) => {
                offset(range, *address)?
            }
            (
                Pool::PodAddresses(_)
                | Pool::ServiceAddresses(_)
                | Pool::NodeRanges(..)
                | Pool::ServiceIds
                | Pool::PortIds
                | Pool::NodePorts(_)
                | Pool::LoadBalancers(_),
                _,
            ) => return None,
        };
        (at < self.size()).then_some(at)
    }
}

/// What is free in a pool.
#[derive(Clone, Debug, Default)]
struct Free {
    /// The lowest member that was never given out.
    next: u64,
    /// How many members are held.
    held: u64,
    /// (revision of the release, member)
    released: BTreeSet<(u64, u64)>,
}

impl Free {
    fn add(&mut self, at: u64, claim: &Claim) {
        if claim.owner.is_empty() {
            self.released.insert((claim.revision, at));
        } else {
            self.held += 1;
        }
    }

    fn sub(&mut self, at: u64, claim: &Claim) {
        if claim.owner.is_empty() {
            self.released.remove(&(claim.revision, at));
        } else {
            self.held = self.held.saturating_sub(1);
        }
    }
}

/// All claims.
#[derive(Debug, Default)]
pub struct Claims {
    all: BTreeMap<ClaimKey, Claim>,
    pools: HashMap<Pool, Free>,
    /// Prefix lengths of the pools of addresses.
    lengths: BTreeSet<u8>,
    /// Pools of node ports and load balancers: a few, as configured.
    few: Vec<Pool>,
    /// Picked for writes under way: how many of them. Not drawn, but free or held as before.
    aside: BTreeMap<ClaimKey, usize>,
}

impl Claims {
    /// The claim, if it was ever made.
    pub fn get(&self, key: &ClaimKey) -> Option<&Claim> {
        self.all.get(key)
    }

    /// All claims, released ones as well.
    pub fn iter(&self) -> impl Iterator<Item = (&ClaimKey, &Claim)> {
        self.all.iter()
    }

    /// The highest identity number that is claimed.
    pub fn last_identity(&self) -> Option<u32> {
        let (key, _) = self.all.range(ClaimKey::Identity(0)..).next_back()?;
        if let ClaimKey::Identity(number) = key {
            Some(*number)
        } else {
            None
        }
    }

    /// Leaves a claim out of what is drawn, until [`Claims::put_back`] was called as often.
    pub fn set_aside(&mut self, key: &ClaimKey) {
        *self.aside.entry(key.clone()).or_default() += 1;
    }

    /// See [`Claims::set_aside`].
    pub fn put_back(&mut self, key: &ClaimKey) {
        if let Some(count) = self.aside.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.aside.remove(key);
            }
        }
    }

    /// Sets the claim (`Some`) or forgets it; what it was before.
    pub fn put(&mut self, key: &ClaimKey, claim: Option<Claim>) -> Option<Claim> {
        let old = self.all.remove(key);
        for pool in self.pools_of(key) {
            let (Some(at), Some(free)) = (pool.position(key), self.pools.get_mut(&pool)) else {
                continue;
            };
            if let Some(old) = &old {
                free.sub(at, old);
            }
            match &claim {
                Some(claim) => free.add(at, claim),
                None => free.next = free.next.min(at),
            }
        }
        if let Some(claim) = claim {
            self.all.insert(key.clone(), claim);
            for pool in self.pools_of(key) {
                self.advance(pool);
            }
        }
        old
    }

    /// Has the pool's free members at hand from now on.
    pub fn register(&mut self, pool: Pool) {
        if self.pools.contains_key(&pool) {
            return;
        }
        let free = self.scan(pool);
        self.pools.insert(pool, free);
        if let Pool::PodAddresses(range) | Pool::ServiceAddresses(range) = pool {
            self.lengths.insert(range.prefix_len());
        }
        if let Pool::NodePorts(_) | Pool::LoadBalancers(_) = pool {
            self.few.push(pool);
        }
    }

    fn scan(&self, pool: Pool) -> Free {
        let mut free = Free::default();
        for (key, claim) in &self.all {
            if let Some(at) = pool.position(key) {
                free.add(at, claim);
            }
        }
        while self.is_member_known(pool, free.next) {
            free.next += 1;
        }
        free
    }

    fn is_member_known(&self, pool: Pool, at: u64) -> bool {
        let member = pool.member(at);
        member.is_some_and(|key| self.all.contains_key(&key))
    }

    fn advance(&mut self, pool: Pool) {
        let Some(mut next) = self.pools.get(&pool).map(|free| free.next) else {
            return;
        };
        while self.is_member_known(pool, next) {
            next += 1;
        }
        if let Some(free) = self.pools.get_mut(&pool) {
            free.next = next;
        }
    }

    /// The registered pools that a claim may be a member of.
    fn pools_of(&self, key: &ClaimKey) -> Vec<Pool> {
        let ranges = |address: &IpAddr, of: fn(IpNet) -> Pool| {
            let nets = self.lengths.iter();
            let nets = nets.filter_map(|length| IpNet::new(*address, *length).ok());
            let pools = nets.map(|net| of(net.trunc()));
            pools.filter(|p| self.pools.contains_key(p)).collect()
        };
        match key {
            ClaimKey::PodAddress(address) => ranges(address, Pool::PodAddresses),
            ClaimKey::ServiceAddress(address) => ranges(address, Pool::ServiceAddresses),
            ClaimKey::ServiceId(_) => vec![Pool::ServiceIds],
            ClaimKey::PortId(_) => vec![Pool::PortIds],
            ClaimKey::NodeRange(part) => {
                let pools = self.pools.keys().copied();
                let within = |pool: &Pool| matches!(pool, Pool::NodeRanges(range, _) if range.contains(&part.addr()));
                pools.filter(within).collect()
            }
            ClaimKey::NodePort(_) | ClaimKey::LoadBalancerAddress(_) => {
                let pools = self.few.iter().copied();
                pools.filter(|pool| pool.position(key).is_some()).collect()
            }
            ClaimKey::Identity(_) => Vec::new(),
        }
    }

    /// How many members of the pool are free.
    pub fn left(&self, pool: Pool) -> u64 {
        let held = match self.pools.get(&pool) {
            Some(free) => free.held,
            None => self.scan(pool).held,
        };
        pool.size().saturating_sub(held)
    }

    /// The free members of a pool, in the order in which they are to be given
    /// out. Each has the revision at which the claim must still be.
    pub fn draw(&self, pool: Pool) -> Draw<'_> {
        let free = match self.pools.get(&pool) {
            Some(free) => Cow::Borrowed(free),
            None => Cow::Owned(self.scan(pool)),
        };
        Draw {
            claims: self,
            pool,
            next: free.next,
            last: None,
            free,
        }
    }
}

/// See [`Claims::draw`].
#[derive(Debug)]
pub struct Draw<'a> {
    claims: &'a Claims,
    pool: Pool,
    free: Cow<'a, Free>,
    next: u64,
    last: Option<(u64, u64)>,
}

impl Iterator for Draw<'_> {
    type Item = (ClaimKey, u64);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(key) = self.pool.member(self.next) {
            self.next += 1;
            if self.claims.get(&key).is_none() && !self.claims.aside.contains_key(&key) {
                return Some((key, 0));
            }
        }
        loop {
            let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
            let released = *self.free.released.range((after, Bound::Unbounded)).next()?;
            self.last = Some(released);
            let key = self.pool.member(released.1)?;
            if !self.claims.aside.contains_key(&key) {
                return Some((key, released.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(revision: u64) -> Option<Claim> {
        Some(Claim {
            owner: "x".to_owned(),
            revision,
        })
    }

    fn released(revision: u64) -> Option<Claim> {
        Some(Claim {
            owner: String::new(),
            revision,
        })
    }

    fn pools() -> Vec<Pool> {
        vec![
            Pool::PodAddresses("10.0.0.0/29".parse().unwrap()),
            Pool::ServiceAddresses("fd00::/64".parse().unwrap()),
            Pool::NodeRanges("10.244.0.0/16".parse().unwrap(), 24),
            Pool::ServiceIds,
            Pool::PortIds,
            Pool::NodePorts(PortRange {
                first: 30_000,
                last: 32_767,
            }),
            Pool::LoadBalancers("203.0.113.0/29".parse().unwrap()),
        ]
    }

    #[test]
    fn members_have_positions() {
        for pool in pools() {
            for at in [0, 1, 4] {
                let key = pool.member(at).unwrap();
                assert_eq!(pool.position(&key), Some(at), "{pool:?}");
                for other in pools().into_iter().filter(|p| *p != pool) {
                    assert_eq!(other.position(&key), None, "{other:?} {key}");
                }
            }
        }
        let sizes: Vec<u64> = pools().iter().map(Pool::size).collect();
        assert_eq!(sizes, [5, u64::MAX - 2, 256, 65_535, 65_535, 2768, 8]);
        // The lowest are left for those who ask for them.
        assert_eq!(pools()[5].member(0), Some(ClaimKey::NodePort(30_086)));
        assert_eq!(pools()[5].member(2767), Some(ClaimKey::NodePort(30_085)));
        let addresses = pools()[0];
        let is_member = |text: &str| {
            let key = ClaimKey::PodAddress(text.parse().unwrap());
            addresses.position(&key).is_some()
        };
        // Neither the network's, nor the first, nor the broadcast address.
        let given: Vec<bool> = (0..9).map(|n| is_member(&format!("10.0.0.{n}"))).collect();
        let expected = [false, false, true, true, true, true, true, false, false];
        assert_eq!(given, expected);
    }

    /// A pool that was registered at the start, one that is registered at the
    /// end and one that never is give out the same.
    #[test]
    fn whenever_it_is_registered() {
        let pool = pools()[0];
        let member = |at| pool.member(at).unwrap();
        let steps = [
            (0, held(1)),
            (2, held(2)),
            (1, held(3)),
            (1, released(4)),
            (0, released(5)),
            (3, held(6)),
            (2, None),
            (1, held(7)),
            (1, released(8)),
        ];
        let mut early = Claims::default();
        early.register(pool);
        let mut late = Claims::default();
        let mut never = Claims::default();
        for (at, claim) in steps {
            for claims in [&mut early, &mut late, &mut never] {
                claims.put(&member(at), claim.clone());
            }
            late.pools.clear();
            late.register(pool);
            let order = |claims: &Claims| claims.draw(pool).collect::<Vec<_>>();
            assert_eq!(order(&early), order(&never));
            assert_eq!(order(&early), order(&late));
            assert_eq!(early.left(pool), order(&early).len() as u64);
            assert_eq!(early.left(pool), never.left(pool));
        }
        let order: Vec<_> = early.draw(pool).collect();
        let expected = [(2, 0), (4, 0), (0, 5), (1, 8)].map(|(at, rev)| (member(at), rev));
        assert_eq!(order, expected);
    }
}
