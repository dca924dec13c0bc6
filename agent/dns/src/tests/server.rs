//! Sockets that outlive the server, on loopback.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use proto::v1;

use super::*;
use crate::receive::receive;

const PATIENCE: Duration = Duration::from_secs(30);

fn query() -> Vec<u8> {
    let name = Name::from_ascii("dns-version.cluster.local.").unwrap();
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::TXT));
    message.to_vec().unwrap()
}

fn resolver() -> Arc<Resolver> {
    let resolver = Resolver::new(PathBuf::from("/nowhere"), || 1);
    resolver.configure(&v1::ClusterConfig::default());
    Arc::new(resolver)
}

#[test]
fn what_was_asked_while_no_server_ran_is_answered_by_the_next() {
    let free = UdpSocket::bind("127.0.0.3:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let sockets = Sockets::open(address, Vec::new()).unwrap();
    assert_eq!(sockets.reused(), 0);
    let fds = sockets.fds();
    let mut kept: Vec<OwnedFd> = fds
        .iter()
        .map(|fd| fd.try_clone_to_owned().unwrap())
        .collect();
    // What is of no use here.
    kept.push(UdpSocket::bind("127.0.0.3:0").unwrap().into());
    kept.push(std::fs::File::open("/dev/null").unwrap().into());
    drop(sockets);

    // Enough clients for each of the sockets to get some.
    let clients: Vec<UdpSocket> = (0..40)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.connect(address).unwrap();
            client
        })
        .collect();
    for client in &clients {
        client.send(&query()).unwrap();
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let framed = [&[0, query().len() as u8], query().as_slice()].concat();
    stream.write_all(&framed).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let count = kept.len() - 2;
    let sockets = Sockets::open(address, kept).unwrap();
    assert_eq!((sockets.reused(), sockets.fds().len()), (count, count));
    let _server = Server::start(&resolver(), sockets, runtime.handle()).unwrap();
    let mut buffer = [0; 512];
    for client in &clients {
        let length = receive(client, &mut buffer).unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(reply.answers.len(), 1);
    }
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    assert!(u16::from_be_bytes(length) > 12);
}
