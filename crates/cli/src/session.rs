//! A command attached to one process of a container: from "created" to its exit code.

use std::process::Child;

use containerd_shim_protos::api::{
    KillRequest, ResizePtyRequest, StartRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::TaskClient;
use tokio::signal::unix::{Signal, SignalKind, signal};
use ttrpc::context::Context;

use crate::error::CommandError;
use crate::terminal;

/// Signals a user sends to a command and means for the process behind it.
const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
];

/// The process we are attached to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The container.
    pub id: String,
    /// Empty for its init process.
    pub exec_id: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// The signals of this command.
#[derive(Debug)]
pub struct Signals {
    received: tokio::sync::mpsc::UnboundedReceiver<i32>,
}

impl Signals {
    /// From now on the forwarded signals, and with a terminal its changes of size, are ours to
    /// handle. Must be called within the runtime.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn catch(terminal: bool) -> Result<Self, CommandError> {
        let (sender, received) = tokio::sync::mpsc::unbounded_channel();
        let window = terminal.then_some(libc::SIGWINCH);
        for number in FORWARDED.into_iter().chain(window) {
            let mut signals: Signal =
                signal(SignalKind::from_raw(number)).map_err(CommandError::io("catch signals"))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        Ok(Self { received })
    }

    /// Waits for the next signal that asks a command to end.
    pub async fn interrupted(&mut self) -> i32 {
        loop {
            match self.received.recv().await {
                Some(number @ (libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)) => {
                    return number;
                }
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Stays with a started process until its end, passing signals on.
    ///
    /// # Errors
    /// The loss of the sandbox process.
    pub async fn attend(
        &mut self,
        client: &TaskClient,
        target: &Target,
    ) -> Result<WaitResponse, CommandError> {
        let request = WaitRequest {
            id: target.id.clone(),
            exec_id: target.exec_id.clone(),
            ..Default::default()
        };
        let wait = client.wait(Context::default(), &request);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                answer = &mut wait => return answer.map_err(CommandError::rpc(&target.id)),
                Some(number) = self.received.recv() => forward(client, target, number).await,
            }
        }
    }
}

/// Lets the created process run its program.
///
/// # Errors
/// When it cannot be executed, or the sandbox process is lost.
pub async fn start(client: &TaskClient, target: &Target) -> Result<(), CommandError> {
    if target.terminal {
        // Before the program runs, so that it never sees another size.
        resize(client, target).await;
    }
    let request = StartRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        ..Default::default()
    };
    let answer = client.start(Context::default(), &request).await;
    answer.map(|_| ()).map_err(CommandError::rpc(&target.id))
}

async fn forward(client: &TaskClient, target: &Target, number: i32) {
    if number == libc::SIGWINCH {
        return resize(client, target).await;
    }
    let request = KillRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        signal: number.unsigned_abs(),
        ..Default::default()
    };
    // The process may have ended a moment ago; then there is nobody to signal.
    if let Err(error) = client.kill(Context::default(), &request).await {
        tracing::debug!("Failed to pass signal {number} on: {error}");
    }
}

/// Gives the process's terminal the size of ours.
async fn resize(client: &TaskClient, target: &Target) {
    let Some((width, height)) = terminal::size() else {
        return;
    };
    let request = ResizePtyRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        width,
        height,
        ..Default::default()
    };
    if let Err(error) = client.resize_pty(Context::default(), &request).await {
        tracing::debug!("Failed to resize the terminal: {error}");
    }
}

/// An exit code as a process can have it.
pub fn exit_code(code: u32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// Waits for the sandbox process we started, so that nothing of it is left when we end.
pub fn reap(child: &mut Child) {
    // It cannot fail for a child of ours that nobody else waits for.
    let _ = child.wait();
}
