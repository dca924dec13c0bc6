//! Reading order follows as the crate grows.
mod beneath;
pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod heap;
pub mod image;
pub mod link;
pub mod maps;
pub mod netns;
pub mod process;
mod removal;
pub mod resources;
pub mod shim;
pub mod state;
pub mod volume;
