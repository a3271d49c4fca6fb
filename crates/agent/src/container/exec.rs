//! Creating further processes in a container.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{PoisonError, atomic::Ordering},
};

use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::{
    Child, Container, ContainerError, Io,
    launcher::{LaunchError, Launcher, State},
    process, spawn, terminal,
};

/// Launchers kept while nothing is started.
const SPARE: usize = 1;

impl Container {
    /// Starts a further process in the container.
    ///
    /// Does not wait for its program: see [`Child`].
    pub fn exec(&self, process: &Process, io: Io) -> Result<Child, ContainerError> {
        if self.frozen.load(Ordering::Relaxed) {
            // It would be born frozen and never get as far as to say so.
            return Err(ContainerError::Paused);
        }
        let terminal = match &io {
            Io::Pipes { .. } => None,
            Io::Terminal { columns, rows } => {
                let size = terminal::Size::new(*columns, *rows, process.console_size())?;
                Some(terminal::for_container(self.init, size)?)
            }
        };
        let plan = process::Plan::new(
            process,
            self.filter.clone(),
            self.personality.as_ref(),
            io.is_terminal(),
        )?;
        let json = serde_json::to_vec(process)
            .map_err(|error| ContainerError::system("write the process down", error))?;
        let (status, theirs) = spawn::pipe()?;
        let io = match (&io, &terminal) {
            (
                Io::Pipes {
                    stdin,
                    stdout,
                    stderr,
                },
                _,
            ) => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            (Io::Terminal { .. }, terminal) => terminal.iter().map(|t| t.master.as_fd()).collect(),
        };
        let launch = |group: BorrowedFd<'_>| {
            self.launch(plan.bounding(), |launcher| {
                launcher.launch(&json, theirs.as_fd(), group, &io)
            })
        };
        let pid = match launch(self.cgroup.as_fd()) {
            Err(error) if error.is_busy() => self
                .cgroup
                .of_member(self.init)
                .and_then(|group| launch(group.as_fd())),
            result => result,
        }?;
        Ok(Child {
            pid,
            terminal: terminal.map(|terminal| terminal.master),
            status,
            gate: None,
        })
    }

    /// Has a free launcher do `launch`, a new one if there is none.
    fn launch(
        &self,
        bounding: u64,
        launch: impl Fn(&mut Launcher) -> Result<Pid, LaunchError>,
    ) -> Result<Pid, ContainerError> {
        let mut launchers = self
            .launchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut kept = None;
        launchers.retain_mut(|launcher| match launcher.state() {
            State::Gone => false,
            State::Free if kept.is_none() && launcher.bounding == bounding => {
                kept = Some(launch(launcher));
                !matches!(kept, Some(Err(LaunchError::Gone(_))))
            }
            State::Free | State::Busy => true,
        });
        match kept {
            Some(Ok(pid)) => return Ok(pid),
            Some(Err(LaunchError::Refused(error))) => return Err(error),
            // Killed in between, as when the guest runs out of memory.
            Some(Err(LaunchError::Gone(_))) | None => {}
        }
        let mut launcher = Launcher::new(self, bounding)?;
        let launched = launch(&mut launcher);
        launchers.push(launcher);
        launched.map_err(|error| match error {
            LaunchError::Refused(error) => error,
            LaunchError::Gone(error) => {
                ContainerError::system("have the container's launcher start a process", error)
            }
        })
    }

    /// Lets launchers go that many processes at once have left behind. To be called when a process
    /// has been started, and when one has ended.
    pub fn settle(&self) {
        let mut launchers = self
            .launchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while launchers.len() > SPARE {
            let free = |launcher: &mut Launcher| launcher.state() != State::Busy;
            let Some(index) = launchers.iter_mut().position(free) else {
                return;
            };
            launchers.remove(index);
        }
    }
}
