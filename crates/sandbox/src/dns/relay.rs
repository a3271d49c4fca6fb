//! One name server and the stream on which the guest asks it.

use std::io::{self, ErrorKind::WouldBlock};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bulkhead_agent_api::dns::{self, HEAD, Head, MAX_QUERY, Outstanding, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// How long a server may take. Clients have given up by then; a server that asks others itself tries
/// more than one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers that wait for the guest to read them; more are left with the server's sockets.
const ANSWERS: usize = 8;

/// A message with its head.
type Frame = Vec<u8>;

/// Puts the queries of a stream to a server until the guest ends it or breaks the protocol.
///
/// The calling thread is in the server's network namespace.
pub(super) async fn serve(stream: UnixStream, server: SocketAddr) {
    let (mut from_guest, to_guest) = stream.into_split();
    let (answers, waiting) = mpsc::channel(ANSWERS);
    let write = write(to_guest, waiting);
    let read = async {
        // What is dropped with it is no longer asked for.
        let mut outstanding = Outstanding::default();
        while let Ok((transport, query)) = read_query(&mut from_guest).await {
            let asked = tokio::spawn(ask(server, transport, query, answers.clone()));
            outstanding.put(Asked(asked.abort_handle()));
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// A query under way; dropping it ends it.
struct Asked(AbortHandle);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read_query(from: &mut OwnedReadHalf) -> io::Result<(Transport, Vec<u8>)> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await?;
    let head = Head::decode(head).filter(|head| usize::from(head.length) <= MAX_QUERY);
    let Head { transport, length } = head.ok_or(io::ErrorKind::InvalidData)?;
    let mut query = vec![0; length.into()];
    from.read_exact(&mut query).await?;
    Ok((transport, query))
}

async fn write(mut to: OwnedWriteHalf, mut answers: mpsc::Receiver<Frame>) {
    while let Some(answer) = answers.recv().await {
        if to.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// Asks, and passes the answer on if there is one in time.
async fn ask(
    server: SocketAddr,
    transport: Transport,
    mut query: Vec<u8>,
    answers: mpsc::Sender<Frame>,
) {
    let answered = async {
        match transport {
            Transport::Datagram => by_datagram(server, &query, &answers).await,
            Transport::Stream => by_stream(server, &query, &answers).await,
        }
    };
    if let Ok(Err(_)) = tokio::time::timeout(PATIENCE, answered).await {
        // Nobody listens there, most likely: the guest need not wait.
        dns::fail(&mut query);
        if let Some(frame) = frame(transport, &query) {
            // The stream may be over.
            let _ = answers.send(frame).await;
        }
    }
}

/// Each query from a socket of its own, as C libraries do: their ports are not to be guessed, and
/// no translation of addresses the kernel remembers outlives a server that was started anew.
async fn by_datagram(
    server: SocketAddr,
    query: &[u8],
    answers: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    loop {
        // An error is how it shows that nobody listens there; it does not count as readable.
        let news = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if news.is_error() {
            let told = || Err(socket.take_error()?.unwrap_or(WouldBlock.into()));
            match socket.try_io(Interest::ERROR, told) {
                Err(error) if error.kind() == WouldBlock => {}
                refused => return refused,
            }
        }
        // Only now is there need for a buffer, and no more of them than answers may wait.
        let Ok(place) = answers.reserve().await else {
            return Ok(());
        };
        let mut answer = vec![0; usize::from(u16::MAX)];
        match socket.try_recv(&mut answer) {
            Ok(length) => answer.truncate(length),
            Err(error) if error.kind() == WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if dns::id(&answer) != dns::id(query) {
            continue;
        }
        if let Some(frame) = frame(Transport::Datagram, &answer) {
            place.send(frame);
        }
        return Ok(());
    }
}

/// Each query on a connection of its own: large answers are rare.
async fn by_stream(
    server: SocketAddr,
    query: &[u8],
    answers: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let mut connection = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    // In one piece: some servers want that.
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(query);
    connection.write_all(&message).await?;
    let length = connection.read_u16().await?;
    // Grows as bytes come.
    let mut answer = Vec::new();
    connection
        .take(length.into())
        .read_to_end(&mut answer)
        .await?;
    let whole = answer.len() == usize::from(length) && dns::id(&answer) == dns::id(query);
    let frame = frame(Transport::Stream, &answer).filter(|_| whole);
    let frame = frame.ok_or(io::ErrorKind::InvalidData)?;
    // The stream may be over.
    let _ = answers.send(frame).await;
    Ok(())
}

fn frame(transport: Transport, message: &[u8]) -> Option<Frame> {
    let head = Head::of(transport, message)?;
    let mut frame = Vec::with_capacity(HEAD.saturating_add(message.len()));
    frame.extend_from_slice(&head.encode());
    frame.extend_from_slice(message);
    Some(frame)
}
