//! The sandbox process: `bulkhead sandbox <json>`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_network::{Network, Port};
use containerd_shim_protos::shim_async::create_task;
use rustix::net::SocketFlags;
use tokio::net::UnixListener;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::error::SandboxError;
use crate::plan::{Neighbours, Plan};
use crate::pod::Pod;
use crate::request::Request;
use crate::sandbox::Sandbox;
use crate::standin::{self, Message};
use crate::state::ProcessRef;
use crate::stdio::StdioError;
use crate::task::TaskService;
use crate::timeline::{Actor, Timeline, now_ns};
use crate::tracked::Counter;
use crate::vm::{Layer, Vm, pidfd};
use crate::watched;

/// How long a client may take to read its last answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Why the sandbox process could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The runtime, a signal handler or a descriptor.
    #[error("Failed to {step}")]
    Setup {
        /// What was attempted.
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The Task service.
    #[error("Failed to serve the Task service")]
    Service(#[source] ttrpc::Error),
}

fn setup(step: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::Setup { step, source }
}

/// Boots the machine of `request`, serves its container, and returns when everything is over.
///
/// Must run on the process's main thread (see [`Vm::launch`]) and takes ownership of the
/// descriptors the request names.
///
/// # Errors
/// Only what keeps the service itself from running; what goes wrong with the container is told to
/// the clients.
pub fn serve(request: Request) -> Result<(), ServeError> {
    let mut timeline = Timeline::new(request.origin_ns);
    timeline.add(
        Actor::Host,
        "command, up to the sandbox process",
        request.origin_ns,
        now_ns(),
    );
    // A session of its own: a terminal's signals are the command's to forward. It fails only for a
    // process that leads one already.
    let _ = rustix::process::setsid();
    let listener = adopt(request.listener_fd).map_err(setup("take over the listening socket"))?;
    let lock = adopt(request.lock_fd).map_err(setup("take over the container's directory"))?;
    let lifeline = request
        .lifeline_fd
        .map(adopt)
        .transpose()
        .map_err(setup("take over the command's lifeline"))?;
    let attach = request
        .attach_fd
        .map(adopt)
        .transpose()
        .map_err(setup("take over the socket for stand-ins"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(setup("start the runtime"))?;
    runtime.block_on(run(request, timeline, listener, lock, lifeline, attach))
}

fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // The command that spawned us may have given a number that is not open.
    // SAFETY: the number is only looked at.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (just checked) and was passed to this process for it alone;
    // each number of the request is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

async fn run(
    request: Request,
    timeline: Timeline,
    listener: OwnedFd,
    lock: OwnedFd,
    lifeline: Option<OwnedFd>,
    attach: Option<OwnedFd>,
) -> Result<(), ServeError> {
    let pod = Arc::new(Pod::default());
    let sandbox = Arc::new(Sandbox::new(request, timeline, pod.clone()));
    sandbox.own(lock);
    // The first container finds an empty machine.
    let _ = pod.admit(&sandbox);
    let connections = Counter::default();
    let mut server = start_server(&pod, listener, &connections).await?;
    watch_signals(&pod)?;
    if let Some(lifeline) = lifeline {
        watch_lifeline(&sandbox, lifeline)?;
    }
    if let Some(attach) = attach {
        accept_attachments(&pod, attach)?;
    }
    if let Some(standin) = sandbox.request.standin {
        watch_standin(&sandbox, standin)?;
    }
    let booted = tokio::select! {
        biased;
        booted = boot(&sandbox) => booted,
        // What it was about to do is dropped, a hook that runs is killed.
        reason = sandbox.called_off() => Err(reason),
    };
    if let Err(error) = booted {
        sandbox.boot_failed(error);
    }
    pod.done.notified().await;
    server.stop_listen().await;
    // A client that does not close its connection does not keep us.
    let _ = tokio::time::timeout(LAST_ANSWER, connections.none()).await;
    sandbox.settled().await;
    Ok(())
}

async fn start_server(
    pod: &Arc<Pod>,
    listener: OwnedFd,
    connections: &Counter,
) -> Result<Server, ServeError> {
    let listener: std::os::unix::net::UnixListener = listener.into();
    listener
        .set_nonblocking(true)
        .map_err(setup("prepare the listening socket"))?;
    let listener = UnixListener::from_std(listener).map_err(setup("register the socket"))?;
    let counter = connections.clone();
    let accepted = futures::stream::unfold((listener, counter), |(listener, counter)| async {
        let stream = listener
            .accept()
            .await
            .map(|(stream, _)| counter.track(stream));
        Some((stream, (listener, counter)))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(accepted))
        .register_service(create_task(Arc::new(TaskService(pod.clone()))));
    server.start().await.map_err(ServeError::Service)?;
    Ok(server)
}

/// Plans and spawns; from here on the guest boots by itself.
async fn boot(sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let began = now_ns();
    let plan = Plan::make(&sandbox.request)?;
    sandbox.begin(&plan)?;
    let layer = layer(sandbox)?;
    sandbox.span(Actor::Host, "plan", began);
    sandbox.prepare_host(&plan).await?;
    let network = plug(sandbox, &plan)?;
    let vm = {
        let mut timeline = sandbox.timeline();
        Vm::launch(
            &plan,
            layer.as_ref(),
            network,
            &sandbox.paths,
            &mut timeline,
        )?
    };
    sandbox.booted(vm, plan)
}

/// Joins the machine's network cards to the interfaces of the container's namespace.
fn plug(sandbox: &Sandbox, plan: &Plan) -> Result<Option<(Network, Vec<Port>)>, SandboxError> {
    let Some(path) = &plan.netns else {
        return Ok(None);
    };
    let began = now_ns();
    let plugged = Network::plug(path, plan.late_network)?;
    sandbox.span(Actor::Host, "join the network", began);
    Ok(Some(plugged))
}

fn layer(sandbox: &Sandbox) -> Result<Option<Layer>, SandboxError> {
    let Some(lower) = sandbox.request.lower.clone() else {
        return Ok(None);
    };
    let writable = sandbox.paths.layer();
    for dir in ["upper", "work"] {
        let path = writable.join(dir);
        std::fs::create_dir_all(&path).map_err(|source| SandboxError::Layer {
            path: path.clone(),
            source,
        })?;
    }
    Ok(Some(Layer { lower, writable }))
}

/// When the attached command dies its end of the pipe closes, and the container goes with it.
fn watch_lifeline(sandbox: &Arc<Sandbox>, lifeline: OwnedFd) -> Result<(), ServeError> {
    let lifeline = watched::watch(lifeline).map_err(setup("watch the command's lifeline"))?;
    let sandbox = sandbox.clone();
    tokio::spawn(async move {
        let _ = lifeline.readable().await;
        // A byte is a farewell; without one the other end was closed by the command's death.
        if matches!(rustix::io::read(lifeline.get_ref(), &mut [0; 1]), Ok(1)) {
            sandbox.detached().await;
        } else {
            sandbox.abandoned().await;
        }
    });
    Ok(())
}

/// Whatever the container is up to, without the process an engine takes for it nobody would learn of its
/// end: it ends, too.
fn watch_standin(sandbox: &Arc<Sandbox>, pid: u32) -> Result<(), ServeError> {
    let step = "watch the container's stand-in";
    let process = ProcessRef::of(pid).map_err(setup(step))?;
    let ended = pidfd(&process).ok_or(io::ErrorKind::NotFound.into());
    let ended = ended.and_then(watched::watch).map_err(setup(step))?;
    let sandbox = sandbox.clone();
    tokio::spawn(async move {
        let _ = ended.readable().await;
        sandbox.standin_ended(pid).await;
    });
    Ok(())
}

/// Takes stand-ins and further containers over, each on a connection of its own.
fn accept_attachments(pod: &Arc<Pod>, listener: OwnedFd) -> Result<(), ServeError> {
    let step = "watch the socket for stand-ins";
    rustix::io::ioctl_fionbio(&listener, true).map_err(|error| setup(step)(error.into()))?;
    let listener = watched::watch(listener).map_err(setup(step))?;
    let pod = pod.clone();
    tokio::spawn(async move {
        while let Ok(mut ready) = listener.readable().await {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = ready
                .try_io(|listener| rustix::net::accept_with(listener, flags).map_err(Into::into));
            let Ok(Ok(connection)) = accepted else {
                continue;
            };
            let pod = pod.clone();
            tokio::spawn(async move {
                let take = |message, fds| take_over(&pod, message, fds);
                match standin::receive(connection, take).await {
                    Ok(Some(Some((container, exec_id)))) => container.forget_attachment(&exec_id),
                    Ok(Some(None) | None) => {}
                    Err(error) => tracing::warn!("Failed to take something over: {error}"),
                }
            });
        }
    });
    Ok(())
}

/// Returns whose process a stand-in was taken over for.
fn take_over(
    pod: &Arc<Pod>,
    message: Message,
    fds: Vec<OwnedFd>,
) -> Result<Option<(Arc<Sandbox>, String)>, SandboxError> {
    match message {
        Message::Attach(description) => {
            let attachment =
                standin::assemble(&description, fds).ok_or(StdioError::NothingAttached)?;
            let container = pod.container(&description.id)?;
            container.attach(description.exec_id.clone(), attachment);
            Ok(Some((container, description.exec_id)))
        }
        Message::Join(request) => {
            let mut fds = fds.into_iter();
            let (Some(lock), Some(lifeline)) = (fds.next(), fds.next()) else {
                return Err(StdioError::NothingAttached.into());
            };
            move_in(pod, *request, lock, lifeline).map(|()| None)
        }
    }
}

/// A further container for the machine.
fn move_in(
    pod: &Arc<Pod>,
    request: Request,
    lock: OwnedFd,
    lifeline: OwnedFd,
) -> Result<(), SandboxError> {
    let mut containers = pod.containers();
    containers.sort_by_key(|container| !container.is_up());
    let first = containers.into_iter().next();
    let first = first.ok_or_else(|| SandboxError::NoRoom(request.id.to_string()))?;
    let timeline = Timeline::new(request.origin_ns);
    let container = Arc::new(Sandbox::new(request, timeline, pod.clone()));
    watch_lifeline(&container, lifeline)
        .and_then(|()| match container.request.standin {
            Some(standin) => watch_standin(&container, standin),
            None => Ok(()),
        })
        .map_err(|error| StdioError::Announce(io::Error::other(error)))?;
    pod.admit(&container)?;
    container.own(lock);
    let pod = pod.clone();
    tokio::spawn(async move {
        let moved = tokio::select! {
            biased;
            moved = furnish(&pod, &first, &container) => moved,
            reason = container.called_off() => Err(reason),
        };
        if let Err(error) = moved {
            container.boot_failed(error);
        }
    });
    Ok(())
}

/// A machine as a further container finds it.
struct Machine<'m> {
    vm: &'m Vm,
    containers: &'m [Arc<Sandbox>],
}

impl Neighbours for Machine<'_> {
    fn guest_pid(&self, standin: u32) -> Option<u32> {
        let mut containers = self.containers.iter();
        containers.find_map(|other| other.guest_pid_of(standin))
    }

    fn guest_pid_with_shm(&self, source: &Path) -> Option<u32> {
        let mut containers = self.containers.iter();
        containers.find_map(|other| other.guest_pid_with_shm(source))
    }

    fn guest_pid_apart(&self, netns: &Path) -> Option<u32> {
        let mut containers = self.containers.iter();
        containers.find_map(|other| other.guest_pid_apart(netns))
    }

    fn has_network(&self, netns: &Path) -> bool {
        self.vm.has_network_of(netns)
    }

    fn takes_devices(&self) -> bool {
        self.vm.can_plug()
    }
}

/// Plans a further container and gives the guest its files.
async fn furnish(pod: &Pod, first: &Sandbox, container: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let (vm, plan) = first.home().await?;
    let began = now_ns();
    let containers = pod.containers();
    let machine = Machine {
        vm: &vm,
        containers: &containers,
    };
    let mut plan = Plan::join(&container.request, &plan, &machine)?;
    container.begin(&plan)?;
    container.span(Actor::Host, "plan", began);
    container.prepare_host(&plan).await?;
    plan.check_apart()?;
    let began = now_ns();
    vm.share(&plan).map_err(SandboxError::Share)?;
    container.span(Actor::Host, "share files with the machine", began);
    let plugged = container.plug_disks(&vm, &plan.disks).await;
    plan.disk_numbers = plugged.inspect_err(|_| vm.unshare(&plan))?;
    container.settled_in(vm, plan)
}

/// SIGTERM and SIGINT to the sandbox process end the container in order.
fn watch_signals(pod: &Arc<Pod>) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(setup("watch for signals"))?;
        let pod = pod.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                for container in pod.containers() {
                    container.shutdown().await;
                }
            }
        });
    }
    Ok(())
}
