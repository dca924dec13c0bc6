//! Reading order follows as the crate grows.
