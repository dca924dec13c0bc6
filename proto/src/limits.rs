//! Sizes of messages that both sides of a stream have to agree on. The receiver
//! refuses a longer one before it decodes it; the sender cuts or shortens.

/// Longest message of a session that an agent takes, in bytes.
pub const UPDATE_BYTES: usize = 64 << 20;
/// The control plane begins another part of a step at this length, in bytes. One
/// change is never cut: a part with a single change may be longer.
pub const PART_BYTES: usize = 64 << 10;
/// Longest change that is sent: with a part before it, it still fits one message.
/// `convert` makes no longer ones.
pub const CHANGE_BYTES: usize = UPDATE_BYTES - 2 * PART_BYTES;
/// Longest message of a node that the control plane takes, in bytes. What is longer is cut
/// by [`crate::bounds`].
pub const NODE_UP_BYTES: usize = 1 << 20;
