//! `bulkhead start ID`: a created container's program starts.

use std::process::ExitCode;

use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::Status;
use containerd_shim_protos::api::StartRequest;
use ttrpc::context::Context;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container.
    id: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    start(&paths)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the program of a created container.
///
/// # Errors
/// Another state, or a program that cannot be executed.
pub fn start(paths: &Paths) -> Result<(), CommandError> {
    let state = common::state(paths)?;
    if state.status != Status::Created {
        return Err(CommandError::WrongState {
            verb: "start",
            id: state.id,
            state: state.status.as_str(),
            hint: "",
        });
    }
    common::block_on(async {
        let client = common::connect(paths)?;
        let request = StartRequest {
            id: state.id.clone(),
            ..Default::default()
        };
        let answer = client.start(Context::default(), &request).await;
        answer.map(|_| ()).map_err(CommandError::rpc(&state.id))
    })
}
