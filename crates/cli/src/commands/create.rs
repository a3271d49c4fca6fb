//! `bulkhead create [--bundle DIR] ID`: a container up to the moment before its program starts.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_oci::Bundle;
use bulkhead_oci::plan::joined_namespaces;
use bulkhead_sandbox::claim;
use bulkhead_sandbox::client;
use bulkhead_sandbox::id::Id;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::request::Request;
use bulkhead_sandbox::state::State;
use bulkhead_sandbox::stdio::Stdio;
use bulkhead_sandbox::sweep;
use containerd_shim_protos::api::CreateTaskRequest;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use ttrpc::context::Context;

use super::common;
use crate::detached::{Looks, Network, Options, StandIn, write_pid};
use crate::error::CommandError;
use crate::options::Globals;
use crate::standin::{Bind, View};

/// How long the sandbox process may take to put a container away that could not be made.
const PUT_AWAY: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the OCI bundle.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    #[command(flatten)]
    options: Options,
    /// As in runc; no pivot_root of the host is involved here.
    #[arg(long)]
    no_pivot: bool,
    /// As in runc; the container has the keyrings of its own kernel either way.
    #[arg(long)]
    no_new_keyring: bool,
    /// The container.
    id: String,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let dir = std::path::absolute(&args.bundle).unwrap_or_else(|_| args.bundle.clone());
    let wanted = Wanted {
        id: args.id.parse::<Id>()?,
        bundle: dir,
        hypervisor: None,
        kernel: None,
    };
    create(&wanted, &args.options, globals)?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be created.
#[derive(Debug)]
pub struct Wanted {
    /// The container's name.
    pub id: Id,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// See [`Request::hypervisor`].
    pub hypervisor: Option<String>,
    /// See [`Request::kernel`].
    pub kernel: Option<String>,
}

/// Creates a container that outlives this command.
///
/// # Errors
/// Whatever kept it from being made; nothing is left then.
pub fn create(wanted: &Wanted, options: &Options, globals: &Globals) -> Result<(), CommandError> {
    common::require_root()?;
    let bundle = Bundle::load(&wanted.bundle)?;
    let process = bundle.spec.process().as_ref();
    let terminal = process.and_then(|process| process.terminal()) == Some(true);
    options.check(terminal, true)?;
    let paths = Paths::new(&globals.root, &wanted.id);
    // A record of an earlier container of that name would only mislead.
    let _ = std::fs::remove_file(paths.failure());
    let machine = machine(&globals.root, &bundle.spec);
    let lock = claim::claim(&paths)?;
    let size = process
        .and_then(|process| process.console_size())
        .map(|size| {
            let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            (narrow(size.width()), narrow(size.height()))
        });
    let console = options.console_socket.as_deref();
    let standin = StandIn::spawn_first(console, size, looks(&bundle), &paths);
    let made = standin.and_then(|mut standin| {
        let made = make(
            wanted,
            options,
            globals,
            &paths,
            &mut standin,
            lock,
            machine.as_ref(),
        );
        if made.is_err() {
            standin.wait();
        }
        made
    });
    if made.is_err() {
        // The sandbox process has removed everything, unless it was never started or was killed: then
        // `bulkhead why` is to know of it.
        let _ = sweep::inspect(&paths);
        sweep::remove(&paths);
    }
    made
}

/// What the engine finds behind the container's PID.
fn looks(bundle: &Bundle) -> Looks {
    let spec = &bundle.spec;
    let title = spec
        .process()
        .as_ref()
        .and_then(|process| process.args().clone());
    let mounts = || spec.mounts().iter().flatten();
    let guest_only: Vec<PathBuf> = mounts()
        .filter(|mount| !bulkhead_oci::plan::is_bind(mount))
        .map(|mount| Path::new("/").join(mount.destination()))
        .collect();
    let binds = mounts().filter_map(|mount| {
        let mut options = mount.options().iter().flatten();
        let recursive = options.any(|option| option == "rbind");
        let is_bind = bulkhead_oci::plan::is_bind(mount);
        let target = Path::new("/").join(mount.destination());
        // Below another mount it would be made in the root file system, where it does not belong.
        let covered = guest_only.iter().any(|other| target.starts_with(other));
        let source = mount.source().as_ref().filter(|_| is_bind && !covered)?;
        Some(Bind {
            source: bundle.dir.join(source),
            target,
            recursive,
        })
    });
    let view = View {
        rootfs: bundle.rootfs.clone(),
        binds: binds.collect(),
    };
    Looks {
        network: network(spec),
        view: Some(view),
        title: title.unwrap_or_default(),
    }
}

/// The network namespace the engine looks for, and finds, behind the container's PID.
fn network(spec: &Spec) -> Network {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let entry = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    match entry.map(|entry| entry.path()) {
        Some(Some(path)) => Network::Join(path.clone()),
        Some(None) => Network::New,
        // The plan refuses it with the reason.
        None => Network::Inherit,
    }
}

fn make(
    wanted: &Wanted,
    options: &Options,
    globals: &Globals,
    paths: &Paths,
    standin: &mut StandIn,
    lock: OwnedFd,
    machine: Option<&Paths>,
) -> Result<(), CommandError> {
    let (lifeline, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| CommandError::io("make a pipe")(error.into()))?;
    let request = Request {
        id: wanted.id.clone(),
        root: globals.root.clone(),
        bundle: wanted.bundle.clone(),
        hypervisor: wanted.hypervisor.clone(),
        kernel: wanted.kernel.clone(),
        lower: None,
        auto_remove: false,
        owner: common::owner(),
        origin_ns: globals.began_ns,
        listener_fd: -1,
        lock_fd: -1,
        lifeline_fd: None,
        attach_fd: None,
        standin: Some(standin.pid()),
        systemd_cgroup: globals.systemd_cgroup,
        netns: Some(PathBuf::from(format!("/proc/{}/ns/net", standin.pid()))),
    };
    let mut spawned = match machine {
        Some(other) => {
            client::join(request, paths, other, &lock, &lifeline)?;
            // The sandbox process has it now.
            drop(lock);
            None
        }
        None => Some(client::start(request, paths, lock, Some(lifeline))?),
    };
    let done = standin
        .hand_over(paths, "")
        .and_then(|()| common::block_on(ask(paths, &wanted.bundle, options)))
        .and_then(|()| match &options.pid_file {
            Some(path) => write_pid(path, standin.pid()),
            None => Ok(()),
        })
        .and_then(|()| {
            // From here on the container is on its own.
            rustix::io::write(&held, &[1])
                .map(drop)
                .map_err(|error| CommandError::io("leave the sandbox process")(error.into()))
        });
    if done.is_err() {
        drop(held);
        match &mut spawned {
            Some(sandbox) => crate::session::reap(sandbox),
            // Nobody of ours to wait for: the process lives on for others.
            None => {
                let _ = claim::wait_until_free(paths, PUT_AWAY);
            }
        }
    }
    done
}

/// The container in whose virtual machine this one belongs: one that shares its network namespace, or
/// any other namespace it names.
fn machine(root: &Path, spec: &Spec) -> Option<Paths> {
    let pids: Vec<u32> = joined_namespaces(spec)
        .iter()
        .map(|joined| joined.pid)
        .collect();
    let network = match network(spec) {
        Network::Join(path) => std::fs::metadata(path).ok(),
        Network::New | Network::Inherit => None,
    };
    if network.is_none() && pids.is_empty() {
        return None;
    }
    let shares_network = |pid: u32| {
        let theirs = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok();
        match (&theirs, &network) {
            (Some(theirs), Some(ours)) => theirs.dev() == ours.dev() && theirs.ino() == ours.ino(),
            _ => false,
        }
    };
    let others = sweep::names(root).unwrap_or_default();
    others.iter().map(|id| Paths::new(root, id)).find(|paths| {
        let Ok(state) = State::load(paths) else {
            return false;
        };
        let standin = state.standin.filter(|_| state.exit.is_none());
        standin.is_some_and(|standin| {
            standin.is_alive() && (pids.contains(&standin.pid) || shares_network(standin.pid))
        })
    })
}

async fn ask(paths: &Paths, bundle: &Path, options: &Options) -> Result<(), CommandError> {
    let id = paths.id().to_string();
    let client = client::connect(paths)?;
    let stdio = Stdio::attached(options.console_socket.is_some());
    let request = CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.display().to_string(),
        terminal: stdio.terminal,
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        ..Default::default()
    };
    let answer = client.create(Context::default(), &request).await;
    answer.map(|_| ()).map_err(CommandError::rpc(&id))
}
