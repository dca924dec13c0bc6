//! Reading order follows as the crate grows.
#![expect(
    unsafe_code,
    reason = "system calls and maps that no safe crate has, each in one small function"
)]

mod beneath;
pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod fdstore;
pub mod heap;
pub mod host_calls;
pub mod image;
pub mod journal;
pub mod link;
pub mod maps;
pub mod mounts;
pub mod netns;
pub mod notify;
pub mod process;
mod removal;
pub mod resources;
pub mod shim;
pub mod sockets;
pub mod state;
pub mod tmpfs;
pub mod volume;
