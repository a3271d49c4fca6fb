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
