//! Creating a further process in a container.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use oci_spec::runtime::Process;

use super::{
    Child, Container, ContainerError, Io,
    failure::During,
    init,
    namespaces::PidNamespaceOfChildren,
    process,
    spawn::{self, Pipes},
    terminal,
};

impl Container {
    /// Creates a further process in the container, up to, not including, `execve`.
    ///
    /// Does not wait for the child: see [`Child`].
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
        let plan = init::ExecPlan {
            init: self
                .pidfd
                .try_clone()
                .while_trying(|| "hold on to the container's init process".to_owned())?,
            namespaces: self.namespaces.clone(),
            process: process::Plan::new(
                process,
                self.filter.clone(),
                self.personality.as_ref(),
                io.is_terminal(),
            )?,
        };
        let pipes = Pipes::new()?;
        let pid_namespace = if self.namespaces.has_pid() {
            Some(PidNamespaceOfChildren::set(self.pidfd.as_fd())?)
        } else {
            None
        };
        let run = || init::run_exec(&plan, &io, terminal.as_ref(), &pipes.child);
        let spawned = match spawn::spawn(0, self.cgroup.as_fd(), run) {
            Err(error) if error.is_busy() => self
                .cgroup
                .of_member(self.init)
                .and_then(|group| spawn::spawn(0, group.as_fd(), run)),
            result => result,
        };
        if let Some(namespace) = pid_namespace {
            namespace.reset()?;
        }
        let (pid, _) = spawned?;
        Ok(pipes.into_child(pid, terminal.map(|terminal| terminal.master)))
    }
}
