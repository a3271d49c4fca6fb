//! `bulkhead state ID`.

use std::process::ExitCode;

use bulkhead_sandbox::state::State;
use serde_json::{Value, json};

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container.
    id: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let state = common::state(&common::paths(globals, &args.id)?)?;
    println!("{:#}", describe(&state));
    Ok(ExitCode::SUCCESS)
}

/// The OCI state with runc's additional fields and ours.
pub fn describe(state: &State) -> Value {
    json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "pid": state.engine_pid(),
        "status": state.status.as_str(),
        "bundle": state.bundle,
        "rootfs": state.rootfs,
        "created": state.created,
        "annotations": state.annotations,
        "owner": state.owner,
        "exitCode": state.exit.as_ref().map(|exit| exit.code),
        "hypervisor": state.hypervisor,
        "isolation": state.isolation,
        "kernel": state.kernel,
        "guestKernel": state.guest_release,
        "memoryBytes": state.memory_bytes,
    })
}
