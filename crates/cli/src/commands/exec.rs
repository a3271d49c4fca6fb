//! `bulkhead exec [OPTIONS] ID COMMAND…`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bulkhead_oci::Bundle;
use bulkhead_oci::run::{CapabilityOption, identify};
use bulkhead_sandbox::id::Id;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::State;
use bulkhead_sandbox::stdio::Stdio;
use containerd_shim_protos::api::{DeleteRequest, ExecProcessRequest, StartRequest};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, User};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ttrpc::context::Context;

use super::common;
use crate::attach::Streams;
use crate::detached::{Looks, Network, Options, StandIn, write_pid};
use crate::error::CommandError;
use crate::options::Globals;
use crate::session::{self, Signals, Target, exit_code};
use crate::terminal::Raw;

#[derive(Debug, clap::Args)]
#[command(trailing_var_arg = true)]
pub struct Args {
    /// Working directory in the container.
    #[arg(short = 'w', long, alias = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// Set an environment variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Keep standard input open (it always is, as in runc; accepted for Docker's and Podman's form).
    #[arg(short, long)]
    interactive: bool,
    /// User, and group, of the process: NAME, UID, or UID:GID.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Additional group ids.
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Take the process from a file with an OCI process object.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["cwd", "env", "user", "command"])]
    process: Option<PathBuf>,
    /// Forbid the process to gain privileges.
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability.
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Leave the process running and return.
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    detached: Options,
    /// The container.
    id: String,
    /// The command and its arguments.
    command: Vec<String>,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let paths = common::paths(globals, &args.id)?;
    let state = common::state(&paths)?;
    if state.exit.is_some() {
        return Err(CommandError::WrongState {
            verb: "exec in",
            id: args.id.clone(),
            state: "stopped",
            hint: "",
        });
    }
    let process = process(&args, &state)?;
    let terminal = process.terminal().unwrap_or(false);
    let stays =
        args.detach || args.detached.console_socket.is_some() || args.detached.pid_file.is_some();
    args.detached.check(terminal, args.detach)?;
    if stays {
        return beside(&args, &paths, &process);
    }
    let exec_id = Id::generate().to_string();
    let streams =
        Streams::make(&paths.io(), &exec_id, true, terminal).map_err(CommandError::io(format!(
            "make the streams of the process in {}",
            paths.io().display()
        )))?;
    let target = Target {
        id: args.id.clone(),
        exec_id,
        terminal,
    };
    let raw = if terminal {
        Raw::enter().map_err(CommandError::io("prepare the terminal"))?
    } else {
        None
    };
    let code = common::block_on(converse(&paths, &target, &process, streams));
    drop(raw);
    code.map(|code| ExitCode::from(exit_code(code)))
}

/// A process with a stand-in, which has our streams or a terminal of its own. Without `--detach` we
/// stay until it has ended.
fn beside(args: &Args, paths: &Paths, process: &Process) -> Result<ExitCode, CommandError> {
    let exec_id = Id::generate().to_string();
    let size = process.console_size().map(|size| {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        (narrow(size.width()), narrow(size.height()))
    });
    let console = args.detached.console_socket.as_deref();
    let looks = Looks {
        network: Network::Inherit,
        view: None,
        title: process.args().clone().unwrap_or_default(),
    };
    let mut standin = StandIn::spawn(console, size, looks)?;
    let target = Target {
        id: args.id.clone(),
        exec_id,
        terminal: console.is_some(),
    };
    let done = standin
        .hand_over(paths, &target.exec_id)
        .and_then(|()| common::block_on(launch(paths, &target, process)))
        .and_then(|()| match &args.detached.pid_file {
            Some(path) => write_pid(path, standin.pid()),
            None => Ok(()),
        });
    if done.is_err() || !args.detach {
        let code = standin.wait();
        done?;
        return Ok(ExitCode::from(code));
    }
    Ok(ExitCode::SUCCESS)
}

async fn launch(paths: &Paths, target: &Target, process: &Process) -> Result<(), CommandError> {
    let client = common::connect(paths)?;
    let request = exec_request(target, process, &Stdio::attached(target.terminal))?;
    let answer = client.exec(Context::default(), &request).await;
    answer.map_err(CommandError::rpc(&target.id))?;
    let request = StartRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        ..Default::default()
    };
    let answer = client.start(Context::default(), &request).await;
    answer.map(|_| ()).map_err(CommandError::rpc(&target.id))
}

async fn converse(
    paths: &Paths,
    target: &Target,
    process: &Process,
    streams: Streams,
) -> Result<u32, CommandError> {
    let mut signals = Signals::catch(target.terminal)?;
    let client = common::connect(paths)?;
    let request = exec_request(target, process, &streams.stdio)?;
    client
        .exec(Context::default(), &request)
        .await
        .map_err(CommandError::rpc(&target.id))?;
    let ended = async {
        session::start(&client, target).await?;
        let pumps = streams
            .pump()
            .map_err(CommandError::io("join the streams of the process"))?;
        let answer = signals.attend(&client, target).await?;
        pumps.finish_or_quiet();
        Ok(answer.exit_status)
    }
    .await;
    let request = DeleteRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        ..Default::default()
    };
    // Gone with its container, if that has ended in the meantime.
    let _ = client.delete(Context::default(), &request).await;
    ended
}

fn exec_request(
    target: &Target,
    process: &Process,
    stdio: &Stdio,
) -> Result<ExecProcessRequest, CommandError> {
    let value = serde_json::to_vec(process)
        .map_err(|error| CommandError::io("describe the process")(error.into()))?;
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value,
        ..Default::default()
    };
    Ok(ExecProcessRequest {
        id: target.id.clone(),
        exec_id: target.exec_id.clone(),
        terminal: stdio.terminal,
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        spec: MessageField::some(spec),
        ..Default::default()
    })
}

/// The process of the bundle with the options' changes, as runc makes it.
fn process(args: &Args, state: &State) -> Result<Process, CommandError> {
    if let Some(path) = &args.process {
        let step = format!("read the process {}", path.display());
        let text = std::fs::read(path).map_err(CommandError::io(step.clone()))?;
        return serde_json::from_slice(&text).map_err(|error| CommandError::io(step)(error.into()));
    }
    if args.command.is_empty() {
        return Err(CommandError::Usage(
            "No command given: `bulkhead exec ID COMMAND…`, or --process FILE".into(),
        ));
    }
    let bundle = Bundle::load(&state.bundle)?;
    let mut process = bundle.spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.into());
    }
    if !args.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(args.env.iter().cloned());
        process.set_env(Some(env));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &args.user {
        process.set_user(user_of(&state.rootfs, user)?);
    }
    if !args.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&args.additional_gids);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    if !args.cap.is_empty() {
        let mut sets = process.capabilities().clone().unwrap_or_default();
        add_capabilities(&mut sets, &args.cap)?;
        process.set_capabilities(Some(sets));
    }
    Ok(process)
}

fn user_of(rootfs: &Path, text: &str) -> Result<User, CommandError> {
    let identity = identify(rootfs, text)?;
    let mut user = User::default();
    user.set_uid(identity.uid);
    user.set_gid(identity.gid);
    user.set_additional_gids(Some(identity.groups));
    Ok(user)
}

/// As runc: into the bounding, effective and permitted set.
fn add_capabilities(sets: &mut LinuxCapabilities, names: &[String]) -> Result<(), CommandError> {
    let mut added = Capabilities::new();
    for name in names {
        match name.parse::<CapabilityOption>()? {
            CapabilityOption::One(capability) => {
                added.insert(capability);
            }
            CapabilityOption::All => {
                return Err(CommandError::Usage(
                    "--cap takes the name of one capability".into(),
                ));
            }
        }
    }
    let with = |set: &Option<Capabilities>| {
        let set = set.clone().unwrap_or_default();
        Some(set.union(&added).copied().collect())
    };
    let (bounding, effective, permitted) = (
        with(sets.bounding()),
        with(sets.effective()),
        with(sets.permitted()),
    );
    sets.set_bounding(bounding);
    sets.set_effective(effective);
    sets.set_permitted(permitted);
    Ok(())
}
