//! Bytes to a question, an answer to bytes. Never panics on any input; a reply is never
//! longer than its client accepts.

use std::iter;

use hickory_proto::op::{
    Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;

use crate::lookup::Answer;

/// Longest UDP message that is sent, and announced to be accepted (DNS flag day 2020).
pub const UDP_MOST: usize = 1232;
/// Longest UDP message to a client without EDNS (RFC 1035, 4.2.1).
const UDP_PLAIN: usize = 512;
/// Longest message over TCP: its length has 16 bits.
pub const TCP_MOST: usize = 65_535;
/// Bytes of a header.
const HEADER: usize = 12;

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One packet.
    Udp,
    /// A stream of messages.
    Tcp,
}

/// A question as it was asked.
#[derive(Debug, Clone)]
pub struct Request {
    id: u16,
    /// The one question of the message.
    pub query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    authentic_data: bool,
    /// Bytes that the client accepts, and whether it wants DNSSEC records.
    edns: Option<(u16, bool)>,
}

impl Request {
    /// True if the client wants other servers to be asked.
    pub fn recursion_desired(&self) -> bool {
        self.recursion_desired
    }

    /// The client checks signatures itself.
    pub fn checking_disabled(&self) -> bool {
        self.checking_disabled
    }

    /// The client wants DNSSEC records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|(_, dnssec)| dnssec)
    }

    /// Bytes that a reply may have.
    pub fn limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => TCP_MOST,
            Transport::Udp => match self.edns {
                Some((accepted, _)) => usize::from(accepted).clamp(UDP_PLAIN, UDP_MOST),
                None => UDP_PLAIN,
            },
        }
    }
}

/// What a message is.
#[derive(Debug)]
pub enum Read {
    /// To be answered.
    Request(Box<Request>),
    /// Of class CHAOS: about the server itself.
    Status(Box<Request>),
    /// Answered with an error code at once.
    Refused(ResponseCode, Vec<u8>),
    /// Not answered: no query.
    Ignored,
}

fn number(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        Some(_) | None => 0,
    }
}

/// Reads a message of a client.
pub fn read(bytes: &[u8]) -> Read {
    // An answer to an answer could go on for ever.
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Read::Ignored;
    }
    let id = number(bytes, 0);
    let op_code = OpCode::from_u8(bytes[2] >> 3 & 0xf);
    let refused = |code| Read::Refused(code, header_only(id, op_code, code));
    if op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    // Checked before decoding: the decoder allocates as many records as the header announces.
    let (questions, answers, authorities) = (number(bytes, 4), number(bytes, 6), number(bytes, 8));
    if questions != 1 || answers != 0 || authorities != 0 || number(bytes, 10) > 2 {
        return refused(ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return refused(ResponseCode::FormErr);
    };
    let Some(query) = message.queries.pop() else {
        return refused(ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref();
    let request = Request {
        id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        authentic_data: message.metadata.authentic_data,
        edns: edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
        query,
    };
    let code = if edns.is_some_and(|edns| edns.version() != 0) {
        ResponseCode::BADVERS
    } else if request.query.query_class() == DNSClass::CH {
        return Read::Status(Box::new(request));
    } else if request.query.query_class() != DNSClass::IN {
        ResponseCode::Refused
    } else if unanswerable(request.query.query_type()) {
        ResponseCode::NotImp
    } else {
        return Read::Request(Box::new(request));
    };
    let limit = request.limit(Transport::Udp);
    Read::Refused(code, encode(&request, &Answer::empty(code), limit).bytes)
}

/// Types that are no records of a name, and zone transfers.
fn unanswerable(asked: RecordType) -> bool {
    [
        RecordType::AXFR,
        RecordType::IXFR,
        RecordType::OPT,
        RecordType::TSIG,
        RecordType::ZERO,
    ]
    .contains(&asked)
}

fn header_only(id: u16, op_code: OpCode, code: ResponseCode) -> Vec<u8> {
    let message = Message::error_msg(id, op_code, code);
    message.to_vec().unwrap_or_default()
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message; empty if none can be made.
    pub bytes: Vec<u8>,
    /// Records had to be left out, and the client told so.
    pub truncated: bool,
}

/// Makes the reply of an answer, at most `limit` bytes: additional records are left out
/// first, then the client is told to ask over TCP.
pub fn encode(request: &Request, answer: &Answer, limit: usize) -> Reply {
    let mut metadata = Metadata::new(request.id, MessageType::Response, OpCode::Query);
    metadata.authoritative = answer.authoritative;
    metadata.recursion_desired = request.recursion_desired;
    metadata.recursion_available = true;
    metadata.checking_disabled = request.checking_disabled;
    metadata.authentic_data = answer.authentic && (request.authentic_data || request.dnssec_ok());
    metadata.response_code = answer.code;
    let edns = request.edns.map(|(_, dnssec)| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MOST as u16);
        edns.set_dnssec_ok(dnssec);
        edns
    });
    let emit = |metadata: &Metadata,
                answers: &[Record],
                authorities: &[Record],
                additionals: &[Record]| {
        let mut bytes = Vec::with_capacity(UDP_PLAIN);
        let mut encoder = BinEncoder::new(&mut bytes);
        let header = emit_message_parts(
            metadata,
            &mut iter::once(&request.query),
            &mut answers.iter(),
            &mut authorities.iter(),
            &mut additionals.iter(),
            edns.as_ref(),
            None,
            &mut encoder,
        )
        .ok()?;
        // The encoder leaves out, and says so, what goes beyond 65,535 bytes.
        let whole = header.metadata.truncation == metadata.truncation
            && usize::from(header.counts.answers) == answers.len();
        Some(bytes).filter(|bytes| whole && bytes.len() <= limit)
    };
    let (answers, authorities) = (answer.answers.as_slice(), answer.authorities.as_slice());
    let whole = emit(&metadata, answers, authorities, &answer.additionals);
    if let Some(bytes) = whole.or_else(|| emit(&metadata, answers, authorities, &[])) {
        let truncated = false;
        return Reply { bytes, truncated };
    }
    metadata.truncation = true;
    // As many as fit: a client without TCP makes do with them.
    let (mut least, mut most) = (0, answers.len());
    let mut bytes = emit(&metadata, &[], &[], &[]).unwrap_or_default();
    while least < most {
        let middle = least + (most - least).div_ceil(2);
        match emit(&metadata, &answers[..middle], &[], &[]) {
            Some(fitting) => (least, bytes) = (middle, fitting),
            None => most = middle - 1,
        }
    }
    let truncated = true;
    Reply { bytes, truncated }
}

#[cfg(test)]
#[path = "tests/message.rs"]
mod tests;
