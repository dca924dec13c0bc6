//! Versions of the protocol between the agent and a pod's shim (`v1/shim.proto`).
//!
//! A shim outlives the agent that started it, so an agent meets shims of other releases.
//! Each message names the versions that its sender speaks. List, watch, kill, delete and
//! shutdown are the same in all of them: pods of any shim are adopted, stopped and removed.
//! Create, start and exec need a version that both speak, or are refused by name.

use std::fmt;
use std::ops::RangeInclusive;

use crate::v1::shim_request::Request;

/// The versions that this release speaks. 0: shims and agents that name none; they have the
/// messages of 1.
pub const SPOKEN: RangeInclusive<u32> = 0..=1;

/// Both sides speak no common version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    /// Of this side.
    pub ours: RangeInclusive<u32>,
    /// Of the other side.
    pub theirs: RangeInclusive<u32>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs } = self;
        let age = match theirs.end() < ours.start() {
            true => "older",
            false => "newer",
        };
        write!(
            f,
            "the other side is {age}: it speaks protocol versions {} to {}, this one {} to {}",
            theirs.start(),
            theirs.end(),
            ours.start(),
            ours.end()
        )
    }
}

/// Whether both sides speak a common version.
///
/// # Errors
/// [`Mismatch`]
pub fn check(ours: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Result<(), Mismatch> {
    if theirs.end() < ours.start() || theirs.start() > ours.end() {
        return Err(Mismatch {
            ours: ours.clone(),
            theirs: theirs.clone(),
        });
    }
    Ok(())
}

/// Whether a request is the same in all versions.
pub fn is_stable(request: &Request) -> bool {
    match request {
        Request::List(_)
        | Request::Watch(_)
        | Request::Kill(_)
        | Request::Delete(_)
        | Request::Shutdown(_) => true,
        Request::Create(_)
        | Request::Start(_)
        | Request::Exec(_)
        | Request::Stdin(_)
        | Request::StdinClosed(_)
        | Request::Resize(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_overlap_are_spoken() {
        for (ours, theirs, text) in [
            (0..=1, 0..=0, None),
            (0..=1, 1..=1, None),
            (1..=3, 3..=5, None),
            (
                2..=3,
                0..=1,
                Some("older: it speaks protocol versions 0 to 1"),
            ),
            (
                0..=1,
                2..=4,
                Some("newer: it speaks protocol versions 2 to 4"),
            ),
        ] {
            let said = check(&ours, &theirs).map_err(|error| error.to_string());
            match text {
                None => assert_eq!(said, Ok(())),
                Some(text) => assert!(said.unwrap_err().contains(text), "{text}"),
            }
        }
    }
}
