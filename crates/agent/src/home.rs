//! The connection to the host that carries the RPC, and the one event that ends the guest: its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::sync::oneshot;

use crate::watched::Watched;

/// A request of the usual size arrives in one read; larger ones bypass the buffer.
const BUFFER: usize = 4096;

/// A connected stream socket.
#[derive(Debug)]
pub struct Home {
    socket: Watched,
    /// Fires, or is dropped, when nothing more will come from the host.
    ended: Option<oneshot::Sender<()>>,
}

/// What a server listens to: this one connection, already accepted.
#[derive(Debug)]
pub struct OneConnection(Option<BufReader<Home>>);

/// Wraps the socket for the server. The receiver resolves when the host has hung up.
pub fn listen(socket: Watched) -> (OneConnection, oneshot::Receiver<()>) {
    let (ended, receiver) = oneshot::channel();
    let home = Home {
        socket,
        ended: Some(ended),
    };
    (
        OneConnection(Some(BufReader::with_capacity(BUFFER, home))),
        receiver,
    )
}

impl Stream for OneConnection {
    type Item = io::Result<BufReader<Home>>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

impl AsyncRead for Home {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let wanted = buffer.remaining();
            match recv(
                self.socket.get_ref(),
                buffer.initialize_unfilled(),
                RecvFlags::empty(),
            ) {
                Ok((count, _)) => {
                    // A short read has emptied the socket, which saves the attempt that says so;
                    // what arrives from now on is a new event. An end stays readable.
                    if count < wanted {
                        guard.clear_ready();
                    }
                    buffer.advance(count);
                    if count == 0 {
                        self.hung_up();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.hung_up();
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl AsyncWrite for Home {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(context))?;
            match send(self.socket.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}

impl Home {
    fn hung_up(&mut self) {
        if let Some(ended) = self.ended.take() {
            // The main task waits for it until the guest ends.
            let _ = ended.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::watched;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(test)
    }

    /// The accepted connection, the news of its end, and the host's end.
    fn connection() -> (BufReader<Home>, oneshot::Receiver<()>, UnixStream) {
        let (agent, host) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let (mut listener, ended) = listen(watched::both_ways(agent.into()).unwrap());
        (listener.0.take().unwrap(), ended, host)
    }

    #[test]
    fn host_hangs_up_then_end_is_told() {
        run(async {
            let (mut home, ended, mut host) = connection();
            host.write_all(b"last").unwrap();
            drop(host);
            let mut all = Vec::new();
            home.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"last");
            ended.await.unwrap();
        });
    }

    #[test]
    fn bytes_in_pieces_of_any_size_arrive_in_order() {
        run(async {
            let (mut home, _ended, mut host) = connection();
            let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
            let bytes = sent.clone();
            let writer = std::thread::spawn(move || {
                for piece in bytes.chunks(1777) {
                    host.write_all(piece).unwrap();
                }
            });
            let mut received = vec![0; sent.len()];
            for piece in received.chunks_mut(911) {
                home.read_exact(piece).await.unwrap();
            }
            writer.join().unwrap();
            assert!(received == sent);
        });
    }

    #[test]
    fn answer_larger_than_the_socket_arrives_whole() {
        run(async {
            let (mut home, _ended, mut host) = connection();
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                host.read_to_end(&mut all).unwrap();
                all.len()
            });
            home.write_all(&vec![1; 4 << 20]).await.unwrap();
            drop(home);
            assert_eq!(reader.join().unwrap(), 4 << 20);
        });
    }
}
