//! What the server has done since it was started.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

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
    queries_udp,
    /// Queries over TCP.
    queries_tcp,
    /// Questions for A records.
    queries_a,
    /// Questions for AAAA records.
    queries_aaaa,
    /// Questions for SRV records.
    queries_srv,
    /// Questions for PTR records.
    queries_ptr,
    /// Questions for records of other types.
    queries_other,
    /// Messages without a reply: not a query, or from an address that may not ask.
    dropped,
    /// Replies with code NOERROR.
    replies_noerror,
    /// Replies with code NXDOMAIN.
    replies_nxdomain,
    /// Replies with code SERVFAIL.
    replies_servfail,
    /// Replies with code FORMERR.
    replies_formerr,
    /// Replies with code NOTIMP.
    replies_notimp,
    /// Replies with code REFUSED.
    replies_refused,
    /// Replies with another code.
    replies_other,
    /// Replies that did not fit into UDP.
    replies_truncated,
    /// Questions answered from the cluster's own names.
    zone,
    /// Questions answered from the cache.
    cache_hits,
    /// Questions that were not in the cache.
    cache_misses,
    /// Messages to upstream servers.
    upstream_queries,
    /// Messages to upstream servers that were not answered in time.
    upstream_timeouts,
    /// Messages to upstream servers that could not be sent, or were answered with an error.
    upstream_errors,
    /// Questions that no upstream server answered.
    upstream_failures,
    /// Questions that were not sent upstream because too many were waiting, of
    /// all clients or of the one that asked.
    overloaded,
}

impl Counters {
    /// One more.
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A question for records of this type.
    pub(crate) fn question(&self, kind: RecordType) {
        let counters = [
            (RecordType::A, &self.queries_a),
            (RecordType::AAAA, &self.queries_aaaa),
            (RecordType::SRV, &self.queries_srv),
            (RecordType::PTR, &self.queries_ptr),
        ];
        let found = counters.iter().find(|(k, _)| *k == kind);
        Self::add(found.map_or(&self.queries_other, |(_, counter)| counter));
    }

    /// A reply with this code.
    pub(crate) fn reply(&self, code: ResponseCode) {
        let counters = [
            (ResponseCode::NoError, &self.replies_noerror),
            (ResponseCode::NXDomain, &self.replies_nxdomain),
            (ResponseCode::ServFail, &self.replies_servfail),
            (ResponseCode::FormErr, &self.replies_formerr),
            (ResponseCode::NotImp, &self.replies_notimp),
            (ResponseCode::Refused, &self.replies_refused),
        ];
        let found = counters.iter().find(|(c, _)| *c == code);
        Self::add(found.map_or(&self.replies_other, |(_, counter)| counter));
    }
}
