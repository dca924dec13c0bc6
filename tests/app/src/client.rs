//! One call to the server, with a time-out on each step and a name for each failure.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Echo this byte, then close.
pub(crate) const CLOSE_AFTER: u8 = 2;

/// What failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// "connect timeout", "connect refused", "read timeout", "reset", "closed", ...
    pub(crate) kind: String,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn of(step: &str, error: &io::Error) -> Self {
        // A blocking socket's time-out is EAGAIN.
        let kinds: [(&[io::ErrorKind], &str); 5] = [
            (
                &[io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock],
                "timeout",
            ),
            (&[io::ErrorKind::ConnectionRefused], "refused"),
            (
                &[io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe],
                "reset",
            ),
            (&[io::ErrorKind::UnexpectedEof], "closed"),
            (
                &[
                    io::ErrorKind::HostUnreachable,
                    io::ErrorKind::NetworkUnreachable,
                ],
                "unreachable",
            ),
        ];
        let word = kinds
            .iter()
            .find(|(kinds, _)| kinds.contains(&error.kind()))
            .map_or("error", |(_, word)| word);
        let kind = format!("{step} {word}");
        Self {
            kind,
            text: error.to_string(),
        }
    }
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Name of the host that gave it.
    pub(crate) backend: String,
    /// The server will close the connection.
    pub(crate) close: bool,
}

/// Connects, without Nagle's delay, and bounds each later step by `timeout`.
pub(crate) fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Failure> {
    let failed = |error| Failure::of("connect", &error);
    let stream = TcpStream::connect_timeout(&address, timeout).map_err(failed)?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(timeout)))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .map_err(failed)?;
    Ok(stream)
}

/// An HTTP connection.
#[derive(Debug)]
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// Requests answered on it.
    pub(crate) answered: u64,
}

impl Http {
    pub(crate) fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, Failure> {
        Ok(Self {
            stream: BufReader::new(connect(address, timeout)?),
            answered: 0,
        })
    }

    /// Asks for `path`. The flag of the failure: not a byte of an answer came.
    pub(crate) fn get(&mut self, path: &str, keep: bool) -> Result<Answer, (Failure, bool)> {
        let close = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n{close}\r\n");
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .map_err(|error| (Failure::of("write", &error), true))?;
        let nothing = self.stream.fill_buf().map(<[u8]>::is_empty);
        match nothing {
            Err(error) => return Err((Failure::of("read", &error), true)),
            Ok(true) => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err((Failure::of("read", &error), true));
            }
            Ok(false) => {}
        }
        let answer = read_answer(&mut self.stream).map_err(|failure| (failure, false))?;
        self.answered += 1;
        Ok(answer)
    }
}

fn read_answer(from: &mut impl BufRead) -> Result<Answer, Failure> {
    let bad = |text: &str| Failure {
        kind: "bad answer".to_owned(),
        text: text.to_owned(),
    };
    let mut answer = Answer {
        backend: String::new(),
        close: false,
    };
    let (mut length, mut first) = (None, true);
    loop {
        let mut line = String::new();
        from.read_line(&mut line)
            .map_err(|error| Failure::of("read", &error))?;
        if !line.ends_with('\n') {
            return Err(Failure::of("read", &io::ErrorKind::UnexpectedEof.into()));
        }
        let line = line.trim_end();
        if first && line.split(' ').nth(1) != Some("200") {
            return Err(bad(line));
        }
        first = false;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => length = value.parse::<u64>().ok(),
            ("x-backend", value) => answer.backend = value.to_owned(),
            ("connection", value) => answer.close = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let length = length.ok_or_else(|| bad("no Content-Length"))?;
    let read = io::copy(&mut from.take(length), &mut io::sink())
        .map_err(|error| Failure::of("read", &error))?;
    if read == length {
        Ok(answer)
    } else {
        Err(Failure::of("read", &io::ErrorKind::UnexpectedEof.into()))
    }
}

/// One datagram there and its echo back, over a socket of its own.
pub(crate) fn ask_by_datagram(
    address: SocketAddr,
    timeout: Duration,
    payload: &[u8],
) -> Result<Answer, Failure> {
    let any: SocketAddr = if address.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let failed = |step: &'static str| move |error: io::Error| Failure::of(step, &error);
    let socket = UdpSocket::bind(any).map_err(failed("bind"))?;
    socket.connect(address).map_err(failed("connect"))?;
    socket
        .set_read_timeout(Some(timeout))
        .map_err(failed("bind"))?;
    socket.send(payload).map_err(failed("write"))?;
    let mut buffer = vec![0; 65_536];
    let count = socket.recv(&mut buffer).map_err(failed("read"))?;
    let newline = buffer[..count].iter().position(|byte| *byte == b'\n');
    match newline {
        Some(end) if &buffer[end + 1..count] == payload => Ok(Answer {
            backend: String::from_utf8_lossy(&buffer[..end]).into_owned(),
            close: true,
        }),
        _ => Err(Failure {
            kind: "bad answer".to_owned(),
            text: "not an echo".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_their_failures() {
        let fine =
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Backend: web\r\nConnection: close\r\n\r\nok";
        let answer = read_answer(&mut fine.as_bytes()).unwrap();
        assert_eq!(
            answer,
            Answer {
                backend: "web".to_owned(),
                close: true
            }
        );
        for (text, kind) in [
            ("HTTP/1.1 503 Busy\r\n\r\n", "bad answer"),
            ("HTTP/1.1 200 OK\r\n\r\n", "bad answer"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
                "read closed",
            ),
            ("HTTP/1.1 200 OK\r\nConte", "read closed"),
            ("", "read closed"),
        ] {
            assert_eq!(
                read_answer(&mut text.as_bytes()).unwrap_err().kind,
                kind,
                "{text:?}"
            );
        }
    }
}
