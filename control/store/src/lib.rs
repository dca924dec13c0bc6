//! Versioned keys and values, with watches: where the cluster's objects are kept.
//!
//! The store never knows kinds: keys are paths ("pods/default/web-0"), values
//! are opaque bytes. One trait ([`Store`]), real implementations behind it, and
//! one test suite over all of them (`tests/suite`). Called by `control-server`.
//!
//! Reading order: `store` (the contract; `event`, `txn`, `error`), `watch` (the
//! event stream), `embedded` (the implementation on redb: `table`, `tail`,
//! `shared`, `writer`, `history`).

#![forbid(unsafe_code)]

mod embedded;
mod error;
mod event;
mod history;
mod shared;
mod store;
mod table;
mod tail;
mod txn;
mod watch;
mod writer;

pub use embedded::{Embedded, Options};
pub use error::StoreError;
pub use event::{Entry, Event, EventKind};
pub use store::{Found, ListRequest, Listing, Store};
pub use txn::{Change, Condition, Txn};
pub use watch::{EventSource, Watch};
