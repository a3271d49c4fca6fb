//! A bundle: a directory with a config.json and, mostly, a root file system.

mod check;
mod error;
mod read;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxResources, Spec};
use rustix::fs::{CWD, Mode, OFlags};

pub use error::{BundleError, Problem, RootProblem, SourceProblem};
pub use read::MAX_CONFIG_BYTES;

use crate::refuse::{self, Refusal};

/// A bundle whose configuration was read, checked and found possible.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The bundle's directory, absolute and without links.
    pub dir: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The root file system on the host, absolute and without links.
    pub rootfs: PathBuf,
    /// What was left out of the configuration without harm, for the log.
    pub warnings: Vec<String>,
}

impl Bundle {
    /// Reads `<dir>/config.json`, checks every field a container is made from and
    /// raises what is refused.
    ///
    /// Reads one file and looks at one directory; takes well under a millisecond.
    ///
    /// # Errors
    ///
    /// [`BundleError`] names the file or the field, the cause and the remedy on one line.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let dir = open_dir(dir)?;
        let (spec, warnings) = read::config(&dir)?;
        let bundle = Self::checked(dir, spec)?;
        Ok(Self { warnings, ..bundle })
    }

    /// Makes a bundle of a configuration that is not in a file, with the same checks as
    /// [`Bundle::load`]; relative paths in it are relative to `dir`.
    ///
    /// # Errors
    ///
    /// As [`Bundle::load`], but for those about config.json itself.
    pub fn from_spec(dir: &Path, spec: Spec) -> Result<Self, BundleError> {
        let dir = open_dir(dir)?;
        Self::checked(dir, spec)
    }

    /// Parses a configuration and checks what can be checked without the host's files.
    ///
    /// # Errors
    ///
    /// [`BundleError`] as in [`Bundle::load`]; `path` is only named in messages.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Spec, BundleError> {
        let (spec, _) = read::parse(path, json)?;
        check::spec(&spec)?;
        refused(&spec)?;
        Ok(spec)
    }

    fn checked(dir: PathBuf, spec: Spec) -> Result<Self, BundleError> {
        check::spec(&spec)?;
        refused(&spec)?;
        let rootfs = resolve_rootfs(&dir, &spec)?;
        Ok(Self {
            dir,
            spec,
            rootfs,
            warnings: Vec::new(),
        })
    }
}

/// Checks limits that are to be changed while a container runs, as those of a bundle are, and raises
/// what is refused of them.
///
/// # Errors
///
/// [`BundleError`] names the field, the cause and the remedy on one line.
pub fn check_resources(resources: &LinuxResources) -> Result<(), BundleError> {
    check::resources(resources)?;
    let mut linux = Linux::default();
    linux.set_resources(Some(resources.clone()));
    // Where the limits are changed tells whether the host has a group for them.
    linux.set_cgroups_path(Some("/".into()));
    let mut spec = Spec::default();
    spec.set_linux(Some(linux));
    let refusals = refuse::refusals_of_resources(&spec);
    raise(refusals)
}

fn refused(spec: &Spec) -> Result<(), BundleError> {
    raise(refuse::refusals(spec))
}

fn raise(refusals: Vec<Refusal>) -> Result<(), BundleError> {
    let mut refusals = refusals.into_iter();
    match refusals.next() {
        None => Ok(()),
        Some(first) => Err(BundleError::Refused {
            first: Box::new(first),
            others: refusals.count(),
        }),
    }
}

/// The directory's real path, if it is a directory with a name that is text.
fn open_dir(dir: &Path) -> Result<PathBuf, BundleError> {
    let real = dir.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BundleError::NoBundle { dir: dir.into() },
        io::ErrorKind::NotADirectory => BundleError::NotADirectory { dir: dir.into() },
        _ => BundleError::Unopenable {
            dir: dir.into(),
            source,
        },
    })?;
    let metadata = real.metadata().map_err(|source| BundleError::Unopenable {
        dir: dir.into(),
        source,
    })?;
    if !metadata.is_dir() {
        return Err(BundleError::NotADirectory { dir: dir.into() });
    }
    if real.to_str().is_none() {
        return Err(BundleError::NotUtf8 { path: real });
    }
    Ok(real)
}

/// Resolves `root.path` against the bundle and opens it once to see that it can be read.
fn resolve_rootfs(dir: &Path, spec: &Spec) -> Result<PathBuf, BundleError> {
    let Some(root) = spec.root() else {
        return Err(BundleError::field(
            "root",
            Problem::Missing(check::ROOT_REMEDY),
        ));
    };
    let path = dir.join(root.path());
    let broken = |problem, source| BundleError::Root {
        path: path.clone(),
        problem,
        source,
    };
    let real = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => broken(RootProblem::Missing, None),
        io::ErrorKind::NotADirectory => broken(RootProblem::NotADirectory, None),
        _ => broken(RootProblem::Unreadable, Some(source)),
    })?;
    if real == Path::new("/") {
        return Err(broken(RootProblem::HostRoot, None));
    }
    if real.to_str().is_none() {
        return Err(BundleError::NotUtf8 { path: real });
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, &real, flags, Mode::empty()) {
        Ok(_) => Ok(real),
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            Err(broken(RootProblem::NotADirectory, None))
        }
        Err(errno) => Err(broken(RootProblem::Unreadable, Some(errno.into()))),
    }
}

#[cfg(test)]
mod tests;
