//! One virtual machine: the device process, the hypervisor process, the agent, and what ends them.

mod devices;
mod plug;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_agent_api::{AgentClient, GUEST_CID, RPC_PORT, SHARE_TAG};
use bulkhead_devices::vsock::control;
use bulkhead_hypervisor::{CpuLease, HypervisorError, LaunchIo, Machine, Net};
use bulkhead_jail::{Entry, JailError};
use bulkhead_network::{Cards, Change, Mac, Network, NetworkError, Port, Update, Watch as Changes};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::channel::{Channel, Stream, socket_pair};
use crate::console::Console;
use crate::cost::Meter;
use crate::disks::DiskError;
use crate::dns::Relay;
use crate::failure::{End, Failure, Part, diagnose};
use crate::paths::Paths;
use crate::plan::Plan;
use crate::state::ProcessRef;
use crate::timeline::{Actor, Timeline, now_ns};
use crate::watched;
pub use plug::Offer;

use devices::{MachineWide, cards, device_jail, disks, listen, shares, spawn_device};
use plug::Plugs;

/// First host uid given to hypervisor processes; the sandbox's PID is added, so that no two running
/// VMs share one.
pub const UID_BASE: u32 = 0x7000_0000;

/// How long the end of the hypervisor may be seen after the device process's, which follows from it.
const CAUSE_LIMIT: Duration = Duration::from_secs(1);

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A step on the host failed.
    #[error("Failed to {step}")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file of the container could not be made.
    #[error("Failed to {step} {path}")]
    File {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The device process could not be spawned.
    #[error("Failed to start the device process")]
    Device(#[source] JailError),
    /// See [`DiskError`].
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The hypervisor could not be spawned.
    #[error("Failed to start the hypervisor")]
    Start(#[source] HypervisorError),
    /// It did not do as told.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// No device can come to the machine.
    #[error(
        "Devices cannot be plugged into this virtual machine while it runs: that takes hypervisor kvm or uml \
         and a kernel of this version (`bulkhead doctor`)"
    )]
    Fixed,
}

fn step(step: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Host { step, source }
}

fn file(step: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::File { step, path, source }
}

/// A spawned machine. Dropping it kills what still runs of it.
pub struct Vm {
    /// Streams of the guest.
    pub channel: Channel,
    /// The guest's console.
    pub console: Console,
    /// The agent; requests wait in the socket until the guest has booted.
    pub agent: AgentClient,
    /// The agent's connection, to learn when it was made.
    pub home: Stream,
    /// Why the machine ended; `None` while it runs.
    pub ended: watch::Receiver<Option<Failure>>,
    /// The processes, for the journal.
    pub helpers: Vec<ProcessRef>,
    /// When the hypervisor process was spawned.
    pub launched_ns: u64,
    machine: Arc<bulkhead_hypervisor::Vm>,
    pidfds: Vec<Arc<OwnedFd>>,
    device: Arc<OwnedFd>,
    network: Mutex<Option<Network>>,
    relay: Mutex<Option<Relay>>,
    undoing: tokio::sync::Mutex<()>,
    /// The hypervisor's user.
    uid: u32,
    plugs: Plugs,
    // The processor counts as taken while the machine runs.
    _lease: Option<CpuLease>,
    /// What the machine costs; holds the driver's own lease and its way to the hypervisor.
    pub meter: Meter,
}

/// What to put under a container's root file system.
#[derive(Debug)]
pub struct Layer {
    /// Read-only lower directory.
    pub lower: PathBuf,
    /// Directory that holds `upper` and `work`.
    pub writable: PathBuf,
}

impl Vm {
    /// Spawns the device process and the hypervisor; the guest boots while the caller goes on.
    ///
    /// Must be called on the sandbox process's main thread: the jailed processes die with the
    /// thread that spawned them.
    ///
    /// # Errors
    /// The step that failed. Nothing is left running then.
    pub fn launch(
        plan: &Plan,
        layer: Option<&Layer>,
        network: Option<(Network, Vec<Port>)>,
        paths: &Paths,
        timeline: &mut Timeline,
    ) -> Result<Self, VmError> {
        let began = now_ns();
        let dir = open_dir(&paths.dir()).map_err(step("open the container's directory"))?;
        let uid = UID_BASE.saturating_add(std::process::id());
        let fs_listener = listen(&dir, "fs.sock", uid)?;
        let vsock_listener = listen(&dir, "vsock.sock", uid)?;
        let back_ends = plan.choice.driver.back_ends();
        let entropy = back_ends.entropy.then(|| listen(&dir, "entropy.sock", uid));
        // Huge pages stay: what was given back could be somebody else's when the guest wants it again.
        let has_balloon = back_ends.balloon && !plan.config.huge_pages;
        let balloon = has_balloon.then(|| listen(&dir, "balloon.sock", uid));
        let machine_wide = MachineWide {
            fs: fs_listener,
            vsock: vsock_listener,
            entropy: entropy.transpose()?,
            balloon: balloon.transpose()?,
        };
        let (network, ports) = network.unzip();
        let cards = cards(ports.unwrap_or_default(), &dir, uid)?;
        let nets = cards.iter().enumerate().map(|(number, card)| Net {
            socket: paths.net_socket(number),
            mac: card.port.mac,
            mtu: card.port.mtu,
        });
        let nets = nets.collect();
        let disks = disks(&plan.disks, &dir, uid)?;
        let disk_sockets = (0..disks.len()).map(|number| paths.disk_socket(number));
        let disk_sockets = disk_sockets.collect();
        let (channel, control) =
            control::pair().map_err(step("make the device process's control channel"))?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(paths.log())
            .map_err(file("open the sandbox's log", paths.log()))?;

        // Guest and device take turns: on one processor their wake-ups are cheap.
        let lease = (plan.choice.driver.max_vcpus() == 1)
            .then(CpuLease::take)
            .flatten();
        let cpu = lease.as_ref().map(CpuLease::cpu);
        let device = spawn_device(
            device_jail(plan, layer, paths, cpu),
            machine_wide,
            control,
            cards,
            disks,
            &log,
        )?;
        timeline.since(Actor::Host, "spawn device process", began);
        let device_pidfd = Arc::new(device.pidfd);
        let guard = KillOnDrop(vec![device_pidfd.clone()]);

        let began = now_ns();
        let (console_read, console_write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| step("make the console's pipe")(error.into()))?;
        let console = Console::collect(console_read, paths.console())
            .map_err(file("collect the guest's console in", paths.console()))?;
        let machine = Machine {
            id: paths.id().to_string(),
            memory_bytes: plan.memory_bytes,
            huge_pages: plan.config.huge_pages,
            vcpus: plan.vcpus.min(plan.choice.driver.max_vcpus()),
            kernel: plan.kernel.clone(),
            initramfs: plan.initramfs.clone(),
            cmdline: Vec::new(),
            fs_socket: Some(paths.fs_socket()),
            fs_tag: SHARE_TAG.to_owned(),
            vsock_socket: Some(paths.vsock_socket()),
            guest_cid: u64::from(GUEST_CID),
            entropy_socket: back_ends.entropy.then(|| paths.entropy_socket()),
            balloon_socket: has_balloon.then(|| paths.balloon_socket()),
            nets,
            disks: disk_sockets,
            uid,
            gid: uid,
            cpu,
        };
        // Before there is a guest that could connect.
        let channel = Channel::new(channel).map_err(step("watch the control channel"))?;
        let (ours, theirs) = socket_pair().map_err(step("make the agent's socket"))?;
        let other = theirs
            .try_clone()
            .map_err(step("make the agent's socket"))?;
        let home = channel
            .expect_port(RPC_PORT, Some(theirs), Some(other))
            .map_err(step("announce the agent's connection"))?;
        let launched_ns = now_ns();
        let io = LaunchIo {
            console: console_write,
            bulkhead: own_executable(),
        };
        let plugs = Plugs::after(machine.nets.len().max(machine.disks.len()));
        let launched = plan.choice.driver.launch(&machine, io);
        let hypervisor = launched.map_err(VmError::Start)?;
        timeline.since(Actor::Host, "spawn hypervisor", began);
        let hypervisor_pidfd = hypervisor
            .pidfd
            .try_clone()
            .map_err(step("watch the hypervisor"))?;
        let hypervisor_pidfd = Arc::new(hypervisor_pidfd);
        let mut guard = guard;
        guard.0.push(hypervisor_pidfd.clone());

        let socket = tokio::net::UnixStream::from_std(ours.into())
            .map_err(step("register the agent's socket"))?;
        let agent = AgentClient::new(ttrpc::r#async::Client::new(
            ttrpc::r#async::transport::Socket::new(socket),
        ));

        let mut helpers = Vec::new();
        for pid in [device.pid, hypervisor.pid] {
            helpers.extend(ProcessRef::of(pid));
        }
        let (sender, ended) = watch::channel(None);
        let sender = Arc::new(sender);
        for (part, pidfd) in [
            (Part::Device, &device_pidfd),
            (Part::Hypervisor, &hypervisor_pidfd),
        ] {
            let watch = Watch {
                part,
                pidfd: pidfd.clone(),
                sender: sender.clone(),
                console: console.clone(),
                log: paths.log(),
            };
            watch.start().map_err(step("watch a jailed process"))?;
        }
        let machine = Arc::new(hypervisor);
        let meter = Meter::start(machine.clone(), home.state.clone());
        let pidfds = std::mem::take(&mut guard.0);
        Ok(Self {
            channel,
            console,
            agent,
            home,
            ended,
            helpers,
            launched_ns,
            machine,
            pidfds,
            device: device_pidfd,
            network: Mutex::new(network),
            relay: Mutex::new(None),
            undoing: tokio::sync::Mutex::default(),
            uid,
            plugs,
            _lease: lease,
            meter,
        })
    }

    /// Asks the guest to make do with `bytes` of memory, if its machine can be asked; see
    /// [`bulkhead_hypervisor::Resizable::set_memory`].
    ///
    /// # Errors
    /// When the hypervisor does not answer, or refuses.
    pub async fn set_memory(&self, bytes: u64) -> Result<(), HypervisorError> {
        let machine = self.machine.clone();
        let ask = move || match machine.as_resizable() {
            Some(resizable) => resizable.set_memory(bytes),
            None => Ok(()),
        };
        // A hypervisor that its guest has taken over may keep the order waiting.
        let asked = tokio::task::spawn_blocking(ask).await;
        // It is not called off, and does not panic.
        asked.unwrap_or(Ok(()))
    }

    /// Shares the files of a further container with the guest.
    ///
    /// # Errors
    /// When one of them cannot be shared; none is then.
    pub fn share(&self, plan: &Plan) -> Result<(), JailError> {
        bulkhead_jail::plug(&self.device, &shares(plan))
    }

    /// Takes the files of a container away from the guest.
    pub fn unshare(&self, plan: &Plan) {
        let targets: Vec<PathBuf> = shares(plan)
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Bind { target, .. } => Some(target),
                _ => None,
            })
            .collect();
        if let Err(error) = bulkhead_jail::unplug(&self.device, &targets) {
            tracing::warn!("{}", crate::error::chain(&error));
        }
    }

    /// Kills what still runs; see [`Self::gone`] for its end. What the guest had not written through is
    /// lost: let the agent destroy the container first.
    pub async fn kill(&self) {
        for pidfd in self.pidfds.iter().rev() {
            kill(pidfd);
        }
        // Who comes second waits for the first: it may go on only when the network is undone.
        let _one_at_a_time = self.undoing.lock().await;
        drop(self.lock_relay().take());
        let network = self.lock_network().take();
        if let Some(network) = network {
            // Its taps are gone with the device process; this frees the engine's interfaces.
            self.gone().await;
            drop(network);
        }
    }

    /// Waits until nothing runs any more. A machine takes some milliseconds to give its memory back, so
    /// only who cares for what it holds should wait.
    pub async fn gone(&self) {
        for pidfd in &self.pidfds {
            // A descriptor of our own: one can be watched only once, and the task that reaps the
            // process does so already.
            let Ok(fd) = pidfd.try_clone() else { continue };
            if let Ok(fd) = watched::watch(fd) {
                // Readable means ended; the watching task has reaped it or is about to.
                let _ = fd.readable().await;
            }
        }
    }

    /// Keeps the relay for name servers as long as the machine runs.
    pub fn keep_relay(&self, relay: Relay) {
        *self.lock_relay() = Some(relay);
    }

    fn lock_relay(&self) -> std::sync::MutexGuard<'_, Option<Relay>> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_network(&self) -> std::sync::MutexGuard<'_, Option<Network>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each network card is to become.
    #[must_use]
    pub fn network_changes(&self) -> Vec<Change> {
        let network = self.lock_network();
        network.as_ref().map(Network::changes).unwrap_or_default()
    }

    /// Whether the machine's interfaces are those of the network namespace at `path`.
    pub fn has_network_of(&self, path: &Path) -> bool {
        let network = self.lock_network();
        network.as_ref().is_some_and(|network| network.is_of(path))
    }

    /// Looks for what came to the container's network since the machine was launched; returns nothing
    /// if there is nothing to do.
    ///
    /// # Errors
    /// See [`Network::refresh`].
    pub fn refresh_network(&self) -> Result<Option<Update>, NetworkError> {
        let mut network = self.lock_network();
        let Some(network) = network.as_mut() else {
            return Ok(None);
        };
        let cards = if self.can_plug() {
            Cards::Pluggable
        } else {
            Cards::Fixed
        };
        let update = network.refresh(cards)?;
        Ok((!update.is_empty()).then_some(update))
    }

    /// Undoes a card of [`Update::new`] that the machine could not be given.
    pub fn forget_card(&self, mac: Mac) {
        if let Some(network) = self.lock_network().as_mut() {
            network.forget(mac);
        }
    }

    /// Watches the container's network, if it has one; see [`Network::watch`].
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn watch_network(&self) -> Result<Option<Changes>, NetworkError> {
        self.lock_network().as_ref().map(Network::watch).transpose()
    }

    /// Whether the name servers of the container's namespace are stood in for already.
    #[must_use]
    pub fn has_relay(&self) -> bool {
        self.lock_relay().is_some()
    }

    /// Waits until the machine has ended and tells why.
    pub async fn failure(&self) -> Failure {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_else(unknown),
            Err(_) => unknown(),
        }
    }
}

fn unknown() -> Failure {
    Failure {
        cause: "The virtual machine ended".into(),
        evidence: Vec::new(),
        fix: "See `bulkhead logs`".into(),
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("helpers", &self.helpers)
            .finish_non_exhaustive()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for pidfd in &self.pidfds {
            kill(pidfd);
        }
    }
}

struct KillOnDrop(Vec<Arc<OwnedFd>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        for pidfd in &self.0 {
            kill(pidfd);
            // It dies at once, and until it has, it holds mounts and its control group.
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

fn kill(pidfd: &OwnedFd) {
    // It may have ended already, which is what is wanted.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// Waits for the end of one process and reports it, unless the other's was first.
struct Watch {
    part: Part,
    pidfd: Arc<OwnedFd>,
    sender: Arc<watch::Sender<Option<Failure>>>,
    console: Console,
    log: PathBuf,
}

impl Watch {
    fn start(self) -> io::Result<()> {
        let fd = watched::watch(self.pidfd.clone())?;
        tokio::spawn(async move {
            let _ = fd.readable().await;
            let end = reap(&self.pidfd);
            if self.part == Part::Device && end == End::Exited(0) {
                // It ends in order when the hypervisor is gone, whose end is then the cause and about
                // to be seen.
                let mut ended = self.sender.subscribe();
                let other = ended.wait_for(Option::is_some);
                let _ = tokio::time::timeout(CAUSE_LIMIT, other).await;
            }
            // The last console lines may still be on their way through the pipe.
            tokio::task::yield_now().await;
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let failure = diagnose(self.part, end, &self.console.text(), &log);
            self.sender.send_if_modified(|ended| {
                let first = ended.is_none();
                if first {
                    *ended = Some(failure);
                }
                first
            });
        });
        Ok(())
    }
}

fn reap(pidfd: &OwnedFd) -> End {
    match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Signaled(signal),
            (None, None) => End::Exited(0),
        },
        Ok(None) | Err(_) => End::Exited(0),
    }
}

/// A descriptor for another process, if it is still there. It may be that it has ended, and nobody has
/// waited for it; the descriptor then says so at once, or when the last of its threads has ended.
#[must_use]
pub fn pidfd(process: &ProcessRef) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // The number may have been used again between the journal and now.
    ProcessRef::of(process.pid)
        .is_ok_and(|now| now == *process)
        .then_some(fd)
}

fn own_executable() -> PathBuf {
    // The link survives the file's replacement by an upgrade.
    PathBuf::from("/proc/self/exe")
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
