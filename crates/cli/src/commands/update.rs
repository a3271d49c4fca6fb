//! `bulkhead update ID`: limits of a container are changed while it runs.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bulkhead_sandbox::state::Status;
use containerd_shim_protos::api::UpdateTaskRequest;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ttrpc::context::Context;

use super::common;
use crate::error::CommandError;
use crate::options::Globals;

/// How containerd names the type of what is sent.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Far beyond what limits need.
const MAX_BYTES: u64 = 1 << 20;

/// What is 0, empty or left out stays as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the limits from a file with `linux.resources` of an OCI configuration, or from standard
    /// input with `-`; other options do not count then.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Memory limit, bytes; -1 for none. At most what the virtual machine has room for.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory that is taken last when the guest runs short, bytes.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together, bytes; -1 for no limit.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Length of a period of the CPU quota, microseconds.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in a period, microseconds; -1 for no limit. The virtual machine keeps the number of
    /// processors it was started with: more than a period for each is never used.
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Share of the CPU time in relation to other containers, 2 to 262144.
    #[arg(long, value_name = "NUMBER", alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// CPUs of the host the virtual machine may use, as in 0-3,5.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes of the host the virtual machine may use.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Number of processes and threads; -1 for no limit.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Refused if it is not 0: block I/O is not limited in this version.
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    /// Refused if it is not 0: the guest has no real-time group scheduling.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// Refused if it is not 0: the guest has no real-time group scheduling.
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Refused: cache shares are the host's.
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Refused: shares of memory bandwidth are the host's.
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container.
    id: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    let state = common::state(&paths)?;
    if state.status == Status::Stopped {
        return Err(CommandError::WrongState {
            verb: "update",
            id: state.id,
            state: "stopped",
            hint: ": container not running",
        });
    }
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => args.resources()?,
    };
    bulkhead_oci::check_resources(&resources)?;
    let value = serde_json::to_vec(&resources)
        .map_err(|error| CommandError::io("describe the limits")(error.into()))?;
    common::block_on(async {
        let client = common::connect(&paths)?;
        let request = UpdateTaskRequest {
            id: args.id.clone(),
            resources: MessageField::some(Any {
                type_url: RESOURCES_TYPE.to_owned(),
                value,
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = client.update(Context::default(), &request).await;
        answer.map_err(CommandError::rpc(&args.id))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn read(path: &Path) -> Result<LinuxResources, CommandError> {
    let step = format!("read limits from {}", path.display());
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_end(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text))
    };
    read.map_err(CommandError::io(step.clone()))?;
    serde_json::from_slice(&text).map_err(|error| CommandError::io(step)(error.into()))
}

impl Args {
    fn resources(&self) -> Result<LinuxResources, CommandError> {
        for (option, given) in [
            ("--l3-cache-schema", &self.l3_cache_schema),
            ("--mem-bw-schema", &self.mem_bw_schema),
        ] {
            if given.as_ref().is_some_and(|schema| !schema.is_empty()) {
                return Err(CommandError::Usage(format!(
                    "{option} is refused: cache and memory bandwidth are shared out by the host's kernel, \
                     and that is not built in this version; leave it out"
                )));
            }
        }
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(self.memory)
            .set_reservation(self.memory_reservation)
            .set_swap(self.memory_swap);
        let mut cpu = LinuxCpu::default();
        cpu.set_period(self.cpu_period)
            .set_quota(self.cpu_quota)
            .set_shares(self.cpu_share)
            .set_cpus(self.cpuset_cpus.clone())
            .set_mems(self.cpuset_mems.clone())
            .set_realtime_period(self.cpu_rt_period)
            .set_realtime_runtime(self.cpu_rt_runtime);
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory)).set_cpu(Some(cpu));
        if let Some(limit) = self.pids_limit {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            resources.set_pids(Some(pids));
        }
        if let Some(weight) = self.blkio_weight {
            let mut block_io = LinuxBlockIo::default();
            block_io.set_weight(Some(weight));
            resources.set_block_io(Some(block_io));
        }
        Ok(resources)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(options: &[&str]) -> Result<serde_json::Value, String> {
        let line = ["update"].iter().chain(options).chain(&["c"]);
        let command = Command::try_parse_from(line).map_err(|error| error.to_string())?;
        let resources = command
            .args
            .resources()
            .map_err(|error| error.to_string())?;
        bulkhead_oci::check_resources(&resources).map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(resources).unwrap())
    }

    #[test]
    fn options_become_the_fields_runc_sets() {
        let options = [
            "--memory",
            "1000",
            "--memory-swap",
            "-1",
            "--memory-reservation",
            "500",
            "--cpu-period",
            "50000",
            "--cpu-quota",
            "-1",
            "--cpu-share",
            "512",
            "--cpuset-cpus",
            "0-1",
            "--cpuset-mems",
            "0",
            "--pids-limit",
            "-1",
        ];

        assert_eq!(
            parse(&options).unwrap(),
            json!({
                "memory": { "limit": 1000, "swap": -1, "reservation": 500 },
                "cpu": { "period": 50000, "quota": -1, "shares": 512, "cpus": "0-1", "mems": "0" },
                "pids": { "limit": -1 },
            })
        );
    }

    #[test]
    fn options_nobody_would_enforce_are_refused_and_zero_is_nothing() {
        for (options, part) in [
            (["--blkio-weight", "500"], "blockIO.weight"),
            (["--cpu-rt-runtime", "10"], "realtimeRuntime"),
            (["--cpu-rt-period", "10"], "realtimePeriod"),
            (["--l3-cache-schema", "x"], "--l3-cache-schema"),
            (["--mem-bw-schema", "x"], "--mem-bw-schema"),
            (["--memory", "-5"], "memory.limit"),
        ] {
            let error = parse(&options).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        parse(&[
            "--blkio-weight",
            "0",
            "--cpu-rt-runtime",
            "0",
            "--pids-limit",
            "0",
        ])
        .unwrap();
    }
}
