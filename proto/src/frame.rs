//! Length-delimited messages over a plain byte stream: the shim's socket.
//!
//! A frame is a length (u32, little endian, bytes) and a prost message. Blocking;
//! the agent's asynchronous side builds on [`encode`] and [`HEADER`].

use std::io::{self, Read, Write};

use prost::Message;

/// Bytes of the length in front of each message.
pub const HEADER: usize = 4;

/// Longest message that is accepted, bytes. A longer one is not ours.
pub const MAX: usize = 16 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed, or ended inside a frame.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not such a message.
    #[error("not a message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The length in front is over [`MAX`].
    #[error("frame of {0} bytes, at most {MAX} are accepted")]
    TooLong(usize),
}

/// The frame of one message, to be written as it is.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// Length of the message behind a header.
pub fn length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// Writes one message.
pub fn write(to: &mut impl Write, message: &impl Message) -> Result<(), FrameError> {
    to.write_all(&encode(message))?;
    Ok(())
}

/// Reads one message; `None` when the peer closed between two messages.
pub fn read<M: Message + Default>(from: &mut impl Read) -> Result<Option<M>, FrameError> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; length(header)?];
    from.read_exact(&mut body)?;
    Ok(Some(M::decode(&body[..])?))
}

/// Takes one message off the front of a buffer that grows by non-blocking reads;
/// `None` while it is not whole yet.
pub fn take<M: Message + Default>(buffer: &mut Vec<u8>) -> Result<Option<M>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let end = HEADER + length(*header)?;
    if buffer.len() < end {
        return Ok(None);
    }
    let message = M::decode(&buffer[HEADER..end])?;
    buffer.drain(..end);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ShimKill;

    fn kill(id: &str) -> ShimKill {
        ShimKill {
            id: id.into(),
            signal: 15,
            all: false,
        }
    }

    #[test]
    fn round_trip_and_end() {
        let mut bytes = encode(&kill("a"));
        bytes.extend(encode(&kill("b")));
        let mut from = &bytes[..];
        assert_eq!(read::<ShimKill>(&mut from).unwrap(), Some(kill("a")));
        assert_eq!(read::<ShimKill>(&mut from).unwrap(), Some(kill("b")));
        assert_eq!(read::<ShimKill>(&mut from).unwrap(), None);
    }

    #[test]
    fn cut_and_oversized_are_errors() {
        let bytes = encode(&kill("a"));
        for cut in 1..bytes.len() {
            assert!(
                read::<ShimKill>(&mut &bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
        assert!(matches!(
            read::<ShimKill>(&mut &[0xff, 0xff, 0xff, 0xff][..]),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn take_waits_for_the_whole() {
        let bytes = encode(&kill("a"));
        let mut buffer = Vec::new();
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(take::<ShimKill>(&mut buffer).unwrap(), None, "at {i}");
            buffer.push(*byte);
        }
        assert_eq!(take::<ShimKill>(&mut buffer).unwrap(), Some(kill("a")));
        assert!(buffer.is_empty());
    }
}
