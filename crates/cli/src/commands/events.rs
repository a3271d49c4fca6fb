//! `bulkhead events [--stats] [--interval TIME] ID`: what a container uses, as lines of JSON in runc's
//! form.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_sandbox::state::Status;
use bulkhead_sandbox::task::MACHINE_KEY;
use containerd_shim_protos::api::{StatsRequest, WaitRequest};
use containerd_shim_protos::cgroups_v2::metrics::{MemoryStat, Metrics};
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message;
use serde_json::{Map, Value, json};
use ttrpc::context::Context;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what is used once, and end.
    #[arg(long)]
    stats: bool,
    /// Time between two looks, as in 5s, 500ms or 1m.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// The container.
    id: String,
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be longer than 0".into()),
        Err(error) => Err(error.to_string()),
    }
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    let state = common::state(&paths)?;
    if state.status == Status::Stopped {
        return Err(CommandError::WrongState {
            verb: "show events of",
            id: state.id,
            state: "stopped",
            hint: ": container not running",
        });
    }
    common::block_on(async {
        let client = common::connect(&paths)?;
        if args.stats {
            let metrics = ask(&client, &args.id).await?;
            let machine = ask_machine(&client, &args.id).await?;
            print(&args.id, "stats", Some(stats(&metrics, machine)))?;
        } else {
            follow(&client, args).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints a line at each interval until the container has ended.
async fn follow(client: &TaskClient, args: &Args) -> Result<(), CommandError> {
    let request = WaitRequest {
        id: args.id.clone(),
        ..Default::default()
    };
    let ended = client.wait(Context::default(), &request);
    tokio::pin!(ended);
    let mut ticks =
        tokio::time::interval_at(tokio::time::Instant::now() + args.interval, args.interval);
    // What was killed before somebody looked is no news.
    let mut kills = ask(client, &args.id).await?.memory_events.oom_kill;
    loop {
        tokio::select! {
            // The sandbox process may be gone with the container.
            _ = &mut ended => return Ok(()),
            _ = ticks.tick() => {}
        }
        let both = async {
            let metrics = ask(client, &args.id).await?;
            Ok((metrics, ask_machine(client, &args.id).await?))
        };
        let (metrics, machine) = match both.await {
            Ok(both) => both,
            // It has ended in between.
            Err(CommandError::Sandbox { .. } | CommandError::Lost { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if metrics.memory_events.oom_kill > kills {
            kills = metrics.memory_events.oom_kill;
            print(&args.id, "oom", None)?;
        }
        print(&args.id, "stats", Some(stats(&metrics, machine)))?;
    }
}

async fn ask(client: &TaskClient, id: &str) -> Result<Metrics, CommandError> {
    let request = StatsRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let answer = client.stats(Context::default(), &request).await;
    let answer = answer.map_err(CommandError::rpc(id))?;
    Metrics::parse_from_bytes(&answer.stats.value)
        .map_err(|error| CommandError::io("understand what is used")(error.into()))
}

/// What the container's machine as a whole uses.
async fn ask_machine(client: &TaskClient, id: &str) -> Result<Value, CommandError> {
    let request = StatsRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let mut context = Context::default();
    context.add(MACHINE_KEY.to_owned(), "1".to_owned());
    let answer = client.stats(context, &request).await;
    let answer = answer.map_err(CommandError::rpc(id))?;
    serde_json::from_slice(&answer.stats.value)
        .map_err(|error| CommandError::io("understand what the machine uses")(error.into()))
}

fn print(id: &str, kind: &str, data: Option<Value>) -> Result<(), CommandError> {
    let mut event = json!({ "type": kind, "id": id });
    if let (Some(data), Some(event)) = (data, event.as_object_mut()) {
        event.insert("data".into(), data);
    }
    writeln!(std::io::stdout(), "{event}").map_err(CommandError::io("write an event"))
}

/// runc's form, with `machine` besides; times are nanoseconds. What belongs to devices of the host is
/// empty.
fn stats(metrics: &Metrics, machine: Value) -> Value {
    const NS_PER_US: u64 = 1000;
    let ns = |us: u64| us.saturating_mul(NS_PER_US);
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    let mut pids = json!({ "current": metrics.pids.current });
    if let (1.., Some(pids)) = (metrics.pids.limit, pids.as_object_mut()) {
        pids.insert("limit".into(), metrics.pids.limit.into());
    }
    json!({
        "cpu": {
            "usage": {
                "total": ns(cpu.usage_usec),
                "kernel": ns(cpu.system_usec),
                "user": ns(cpu.user_usec),
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": ns(cpu.throttled_usec),
            },
        },
        "cpuset": {},
        "memory": {
            "cache": memory.file,
            "usage": {
                "limit": memory.usage_limit,
                "usage": memory.usage,
                "max": memory.max_usage,
                "failcnt": metrics.memory_events.max,
            },
            "swap": {
                "limit": memory.swap_limit,
                "usage": memory.swap_usage,
                "max": memory.swap_max_usage,
                "failcnt": 0,
            },
            "kernel": { "failcnt": 0 },
            "kernelTCP": { "failcnt": 0 },
            "raw": raw(memory),
        },
        "pids": pids,
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
        "machine": machine,
    })
}

/// The kernel's own account of the memory.
fn raw(memory: &MemoryStat) -> Value {
    let entries = [
        ("anon", memory.anon),
        ("file", memory.file),
        ("kernel_stack", memory.kernel_stack),
        ("slab", memory.slab),
        ("sock", memory.sock),
        ("shmem", memory.shmem),
        ("file_mapped", memory.file_mapped),
        ("file_dirty", memory.file_dirty),
        ("file_writeback", memory.file_writeback),
        ("inactive_anon", memory.inactive_anon),
        ("active_anon", memory.active_anon),
        ("inactive_file", memory.inactive_file),
        ("active_file", memory.active_file),
        ("unevictable", memory.unevictable),
        ("slab_reclaimable", memory.slab_reclaimable),
        ("slab_unreclaimable", memory.slab_unreclaimable),
        ("pgfault", memory.pgfault),
        ("pgmajfault", memory.pgmajfault),
    ];
    let entries = entries.map(|(name, value)| (name.to_owned(), value.into()));
    Value::Object(Map::from_iter(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_in_runcs_form() {
        let mut metrics = Metrics::new();
        metrics.cpu.mut_or_insert_default().usage_usec = 3;
        metrics.memory.mut_or_insert_default().usage = 4096;
        metrics.memory.mut_or_insert_default().usage_limit = u64::MAX;
        metrics.pids.mut_or_insert_default().current = 2;

        let stats = stats(&metrics, json!({ "memory_bytes": 5 }));

        assert_eq!(stats["cpu"]["usage"]["total"], 3000);
        assert_eq!(stats["memory"]["usage"]["usage"], 4096);
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(stats["pids"], json!({ "current": 2 }));
        assert_eq!(stats["machine"]["memory_bytes"], 5);
    }

    #[test]
    fn interval_is_a_duration_above_zero() {
        assert_eq!(interval("1m30s"), Ok(Duration::from_secs(90)));
        for text in ["0s", "", "fast", "-1s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
