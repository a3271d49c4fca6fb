//! `bulkhead why ID`.

use std::process::ExitCode;

use bulkhead_sandbox::clock::rfc3339;
use bulkhead_sandbox::failure::{Failure, Record};
use bulkhead_sandbox::state::{State, StateError};
use bulkhead_sandbox::timeline::{Timeline, millis};
use serde_json::json;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container, or one whose start failed.
    id: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    match common::state(&paths) {
        Ok(state) if args.json => {
            println!(
                "{:#}",
                json!({
                    "id": state.id, "status": state.status, "isolation": state.isolation,
                    "kernel": state.kernel, "guestKernel": state.guest_release,
                    "hypervisor": state.hypervisor, "chosenBecause": state.chosen_because,
                    "exit": state.exit, "failure": state.failure, "timeline": state.timeline,
                })
            );
        }
        Ok(state) => print!("{}", tell(&state)),
        Err(CommandError::State(StateError::NotFound { id })) => {
            let record = Record::load(&paths).ok_or(StateError::NotFound { id })?;
            if args.json {
                println!("{:#}", json!(record));
            } else {
                print!("{}", tell_record(&record));
            }
        }
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(state: &State) -> String {
    let mut out = format!("container  {} ({})\n", state.id, state.status.as_str());
    out.push_str(&format!(
        "isolation  {} by {}: {}\n",
        state.isolation, state.hypervisor, state.chosen_because
    ));
    out.push_str(&format!(
        "kernel     {} (installed as {})\n",
        if state.guest_release.is_empty() {
            "not up yet"
        } else {
            &state.guest_release
        },
        state.kernel
    ));
    if let Some(exit) = &state.exit {
        let oom = if exit.oom_killed {
            ", killed for want of memory"
        } else {
            ""
        };
        out.push_str(&format!(
            "exit       {}{oom}  {}\n",
            exit.code,
            rfc3339(exit.at_ns)
        ));
        if exit.oom_killed {
            out.push_str("fix        raise --memory: the container used all it was allowed\n");
        }
    }
    if let Some(failure) = &state.failure {
        out.push_str(&tell_failure(failure));
    }
    out.push_str(&tell_timeline(&state.timeline));
    out
}

fn tell_record(record: &Record) -> String {
    let mut out = format!("container  {} (removed after a failure)\n", record.id);
    out.push_str(&tell_failure(&record.failure));
    out.push_str(&tell_timeline(&record.timeline));
    out
}

fn tell_failure(failure: &Failure) -> String {
    let mut out = format!("cause      {}\n", failure.cause);
    for line in &failure.evidence {
        out.push_str(&format!("evidence   {line}\n"));
    }
    out.push_str(&format!("fix        {}\n", failure.fix));
    out
}

fn tell_timeline(timeline: &Timeline) -> String {
    if timeline.spans.is_empty() {
        return String::new();
    }
    let cost = timeline.cost.as_ref();
    let cost = cost.map(|counts| format!("cost       until the agent called home: {counts}\n"));
    format!(
        "start      {} ms\n{}{}",
        millis(timeline.total_ns()),
        cost.unwrap_or_default(),
        timeline.render()
    )
}
