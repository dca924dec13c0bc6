//! Versioned keys and values, with watches: where the cluster's objects are kept.
//!
//! The store never knows kinds: keys are paths ("pods/default/web-0"), values
//! are opaque bytes. One trait ([`Store`]), real implementations behind it, and
//! one test suite over all of them (`tests/suite`). Called by `control-server`.
//!
//! Reading order: `store` (the contract), `watch` (the event stream),
//! `embedded` (the implementation on redb: `table`, `writer`, `history`).

#![forbid(unsafe_code)]

mod embedded;
mod history;
mod store;
mod table;
mod watch;
mod writer;

pub use embedded::{Embedded, Options};
pub use store::{
    Change, Condition, Entry, Event, EventKind, Found, ListRequest, Listing, Store, StoreError, Txn,
};
pub use watch::{EventSource, Watch};
