//! TCP (RFC 7766): queries of one connection are answered in their order. Connections are
//! bounded, in all and for each client, and closed when they are idle.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::counters::Counters;
use crate::message::Transport;
use crate::places::{Limits, Places};
use crate::resolver::{Handled, Resolver};

/// Connections at a time.
const CONNECTIONS: Limits = Limits {
    all: 256,
    of_client: 32,
};
/// For the next query of a connection, all of it, and for taking a reply.
const IDLE: Duration = Duration::from_secs(10);
/// Longest query; a connection with a longer one is closed.
const QUERY_MOST: usize = 4096;
/// Before another try when no connection can be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Begins to accept connections.
pub(crate) fn start(
    resolver: Arc<Resolver>,
    listener: TcpListener,
    runtime: &Handle,
) -> io::Result<JoinHandle<()>> {
    let _context = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(runtime.spawn(accept(resolver, listener)))
}

async fn accept(resolver: Arc<Resolver>, listener: tokio::net::TcpListener) {
    let open = Places::new(CONNECTIONS);
    loop {
        let (stream, client) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                tracing::debug!(%error, "DNS over TCP");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let serves = resolver.names(|zone| zone.serves(client));
        let Some(place) = open.take(client).filter(|_| serves) else {
            Counters::add(&resolver.counters.dropped);
            continue;
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(&resolver, stream, client).await {
                tracing::debug!(%client, %error, "DNS over TCP");
            }
            drop(place);
        });
    }
}

/// One query after the other, until the client closes or is silent.
async fn serve(resolver: &Resolver, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    while let Ok(read) = timeout(IDLE, query(&mut stream)).await {
        let Some(bytes) = read? else {
            return Ok(());
        };
        let reply = match resolver.handle(&bytes, client, Transport::Tcp) {
            Handled::Silent => return Ok(()),
            Handled::Reply(reply) => reply,
            Handled::Later(request) => {
                let answer = resolver.later(&request).await;
                resolver.reply(&request, (&answer, 0), Transport::Tcp)
            }
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        if timeout(IDLE, stream.write_all(&framed)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// `None`: the client has closed, or asks more than a query can be.
async fn query(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > QUERY_MOST {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
