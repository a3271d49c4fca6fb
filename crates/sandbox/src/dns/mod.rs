//! Name servers that only the container's network namespace on the host has.
//!
//! Docker answers for the names of a network's containers at 127.0.0.11, in the namespace it made.
//! In the guest that address is the guest's own: there the agent takes the queries, and here they are
//! put to the real server, by a thread that is in the namespace.
//!
//! What comes from the agent is a stranger's. It can have a bounded number of queries under way, a
//! bounded number of answers waiting for it to read them, and no effect on anything but itself.

mod relay;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use bulkhead_agent_api::messages;
use bulkhead_network::{Namespace, NetworkError};
use tokio::sync::oneshot;

use crate::channel::{Channel, socket_pair};

/// Where name servers listen.
const PORT: u16 = 53;

/// Why names of the host's side cannot be had in the guest.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Descriptors, or the device process.
    #[error("Failed to {step} for name server {server}")]
    Relay {
        /// What was attempted.
        step: &'static str,
        /// The server.
        server: IpAddr,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The event loop of the thread.
    #[error("Failed to start the relay for name servers")]
    Runtime(#[source] io::Error),
}

/// Asks name servers in a namespace on behalf of the guest, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Announces a stream to the guest for each server in the namespace at `path`, and begins to
    /// serve them. Returns what the agent is to be told.
    ///
    /// # Errors
    /// When the namespace cannot be entered, out of descriptors, or the device process is gone.
    pub fn start(
        path: &Path,
        servers: &[IpAddr],
        channel: &Channel,
    ) -> Result<(Self, Vec<messages::Resolver>), DnsError> {
        let namespace = Namespace::open(path)?;
        let mut streams = Vec::with_capacity(servers.len());
        let mut resolvers = Vec::with_capacity(servers.len());
        for &server in servers {
            let failed = |step| {
                move |source| DnsError::Relay {
                    step,
                    server,
                    source,
                }
            };
            let (ours, theirs) = socket_pair().map_err(failed("make a socket"))?;
            let other = theirs.try_clone().map_err(failed("make a socket"))?;
            let announced = channel.expect(Some(theirs), Some(other));
            let stream = announced.map_err(failed("announce a stream"))?;
            streams.push((SocketAddr::new(server, PORT), ours));
            resolvers.push(messages::Resolver {
                address: crate::network::octets(server),
                port: stream.port,
                ..Default::default()
            });
        }
        Ok((Self::serve(namespace, streams)?, resolvers))
    }

    fn serve(namespace: Namespace, streams: Vec<(SocketAddr, OwnedFd)>) -> Result<Self, DnsError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DnsError::Runtime)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = namespace.spawn("names", move || {
            runtime.block_on(async {
                for (server, stream) in streams {
                    match tokio::net::UnixStream::from_std(UnixStream::from(stream)) {
                        Ok(stream) => drop(tokio::spawn(relay::serve(stream, server))),
                        // The guest sees the stream end.
                        Err(error) => tracing::warn!("Failed to serve {server}: {error}"),
                    }
                }
                // Nothing is ever sent: the sender's end is the news.
                let _ = stopped.await;
            });
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It never waits for anything but events. When it has ended nothing of us is in the
        // namespace any more. A panic has ended the process.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
