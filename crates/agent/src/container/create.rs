//! Creating a container and its init process.

use std::{
    ffi::CString,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{Mutex, atomic::AtomicBool},
};

use oci_spec::runtime::{Linux, Spec};

use super::{
    CGROUP_ROOT, Child, Container, ContainerError, Io,
    cgroup::Cgroup,
    devices, hidden,
    hooks::Hooks,
    init, mounts,
    namespaces::{Namespaces, PidNamespaceOfChildren},
    process, refuse, rootfs,
    seccomp::Filter,
    spawn::{self, Pipes},
    sysctl, terminal,
};

impl Container {
    /// Creates a container from its specification, up to, not including, the
    /// `execve` of its init process. `rootfs` is its root file system as the
    /// agent sees it, `bundle` the host's name for its bundle.
    ///
    /// Does not wait for the child: see [`Child`].
    pub fn create(
        id: &str,
        spec: Spec,
        rootfs: &Path,
        bundle: &Path,
        io: Io,
    ) -> Result<(Container, Child), ContainerError> {
        Self::create_below(Path::new(CGROUP_ROOT), id, &spec, rootfs, bundle, &io)
    }

    /// [`Self::create`] with the control group below any group of a cgroup v2
    /// hierarchy.
    pub(super) fn create_below(
        cgroup_root: &Path,
        id: &str,
        spec: &Spec,
        rootfs: &Path,
        bundle: &Path,
        io: &Io,
    ) -> Result<(Container, Child), ContainerError> {
        check_id(id)?;
        refuse::check(spec)?;
        let linux = spec.linux().as_ref();
        let filter = linux
            .and_then(|l| l.seccomp().as_ref())
            .map(Filter::plan)
            .transpose()?;
        let hooks = Hooks::plan(id, spec, bundle)?;
        let mut plan = plan(spec, linux, rootfs, hooks, io, filter.clone())?;
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let cgroup = Cgroup::create(cgroup_root, id, resources)?;
        match spawn_init(&mut plan, spec, io, &cgroup) {
            Ok((child, pidfd)) => {
                let container = Container {
                    init: child.pid,
                    pidfd,
                    namespaces: plan.namespaces,
                    filter,
                    personality: linux.and_then(|linux| linux.personality().clone()),
                    cgroup,
                    frozen: AtomicBool::new(false),
                    launchers: Mutex::default(),
                };
                Ok((container, child))
            }
            Err(error) => {
                // The first error is the one to report.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }
}

/// The name becomes that of a control group.
fn check_id(id: &str) -> Result<(), ContainerError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(ContainerError::invalid(
            "container id",
            "it may contain letters, digits and _+-. only and not begin with a dot",
        ));
    }
    Ok(())
}

fn plan(
    spec: &Spec,
    linux: Option<&Linux>,
    rootfs: &Path,
    hooks: Hooks,
    io: &Io,
    filter: Option<Filter>,
) -> Result<init::Plan, ContainerError> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| ContainerError::invalid("process", "there is none to run"))?;
    let personality = linux.and_then(|linux| linux.personality().as_ref());
    let namespaces = Namespaces::plan(linux.and_then(|linux| linux.namespaces().as_deref()))?;
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        if name.as_ref().is_some_and(|name| !name.is_empty()) && !namespaces.has_own_uts() {
            return Err(ContainerError::invalid(
                field,
                "it needs a uts namespace of its own in linux.namespaces",
            ));
        }
    }
    let name = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let paths = |list: Option<&Option<Vec<String>>>| list.and_then(|l| l.clone());
    Ok(init::Plan {
        namespaces,
        hostname: name(spec.hostname()),
        domainname: name(spec.domainname()),
        sysctls: sysctl::plan(linux.and_then(|linux| linux.sysctl().as_ref()))?,
        rootfs: CString::new(rootfs.as_os_str().as_bytes())
            .map_err(|_| ContainerError::invalid("root.path", "it contains a null byte"))?,
        root_read_only: spec
            .root()
            .as_ref()
            .is_some_and(|root| root.readonly().unwrap_or(false)),
        root_propagation: rootfs::propagation(
            linux.and_then(|linux| linux.rootfs_propagation().as_deref()),
        )?,
        mounts: mounts::plan(spec.mounts().as_deref().unwrap_or_default())?,
        devices: devices::plan(linux.and_then(|linux| linux.devices().as_deref()))?,
        masked: hidden::plan(
            "linux.maskedPaths",
            paths(linux.map(Linux::masked_paths)).as_deref(),
        )?,
        read_only: hidden::plan(
            "linux.readonlyPaths",
            paths(linux.map(Linux::readonly_paths)).as_deref(),
        )?,
        hooks,
        process: process::Plan::new(process, filter, personality, io.is_terminal())?,
    })
}

fn spawn_init(
    plan: &mut init::Plan,
    spec: &Spec,
    io: &Io,
    cgroup: &Cgroup,
) -> Result<(Child, OwnedFd), ContainerError> {
    let terminal = match io {
        Io::Pipes { .. } => None,
        Io::Terminal { columns, rows } => {
            let wanted = spec
                .process()
                .as_ref()
                .and_then(|process| process.console_size());
            let size = terminal::Size::new(*columns, *rows, wanted)?;
            Some(terminal::for_new_container(&mut plan.mounts, size)?)
        }
    };
    let pipes = Pipes::new()?;
    let pid_namespace = plan
        .namespaces
        .open_pid()?
        .map(PidNamespaceOfChildren::set)
        .transpose()?;
    let spawned = spawn::spawn(plan.namespaces.clone_flags(), cgroup.as_fd(), || {
        init::run(plan, io, terminal.as_ref(), &pipes.child)
    });
    if let Some(namespace) = pid_namespace {
        namespace.reset()?;
    }
    let (pid, pidfd) = spawned?;
    Ok((
        pipes.into_child(pid, terminal.map(|terminal| terminal.master)),
        pidfd,
    ))
}
