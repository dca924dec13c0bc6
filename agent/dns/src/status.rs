//! The server's counters, as TXT records of class CHAOS: the way in which dnsmasq and BIND
//! tell theirs. Only the node itself may ask. `foil-agent dns` shows them.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::lookup::Answer;

/// The name that has them: a record for each, "queries_udp 12".
const NAME: &str = "counters.hydrofoil.";
/// Longest wait of a client, at each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The counters could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The server does not answer.
    #[error("cluster DNS at {server}: {source}")]
    Io {
        /// Where it was asked.
        server: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It answers something else.
    #[error("cluster DNS at {server} does not tell its counters: {code}")]
    Refused {
        /// Where it was asked.
        server: SocketAddr,
        /// REFUSED: another process than a node's own has asked.
        code: ResponseCode,
    },
}

/// The answer to a question of class CHAOS; `rows` are names and values.
pub(crate) fn answer(rows: Vec<(&'static str, u64)>, query: &Query) -> Answer {
    let asked = query.name().to_lowercase().to_string() == NAME;
    if !asked || query.query_type() != RecordType::TXT {
        return Answer::empty(ResponseCode::Refused);
    }
    let mut answer = Answer::empty(ResponseCode::NoError);
    answer.authoritative = true;
    let records = rows.into_iter().map(|(name, value)| {
        let text = TXT::new(vec![format!("{name} {value}")]);
        let mut record = Record::from_rdata(query.name().clone(), 0, RData::TXT(text));
        record.dns_class = DNSClass::CH;
        record
    });
    answer.answers = records.collect();
    answer
}

/// Asks a server for its counters: lines of a name and a value. Blocking.
///
/// # Errors
/// [`StatusError`]
pub fn ask(server: SocketAddr) -> Result<Vec<String>, StatusError> {
    let failed = |source| StatusError::Io { server, source };
    let reply = exchange(server).map_err(failed)?;
    let code = reply.metadata.response_code;
    if code != ResponseCode::NoError {
        return Err(StatusError::Refused { server, code });
    }
    let lines = reply.answers.iter().map(|record| record.data.to_string());
    Ok(lines.collect())
}

fn exchange(server: SocketAddr) -> io::Result<Message> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(NAME).map_err(io::Error::other)?;
    let mut query = Query::query(name, RecordType::TXT);
    query.set_query_class(DNSClass::CH);
    message.add_query(query);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Message::from_vec(&bytes).map_err(io::Error::other)
}
