//! The way to a running sandbox: how front ends start one and speak to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::shim_async::TaskClient;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::paths::{Paths, socket_path};
use crate::request::Request;
use crate::standin::{self, Message};

/// Why the sandbox process could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Spawning failed.
    #[error("Failed to start the sandbox process of container {id} in {dir}")]
    Spawn {
        /// The container.
        id: String,
        /// Its directory.
        dir: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The sandbox process answered with a reason.
    #[error(transparent)]
    Refused(io::Error),
    /// Nobody answers.
    #[error(
        "Cannot reach the sandbox process of container {id}: `bulkhead why {id}` tells whether and why it \
         has ended, `bulkhead delete --force {id}` ends it"
    )]
    Unreachable {
        /// The container.
        id: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Starts the sandbox process of a claimed directory. `lock` (see [`crate::claim`]) goes with it;
/// `lifeline` is the read end of a pipe, for a command that stays attached.
///
/// The service's socket exists when this returns: a client can connect at once.
///
/// # Errors
/// [`ClientError::Spawn`]; the directory is then still the caller's.
pub fn start(
    mut request: Request,
    paths: &Paths,
    lock: OwnedFd,
    lifeline: Option<OwnedFd>,
) -> Result<Child, ClientError> {
    let failed = |source: io::Error| ClientError::Spawn {
        id: paths.id().to_string(),
        dir: paths.dir(),
        source,
    };
    let dir = open_dir(paths).map_err(failed)?;
    let listener = UnixListener::bind(socket_path(&dir, "sandbox.sock")).map_err(failed)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths.log())
        .map_err(failed)?;
    let listener = OwnedFd::from(listener);
    let attach = listen_for_attachments(&dir).map_err(failed)?;
    request.listener_fd = listener.as_raw_fd();
    request.lock_fd = lock.as_raw_fd();
    request.attach_fd = Some(attach.as_raw_fd());
    request.lifeline_fd = lifeline.as_ref().map(AsRawFd::as_raw_fd);
    let passed: Vec<OwnedFd> = [Some(listener), Some(attach), Some(lock), lifeline]
        .into_iter()
        .flatten()
        .collect();
    let json = serde_json::to_string(&request).map_err(|error| failed(error.into()))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("bulkhead")
        .arg("sandbox")
        .arg(json)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/");
    inherit(&mut command, passed);
    command.spawn().map_err(failed)
}

fn listen_for_attachments(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    let address = SocketAddrUnix::new(socket_path(dir, "attach.sock"))?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

fn packet_socket() -> io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

/// Hands something over to the sandbox; see [`standin::hand_over`]. The connection is to be kept until the
/// process has been asked for: with it ends the sandbox's interest in a stand-in.
///
/// # Errors
/// [`ClientError::Unreachable`] when nobody takes it, [`ClientError::Refused`] with the reason.
pub fn hand_over(
    paths: &Paths,
    message: &Message,
    fds: &[BorrowedFd<'_>],
) -> Result<OwnedFd, ClientError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::Other => ClientError::Refused(source),
        _ => ClientError::Unreachable {
            id: paths.id().to_string(),
            source,
        },
    };
    let connect = || {
        let dir = open_dir(paths)?;
        let socket = packet_socket()?;
        let address = SocketAddrUnix::new(socket_path(&dir, "attach.sock"))?;
        rustix::net::connect(&socket, &address)?;
        standin::hand_over(&socket, message, fds)?;
        Ok(socket)
    };
    connect().map_err(failed)
}

/// Makes a claimed directory one of a further container in the machine of `host`, and asks for it.
/// `lock` (see [`crate::claim`]) and `lifeline` are as for [`start`].
///
/// # Errors
/// Why it cannot be one; the directory is then still the caller's.
pub fn join(
    mut request: Request,
    paths: &Paths,
    host: &Paths,
    lock: &OwnedFd,
    lifeline: &OwnedFd,
) -> Result<(), ClientError> {
    let unreachable = |source: io::Error| ClientError::Unreachable {
        id: host.id().to_string(),
        source,
    };
    // Other names of the same sockets: they outlive the other container's directory.
    std::fs::hard_link(host.socket(), paths.socket()).map_err(unreachable)?;
    std::fs::hard_link(host.attach_socket(), paths.attach_socket()).map_err(unreachable)?;
    // Only that there is one counts.
    request.lifeline_fd = Some(-1);
    let message = Message::Join(Box::new(request));
    hand_over(host, &message, &[lock.as_fd(), lifeline.as_fd()]).map(drop)
}

/// Lets the child keep `fds`, under their numbers.
fn inherit(command: &mut Command, fds: Vec<OwnedFd>) {
    let keep = move || {
        for fd in &fds {
            // SAFETY: `fcntl` is async-signal-safe, and the descriptor is open: it is owned here.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only `fcntl` is called; nothing is allocated.
    unsafe { command.pre_exec(keep) };
}

/// Connects to the Task service of a sandbox.
///
/// Must be called within a Tokio runtime.
///
/// # Errors
/// [`ClientError::Unreachable`] when nobody serves it.
pub fn connect(paths: &Paths) -> Result<TaskClient, ClientError> {
    let failed = |source: io::Error| ClientError::Unreachable {
        id: paths.id().to_string(),
        source,
    };
    let dir = open_dir(paths).map_err(failed)?;
    let stream = UnixStream::connect(socket_path(&dir, "sandbox.sock")).map_err(failed)?;
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(failed)?;
    let socket = ttrpc::r#async::transport::Socket::new(stream);
    Ok(TaskClient::new(ttrpc::r#async::Client::new(socket)))
}

fn open_dir(paths: &Paths) -> io::Result<OwnedFd> {
    Ok(open(
        paths.dir(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
