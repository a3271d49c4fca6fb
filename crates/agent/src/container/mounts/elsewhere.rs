//! Files of another container of the same machine.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::container::failure::{During, Step, shown};
use crate::container::sys;

/// A path as another container sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Elsewhere {
    namespace: CString,
    path: CString,
}

impl Elsewhere {
    /// What `/proc/<pid>/root/<path>` names; `None` for any other path.
    pub fn parse(source: &Path) -> Option<Self> {
        let below = source.strip_prefix("/proc").ok()?;
        let mut parts = below.components();
        let pid: u32 = parts.next()?.as_os_str().to_str()?.parse().ok()?;
        let path = parts.as_path().strip_prefix("root").ok()?;
        let path = Path::new("/").join(path);
        Some(Self {
            namespace: CString::new(format!("/proc/{pid}/ns/mnt")).ok()?,
            path: CString::new(path.as_os_str().as_bytes()).ok()?,
        })
    }

    /// A detached copy of the mount. A mount can be copied only from within its own namespace, so the
    /// caller visits that one; links on the way are followed inside it, and lead nowhere else.
    ///
    /// The caller's root and working directory are afterwards the root of its own namespace.
    pub fn open(&self, flags: OpenTreeFlags) -> Step<OwnedFd> {
        let own = open(c"/proc/self/ns/mnt")?;
        let theirs = open(&self.namespace)?;
        let step = || format!("visit the container with {}", shown(&self.path));
        sys::setns(theirs.as_fd(), libc::CLONE_NEWNS).during(step)?;
        let tree = open_tree(CWD, self.path.as_c_str(), flags);
        sys::setns(own.as_fd(), libc::CLONE_NEWNS)
            .during(|| "return from another container".to_owned())?;
        tree.during(|| format!("open {} of another container", shown(&self.path)))
    }
}

fn open(path: &CStr) -> Step<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open {}", shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_below_the_root_of_a_process_is_of_its_container() {
        let elsewhere = Elsewhere::parse(Path::new("/proc/12/root/dev/shm")).unwrap();
        assert_eq!(elsewhere.namespace.as_c_str(), c"/proc/12/ns/mnt");
        assert_eq!(elsewhere.path.as_c_str(), c"/dev/shm");
    }

    #[test]
    fn other_paths_are_the_agents_own() {
        for path in ["/proc/self/root/x", "/proc/12/cwd/x", "/x/12/root", "/proc"] {
            assert_eq!(Elsewhere::parse(Path::new(path)), None, "{path}");
        }
    }
}
