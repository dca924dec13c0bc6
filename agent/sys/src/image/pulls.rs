//! Pulls under way: who wants an image that is being pulled takes part in that pull, and the
//! number of pulls at once is limited.
//!
//! A part of the store. Used by `pull.rs`, which knows how to pull.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Image, ImageError};

/// Pulls at once; further ones wait for one of them to end. Each holds some pieces of blobs in
/// memory. (kubelet has one at a time, or `maxParallelImagePulls`.)
pub(super) const MAX_PULLS: usize = 16;

/// What all who took part in a pull get.
pub(super) type Pulled = Result<Image, Arc<ImageError>>;

/// The pulls of one store.
pub(super) struct Pulls {
    under_way: Mutex<HashMap<String, UnderWay>>,
    /// Counts calls and pulls, to know which was first.
    turn: AtomicU64,
    permits: Semaphore,
}

struct UnderWay {
    began: u64,
    /// It ends with the last who waits for it.
    pull: WeakShared<BoxFuture<'static, Pulled>>,
}

impl Default for Pulls {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            turn: AtomicU64::new(0),
            permits: Semaphore::new(MAX_PULLS),
        }
    }
}

impl Pulls {
    /// The result of a pull that began after this call: one of others with the same key, or
    /// `pull`. An earlier one is waited for, and carried on if the others give it up: its result
    /// may be outdated, as an image's name may stand for another one since, but its blobs are
    /// not.
    pub(super) async fn join(
        &self,
        key: &str,
        pull: impl Fn() -> BoxFuture<'static, Pulled>,
    ) -> Pulled {
        let asked = self.turn();
        let mut ended = None;
        loop {
            let (began, shared) = self.current(key, ended, &pull);
            let result = shared.await;
            if began > asked {
                return result;
            }
            ended = Some(began);
        }
    }

    /// The one under way, unless it is the one that has `ended`; else a new one.
    fn current(
        &self,
        key: &str,
        ended: Option<u64>,
        pull: &impl Fn() -> BoxFuture<'static, Pulled>,
    ) -> (u64, Shared<BoxFuture<'static, Pulled>>) {
        let mut all = self.under_way.lock();
        let all = all.as_mut().unwrap_or_else(PoisonError::get_mut);
        all.retain(|_, one| one.pull.upgrade().is_some());
        let there = all.get(key).filter(|one| Some(one.began) != ended);
        if let Some((began, shared)) = there.and_then(|one| Some((one.began, one.pull.upgrade()?)))
        {
            return (began, shared);
        }
        let (began, shared) = (self.turn(), pull().shared());
        if let Some(pull) = shared.downgrade() {
            all.insert(key.to_owned(), UnderWay { began, pull });
        }
        (began, shared)
    }

    fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until fewer than [`MAX_PULLS`] have one.
    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.permits.acquire().await.ok()
    }
}
