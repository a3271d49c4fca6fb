//! A network namespace, and doing something inside it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::NetworkError;

/// An open network namespace that is not the host's.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When there is none, or it is this process's own.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source: io::Error| NetworkError::Namespace {
            path: path.to_owned(),
            source,
        };
        // Whatever the path names must not be changed or waited for by being opened.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let theirs = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
        let ours = rustix::fs::stat("/proc/thread-self/ns/net").map_err(|e| failed(e.into()))?;
        if id(theirs) == id(ours) {
            return Err(NetworkError::Host {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            file: file.into(),
            path: path.to_owned(),
        })
    }

    /// Whether `path` names this namespace.
    pub(crate) fn is(&self, path: &Path) -> bool {
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(ours), Ok(theirs)) => ours.dev() == theirs.dev() && ours.ino() == theirs.ino(),
            _ => false,
        }
    }

    /// Runs `work` on a thread that is in the namespace, and waits for its end.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    work()
                })
                .map_err(NetworkError::Thread)?;
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread that is in the namespace as long as `work` lasts. Waits until it is.
    ///
    /// # Errors
    /// When there can be no such thread, or the namespace cannot be entered.
    pub fn spawn(
        self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, NetworkError> {
        let (sender, entered) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = self.enter();
                let is_in = result.is_ok();
                drop(self);
                // Whoever started us waits for it.
                let _ = sender.send(result);
                if is_in {
                    work();
                }
            })
            .map_err(NetworkError::Thread)?;
        match entered.recv() {
            Ok(result) => result.map(|()| thread),
            // The thread panicked, which ends the process.
            Err(error) => Err(NetworkError::Thread(io::Error::other(error))),
        }
    }

    /// Moves the calling thread.
    fn enter(&self) -> Result<(), NetworkError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |error| NetworkError::Namespace {
                path: self.path.clone(),
                source: error.into(),
            },
        )
    }
}
