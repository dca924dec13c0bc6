//! One long connection: says who answers first, and how it ends.

use crate::client::{TIME_OUT, resolve};
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Result, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// True if the peer ended it; false if an answer did not come.
pub(crate) fn run(target: &str) -> Result<bool> {
    let stream = TcpStream::connect_timeout(&resolve(target)?, TIME_OUT)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut count = 0_u64;
    let error = loop {
        match exchange(&mut writer, &mut reader) {
            Ok(answer) if count == 0 => println!("connected {answer}"),
            Ok(_) => {}
            Err(error) => break error,
        }
        count += 1;
        std::thread::sleep(Duration::from_millis(50));
    };
    let timed_out = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let how = if timed_out {
        "time-out".to_owned()
    } else {
        error.to_string()
    };
    println!("ended: {how} after {count} requests");
    Ok(!timed_out)
}

fn exchange(writer: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> Result<String> {
    writer.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
    // The head ends with an empty line, the body is one line.
    let mut line = String::new();
    let mut body = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "closed by the peer"));
        }
        if body {
            return Ok(line.trim_end().to_owned());
        }
        body = line.trim_end().is_empty();
    }
}
