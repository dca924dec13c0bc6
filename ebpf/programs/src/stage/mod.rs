//! One file per stage of the path. Each is for both families, by the type of an address; the
//! headers are read in `family/`.

pub(crate) mod backend;
pub(crate) mod create;
pub(crate) mod entry;
pub(crate) mod established;
pub(crate) mod follow;
pub(crate) mod hop;
pub(crate) mod icmp;
pub(crate) mod nat;
pub(crate) mod origin;
pub(crate) mod reply_tuple;
pub(crate) mod route;
pub(crate) mod send;
pub(crate) mod service;
pub(crate) mod transit;
