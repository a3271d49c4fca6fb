//! `bulkhead logs ID`.

use std::io::{Write, stdout};
use std::process::ExitCode;

use bulkhead_sandbox::failure::Record;
use bulkhead_sandbox::timeline::printable;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container.
    id: String,
}

/// Prints the guest's console; control characters are replaced, a guest must not drive our terminal.
pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    let text = match std::fs::read(paths.console()) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => match Record::load(&paths) {
            Some(record) => {
                let lines = record.failure.evidence.iter();
                let console = lines.filter_map(|line| line.strip_prefix("console: "));
                console.map(|line| format!("{line}\n")).collect()
            }
            None => {
                common::state(&paths)?;
                return Err(CommandError::io("read the guest's console")(error));
            }
        },
    };
    let mut out = stdout().lock();
    for line in text.lines() {
        if writeln!(out, "{}", printable(line.trim_end_matches('\r'))).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
