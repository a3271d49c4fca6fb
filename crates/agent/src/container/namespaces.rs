//! `linux.namespaces`: which are made, which are joined, which mean nothing.

use std::{
    ffi::{CString, c_int},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::{PidfdFlags, getpid, pidfd_open},
};

use crate::boot::loopback;

use super::{
    ContainerError,
    failure::{During, Step, shown},
    sys,
};

/// The namespaces of a container.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// Made with the init process.
    new: c_int,
    /// Existing ones to be joined.
    joined: Vec<Joined>,
}

#[derive(Clone, Debug)]
struct Joined {
    flag: c_int,
    path: CString,
    field: String,
}

impl Namespaces {
    /// Checks the list. Usually there is no network namespace: the virtual machine's network is the
    /// container's. One in a machine with several may have its own, with loopback alone.
    pub fn plan(spec: Option<&[LinuxNamespace]>) -> Result<Self, ContainerError> {
        let mut namespaces = Self::default();
        for (index, entry) in spec.unwrap_or_default().iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            let flag = match entry.typ() {
                Type::Network => libc::CLONE_NEWNET,
                Type::Mount => libc::CLONE_NEWNS,
                Type::Cgroup => libc::CLONE_NEWCGROUP,
                Type::Uts => libc::CLONE_NEWUTS,
                Type::Ipc => libc::CLONE_NEWIPC,
                Type::Pid => libc::CLONE_NEWPID,
                Type::User => {
                    return Err(ContainerError::unsupported(
                        format!("{field} (user)"),
                        "the guest makes no user namespaces; the container's root is root of its \
                         own virtual machine only",
                    ));
                }
                Type::Time => {
                    return Err(ContainerError::unsupported(
                        format!("{field} (time)"),
                        "the guest makes no time namespaces; the virtual machine has its own clock",
                    ));
                }
            };
            if namespaces.all() & flag != 0 {
                return Err(ContainerError::invalid(
                    field,
                    "this type was listed before",
                ));
            }
            let path = entry
                .path()
                .as_deref()
                .filter(|path| !path.as_os_str().is_empty());
            match path {
                None => namespaces.new |= flag,
                Some(_) if flag == libc::CLONE_NEWNS => {
                    return Err(ContainerError::unsupported(
                        format!("{field}.path"),
                        "a container always gets a mount namespace of its own",
                    ));
                }
                Some(path) => {
                    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| {
                        ContainerError::invalid(format!("{field}.path"), "it contains a null byte")
                    })?;
                    namespaces.joined.push(Joined {
                        flag,
                        path,
                        field: format!("{field}.path"),
                    });
                }
            }
        }
        if namespaces.new & libc::CLONE_NEWNS == 0 {
            return Err(ContainerError::unsupported(
                "linux.namespaces",
                "a container without a mount namespace would share the agent's; add {\"type\": \
                 \"mount\"}",
            ));
        }
        Ok(namespaces)
    }

    fn all(&self) -> c_int {
        self.joined
            .iter()
            .fold(self.new, |flags, joined| flags | joined.flag)
    }

    /// Whether the container has a host name of its own.
    pub fn has_own_uts(&self) -> bool {
        self.new & libc::CLONE_NEWUTS != 0
    }

    /// Flags for `clone3`. The control group namespace is not among them: its
    /// root is the caller's group, so the child makes it itself.
    pub fn clone_flags(&self) -> u64 {
        u64::from((self.new & !libc::CLONE_NEWCGROUP).unsigned_abs())
    }

    /// What a further process has to join of the init process.
    pub fn exec_flags(&self) -> c_int {
        self.all() & !libc::CLONE_NEWPID
    }

    /// Whether processes of the container have a PID namespace other than the agent's.
    pub fn has_pid(&self) -> bool {
        self.all() & libc::CLONE_NEWPID != 0
    }

    /// The PID namespace that the agent has to join for its next child.
    pub fn open_pid(&self) -> Result<Option<OwnedFd>, ContainerError> {
        let Some(joined) = self.joined.iter().find(|j| j.flag == libc::CLONE_NEWPID) else {
            return Ok(None);
        };
        joined
            .open()
            .map(Some)
            .map_err(|error| ContainerError::System {
                step: format!("open the namespace {}", shown(&joined.path)),
                field: Some(joined.field.clone()),
                source: error,
            })
    }

    /// In the child: joins what is to be joined, makes what `clone3` did not.
    pub fn enter(&self) -> Step {
        for joined in self.joined.iter().filter(|j| j.flag != libc::CLONE_NEWPID) {
            joined
                .open()
                .and_then(|fd| sys::setns(fd.as_fd(), joined.flag))
                .during(|| format!("join the namespace {}", shown(&joined.path)))
                .map_err(|failure| failure.with_field(&joined.field))?;
        }
        if self.new & libc::CLONE_NEWNET != 0 {
            loopback::bring_up().during(|| "bring the loopback interface up".to_owned())?;
        }
        if self.new & libc::CLONE_NEWCGROUP != 0 {
            // SAFETY: the cgroup namespace decides only what paths are shown; no memory or
            // descriptor is unshared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
                .during(|| "make a control group namespace".to_owned())?;
        }
        Ok(())
    }
}

impl Joined {
    fn open(&self) -> std::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(CWD, self.path.as_c_str(), flags, Mode::empty())?)
    }
}

/// While it lives, children of the calling process are born into another PID
/// namespace: this saves the intermediate process of the usual way.
#[derive(Debug)]
pub struct PidNamespaceOfChildren {
    own: OwnedFd,
}

impl PidNamespaceOfChildren {
    /// `namespace` is a namespace file or a pidfd.
    pub fn set(namespace: impl AsFd) -> Result<Self, ContainerError> {
        let step = || "join the container's PID namespace".to_owned();
        let own = pidfd_open(getpid(), PidfdFlags::empty()).while_trying(step)?;
        sys::setns(namespace.as_fd(), libc::CLONE_NEWPID).while_trying(step)?;
        Ok(Self { own })
    }

    /// Back to the caller's own.
    pub fn reset(self) -> Result<(), ContainerError> {
        sys::setns(self.own.as_fd(), libc::CLONE_NEWPID)
            .while_trying(|| "return to the agent's own PID namespace".to_owned())
    }
}
