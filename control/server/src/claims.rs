//! Claims for the writes of services: what the store has of them, as far as it is known
//! here, and what is picked for writes under way.
//!
//! Only a hint where to look for something free: the store decides, by compare and swap.
//! So nothing that is not committed counts as taken or released; a claim that is picked
//! is not drawn for another service until its write has ended. Used by `objects.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use control_plan::claim::{Claim, ClaimKey, ClaimWrite};
use control_plan::pool::Pool;
use control_plan::{Claims, Settings};
use control_store::{Store, StoreError};

use crate::stored::read_claim;

/// What is known of the claims that services have.
pub(crate) struct ClaimCache(Mutex<Claims>);

impl ClaimCache {
    /// Of a store that has none.
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut claims = Claims::default();
        let addresses = Pool::ServiceAddresses(settings.service_cidr);
        let node_ports = Pool::NodePorts(settings.node_ports);
        for pool in [addresses, node_ports, Pool::ServiceIds, Pool::PortIds] {
            claims.register(pool);
        }
        Self(Mutex::new(claims))
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        // A panic elsewhere leaves a map that is a hint anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store has this claim, or none any more. What is older than what is known is
    /// ignored: events come after the answers to the writes that caused them.
    pub(crate) fn note(&self, key: &ClaimKey, claim: Option<Claim>) {
        let mut known = self.lock();
        let newer = |claim: &Claim| known.get(key).is_none_or(|k| k.revision <= claim.revision);
        if claim.as_ref().is_none_or(newer) {
            known.put(key, claim);
        }
    }

    /// Picks claims by this plan. They are set aside until what is returned is dropped.
    pub(crate) fn pick<E>(
        &self,
        plan: impl FnOnce(&Claims) -> Result<Vec<ClaimWrite>, E>,
    ) -> Result<Picked<'_>, E> {
        let mut known = self.lock();
        let writes = plan(&known)?;
        for write in &writes {
            known.set_aside(&write.key);
        }
        Ok(Picked {
            cache: self,
            writes,
        })
    }

    /// Reads claims from the store: one of them was not as it was known here.
    pub(crate) async fn refresh(
        &self,
        store: &dyn Store,
        keys: impl Iterator<Item = &ClaimKey> + Send,
    ) -> Result<(), StoreError> {
        for key in keys {
            let entry = store.get(&key.to_string()).await?.entry;
            self.note(key, entry.as_ref().map(read_claim));
        }
        Ok(())
    }
}

/// Claims of one write under way.
pub(crate) struct Picked<'a> {
    cache: &'a ClaimCache,
    writes: Vec<ClaimWrite>,
}

impl Picked<'_> {
    /// What is to be written.
    pub(crate) fn writes(&self) -> &[ClaimWrite] {
        &self.writes
    }

    /// They were written at this revision.
    pub(crate) fn committed(self, revision: u64) {
        for write in self.writes.iter().filter(|write| !write.forgets()) {
            let owner = write.owner.clone();
            self.cache.note(&write.key, Some(Claim { owner, revision }));
        }
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        let mut known = self.cache.lock();
        for write in &self.writes {
            known.put_back(&write.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> ClaimCache {
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        ClaimCache::new(&config.settings())
    }

    fn number(n: u32, revision: u64, owner: &str) -> ClaimWrite {
        let (key, owner) = (ClaimKey::ServiceId(n), owner.to_owned());
        ClaimWrite {
            key,
            revision,
            owner,
        }
    }

    fn owner(cache: &ClaimCache, n: u32) -> Option<(String, u64)> {
        let known = cache.lock();
        let claim = known.get(&ClaimKey::ServiceId(n))?;
        Some((claim.owner.clone(), claim.revision))
    }

    /// The number that would be given next.
    fn next(cache: &ClaimCache) -> ClaimKey {
        cache.lock().draw(Pool::ServiceIds).next().unwrap().0
    }

    fn pick(cache: &ClaimCache, write: ClaimWrite) -> Picked<'_> {
        cache.pick(|_| Ok::<_, ()>(vec![write])).unwrap()
    }

    #[test]
    fn what_is_picked_is_given_to_no_other_and_is_free_again_without_its_write() {
        let cache = cache();
        let first = pick(&cache, number(1, 0, "a"));
        // The same one asks for it again, in another write.
        let again = pick(&cache, number(1, 0, "a"));
        assert_eq!(next(&cache), ClaimKey::ServiceId(2));
        assert_eq!(owner(&cache, 1), None, "the store does not have it");
        drop(first);
        assert_eq!(next(&cache), ClaimKey::ServiceId(2));
        drop(again);
        assert_eq!(next(&cache), ClaimKey::ServiceId(1));
        pick(&cache, number(1, 0, "a")).committed(7);
        assert_eq!(owner(&cache, 1), Some(("a".to_owned(), 7)));
        assert_eq!(next(&cache), ClaimKey::ServiceId(2));
    }

    #[test]
    fn a_release_counts_when_it_is_committed() {
        let cache = cache();
        pick(&cache, number(1, 0, "a")).committed(7);
        let release = || pick(&cache, number(1, 7, ""));
        let under_way = release();
        assert_eq!(owner(&cache, 1), Some(("a".to_owned(), 7)));
        drop(under_way);
        assert_eq!(owner(&cache, 1), Some(("a".to_owned(), 7)));
        release().committed(9);
        assert_eq!(owner(&cache, 1), Some((String::new(), 9)));
    }

    #[test]
    fn what_is_older_than_what_is_known_is_ignored() {
        let cache = cache();
        pick(&cache, number(1, 0, "a")).committed(7);
        let (key, claim) = (ClaimKey::ServiceId(1), |owner: &str, revision| {
            let owner = owner.to_owned();
            Some(Claim { owner, revision })
        });
        for (noted, revision, expected) in [("b", 6, "a"), ("a", 7, "a"), ("b", 8, "b")] {
            cache.note(&key, claim(noted, revision));
            assert_eq!(owner(&cache, 1).unwrap().0, expected, "{revision}");
        }
    }
}
