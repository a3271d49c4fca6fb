//! `bulkhead pause ID` and `bulkhead resume ID`.

use std::process::ExitCode;

use containerd_shim_protos::api::{PauseRequest, ResumeRequest};
use ttrpc::context::Context;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container.
    id: String,
}

pub fn run(args: &Args, globals: &Globals, thaw: bool) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    let id = &args.id;
    let state = common::state(&paths)?;
    if state.exit.is_some() {
        return Err(CommandError::WrongState {
            verb: if thaw { "resume" } else { "pause" },
            id: id.clone(),
            state: "stopped",
            // Engines look for these words.
            hint: ": container not running",
        });
    }
    common::block_on(async {
        let client = common::connect(&paths)?;
        let answer = if thaw {
            let request = ResumeRequest {
                id: id.clone(),
                ..Default::default()
            };
            client.resume(Context::default(), &request).await
        } else {
            let request = PauseRequest {
                id: id.clone(),
                ..Default::default()
            };
            client.pause(Context::default(), &request).await
        };
        answer.map_err(CommandError::rpc(id))?;
        Ok(ExitCode::SUCCESS)
    })
}
