//! Finds and judges the source of a bind mount.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::kernel_files;
use crate::bundle::{BundleError, Problem, SourceProblem};

/// A source that can be shared.
pub(super) struct Found {
    /// Absolute, without links.
    pub(super) path: PathBuf,
    pub(super) directory: bool,
}

/// Resolves the sources of one bundle; remembers the host's mounts once they are needed.
pub(super) struct Sources<'a> {
    bundle: &'a Path,
    kernel_mounts: Option<Vec<PathBuf>>,
}

impl<'a> Sources<'a> {
    pub(super) fn new(bundle: &'a Path) -> Self {
        Self {
            bundle,
            kernel_mounts: None,
        }
    }

    /// Resolves the source of `mounts[index]`, relative to the bundle as runc does.
    pub(super) fn resolve(
        &mut self,
        index: usize,
        mount: &Mount,
        recursive: bool,
    ) -> Result<Found, BundleError> {
        let field = || format!("mounts[{index}].source");
        let Some(source) = mount.source() else {
            let remedy = "a bind mount needs the path to bind";
            return Err(BundleError::field(field(), Problem::Missing(remedy)));
        };
        let asked = self.bundle.join(source);
        let broken = |path: &Path, problem, source: Option<io::Error>| BundleError::Source {
            field: field(),
            source_path: path.into(),
            problem,
            source,
        };
        let path = asked.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => broken(&asked, SourceProblem::Missing, None),
            _ => broken(&asked, SourceProblem::Inaccessible, Some(error)),
        })?;
        if path.to_str().is_none() {
            return Err(BundleError::NotUtf8 { path });
        }
        let inaccessible = |errno: rustix::io::Errno| {
            broken(&path, SourceProblem::Inaccessible, Some(errno.into()))
        };
        let fd = open(&path).map_err(inaccessible)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(inaccessible)?.st_mode);
        let problem = match kind {
            FileType::Directory | FileType::RegularFile => None,
            FileType::Socket => Some(SourceProblem::Socket),
            FileType::Fifo => Some(SourceProblem::Fifo),
            FileType::CharacterDevice | FileType::BlockDevice => Some(SourceProblem::Device),
            FileType::Symlink | FileType::Unknown => Some(SourceProblem::Inaccessible),
        };
        if let Some(problem) = problem {
            return Err(broken(&path, problem, None));
        }
        let magic = rustix::fs::fstatfs(&fd).map_err(inaccessible)?.f_type;
        if let Some(name) = kernel_files::by_magic(magic) {
            return Err(broken(&path, SourceProblem::KernelFiles(name), None));
        }
        if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
            return Err(broken(&path, SourceProblem::Devices, None));
        }
        let directory = kind == FileType::Directory;
        if recursive && directory {
            if let Some(inner) = self
                .kernel_mount_below(&path)
                .map_err(|error| broken(&path, SourceProblem::Inaccessible, Some(error)))?
            {
                return Err(broken(
                    &path,
                    SourceProblem::ContainsKernelFiles(inner),
                    None,
                ));
            }
        }
        Ok(Found { path, directory })
    }

    /// A mount of a kernel's view below `path`, if there is one.
    fn kernel_mount_below(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mounts = match &mut self.kernel_mounts {
            Some(mounts) => mounts,
            none => none.insert(kernel_files::mounts()?),
        };
        Ok(mounts.iter().find(|mount| mount.starts_with(path)).cloned())
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}
