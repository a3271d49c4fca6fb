//! `bulkhead run`: a container in its own virtual machine, from its start to its exit code.
//!
//! Two forms. With `--rootfs` or `--image` it means what it means in Docker and Podman; without
//! either it is runc's `run [--bundle DIR] ID`.

mod form;

use std::path::Path;
use std::process::ExitCode;

use bulkhead_sandbox::claim;
use bulkhead_sandbox::client;
use bulkhead_sandbox::id::Id;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::request::Request;
use bulkhead_sandbox::state::State;
use bulkhead_sandbox::sweep;
use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, ShutdownRequest};
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::context::Context;

use super::common;
use super::create::{Wanted, create};
use crate::attach::Streams;
use crate::detached::write_pid;
use crate::error::CommandError;
use crate::options::Globals;
use crate::session::{self, Signals, Target, exit_code};
use crate::terminal::Raw;

pub use form::Args;
use form::Form;

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    common::require_root()?;
    let form = Form::of(&args)?;
    let id = form.id()?;
    if args.detached.console_socket.is_some() && !args.detach {
        return Err(CommandError::Usage(
            "--console-socket needs --detach: an attached container has our own terminal".into(),
        ));
    }
    if args.detach {
        return detached(&args, &form, id, globals);
    }
    let paths = Paths::new(&globals.root, &id);
    // A record of an earlier container of that name would only mislead.
    let _ = std::fs::remove_file(paths.failure());
    let prepared = form.prepare(&id, &args)?;
    let lock = claim::claim(&paths)?;
    let result = prepared
        .write_bundle(&paths)
        .and_then(|bundle| attached(&args, globals, &paths, &prepared, &bundle, lock));
    if result.is_err() {
        // The sandbox process has removed everything, unless it was never started or was killed: then
        // `bulkhead why` is to know of it.
        let _ = sweep::inspect(&paths);
        sweep::remove(&paths);
    }
    result
}

/// runc's `run --detach`: create, start, and leave.
fn detached(args: &Args, form: &Form, id: Id, globals: &Globals) -> Result<ExitCode, CommandError> {
    let Form::Bundle { dir, .. } = form else {
        return Err(CommandError::Usage(
            "--detach needs the --bundle form: nothing would keep the container's output; podman \
             and docker do, with --runtime bulkhead"
                .into(),
        ));
    };
    let wanted = Wanted {
        id,
        bundle: dir.clone(),
        hypervisor: args.hypervisor.clone(),
        kernel: args.kernel.clone(),
    };
    create(&wanted, &args.detached, globals)?;
    super::start::start(&Paths::new(&globals.root, &wanted.id))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything from the sandbox process's start to its end.
fn attached(
    args: &Args,
    globals: &Globals,
    paths: &Paths,
    prepared: &form::Prepared,
    bundle: &Path,
    lock: std::os::fd::OwnedFd,
) -> Result<ExitCode, CommandError> {
    let request = Request {
        id: paths.id().clone(),
        root: globals.root.clone(),
        bundle: bundle.to_owned(),
        hypervisor: args.hypervisor.clone(),
        kernel: args.kernel.clone(),
        lower: prepared.lower.clone(),
        auto_remove: prepared.auto_remove,
        owner: common::owner(),
        origin_ns: globals.began_ns,
        listener_fd: -1,
        lock_fd: -1,
        lifeline_fd: None,
        attach_fd: None,
        standin: None,
        systemd_cgroup: globals.systemd_cgroup,
        netns: None,
    };
    let (lifeline, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| CommandError::io("make a pipe")(error.into()))?;
    let mut sandbox = client::start(request, paths, lock, Some(lifeline))?;
    let streams = Streams::make(&paths.io(), "init", prepared.stdin, prepared.terminal)
        .map_err(CommandError::io("make the streams of the container"));
    let outcome = streams.and_then(|streams| {
        let raw = if prepared.terminal {
            Raw::enter()
        } else {
            Ok(None)
        };
        let raw = raw.map_err(CommandError::io("prepare the terminal"))?;
        let outcome = common::block_on(converse(paths, bundle, prepared, streams));
        drop(raw);
        outcome
    });
    // Closing our end tells a sandbox that is still up to end.
    drop(held);
    session::reap(&mut sandbox);
    let ended = outcome?;
    report(args, paths, &ended);
    let code = if ended.failed() {
        125
    } else {
        exit_code(ended.code)
    };
    Ok(ExitCode::from(code))
}

/// How it ended.
#[derive(Debug)]
struct Ended {
    code: u32,
    state: Option<State>,
}

impl Ended {
    /// Whether the machine failed rather than the container ended.
    fn failed(&self) -> bool {
        self.state
            .as_ref()
            .is_some_and(|state| state.failure.is_some())
    }
}

async fn converse(
    paths: &Paths,
    bundle: &Path,
    prepared: &form::Prepared,
    streams: Streams,
) -> Result<Ended, CommandError> {
    let id = paths.id().to_string();
    let target = Target {
        id: id.clone(),
        exec_id: String::new(),
        terminal: prepared.terminal,
    };
    let mut signals = Signals::catch(prepared.terminal)?;
    let client = client::connect(paths)?;
    let request = CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.display().to_string(),
        terminal: streams.stdio.terminal,
        stdin: streams.stdio.stdin.clone(),
        stdout: streams.stdio.stdout.clone(),
        stderr: streams.stdio.stderr.clone(),
        ..Default::default()
    };
    let create = client.create(Context::default(), &request);
    let created = tokio::select! {
        answer = create => answer.map_err(CommandError::rpc(&id))?,
        number = signals.interrupted() => {
            // Nothing runs yet that could be signalled: the start is called off.
            return Ok(Ended { code: 128 + number.unsigned_abs(), state: None });
        }
    };
    if let Some(path) = &prepared.pid_file {
        write_pid(path, created.pid)?;
    }
    let pumps = streams
        .pump()
        .map_err(CommandError::io("join the container's streams"))?;
    session::start(&client, &target).await?;
    let waited = signals.attend(&client, &target).await;
    if waited.is_err() {
        // The sandbox process is gone and so are its children; set the journal right.
        let _ = sweep::inspect(paths);
    }
    let answer = waited?;
    // All output is copied to its end: with the container's init process every other one ended.
    pumps.finish();
    let state = State::load(paths).ok();
    remove(&client, &id, prepared.auto_remove).await;
    Ok(Ended {
        code: answer.exit_status,
        state,
    })
}

/// Ends the sandbox; with `--rm` everything of the container goes with it.
async fn remove(client: &TaskClient, id: &str, auto_remove: bool) {
    let answer = if auto_remove {
        let request = DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        client
            .delete(Context::default(), &request)
            .await
            .map(|_| ())
    } else {
        let request = ShutdownRequest {
            id: id.to_owned(),
            now: true,
            ..Default::default()
        };
        client
            .shutdown(Context::default(), &request)
            .await
            .map(|_| ())
    };
    if let Err(error) = answer {
        // Somebody else has removed it, or the sandbox process was killed; either way the caller
        // looks at what is left.
        tracing::debug!("Failed to put container {id} away: {error}");
    }
}

fn report(args: &Args, paths: &Paths, ended: &Ended) {
    let state = ended.state.as_ref();
    if let Some(failure) = state.and_then(|state| state.failure.as_ref()) {
        eprintln!(
            "bulkhead: {}: see `bulkhead why {}`: {}",
            failure.cause,
            paths.id(),
            failure.fix
        );
    } else if state
        .and_then(|state| state.exit.as_ref())
        .is_some_and(|exit| exit.oom_killed)
    {
        eprintln!(
            "bulkhead: The container used all the memory it was allowed and was killed for it: \
             raise --memory"
        );
    }
    if args.json
        && let Some(state) = state
    {
        let json = serde_json::json!({
            "id": state.id, "exitCode": ended.code, "isolation": state.isolation,
            "hypervisor": state.hypervisor, "chosenBecause": state.chosen_because,
            "kernel": state.kernel, "guestKernel": state.guest_release,
            "oomKilled": state.exit.as_ref().is_some_and(|exit| exit.oom_killed),
            "failure": state.failure, "timeline": state.timeline,
        });
        eprintln!("{json}");
    }
}
