//! Verbs of other runtimes that this one has not: they say so, with the reason.

use std::process::ExitCode;

use crate::error::CommandError;

/// Takes whatever the other runtime's verb takes.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _ignored: Vec<String>,
}

pub fn run(verb: &'static str) -> Result<ExitCode, CommandError> {
    Err(match bulkhead_oci::refuse::command(verb) {
        Some(refusal) => CommandError::Refused(refusal),
        None => CommandError::Usage(format!("{verb} is not built in this version")),
    })
}
