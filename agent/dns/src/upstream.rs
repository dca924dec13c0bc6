//! Asking another server: over UDP, and over TCP where its answer did not fit.
//!
//! Each exchange has a socket and a message id of its own, both random, and takes only an
//! answer that repeats the question (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::lookup::Answer;
use crate::message::UDP_MOST;

/// For an answer of one server over UDP.
const UDP_TIME: Duration = Duration::from_millis(1500);
/// For an answer of one server over TCP, connecting included.
const TCP_TIME: Duration = Duration::from_secs(3);

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The socket, or the way there.
    #[error("{server}: {source}")]
    Io {
        /// The server.
        server: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{server}: no answer")]
    Silent {
        /// The server.
        server: SocketAddr,
    },
    /// It answers that it cannot.
    #[error("{server}: {code}")]
    Code {
        /// The server.
        server: SocketAddr,
        /// SERVFAIL, REFUSED, ...
        code: ResponseCode,
    },
    /// The question cannot be written as a message.
    #[error("the question cannot be sent")]
    Question,
}

/// A question for other servers.
#[derive(Debug, Clone)]
pub struct Question {
    /// Name, type and class.
    pub query: Query,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// Signatures are not to be checked.
    pub checking_disabled: bool,
}

fn message(question: &Question, id: u16) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.metadata.authentic_data = true;
    message.add_query(question.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MOST as u16);
    edns.set_dnssec_ok(question.dnssec_ok);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// The answer to our question; `None` for any other message.
fn answer(question: &Question, id: u16, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && message.queries.as_slice() == std::slice::from_ref(&question.query);
    ours.then_some(message)
}

/// Asks one server.
///
/// # Errors
/// [`UpstreamError`]; then another server may know.
pub async fn ask(question: &Question, server: SocketAddr) -> Result<Answer, UpstreamError> {
    let id: u16 = rand::random();
    let bytes = message(question, id).ok_or(UpstreamError::Question)?;
    let silent = |_elapsed| UpstreamError::Silent { server };
    let failed = |source| UpstreamError::Io { server, source };
    let over_udp = timeout(UDP_TIME, udp(question, id, &bytes, server));
    let mut reply = over_udp.await.map_err(silent)?.map_err(failed)?;
    if reply.metadata.truncation {
        let over_tcp = timeout(TCP_TIME, tcp(question, id, &bytes, server));
        reply = over_tcp.await.map_err(silent)?.map_err(failed)?;
    }
    taken(reply).map_err(|code| UpstreamError::Code { server, code })
}

/// What is told on of a server's reply; or its error code.
fn taken(reply: Message) -> Result<Answer, ResponseCode> {
    let code = reply.metadata.response_code;
    if ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&code) {
        return Err(code);
    }
    // A client that asked without EDNS gets none, and OPT records are never kept.
    let mut additionals = reply.additionals;
    additionals.retain(|record| record.record_type() != RecordType::OPT);
    Ok(Answer {
        code,
        authoritative: false,
        authentic: reply.metadata.authentic_data,
        answers: reply.answers,
        authorities: reply.authorities,
        additionals,
    })
}

async fn udp(
    question: &Question,
    id: u16,
    bytes: &[u8],
    server: SocketAddr,
) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = answer(question, id, &buffer[..length]) {
            return Ok(message);
        }
    }
}

async fn tcp(
    question: &Question,
    id: u16,
    bytes: &[u8],
    server: SocketAddr,
) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    answer(question, id, &buffer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
#[path = "tests/hostile.rs"]
mod tests;
