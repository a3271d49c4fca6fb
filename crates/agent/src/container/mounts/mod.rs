//! The mounts of `config.json`.
//!
//! A mount is planned by the agent ([`plan`]), prepared by the child while it
//! still sees the agent's file systems ([`Mount::prepare`]), and attached once
//! the container's root is the child's root ([`Mount::attach`]), where no path
//! can lead out of it.

mod copy_up;
mod detached;
mod elsewhere;
pub mod options;
mod own;
mod plan;
pub mod target;

pub use own::Own;
pub use plan::plan;

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        move_mount, open_tree,
    },
};

use self::{elsewhere::Elsewhere, options::MountOptions};
use super::{
    ContainerError,
    failure::{During, Step, shown},
    sys::{leak, mount_setattr},
};

/// One mount, ready to be made.
#[derive(Debug)]
pub struct Mount {
    /// `mounts[n]`.
    field: String,
    destination: CString,
    kind: Kind,
    options: MountOptions,
}

#[derive(Debug)]
enum Kind {
    Bind {
        source: BindSource,
        recursive: bool,
    },
    /// By `mount(2)` from inside the container.
    Inside {
        filesystem: CString,
        source: CString,
        flags: MountFlags,
        data: CString,
    },
    /// Has a source that only the agent's root knows.
    Outside {
        filesystem: String,
        source: String,
    },
    /// Made by the agent before the child was cloned.
    Made(OwnedFd),
}

#[derive(Debug)]
enum BindSource {
    /// A path of the agent's.
    Here(CString),
    /// One of another container's.
    Elsewhere(Elsewhere),
}

/// A mount between [`Mount::prepare`] and [`Mount::attach`]: detached, if it
/// has a source outside the container.
pub type Prepared<'a> = Option<BorrowedFd<'a>>;

impl Mount {
    /// Where it goes inside the container, without `.` and repeated slashes.
    pub fn destination(&self) -> &CStr {
        &self.destination
    }

    /// Whether it shows files from outside the container.
    pub fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind { .. })
    }

    /// Whether it is a new file system of the given type.
    pub fn is_new(&self, wanted: &CStr) -> bool {
        matches!(&self.kind, Kind::Inside { filesystem, .. } if filesystem.as_c_str() == wanted)
    }

    /// Makes the file system now, in the agent, and returns a handle on it. It
    /// appears in the container when the child attaches it.
    pub fn make_now(&mut self) -> Result<BorrowedFd<'_>, ContainerError> {
        if let Kind::Inside {
            filesystem, source, ..
        } = &self.kind
        {
            let made = detached::make(
                &filesystem.to_string_lossy(),
                &source.to_string_lossy(),
                &self.options,
            )
            .map_err(|errno| ContainerError::System {
                step: format!("make a {} file system", shown(filesystem)),
                field: Some(self.field.clone()),
                source: errno.into(),
            })?;
            self.kind = Kind::Made(made);
        }
        match &self.kind {
            Kind::Made(made) => Ok(made.as_fd()),
            _ => Err(ContainerError::invalid(
                &self.field,
                "it is not a file system of its own",
            )),
        }
    }

    /// The handle, if it was made ahead.
    pub fn made(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Made(made) => Some(made.as_fd()),
            _ => None,
        }
    }

    /// Opens what lies outside the container, while it can still be seen.
    /// `made` is the child's handle on what [`Self::make_now`] made.
    pub fn prepare<'a>(&self, made: Option<BorrowedFd<'a>>) -> Step<Prepared<'a>> {
        match &self.kind {
            Kind::Inside { .. } => Ok(None),
            Kind::Made(_) => Ok(made),
            Kind::Bind { source, recursive } => {
                let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                if *recursive {
                    flags |= OpenTreeFlags::AT_RECURSIVE;
                }
                match source {
                    BindSource::Here(path) => open_tree(CWD, path.as_c_str(), flags)
                        .during(|| format!("open {} to bind it", shown(path))),
                    BindSource::Elsewhere(elsewhere) => elsewhere.open(flags),
                }
                .map(|fd| Some(leak(fd)))
            }
            Kind::Outside { filesystem, source } => {
                detached::make(filesystem, source, &self.options)
                    .during(|| format!("make a {filesystem} file system from {source}"))
                    .map(|fd| Some(leak(fd)))
            }
        }
        .map_err(|failure| failure.with_field(&self.field))
    }

    /// Mounts it below the process' root.
    pub fn attach(&self, prepared: Prepared<'_>, own: &mut Own) -> Step {
        match (&self.kind, prepared) {
            (Kind::Inside { .. }, _) | (_, None) => self.mount_inside(own),
            (_, Some(tree)) => self.attach_tree(tree, own),
        }
        .map_err(|failure| failure.with_field(&self.field))
    }

    /// Makes a tmpfs read-only that is to be so, once all is in it.
    pub fn settle(&self) -> Step {
        match &self.kind {
            Kind::Inside { flags, .. }
                if self.is_new(c"tmpfs") && flags.contains(MountFlags::RDONLY) => {}
            _ => return Ok(()),
        }
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let nothing = (MountAttrFlags::empty(), MountPropagationFlags::empty());
        target::open(&self.destination, OFlags::DIRECTORY)
            .and_then(|place| {
                mount_setattr(place, c"", false, read_only, nothing.0, nothing.1)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })
            .during(|| format!("make {} read-only", shown(&self.destination)))
            .map_err(|failure| failure.with_field(&self.field))
    }

    fn mount_inside(&self, own: &mut Own) -> Step {
        let Kind::Inside {
            filesystem,
            source,
            flags,
            data,
        } = &self.kind
        else {
            return Ok(());
        };
        // Others may be mounted below it, which takes a directory for each.
        let flags = if self.is_new(c"tmpfs") {
            flags.difference(MountFlags::RDONLY)
        } else {
            *flags
        };
        let mount = |at: &CStr, data: &CStr| {
            rustix::mount::mount(source.as_c_str(), at, filesystem.as_c_str(), flags, data)
        };
        let step = || {
            format!(
                "mount {} on {}",
                shown(filesystem),
                shown(&self.destination)
            )
        };
        if own.covers(&self.destination) && !self.options.copy_up {
            self.mount_on_own(&mount, data).during(step)?;
        } else {
            let target = self.target_directory(filesystem)?;
            rustix::process::fchdir(target).during(step)?;
            if self.is_new(c"tmpfs") {
                let data = self.with_mode_of(target, data).during(step)?;
                mount(c".", &data).during(step)?;
                if self.options.copy_up {
                    copy_up::fill(target, &self.destination)?;
                }
            } else {
                mount(c".", data).during(step)?;
            }
        }
        own.add(&self.destination, !self.options.copy_up);
        self.propagate()
    }

    /// Mounts below a file system of our own, whose paths hold no surprises.
    fn mount_on_own(
        &self,
        mount: &impl Fn(&CStr, &CStr) -> Result<(), Errno>,
        data: &CStr,
    ) -> Result<(), Errno> {
        // In a new tmpfs nothing is there yet; elsewhere nothing can be made.
        let mode = Mode::from_raw_mode(0o755);
        if rustix::fs::mkdir(self.destination.as_c_str(), mode) == Err(Errno::NOENT) {
            target::make_directory(&self.destination)?;
        }
        mount(&self.destination, data)
    }

    /// `/proc` and `/sys` decide what masked and read-only paths mean: a link in
    /// their place is no honest image.
    fn target_directory(&self, filesystem: &CStr) -> Step<BorrowedFd<'static>> {
        let strict = filesystem == c"proc" || filesystem == c"sysfs";
        if strict {
            match target::open(&self.destination, OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Err(Errno::NOENT) => {}
                result => {
                    return result.during(|| {
                        format!(
                            "find a directory, not a link, at {}",
                            shown(&self.destination)
                        )
                    });
                }
            }
        }
        target::directory(&self.destination)
    }

    /// A tmpfs without a mode takes that of the directory it covers.
    fn with_mode_of(&self, target: BorrowedFd<'_>, data: &CStr) -> Result<CString, Errno> {
        if self
            .options
            .data
            .iter()
            .any(|word| word.starts_with("mode="))
        {
            return Ok(data.to_owned());
        }
        let mode = rustix::fs::fstat(target)?.st_mode & 0o7777;
        let mut words = format!("mode={mode:04o}").into_bytes();
        if !data.is_empty() {
            words.push(b',');
            words.extend(data.to_bytes());
        }
        CString::new(words).map_err(|_| Errno::INVAL)
    }

    fn attach_tree(&self, tree: BorrowedFd<'_>, own: &mut Own) -> Step {
        let change = |recursive, set, clear, propagation| {
            mount_setattr(tree, c"", recursive, set, clear, propagation)
                .during(|| format!("set the options of {}", shown(&self.destination)))
        };
        let none = MountAttrFlags::empty();
        if self.is_bind() {
            let plain = self.options.attributes;
            if !plain.is_empty() {
                change(
                    false,
                    plain.set,
                    plain.clear,
                    MountPropagationFlags::empty(),
                )?;
            }
            let deep = self.options.recursive;
            if !deep.is_empty() {
                change(true, deep.set, deep.clear, MountPropagationFlags::empty())?;
            }
        }
        if let Some(flags) = self.options.effective_propagation() {
            let (recursive, flags) = split(flags);
            change(recursive, none, none, flags)?;
        }
        let target = target::any(&self.destination, || target::leaf_like(tree))?;
        move_mount(
            tree,
            c"",
            target,
            c"",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )
        .during(|| format!("mount on {}", shown(&self.destination)))?;
        own.add(&self.destination, matches!(self.kind, Kind::Made(_)));
        Ok(())
    }

    fn propagate(&self) -> Step {
        let Some(flags) = self.options.effective_propagation() else {
            return Ok(());
        };
        let step = || format!("set the propagation of {}", shown(&self.destination));
        let (recursive, flags) = split(flags);
        let none = MountAttrFlags::empty();
        let place = target::open(&self.destination, OFlags::DIRECTORY).during(step)?;
        mount_setattr(place, c"", recursive, none, none, flags).during(step)
    }
}

/// `mount_setattr` takes the recursion as a flag of its own.
pub fn split(flags: MountPropagationFlags) -> (bool, MountPropagationFlags) {
    (
        flags.contains(MountPropagationFlags::REC),
        flags.difference(MountPropagationFlags::REC),
    )
}
