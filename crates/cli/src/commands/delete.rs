//! `bulkhead delete [--force] ID…`.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_sandbox::claim;
use bulkhead_sandbox::owner;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::{ProcessRef, Status};
use bulkhead_sandbox::sweep::{self, Found};
use bulkhead_sandbox::vm::pidfd;
use containerd_shim_protos::api::ShutdownRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

/// How long somebody else may take with a container that is to be removed by force.
const OWNER_LIMIT: Duration = Duration::from_secs(10);

/// How long a container may take to end once that is agreed.
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove a container that runs, or whose state is damaged, too.
    #[arg(short, long)]
    force: bool,
    /// The containers.
    #[arg(required = true)]
    ids: Vec<String>,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    for id in &args.ids {
        delete(&common::paths(globals, id)?, args.force)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn delete(paths: &Paths, force: bool) -> Result<(), CommandError> {
    let mut found = sweep::inspect(paths);
    if force && matches!(found, Ok(Found::Starting)) {
        // It is being made, or being put away; either takes a moment.
        let _ = claim::wait_until_free(paths, OWNER_LIMIT);
        found = sweep::inspect(paths);
    }
    let found = match found {
        // As runc: what is not there need not be removed. Its machine may be, if somebody has removed the
        // directory.
        Err(_) if force => return end_unrecorded(paths),
        found => found?,
    };
    let wrong_state = |state: &'static str| CommandError::WrongState {
        verb: "delete",
        id: paths.id().to_string(),
        state,
        hint: ": kill it first, or use --force",
    };
    match found {
        // A directory somebody has made in the place of one that was removed looks like this.
        Found::Removed if force => return end_unrecorded(paths),
        Found::Removed => return Ok(()),
        // Nothing takes that long to be made: its files are lost.
        Found::Starting if force => end_unrecorded(paths)?,
        Found::Starting => return Err(wrong_state("creating")),
        Found::Damaged(error) if !force => return Err(error.into()),
        Found::Damaged(_) => end_unrecorded(paths)?,
        // As runc: a container that was never started has nothing to lose.
        Found::State(state)
            if !matches!(state.status, Status::Stopped | Status::Created) && !force =>
        {
            return Err(wrong_state(state.status.as_str()));
        }
        Found::State(state) => {
            if let Some(sandbox) = state.sandbox.filter(ProcessRef::is_alive) {
                end(paths, &sandbox, &state.helpers)?;
            }
        }
    }
    sweep::remove(paths);
    if paths.dir().exists() {
        let gone = std::io::Error::other("something in it cannot be removed");
        return Err(CommandError::io(format!(
            "remove {}",
            paths.dir().display()
        ))(gone));
    }
    Ok(())
}

/// Ends a container and, with the last one in it, its machine: in order if the sandbox process listens,
/// otherwise by force.
fn end(paths: &Paths, sandbox: &ProcessRef, helpers: &[ProcessRef]) -> Result<(), CommandError> {
    let id = paths.id().as_str();
    let asked = common::block_on(async {
        let client = common::connect(paths)?;
        let request = ShutdownRequest {
            id: id.to_owned(),
            now: true,
            ..Default::default()
        };
        let context = ttrpc::context::with_timeout(10_000_000_000);
        client
            .shutdown(context, &request)
            .await
            .map_err(CommandError::rpc(id))
    });
    if asked.is_err() || !claim::wait_until_free(paths, END_LIMIT) {
        oust(paths)?;
    }
    // It may live on for other containers of its machine.
    if owner::residents(sandbox, paths.root()).is_empty() && !gone(sandbox, END_LIMIT) {
        sweep::end(sandbox);
        helpers.iter().for_each(sweep::end);
    }
    Ok(())
}

/// Ends a container whose files do not tell of it.
fn end_unrecorded(paths: &Paths) -> Result<(), CommandError> {
    match owner::find(paths) {
        Some(owner) => end(paths, &owner.process, &[]),
        None => Ok(()),
    }
}

/// Ends a container whose sandbox process cannot be spoken to.
fn oust(paths: &Paths) -> Result<(), CommandError> {
    let Some(owner) = owner::find(paths) else {
        return Ok(());
    };
    let others = || {
        let mut others = owner::residents(&owner.process, paths.root());
        others.retain(|other| other != paths.id().as_str());
        others.sort();
        others
    };
    match &owner.standin {
        // The container ends with it, in order.
        Some(standin) => sweep::end(standin),
        None if others().is_empty() => {
            if let Some(fd) = pidfd(&owner.process) {
                // It may end on its own in between.
                let _ = pidfd_send_signal(&fd, Signal::TERM);
            }
        }
        // It has ended, and is being put away.
        None => {}
    }
    if owner.wait_until_free(OWNER_LIMIT) {
        return Ok(());
    }
    let others = others();
    if others.is_empty() {
        sweep::end(&owner.process);
        return Ok(());
    }
    Err(CommandError::Shared {
        id: paths.id().to_string(),
        pid: owner.process.pid,
        others: others.join(", "),
    })
}

/// Whether a process ends within this time.
fn gone(process: &ProcessRef, limit: Duration) -> bool {
    let Some(fd) = pidfd(process) else {
        return true;
    };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let limit = Timespec::try_from(limit).ok();
    matches!(poll(&mut fds, limit.as_ref()), Ok(1))
}
