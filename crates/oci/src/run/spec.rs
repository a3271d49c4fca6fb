//! Puts a configuration together.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, Mount,
    Process, Root, Spec, User,
};

use super::error::RunError;
use super::{RunOptions, capabilities, defaults, seccomp, user};
use crate::image::ImageConfig;

/// Longest host name, in bytes.
const HOST_NAME_MAX: usize = 64;

/// Makes the configuration of a container from the options of `run` and the configuration
/// of its image, if it has one.
///
/// Reads /etc/passwd and /etc/group of the root file system, and the seccomp profile if
/// one is given. What the result asks for is not checked here: [`crate::Bundle::from_spec`]
/// does that.
///
/// The image's volumes get no mounts: the root file system is the container's own, so
/// they can be written, and they end with it.
///
/// # Errors
///
/// [`RunError`] names the option, the cause and the remedy.
pub fn spec_for_run(options: &RunOptions, image: Option<&ImageConfig>) -> Result<Spec, RunError> {
    let none = ImageConfig::default();
    let image = image.unwrap_or(&none);
    let hostname = hostname(options);
    let asked = options.user.as_deref().unwrap_or(&image.user);
    let identity = user::identify(&options.rootfs, asked)?;
    let granted = capabilities::granted(&options.cap_add, &options.cap_drop);
    let filter = seccomp::filter(&options.security.seccomp, &granted, options.compat_32_bit)?;

    let mut process = Process::default();
    process
        .set_terminal(Some(options.terminal))
        .set_user(user_of(&identity))
        .set_args(Some(command(options, image)?))
        .set_env(Some(environment(options, image, &hostname, &identity.home)))
        .set_cwd(working_directory(options, image)?)
        .set_capabilities(Some(capabilities::sets(&granted, identity.uid)))
        .set_rlimits(Some(defaults::open_files(1024, 524_288)))
        .set_no_new_privileges(Some(options.security.no_new_privileges))
        .set_apparmor_profile(options.security.apparmor.clone())
        .set_selinux_label(options.security.label.clone());

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(defaults::namespaces()))
        .set_resources(Some(resources(options)))
        .set_seccomp(filter);
    if options.security.system_paths_unconfined {
        linux.set_masked_paths(None).set_readonly_paths(None);
    } else {
        linux
            .set_masked_paths(Some(defaults::masked_paths()))
            .set_readonly_paths(Some(defaults::read_only_paths()));
    }

    let mut root = Root::default();
    root.set_path(options.rootfs.clone())
        .set_readonly(Some(options.read_only));
    let mut spec = Spec::default();
    spec.set_version(defaults::OCI_VERSION.into())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(Some(hostname))
        .set_mounts(Some(mounts(options)?))
        .set_annotations(annotations(options, image))
        .set_linux(Some(linux));
    Ok(spec)
}

/// The configuration `bulkhead spec` writes: a shell in a read-only root file system, as
/// `runc spec` has it.
pub fn default_spec() -> Spec {
    let few: Capabilities = [
        Capability::AuditWrite,
        Capability::Kill,
        Capability::NetBindService,
    ]
    .into();
    let mut process = Process::default();
    process
        .set_terminal(Some(true))
        .set_user(User::default())
        .set_args(Some(vec!["sh".into()]))
        .set_env(Some(vec![defaults::PATH.into(), "TERM=xterm".into()]))
        .set_cwd("/".into())
        .set_capabilities(Some(capabilities::sets(&few, 0)))
        .set_rlimits(Some(defaults::open_files(1024, 1024)))
        .set_no_new_privileges(Some(true));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(defaults::device_rules().into_iter().take(1).collect()));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(defaults::namespaces()))
        .set_resources(Some(resources))
        .set_masked_paths(Some(defaults::masked_paths()))
        .set_readonly_paths(Some(defaults::read_only_paths()));
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(true));
    let mut spec = Spec::default();
    spec.set_version(defaults::OCI_VERSION.into())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(Some("bulkhead".into()))
        .set_mounts(Some(defaults::mounts()))
        .set_annotations(None)
        .set_linux(Some(linux));
    spec
}

/// The name given, or the container's, cut to what a host name may have.
fn hostname(options: &RunOptions) -> String {
    match &options.hostname {
        Some(name) => name.clone(),
        None => options.id.chars().take(HOST_NAME_MAX).collect(),
    }
}

fn user_of(identity: &user::Identity) -> User {
    let mut user = User::default();
    user.set_uid(identity.uid)
        .set_gid(identity.gid)
        .set_additional_gids(Some(identity.groups.clone()));
    user
}

/// The entrypoint, then the arguments. Arguments replace the image's command; an
/// entrypoint of the caller's does so too.
fn command(options: &RunOptions, image: &ImageConfig) -> Result<Vec<String>, RunError> {
    let (entrypoint, default_args) = match &options.entrypoint {
        Some(entrypoint) => (entrypoint.as_slice(), [].as_slice()),
        None => (image.entrypoint.as_slice(), image.cmd.as_slice()),
    };
    let args = if options.args.is_empty() {
        default_args
    } else {
        options.args.as_slice()
    };
    let command: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => Err(RunError::NoCommand),
    }
}

/// What every container has, then the image's, then the caller's; the last of a name counts.
fn environment(
    options: &RunOptions,
    image: &ImageConfig,
    hostname: &str,
    home: &str,
) -> Vec<String> {
    let mut defaults = vec![defaults::PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if options.terminal {
        defaults.push("TERM=xterm".into());
    }
    defaults.push(format!("HOME={home}"));
    // An entry without a value sets nothing.
    let entries = defaults.iter().chain(&image.env).chain(&options.env);
    let entries = entries.filter_map(|entry| Some((entry.split_once('=')?.0, entry)));
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut env: Vec<String> = Vec::new();
    for (name, entry) in entries.filter(|(name, _)| !name.is_empty()) {
        match places.get(name).and_then(|place| env.get_mut(*place)) {
            Some(earlier) => entry.clone_into(earlier),
            None => {
                places.insert(name, env.len());
                env.push(entry.clone());
            }
        }
    }
    env
}

fn working_directory(options: &RunOptions, image: &ImageConfig) -> Result<PathBuf, RunError> {
    let asked = options.workdir.as_deref().unwrap_or(&image.working_dir);
    if asked.is_empty() {
        return Ok("/".into());
    }
    if !Path::new(asked).is_absolute() {
        return Err(RunError::Workdir(asked.to_owned()));
    }
    Ok(asked.into())
}

/// The default mounts, but for those a volume or tmpfs takes the place of, then these from
/// the root downwards, so that none covers another.
fn mounts(options: &RunOptions) -> Result<Vec<Mount>, RunError> {
    let volumes = options.volumes.iter().map(|volume| volume.mount());
    let mut own: Vec<Mount> = volumes
        .chain(options.tmpfs.iter().map(|tmpfs| tmpfs.mount()))
        .collect();
    let mut seen = HashSet::new();
    for mount in &own {
        if !seen.insert(mount.destination().clone()) {
            return Err(RunError::DuplicateMount(mount.destination().clone()));
        }
    }
    own.sort_by_key(|mount| mount.destination().components().count());
    let mut mounts = defaults::mounts();
    mounts.retain(|mount| !seen.contains(mount.destination()));
    mounts.extend(own);
    Ok(mounts)
}

fn resources(options: &RunOptions) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(defaults::device_rules()));
    if let Some(bytes) = options.memory_bytes {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(i64::try_from(bytes).unwrap_or(i64::MAX)));
        resources.set_memory(Some(memory));
    }
    if let Some(cpus) = options.cpus {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(cpus.quota_us))
            .set_period(Some(super::Cpus::PERIOD_US));
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = options.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    resources
}

/// The caller's, and the image's signal to stop with, by the name the image specification
/// gives it.
fn annotations(options: &RunOptions, image: &ImageConfig) -> Option<HashMap<String, String>> {
    const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";
    let mut annotations = HashMap::new();
    if !image.stop_signal.is_empty() {
        annotations.insert(STOP_SIGNAL.to_owned(), image.stop_signal.clone());
    }
    annotations.extend(options.annotations.clone());
    (!annotations.is_empty()).then_some(annotations)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
