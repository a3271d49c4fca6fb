//! Splits a bundle into what the guest is told and what the host shares with it.

mod disks;
pub(crate) mod joined;
mod kernel_files;
mod name_servers;
pub(crate) mod own_kernel;
mod source;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Hooks, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};

use crate::bundle::{Bundle, BundleError};
use crate::id::check_id;
pub use disks::{Disk, disks};
pub use joined::{Joined, join, joined_namespaces, shared_memory_source};
pub use name_servers::loopback_name_servers;
use source::Sources;

/// Where the guest mounts the shared file system.
pub const GUEST_SHARE: &str = "/run/bulkhead/share";

/// The largest configuration a guest is sent, in bytes: one RPC message holds 4 MiB, and
/// something is left for its envelope.
pub const MAX_GUEST_SPEC_BYTES: usize = (4 << 20) - (64 << 10);

/// A directory or file of the host the guest gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// On the host: absolute, without links.
    pub source: PathBuf,
    /// In the shared file system, relative to its root: `<container>/m<number>`.
    pub target: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether mounts below the source are shared too.
    pub recursive: bool,
    /// Whether it is a directory; otherwise it is a regular file.
    pub directory: bool,
}

/// What becomes of a bundle: the guest's part and the host's part.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// The configuration for the guest: mount sources are guest paths, and what only
    /// concerns the host (its hooks, the cgroup path, annotations that no hook in the guest
    /// is to be told) is gone.
    pub spec: Spec,
    /// What the host shares, in the order of the mounts; the root file system is not among them.
    pub shares: Vec<Share>,
    /// Where the root file system belongs in the shared file system: `<container>/rootfs`.
    pub rootfs_target: String,
}

impl GuestPlan {
    /// The guest's configuration as JSON.
    ///
    /// # Errors
    ///
    /// [`BundleError::GuestSpecTooLarge`] if it is larger than [`MAX_GUEST_SPEC_BYTES`].
    pub fn spec_json(&self) -> Result<Vec<u8>, BundleError> {
        let json = serde_json::to_vec(&self.spec)
            .map_err(|source| BundleError::Unserialisable { source })?;
        if json.len() > MAX_GUEST_SPEC_BYTES {
            return Err(BundleError::GuestSpecTooLarge {
                size: json.len(),
                limit: MAX_GUEST_SPEC_BYTES,
            });
        }
        Ok(json)
    }
}

/// Makes the guest's configuration and the list of shares for the container `id`.
///
/// Looks at the source of every bind mount on the host; opens nothing for reading.
///
/// # Errors
///
/// [`BundleError::Id`] for a name that cannot be a directory's, and
/// [`BundleError::Source`] for a bind mount whose source is missing or cannot be shared.
pub fn guest_plan(id: &str, bundle: &Bundle) -> Result<GuestPlan, BundleError> {
    check_id(id)?;
    let mut spec = bundle.spec.clone();
    let mut shares = Vec::new();
    let mut sources = Sources::new(&bundle.dir);
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        if !is_bind(mount) || own_kernel::shared_memory(mount) {
            continue;
        }
        let recursive = is_recursive(mount);
        let found = sources.resolve(index, mount, recursive)?;
        let target = format!("{id}/m{}", shares.len());
        mount.set_source(Some(format!("{GUEST_SHARE}/{target}").into()));
        mount.set_typ(Some("bind".into()));
        shares.push(Share {
            source: found.path,
            target,
            read_only: is_read_only(mount),
            recursive: recursive && found.directory,
            directory: found.directory,
        });
    }
    let rootfs_target = format!("{id}/rootfs");
    strip_host_parts(&mut spec, &rootfs_target);
    own_kernel::devices(&mut spec);
    own_kernel::cgroup_namespace(&mut spec);
    Ok(GuestPlan {
        spec,
        shares,
        rootfs_target,
    })
}

/// The network namespace of the host whose interfaces a container is to have, if its configuration
/// names one.
#[must_use]
pub fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    let path = network.path().clone()?;
    (!path.as_os_str().is_empty()).then_some(path)
}

/// Gives a guest's container a network namespace of its own within its machine, or that of a process
/// there.
pub fn set_apart(guest: &mut Spec, neighbour: Option<u32>) {
    let mut network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
    if let Some(pid) = neighbour {
        network = network.path(format!("/proc/{pid}/ns/net"));
    }
    if let (Some(linux), Ok(network)) = (guest.linux_mut(), network.build()) {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.push(network);
        linux.set_namespaces(Some(namespaces));
    }
}

/// Whether a mount binds a path, by its type or by its options.
pub fn is_bind(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("bind" | "rbind"))
        || has_option(mount, |option| option == "bind" || option == "rbind")
}

fn is_recursive(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("rbind") || has_option(mount, |option| option == "rbind")
}

/// The last of `ro` and `rw` counts, as for mount(8).
fn is_read_only(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    options.fold(false, |read_only, option| match option.as_str() {
        "ro" | "rro" => true,
        "rw" | "rrw" => false,
        _ => read_only,
    })
}

fn has_option(mount: &Mount, test: impl Fn(&str) -> bool) -> bool {
    mount.options().iter().flatten().any(|option| test(option))
}

/// Removes what means something on the host only. Everything here was either checked to
/// ask for nothing the guest would have to do, or is the host's to do.
fn strip_host_parts(spec: &mut Spec, rootfs_target: &str) {
    let hooks = guest_hooks(spec);
    if hooks.is_none() {
        spec.set_annotations(None);
    }
    spec.set_hooks(hooks);
    if let Some(root) = spec.root_mut() {
        root.set_path(format!("{GUEST_SHARE}/{rootfs_target}").into());
    }
    if let Some(process) = spec.process_mut() {
        last_value_counts(process);
        // Only "unconfined" gets here.
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(None);
        linux.set_mount_label(None);
        linux.set_uid_mappings(None);
        linux.set_gid_mappings(None);
        // The network of the container is that of its virtual machine.
        if let Some(namespaces) = linux.namespaces_mut() {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        }
        if let Some(resources) = linux.resources_mut() {
            strip_host_limits(resources);
        }
    }
}

/// The hooks that run in the container.
fn guest_hooks(spec: &Spec) -> Option<Hooks> {
    let list = spec.hooks().as_ref()?.start_container().clone();
    let list = list.filter(|list| !list.is_empty())?;
    let mut hooks = Hooks::default();
    hooks.set_start_container(Some(list));
    Some(hooks)
}

/// Limits the guest has nothing to do with. Also for limits that are changed while the
/// container runs.
pub fn strip_host_limits(resources: &mut LinuxResources) {
    // The numbers are the host's, where the whole virtual machine is bound to them.
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    // The devices are the host's, where what the virtual machine reads and writes is throttled.
    resources.set_block_io(None);
    // What is left of these asks for nothing: the rest was refused.
    resources.set_hugepage_limits(None);
    resources.set_network(None);
    resources.set_rdma(None);
}

/// Of several entries with one name the last counts, as in runc; the C library would take
/// the first.
fn last_value_counts(process: &mut Process) {
    let Some(entries) = process.env_mut() else {
        return;
    };
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut last = HashMap::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        last.insert(name(entry), index);
    }
    if last.len() == entries.len() {
        return;
    }
    let mut index = 0;
    entries.retain(|entry| {
        let keep = last.get(&name(entry)) == Some(&index);
        index += 1;
        keep
    });
}

#[cfg(test)]
mod tests;
