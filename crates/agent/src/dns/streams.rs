//! Clients that ask over TCP (RFC 1035, 4.2.2): those for which a datagram was too small.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Client, MAX_QUERY, Queries, RECOVERY};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 32;

/// How long a connection may be without a query, or a query without an answer.
const IDLE: Duration = Duration::from_secs(20);

/// Serves connections for ever.
pub(super) async fn accept(listener: TcpListener, queries: &Queries) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            let _ = connections.join_next().await;
        }
        match listener.accept().await {
            Ok((connection, _)) => {
                let queries = queries.clone();
                connections.spawn(async move {
                    // Whatever is wrong with a connection, closing it is the answer.
                    let _ = serve(connection, &queries).await;
                });
            }
            Err(_) => tokio::time::sleep(RECOVERY).await,
        }
    }
}

/// Answers one query after the other.
async fn serve(mut connection: TcpStream, queries: &Queries) -> io::Result<()> {
    loop {
        let mut query = in_time(read_query(&mut connection)).await?;
        let (sender, answer) = oneshot::channel();
        queries
            .ask(&mut query, |id| Client::Stream(sender, id))
            .await;
        let answer = async { answer.await.map_err(io::Error::other) };
        let answer = in_time(answer).await?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes(), answer.as_slice()].concat();
        in_time(connection.write_all(&message)).await?;
    }
}

async fn read_query(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(connection.read_u16().await?);
    if length > MAX_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    connection.read_exact(&mut query).await?;
    Ok(query)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(IDLE, work).await?
}
