//! `bulkhead delete [--force] ID…`.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_sandbox::claim;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::{ProcessRef, State, Status};
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
        Err(_) if force => {
            end_owner(paths);
            return Ok(());
        }
        found => found?,
    };
    let wrong_state = |state: &'static str| CommandError::WrongState {
        verb: "delete",
        id: paths.id().to_string(),
        state,
        hint: ": kill it first, or use --force",
    };
    match found {
        Found::Removed => return Ok(()),
        Found::Starting => return Err(wrong_state("creating")),
        Found::Damaged(error) if !force => return Err(error.into()),
        Found::Damaged(_) => end_owner(paths),
        // As runc: a container that was never started has nothing to lose.
        Found::State(state)
            if !matches!(state.status, Status::Stopped | Status::Created) && !force =>
        {
            return Err(wrong_state(state.status.as_str()));
        }
        Found::State(state) => end(paths, &state)?,
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

/// Ends the sandbox process, in order if it listens, otherwise by force.
fn end(paths: &Paths, state: &State) -> Result<(), CommandError> {
    let Some(sandbox) = state.sandbox.filter(ProcessRef::is_alive) else {
        return Ok(());
    };
    let asked = common::block_on(async {
        let client = common::connect(paths)?;
        let request = ShutdownRequest {
            id: state.id.clone(),
            now: true,
            ..Default::default()
        };
        let context = ttrpc::context::with_timeout(10_000_000_000);
        client
            .shutdown(context, &request)
            .await
            .map_err(CommandError::rpc(&state.id))
    });
    let over = asked.is_ok() && claim::wait_until_free(paths, END_LIMIT);
    // It may live on for other containers of its machine, and the journal then says so.
    let shared = || State::load(paths).is_ok_and(|state| state.sandbox.is_none());
    if !(over && (shared() || gone(&sandbox, END_LIMIT))) {
        sweep::end(&sandbox);
        state.helpers.iter().for_each(sweep::end);
    }
    Ok(())
}

/// Ends the sandbox process of a container whose files do not tell of it: in order, otherwise by force.
fn end_owner(paths: &Paths) {
    let Some(sandbox) = sweep::owner(paths) else {
        return;
    };
    if let Some(fd) = pidfd(&sandbox) {
        // It may end on its own in between.
        let _ = pidfd_send_signal(&fd, Signal::TERM);
    }
    if !gone(&sandbox, OWNER_LIMIT) {
        sweep::end(&sandbox);
    }
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
