//! Name servers that are elsewhere: what is asked of them here goes to the host, on one stream each,
//! and answers come back in any order.
//!
//! ```text
//!               redirect
//! UDP client ──────┼──► datagrams ─┐                      ┌─► UDP client
//! TCP client ──────┴──► streams ───┴─► queue ─► host ─────┴─► TCP client
//!                                       └─ outstanding ───┘
//! ```
//!
//! Nothing is kept that a client could make grow: queries wait in a short queue and then with the
//! kernel, which drops datagrams; of those under way the oldest is forgotten for a new one.

mod redirect;
mod streams;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_agent_api::dns::{self, HEAD, Head, MAX_QUERY, Outstanding, Transport};
use bulkhead_agent_api::messages::Resolver;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot};

use self::redirect::Redirect;
use crate::network::ip;
use crate::vsock;
use crate::watched::{self, Watched};

/// Queries that wait for the host to take them.
const QUEUE: usize = 16;

/// How long a socket that is in trouble is left alone.
const RECOVERY: Duration = Duration::from_secs(1);

/// Why a name server cannot be stood in for.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The host says something that is no address.
    #[error("Cannot serve names: a name server's address has {0} bytes")]
    Address(usize),
    /// Sockets, or the connection to the host.
    #[error("Cannot {step} for name server {server}")]
    Socket {
        /// What was attempted.
        step: &'static str,
        /// The server.
        server: IpAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Stands in for name servers from now on, until the host ends their streams.
///
/// What processes send to a server's port goes to a port of ours: the port itself stays free for a
/// server in the container that listens at every address.
///
/// # Errors
/// When the host does not accept a stream, or the kernel refuses a socket or a program.
pub async fn serve(resolvers: &[Resolver]) -> Result<(), DnsError> {
    for resolver in resolvers {
        let server = ip(&resolver.address).ok_or(DnsError::Address(resolver.address.len()))?;
        let failed = |step| {
            move |source| DnsError::Socket {
                step,
                server,
                source,
            }
        };
        let datagrams = UdpSocket::bind((server, 0)).await;
        let datagrams = datagrams.map_err(failed("listen for datagrams"))?;
        let streams = TcpListener::bind((server, 0)).await;
        let streams = streams.map_err(failed("listen for connections"))?;
        let host = connect(resolver.port).await;
        let host = host.map_err(failed("connect to the host"))?;
        Redirect::to(server, &datagrams, &streams)
            .and_then(|redirect| redirect.install())
            .map_err(failed("redirect what is sent to port 53"))?;
        tokio::spawn(relay(datagrams, streams, host));
    }
    Ok(())
}

async fn connect(port: u32) -> io::Result<Watched> {
    let socket = watched::both_ways(vsock::start_connecting(port, vsock::STREAM_PATIENCE_S)?)?;
    drop(socket.writable().await?);
    vsock::connected(socket.get_ref())?;
    Ok(socket)
}

/// Who waits for an answer, and by which id.
#[derive(Debug)]
enum Client {
    Datagram(SocketAddr, u16),
    Stream(oneshot::Sender<Vec<u8>>, u16),
}

/// The way to the host.
#[derive(Clone, Debug)]
struct Queries {
    queue: mpsc::Sender<Vec<u8>>,
    outstanding: Arc<Mutex<Outstanding<Client>>>,
}

impl Queries {
    fn outstanding(&self) -> MutexGuard<'_, Outstanding<Client>> {
        self.outstanding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the host. A query that is none is dropped, with its client.
    async fn ask(&self, query: &mut [u8], client: impl FnOnce(u16) -> Client) {
        let (Some(id), true) = (dns::id(query), query.len() <= MAX_QUERY) else {
            return;
        };
        let client = client(id);
        let transport = match client {
            Client::Datagram(..) => Transport::Datagram,
            Client::Stream(..) => Transport::Stream,
        };
        let Some(head) = Head::of(transport, query) else {
            return;
        };
        let number = self.outstanding().put(client);
        dns::set_id(query, number);
        // At the end of the relay nobody takes it.
        let _ = self.queue.send([&head.encode(), &*query].concat()).await;
    }
}

async fn relay(datagrams: UdpSocket, streams: TcpListener, host: Watched) {
    let (queue, queued) = mpsc::channel(QUEUE);
    let queries = Queries {
        queue,
        outstanding: Arc::default(),
    };
    // Whichever ends first: the host has ended the stream.
    tokio::select! {
        () = take_datagrams(&datagrams, &queries) => {}
        () = streams::accept(streams, &queries) => {}
        _ = to_host(&host, queued) => {}
        _ = from_host(&host, &datagrams, &queries) => {}
    }
}

async fn take_datagrams(socket: &UdpSocket, queries: &Queries) {
    // One byte more, to know those that are too long.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let query = buffer.get_mut(..length).unwrap_or_default();
                queries.ask(query, |id| Client::Datagram(client, id)).await;
            }
            Err(_) => tokio::time::sleep(RECOVERY).await,
        }
    }
}

async fn to_host(host: &Watched, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(query) = queue.recv().await {
        let mut rest = query.as_slice();
        while !rest.is_empty() {
            let send = |fd: &_| Ok(rustix::net::send(fd, rest, SendFlags::NOSIGNAL)?);
            let sent = host.async_io(Interest::WRITABLE, send).await?;
            rest = rest.get(sent..).unwrap_or_default();
        }
    }
    Ok(())
}

async fn from_host(host: &Watched, datagrams: &UdpSocket, queries: &Queries) -> io::Result<()> {
    loop {
        let mut head = [0; HEAD];
        receive(host, &mut head).await?;
        let head = Head::decode(head).ok_or(io::ErrorKind::InvalidData)?;
        let mut answer = vec![0; head.length.into()];
        receive(host, &mut answer).await?;
        let client = dns::id(&answer).and_then(|number| queries.outstanding().take(number));
        match client {
            Some(Client::Datagram(client, id)) => {
                dns::set_id(&mut answer, id);
                // It may have gone away, or have a firewall.
                let _ = datagrams.send_to(&answer, client).await;
            }
            Some(Client::Stream(client, id)) => {
                dns::set_id(&mut answer, id);
                // It may have gone away.
                let _ = client.send(answer);
            }
            // Forgotten for newer ones.
            None => {}
        }
    }
}

/// Fills the buffer.
async fn receive(host: &Watched, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let receive = |fd: &_| Ok(rustix::net::recv(fd, &mut *buffer, RecvFlags::empty())?.0);
        let count = host.async_io(Interest::READABLE, receive).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = buffer.get_mut(count..).unwrap_or_default();
    }
    Ok(())
}
