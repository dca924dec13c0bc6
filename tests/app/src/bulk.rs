//! One TCP stream, as fast as it goes.

use crate::client::resolve;
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

/// Of each call of read and write.
const PIECE: usize = 128 << 10;

/// Reads what comes, and says how many bytes that were when the client has ended its side.
pub(crate) fn sink(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        let mut bytes = vec![0; PIECE];
        // A client that goes away is not the end of the server.
        for stream in listener.incoming().flatten() {
            drain(stream, &mut bytes).ok();
        }
    });
    Ok(())
}

fn drain(mut stream: TcpStream, bytes: &mut [u8]) -> Result<()> {
    let mut total = 0_u64;
    loop {
        match stream.read(bytes) {
            Ok(0) => return stream.write_all(&total.to_be_bytes()),
            Ok(count) => total += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends so many MiB to a sink; prints Gbit/s, until the sink has said that it has all.
pub(crate) fn send(target: &str, mebibytes: u64) -> Result<bool> {
    let mut stream = TcpStream::connect(resolve(target)?)?;
    let bytes = vec![b'x'; PIECE];
    let total = mebibytes << 20;
    let start = Instant::now();
    let mut left = total;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&bytes[..piece])?;
        left -= piece as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = [0; 8];
    stream.read_exact(&mut said)?;
    let seconds = start.elapsed().as_secs_f64();
    if u64::from_be_bytes(said) != total {
        let text = format!("{} of {total} bytes arrived", u64::from_be_bytes(said));
        return Err(Error::new(ErrorKind::UnexpectedEof, text));
    }
    let rate = total as f64 * 8.0 / seconds / 1e9;
    println!("{{\"unit\":\"Gbit/s\",\"n\":1,\"median\":{rate:.3}}}");
    Ok(true)
}
