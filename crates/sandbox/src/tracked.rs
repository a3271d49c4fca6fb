//! Client connections that are counted, so that the sandbox process can end when the last client has
//! read its answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Counts open connections.
#[derive(Debug, Clone)]
pub struct Counter(watch::Sender<usize>);

impl Default for Counter {
    fn default() -> Self {
        Self(watch::channel(0).0)
    }
}

impl Counter {
    /// Counts `stream` until it is dropped.
    #[must_use]
    pub fn track(&self, stream: UnixStream) -> Tracked {
        self.0.send_modify(|count| *count = count.saturating_add(1));
        Tracked {
            stream,
            counter: self.clone(),
        }
    }

    /// Waits until no connection is open.
    pub async fn none(&self) {
        // We hold the sender, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct Tracked {
    stream: UnixStream,
    counter: Counter,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.counter
            .0
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
