//! Why a program was not executed: told by the container's process to the shim over a
//! pipe of its own, as libcontainer hands on text only.
//!
//! Written by `executor.rs`, inside the container; read by `progress.rs`.

use std::fs::File;
use std::os::fd::BorrowedFd;

use proto::Message;
use proto::v1::ShimError;

use crate::ends::{Piece, read_piece};

/// Sends it; a failure cannot be reported anywhere else.
pub(crate) fn write(to: BorrowedFd<'_>, failure: &ShimError) {
    nix::unistd::write(to, &failure.encode_to_vec()).ok();
}

/// What was told so far; `None` when it was nothing.
pub(crate) fn read(from: &mut File) -> Option<ShimError> {
    let mut told = Vec::new();
    while let Piece::Bytes(bytes) = read_piece(from) {
        told.extend(bytes);
    }
    parse(&told)
}

/// What a whole report says; `None` when it is empty: the program was executed.
pub(crate) fn parse(told: &[u8]) -> Option<ShimError> {
    if told.is_empty() {
        return None;
    }
    // Cut off: the process was killed while it wrote.
    Some(ShimError::decode(told).unwrap_or_else(|error| ShimError {
        message: format!("the container's process told no reason: {error}"),
        ..ShimError::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ends::pipe;
    use proto::v1::shim_error::Kind;
    use std::os::fd::AsFd;

    #[test]
    fn kind_and_text_arrive() {
        let (mut ours, theirs) = pipe().unwrap();
        assert_eq!(read(&mut ours), None);
        let failure = ShimError {
            kind: Kind::Command as i32,
            message: "no\nsuch".into(),
        };
        write(theirs.as_fd(), &failure);
        assert_eq!(read(&mut ours), Some(failure));
        drop(theirs);
        assert_eq!(read(&mut ours), None);
        assert!(parse(&[0x12, 0xff]).is_some());
    }
}
