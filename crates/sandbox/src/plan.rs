//! From a bundle to what is to be booted and shared. Everything that can be refused is refused
//! here, before a process is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_hypervisor::{Choice, HypervisorError, Kind, Wanted};
use bulkhead_kernels::{Kernel, KernelsError, Need, Store};
use bulkhead_oci::plan::{Disk, Joined};
use bulkhead_oci::{Bundle, BundleError, GuestPlan};

use crate::config::{
    Config, ConfigError, HYPERVISOR_ANNOTATION, KERNEL_ANNOTATION, MEMORY_ANNOTATION,
};
use crate::disks::MOST as MOST_DISKS;
use crate::limits;
use crate::request::Request;

const MIB: u64 = 1 << 20;

/// Everything decided about a sandbox before it boots.
#[derive(Debug)]
pub struct Plan {
    /// The bundle as the engine wrote it.
    pub bundle: Bundle,
    /// The guest's configuration and what to share with it.
    pub guest: GuestPlan,
    /// Driver and the reason for it.
    pub choice: Arc<Choice>,
    /// Guest kernel.
    pub kernel: Kernel,
    /// Initramfs with the agent.
    pub initramfs: PathBuf,
    /// Memory of the VM, bytes.
    pub memory_bytes: u64,
    /// Memory of the VM and of its processes on the host, bytes.
    pub host_memory_bytes: u64,
    /// vCPUs of the VM.
    pub vcpus: u32,
    /// The network namespace whose interfaces the machine is to have.
    pub netns: Option<PathBuf>,
    /// Whether an interface may come into that namespace before the container is started, for which there
    /// has to be a card from the beginning.
    pub late_network: bool,
    /// In a machine that has other containers: the container's own network namespace, in which there
    /// must be nothing but loopback. `None` if it has the network of the machine.
    pub apart: Option<PathBuf>,
    /// Block devices of the host the machine has as disks, in this order.
    pub disks: Vec<Disk>,
    /// By which the machine has them. Those of a further container get theirs when they are plugged.
    pub disk_numbers: Vec<u32>,
    /// The host's configuration.
    pub config: Config,
}

/// What a machine has for a further container. Processes of the guest are those of the containers'
/// first processes.
pub trait Neighbours {
    /// The process a process on the host stands in for.
    fn guest_pid(&self, standin: u32) -> Option<u32>;
    /// The process of a container with this `/dev/shm` on the host.
    fn guest_pid_with_shm(&self, source: &Path) -> Option<u32>;
    /// The process of a container that is [apart](Plan::apart) in this namespace.
    fn guest_pid_apart(&self, netns: &Path) -> Option<u32>;
    /// Whether this namespace's interfaces are the machine's.
    fn has_network(&self, netns: &Path) -> bool;
    /// Whether devices can come to it while it runs.
    fn takes_devices(&self) -> bool;
}

/// Why a container cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`BundleError`].
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// See [`bulkhead_network::NetworkError`].
    #[error(transparent)]
    Network(#[from] bulkhead_network::NetworkError),
    /// See [`HypervisorError`].
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// See [`KernelsError`].
    #[error(transparent)]
    Kernel(#[from] KernelsError),
    /// An `io.bulkhead.` annotation nobody knows.
    #[error(
        "annotations[{0:?}]: no such annotation; known are io.bulkhead.kernel, \
         io.bulkhead.hypervisor and io.bulkhead.memory_mib"
    )]
    UnknownAnnotation(String),
    /// One the administrator has not allowed.
    #[error(
        "annotations[{0:?}]: not allowed here: add it to allowed_annotations in \
         /etc/bulkhead/config.toml"
    )]
    ForbiddenAnnotation(String),
    /// Its value is not usable.
    #[error("annotations[{key:?}] = {value:?}: {expected}")]
    AnnotationValue {
        /// The annotation.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Not a driver.
    #[error("Hypervisor {0:?} is not known: use auto, kvm, uml or qemu")]
    UnknownHypervisor(String),
    /// The container asks for a namespace of a process that is no container of the same machine.
    #[error(
        "linux.namespaces[{index}].path: process {pid} does not stand for a running container of the \
         same virtual machine, and other namespaces belong to the host's kernel: name a container \
         whose network namespace is shared, too (podman: a pod), or remove the path"
    )]
    Stranger {
        /// Index in `linux.namespaces`.
        index: usize,
        /// The process.
        pid: u32,
    },
    /// The container has interfaces of its own, and the machine those of another container.
    #[error(
        "linux.namespaces (network): a container that shares namespaces with another one lives in that \
         one's virtual machine, which gets no further network cards in this version: share the network, \
         too (podman: --network container:NAME, or a pod), or use --network none"
    )]
    NetworkOfItsOwn,
    /// More block devices than a machine can have.
    #[error(
        "linux.devices: {0} block devices are more than a virtual machine takes, {MOST_DISKS}: mount \
         some on the host and bind the directories"
    )]
    TooManyDisks(usize),
    /// A block device for a machine that runs already.
    #[error(
        "linux.devices[{0}]: the container is to live in the virtual machine of another one, to which no \
         disk can come while it runs (that takes hypervisor kvm or uml and a kernel of this version): give \
         the device to the container that is started first, or mount it on the host and bind the directory"
    )]
    DiskForPod(usize),
    /// CPUs or block devices of the host for one container of several.
    #[error(
        "linux.resources.cpu.cpus, mems and linux.resources.blockIO: the container lives in the virtual \
         machine of another one, whose processes compute, read and write for all of its containers: give \
         such limits to the container that is started first, or remove them"
    )]
    HostLimitForPod,
    /// The limit is beyond what the machine has.
    #[error(
        "linux.resources.memory.limit: {limit_mib} MiB are more than the virtual machine of the pod \
         has, {machine_mib} MiB: raise memory_mib in /etc/bulkhead/config.toml before the pod is made, \
         or lower the limit"
    )]
    TooMuchForMachine {
        /// What is asked for.
        limit_mib: u64,
        /// What there is.
        machine_mib: u64,
    },
    /// The initramfs is not installed.
    #[error("Initramfs {0} is missing: run `make install`, or set BULKHEAD_LIB")]
    NoInitramfs(PathBuf),
    /// The VM would not fit in the host's memory.
    #[error(
        "Not enough memory for the guest: it needs {wanted_mib} MiB, the host has {available_mib} \
         MiB available: lower --memory or memory_mib in /etc/bulkhead/config.toml"
    )]
    NoMemory {
        /// Memory of the VM.
        wanted_mib: u64,
        /// `MemAvailable` of the host.
        available_mib: u64,
    },
}

impl PlanError {
    fn stranger(joined: &Joined) -> Self {
        Self::Stranger {
            index: joined.index,
            pid: joined.pid,
        }
    }
}

impl Plan {
    /// Decides about the container of `request`.
    ///
    /// # Errors
    /// Whatever makes the container impossible, by name.
    pub fn make(request: &Request) -> Result<Self, PlanError> {
        let config = Config::load()?;
        let bundle = Bundle::load(&request.bundle)?;
        for warning in &bundle.warnings {
            tracing::warn!("{warning}");
        }
        let annotations = own_annotations(&bundle, &config)?;
        let guest = bulkhead_oci::guest_plan(request.id.as_str(), &bundle)?;

        let hypervisor = request
            .hypervisor
            .clone()
            .or_else(|| annotations.get(HYPERVISOR_ANNOTATION).cloned())
            .unwrap_or_else(|| config.hypervisor.clone());
        let wanted = match hypervisor.as_str() {
            "auto" => Wanted::Auto,
            "uml" => Wanted::Uml,
            "qemu" => Wanted::Qemu,
            "kvm" => Wanted::Kvm,
            _ => return Err(PlanError::UnknownHypervisor(hypervisor)),
        };
        let choice = Arc::new(bulkhead_hypervisor::choose(wanted)?);
        if let Some(stranger) = bulkhead_oci::plan::joined_namespaces(&bundle.spec).first() {
            return Err(PlanError::stranger(stranger));
        }

        let lib = bulkhead_kernels::lib_dir();
        let name = request
            .kernel
            .clone()
            .or_else(|| annotations.get(KERNEL_ANNOTATION).cloned())
            .or_else(|| config.kernel.clone());
        let store = Store::open(&lib);
        let kernel = store.find(choice.driver.flavour(), name.as_deref())?;
        bulkhead_kernels::check(&kernel, &needs(&bundle), &store)?;
        let initramfs = bulkhead_kernels::initramfs(&lib);
        if !initramfs.exists() {
            return Err(PlanError::NoInitramfs(initramfs));
        }

        // The configuration's path outlives the engine's stand-in, and with it whoever cleans up.
        let netns = bulkhead_oci::network_namespace(&bundle.spec).or_else(|| request.netns.clone());
        let memory_bytes = memory(&bundle, &annotations, &config)?;
        let vcpus = vcpus(&bundle);
        check_memory(memory_bytes)?;
        let host_memory_bytes = memory_bytes.saturating_add(host_overhead(&choice, &config));
        let disks = disks(&bundle)?;
        let late_network = request.netns.is_some() && !choice.driver.can_plug(&kernel);
        Ok(Self {
            disk_numbers: (0..).take(disks.len()).collect(),
            bundle,
            guest,
            choice,
            kernel,
            initramfs,
            memory_bytes,
            host_memory_bytes,
            vcpus,
            netns,
            late_network,
            apart: None,
            disks,
            config,
        })
    }

    /// Decides about a further container of the machine that `first` is the plan of.
    ///
    /// # Errors
    /// Whatever makes the container impossible there, by name.
    pub fn join(
        request: &Request,
        first: &Self,
        machine: &impl Neighbours,
    ) -> Result<Self, PlanError> {
        let config = Config::load()?;
        let bundle = Bundle::load(&request.bundle)?;
        own_annotations(&bundle, &config)?;
        let mut guest = bulkhead_oci::guest_plan(request.id.as_str(), &bundle)?;
        let source = bulkhead_oci::plan::shared_memory_source(&bundle.spec);
        let shm = source.and_then(|source| machine.guest_pid_with_shm(&source));
        bulkhead_oci::plan::join(&mut guest.spec, |pid| machine.guest_pid(pid), shm)
            .map_err(|stranger| PlanError::stranger(&stranger))?;
        let own = bulkhead_oci::network_namespace(&bundle.spec).or_else(|| request.netns.clone());
        let apart = own.filter(|own| !machine.has_network(own));
        if let Some(apart) = &apart {
            let neighbour = machine.guest_pid_apart(apart);
            bulkhead_oci::plan::set_apart(&mut guest.spec, neighbour);
        }
        let disks = disks(&bundle)?;
        if let Some(disk) = disks.first().filter(|_| !machine.takes_devices()) {
            return Err(PlanError::DiskForPod(disk.index));
        }
        let linux = bundle.spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        if resources.is_some_and(limits::names_the_hosts) {
            return Err(PlanError::HostLimitForPod);
        }
        let store = Store::open(&bulkhead_kernels::lib_dir());
        bulkhead_kernels::check(&first.kernel, &needs(&bundle), &store)?;
        if let Some(limit) = memory_limit(&bundle).filter(|limit| *limit > first.memory_bytes) {
            return Err(PlanError::TooMuchForMachine {
                limit_mib: limit / MIB,
                machine_mib: first.memory_bytes / MIB,
            });
        }
        Ok(Self {
            bundle,
            guest,
            choice: first.choice.clone(),
            kernel: first.kernel.clone(),
            initramfs: first.initramfs.clone(),
            memory_bytes: first.memory_bytes,
            host_memory_bytes: first.host_memory_bytes,
            vcpus: first.vcpus,
            netns: None,
            late_network: false,
            apart,
            disks,
            disk_numbers: Vec::new(),
            config,
        })
    }

    /// Makes sure that the network namespace of a container that is [apart](Self::apart) is as empty as
    /// it will find its own. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`PlanError::NetworkOfItsOwn`], or when it cannot be looked at.
    pub fn check_apart(&self) -> Result<(), PlanError> {
        match &self.apart {
            Some(path) if bulkhead_network::is_populated(path)? => Err(PlanError::NetworkOfItsOwn),
            _ => Ok(()),
        }
    }

    /// Where the container's root file system is on the host.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.bundle.rootfs
    }
}

fn disks(bundle: &Bundle) -> Result<Vec<Disk>, PlanError> {
    let disks = bulkhead_oci::plan::disks(&bundle.spec);
    if disks.len() > MOST_DISKS {
        return Err(PlanError::TooManyDisks(disks.len()));
    }
    Ok(disks)
}

fn own_annotations(
    bundle: &Bundle,
    config: &Config,
) -> Result<BTreeMap<String, String>, PlanError> {
    let mut own = BTreeMap::new();
    for (key, value) in bundle.spec.annotations().iter().flatten() {
        if !key.starts_with("io.bulkhead.") {
            continue;
        }
        if ![KERNEL_ANNOTATION, HYPERVISOR_ANNOTATION, MEMORY_ANNOTATION].contains(&key.as_str()) {
            return Err(PlanError::UnknownAnnotation(key.clone()));
        }
        if !config.allowed_annotations.contains(key) {
            return Err(PlanError::ForbiddenAnnotation(key.clone()));
        }
        own.insert(key.clone(), value.clone());
    }
    Ok(own)
}

/// Kernel features without which the container would not be what its configuration says.
fn needs(bundle: &Bundle) -> Vec<Need> {
    let needs = bulkhead_oci::needs::all(&bundle.spec).into_iter();
    needs
        .map(|need| Need::new(need.feature, need.field))
        .collect()
}

fn memory(
    bundle: &Bundle,
    annotations: &BTreeMap<String, String>,
    config: &Config,
) -> Result<u64, PlanError> {
    if let Some(value) = annotations.get(MEMORY_ANNOTATION) {
        let mib = value
            .parse::<u64>()
            .ok()
            .filter(|mib| (64..=1 << 20).contains(mib));
        return mib
            .map(|mib| mib * MIB)
            .ok_or_else(|| PlanError::AnnotationValue {
                key: MEMORY_ANNOTATION,
                value: value.clone(),
                expected: "give a whole number of MiB from 64 to 1048576",
            });
    }
    let Some(limit) = memory_limit(bundle) else {
        return Ok(config.memory_mib * MIB);
    };
    Ok(machine_for(limit, config))
}

/// Memory a machine needs for a container that may use `limit` bytes.
#[must_use]
pub fn machine_for(limit: u64, config: &Config) -> u64 {
    // The kernel describes each 4 KiB page in 64 bytes.
    let wanted = limit
        .saturating_add(limit / 64)
        .saturating_add(config.overhead_mib * MIB);
    wanted.div_ceil(MIB).saturating_mul(MIB)
}

/// Memory the machine's processes take on the host beyond that of the machine itself.
fn host_overhead(choice: &Choice, config: &Config) -> u64 {
    let usual = match choice.driver.kind() {
        Kind::Uml => 64,
        // Its own heap, and what it translates the guest's code to.
        Kind::Qemu => 512,
        // A machine of our own has nothing but its page tables.
        Kind::Kvm => 64,
    };
    config
        .host_overhead_mib
        .unwrap_or(usual)
        .saturating_mul(MIB)
}

/// `linux.resources.memory.limit`, if it limits anything.
fn memory_limit(bundle: &Bundle) -> Option<u64> {
    let linux = bundle.spec.linux().as_ref();
    linux
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.memory().as_ref())
        .and_then(oci_spec::runtime::LinuxMemory::limit)
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0)
}

fn vcpus(bundle: &Bundle) -> u32 {
    let cpu = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.cpu().as_ref());
    let Some((quota, period)) = cpu.and_then(|cpu| Some((cpu.quota()?, cpu.period()?))) else {
        return 1;
    };
    let (Ok(quota), true) = (u64::try_from(quota), period > 0) else {
        return 1;
    };
    let host = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    u32::try_from(quota.div_ceil(period).clamp(1, host)).unwrap_or(1)
}

fn check_memory(wanted: u64) -> Result<(), PlanError> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok());
    match available {
        // Guest memory is touched bit by bit, yet it must be there when it is.
        Some(kib) if kib.saturating_mul(1024) < wanted => Err(PlanError::NoMemory {
            wanted_mib: wanted / MIB,
            available_mib: kib / 1024,
        }),
        _ => Ok(()),
    }
}
