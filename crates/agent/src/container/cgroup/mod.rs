//! The container's control group (cgroup v2).

pub mod devices;
pub mod limits;
mod stats;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{sys::signal::Signal, unistd::Pid};
use oci_spec::runtime::LinuxResources;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat},
    io::Errno,
};

use super::{ContainerError, failure::During};

/// How long processes may take to stand still or to die: they can be stuck in a
/// file operation of the host's.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// A control group of our own, removed by [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
}

/// How a value of the specification is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// A file of the group.
    pub file: String,
    /// What to write to it.
    pub value: String,
    /// The field of the specification that asked for it.
    pub field: String,
}

impl Cgroup {
    /// Makes the group `name` below `root`, the mounted hierarchy, with the limits wanted.
    pub fn create(
        root: &Path,
        name: &str,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, ContainerError> {
        let settings = resources.map(limits::plan).transpose()?.unwrap_or_default();
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        let filter = rules.map(devices::plan).transpose()?.flatten();
        let path = root.join(name);
        let step = || format!("make the control group {}", path.display());
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)).while_trying(step)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let group = match openat(CWD, &path, flags, Mode::empty()) {
            Ok(dir) => Self { path, dir },
            Err(errno) => {
                let _ = rustix::fs::rmdir(&path);
                return Err(ContainerError::system(step(), errno));
            }
        };
        match group.set_up(&settings, filter.as_ref()) {
            Ok(()) => Ok(group),
            Err(error) => {
                // The first error is the one to report.
                let _ = group.remove();
                Err(error)
            }
        }
    }

    fn set_up(
        &self,
        settings: &[Setting],
        filter: Option<&devices::Filter>,
    ) -> Result<(), ContainerError> {
        for setting in settings {
            self.set(setting)?;
        }
        filter.map_or(Ok(()), |filter| filter.attach(self.dir.as_fd()))
    }

    /// Changes limits. Those that were changed before one that cannot be are put back.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), ContainerError> {
        let mut before: Vec<(String, String)> = Vec::new();
        for setting in limits::plan(resources)? {
            let was = self.read(&setting.file).unwrap_or_default();
            if let Err(error) = self.set(&setting) {
                for (file, value) in before.iter().rev() {
                    // The first error is the one to report.
                    let _ = self.write(file, value);
                }
                return Err(error);
            }
            before.push((setting.file, was.trim_end().to_owned()));
        }
        Ok(())
    }

    fn set(&self, setting: &Setting) -> Result<(), ContainerError> {
        let Setting { file, value, field } = setting;
        match self.write(file, value) {
            Ok(()) => Ok(()),
            // Without swap there is nothing to be limited.
            Err(Errno::NOENT) if file == "memory.swap.max" => Ok(()),
            Err(Errno::NOENT) => Err(ContainerError::unsupported(
                field,
                format!("the guest's kernel has no {file}; choose another kernel or leave it out"),
            )),
            Err(Errno::NODEV | Errno::NXIO) => Err(ContainerError::unsupported(
                field,
                format!("the guest has no such device ({value})"),
            )),
            Err(errno) => Err(ContainerError::System {
                step: format!("write {value:?} to {file}"),
                field: Some(field.clone()),
                source: errno.into(),
            }),
        }
    }

    /// For `clone3`, which starts processes in the group.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The group that a process of the container is in. A container that makes
    /// groups of its own and shares controllers out among them can have no
    /// processes beside these groups, cgroups(7).
    pub fn of_member(&self, pid: Pid) -> Result<OwnedFd, ContainerError> {
        let step = || format!("find the control group of process {pid}");
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).while_trying(step)?;
        let inside = groups.lines().find_map(|line| {
            let path = Path::new(line.strip_prefix("0::/")?);
            path.strip_prefix(self.path.file_name()?).ok()
        });
        let inside = inside.ok_or(Errno::NOENT).while_trying(step)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let inside = Path::new(".").join(inside);
        openat2(&self.dir, inside, flags, Mode::empty(), resolve).while_trying(step)
    }

    fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(
            &self.dir,
            file,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let file = self.open(file, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes()).map(drop)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read(self.dir.as_fd(), file)
    }

    /// Stops every process of the group; returns when they stand still.
    pub fn freeze(&self) -> Result<(), ContainerError> {
        let step = || "freeze the container".to_owned();
        self.write("cgroup.freeze", "1").while_trying(step)?;
        if let Err(error) = self.wait_until("frozen 1") {
            let _ = self.write("cgroup.freeze", "0");
            return Err(error).while_trying(step);
        }
        Ok(())
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        self.write("cgroup.freeze", "0")
            .while_trying(|| "thaw the container".to_owned())
    }

    /// Waits for a line of `cgroup.events`, which the kernel announces changes of.
    fn wait_until(&self, line: &str) -> io::Result<()> {
        let events = self.open("cgroup.events", OFlags::RDONLY)?;
        loop {
            let mut text = [0; 128];
            let len = rustix::io::pread(&events, &mut text, 0)?;
            let text = text.get(..len).unwrap_or_default();
            if text
                .split(|&byte| byte == b'\n')
                .any(|found| found == line.as_bytes())
            {
                return Ok(());
            }
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut changed, Some(&PATIENCE)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a signal to every process of the group and of groups the container made in it.
    pub fn signal(&self, signal: Signal) -> Result<(), ContainerError> {
        if signal == Signal::SIGKILL {
            return self
                .write("cgroup.kill", "1")
                .while_trying(|| "kill the container".to_owned());
        }
        let mut reached = Vec::new();
        loop {
            let mut listed = self.processes()?;
            listed.retain(|pid| !reached.contains(pid));
            if listed.is_empty() {
                return Ok(());
            }
            for pid in listed {
                match nix::sys::signal::kill(pid, signal) {
                    // Gone since the list was read.
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(errno) => {
                        return Err(errno)
                            .while_trying(|| format!("send {signal} to process {pid}"));
                    }
                }
                // What was forked in the meantime is found in the next round.
                reached.push(pid);
            }
            // A container that forks faster than it is signalled does not keep us.
            if reached.len() > 65_536 {
                return Ok(());
            }
        }
    }

    /// The processes of the group and of groups below it.
    pub fn processes(&self) -> Result<Vec<Pid>, ContainerError> {
        let mut pids = Vec::new();
        collect_processes(self.dir.as_fd(), &mut pids)
            .while_trying(|| "list the container's processes".to_owned())?;
        pids.sort_unstable_by_key(|pid| pid.as_raw());
        pids.dedup();
        Ok(pids)
    }

    /// Kills what is left, waits until it is gone and removes the group.
    pub fn remove(self) -> Result<(), ContainerError> {
        let step = || format!("remove the control group {}", self.path.display());
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).while_trying(step),
        }
        self.write("cgroup.kill", "1").while_trying(step)?;
        self.wait_until("populated 0").while_trying(step)?;
        remove_below(self.dir.as_fd()).while_trying(step)?;
        rustix::fs::rmdir(&self.path).while_trying(step)
    }
}

fn read(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    io::read_to_string(std::fs::File::from(openat(
        dir,
        file,
        flags,
        Mode::empty(),
    )?))
}

fn subgroups(dir: BorrowedFd<'_>) -> Result<Vec<(CString, OwnedFd)>, Errno> {
    let mut groups = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() != rustix::fs::FileType::Directory || name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(dir, name, flags, Mode::empty()) {
            Ok(group) => groups.push((name.to_owned(), group)),
            // Removed since it was listed.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(groups)
}

fn collect_processes(dir: BorrowedFd<'_>, pids: &mut Vec<Pid>) -> io::Result<()> {
    match read(dir, "cgroup.procs") {
        Ok(text) => {
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .map(Pid::from_raw),
            );
        }
        // A group of threads lists none; its parent lists them.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for (_, group) in subgroups(dir)? {
        collect_processes(group.as_fd(), pids)?;
    }
    Ok(())
}

fn remove_below(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for (name, group) in subgroups(dir)? {
        remove_below(group.as_fd())?;
        unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}
