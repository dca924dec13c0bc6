//! What the server has done since it was started.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// Counters; each only goes up.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$doc])* pub $name: AtomicU64, )*
        }

        impl Counters {
            /// Names and values.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$( (stringify!($name), self.$name.load(Ordering::Relaxed)), )*]
            }
        }
    };
}

counters! {
    /// Queries over UDP.
    udp,
    /// Queries over TCP.
    tcp,
    /// Replies with code NOERROR.
    noerror,
    /// Replies with code NXDOMAIN.
    nxdomain,
    /// Replies with code SERVFAIL.
    servfail,
    /// Replies with code FORMERR.
    formerr,
    /// Replies with code NOTIMP.
    notimp,
    /// Replies with code REFUSED.
    refused,
    /// Replies with another code.
    other,
    /// Questions answered from the cluster's own names.
    zone,
    /// Questions answered from the cache.
    cache_hits,
    /// Questions that were not in the cache.
    cache_misses,
    /// Messages to upstream servers.
    upstream_queries,
    /// Questions that no upstream server answered.
    upstream_failures,
    /// Replies that did not fit into UDP.
    truncated,
    /// Messages without a reply: not a query, or from an address that may not ask.
    dropped,
}

impl Counters {
    /// One more.
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A reply with this code.
    pub(crate) fn reply(&self, code: ResponseCode) {
        let counters = [
            (ResponseCode::NoError, &self.noerror),
            (ResponseCode::NXDomain, &self.nxdomain),
            (ResponseCode::ServFail, &self.servfail),
            (ResponseCode::FormErr, &self.formerr),
            (ResponseCode::NotImp, &self.notimp),
            (ResponseCode::Refused, &self.refused),
        ];
        let found = counters.iter().find(|(c, _)| *c == code);
        Self::add(found.map_or(&self.other, |(_, counter)| counter));
    }
}
