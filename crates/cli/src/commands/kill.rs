//! `bulkhead kill ID [SIGNAL]`.

use std::process::ExitCode;

use containerd_shim_protos::api::KillRequest;
use nix::sys::signal::Signal;
use ttrpc::context::Context;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal every process of the container.
    #[arg(short, long)]
    all: bool,
    /// The container.
    id: String,
    /// Name or number of the signal.
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let signal = parse_signal(&args.signal)?;
    let paths = common::paths(globals, &args.id)?;
    let state = common::state(&paths)?;
    if state.exit.is_some() && args.all {
        // As runc: all of none were signalled.
        return Ok(ExitCode::SUCCESS);
    }
    if state.exit.is_some() {
        return Err(CommandError::WrongState {
            verb: "kill",
            id: args.id.clone(),
            state: "stopped",
            // Engines look for these words.
            hint: ": container not running",
        });
    }
    common::block_on(async {
        let client = common::connect(&paths)?;
        let request = KillRequest {
            id: args.id.clone(),
            signal,
            all: args.all,
            ..Default::default()
        };
        client
            .kill(Context::default(), &request)
            .await
            .map_err(CommandError::rpc(&args.id))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// `9`, `KILL`, `SIGKILL`, `kill`, `RTMIN+1`.
fn parse_signal(text: &str) -> Result<u32, CommandError> {
    let unknown = || {
        CommandError::Usage(format!(
            "Unknown signal {text:?}: give a name such as SIGTERM, or a number up to 64"
        ))
    };
    if let Ok(number) = text.parse::<u32>() {
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        let offset = if rest.is_empty() {
            Some(0)
        } else {
            rest.strip_prefix('+').and_then(|n| n.parse().ok())
        };
        return offset
            .filter(|n| *n <= 30)
            .map(|n: u32| 34 + n)
            .ok_or_else(unknown);
    }
    let signal: Signal = name.parse().map_err(|_| unknown())?;
    u32::try_from(signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_signal_names_and_numbers_accepted() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(parse_signal(text).unwrap(), 9, "{text}");
        }
        assert_eq!(parse_signal("RTMIN+1").unwrap(), 35);
        // Asks only whether there is somebody to signal.
        assert_eq!(parse_signal("0").unwrap(), 0);
    }

    #[test]
    fn parse_signal_nonsense_refused() {
        for text in ["65", "-1", "SIGNONE", "", "RTMIN+99"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
