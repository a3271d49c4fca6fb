//! `bulkhead ps ID`.

use std::process::ExitCode;

use bulkhead_agent_api::messages::Process;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::Status;
use bulkhead_sandbox::timeline::printable;
use clap::ValueEnum;
use containerd_shim_protos::api::{PidsRequest, ProcessInfo};
use protobuf::Message;
use ttrpc::context::Context;

use super::common;
use super::list::columns;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Form of the list: a table of the processes in the guest, or, as engines ask for it, JSON with the
    /// PIDs of those that stand in for them on the host.
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// The container.
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    // As runc: what has ended has no processes, and that is no error.
    let processes = match common::state(&paths)?.status {
        Status::Stopped => Vec::new(),
        _ => ask(args, &paths)?,
    };
    let in_guest = |process: &&ProcessInfo| process.info.is_some();
    if args.format == Format::Json {
        // An engine looks these up on the host.
        let on_host = processes.iter().filter(|process| !in_guest(process));
        let pids: Vec<u32> = on_host.map(|process| process.pid).collect();
        println!("{}", serde_json::json!(pids));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["UID", "PID", "PPID", "TIME", "CMD"].map(String::from)];
    for process in processes.iter().filter(in_guest) {
        let details = Process::parse_from_bytes(&process.info.value).unwrap_or_default();
        rows.push([
            details.uid.to_string(),
            details.pid.to_string(),
            details.parent.to_string(),
            clock(details.cpu_ms),
            command(&details),
        ]);
    }
    print!("{}", columns(&rows));
    Ok(ExitCode::SUCCESS)
}

fn ask(args: &Args, paths: &Paths) -> Result<Vec<ProcessInfo>, CommandError> {
    common::block_on(async {
        let client = common::connect(paths)?;
        let request = PidsRequest {
            id: args.id.clone(),
            ..Default::default()
        };
        let answer = client
            .pids(Context::default(), &request)
            .await
            .map_err(CommandError::rpc(&args.id))?;
        Ok(answer.processes)
    })
}

/// The guest names its processes; nothing of that may drive our terminal.
fn command(process: &Process) -> String {
    if process.args.is_empty() {
        return format!("[{}]", printable(&process.command));
    }
    printable(&process.args.join(" "))
}

fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_hours_and_minutes_as_ps_prints_them() {
        assert_eq!(clock(3_723_900), "01:02:03");
    }
}
