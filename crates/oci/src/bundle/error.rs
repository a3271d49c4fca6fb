//! What can be wrong with a bundle. Every message is one line: the cause, and
//! what to do about it.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::refuse::Refusal;
use crate::text::{quoted, quoted_path};

/// Why a bundle cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The bundle directory does not exist.
    #[error("No bundle at {}: the directory does not exist; give the directory that holds config.json with --bundle", quoted_path(.dir))]
    NoBundle {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// The bundle is something other than a directory.
    #[error("Bundle {} is not a directory; give the directory that holds config.json", quoted_path(.dir))]
    NotADirectory {
        /// The path asked for.
        dir: PathBuf,
    },
    /// The bundle directory exists but cannot be opened.
    #[error("Could not open the bundle {}", quoted_path(.dir))]
    Unopenable {
        /// The directory asked for.
        dir: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A path that has to be passed on as text is not UTF-8.
    #[error("Path {} is not valid UTF-8; rename it, or use a path that is", quoted_path(.path))]
    NotUtf8 {
        /// The path, as far as it can be shown.
        path: PathBuf,
    },
    /// There is no config.json.
    #[error("Bundle {} has no config.json; make one with `bulkhead spec`", quoted_path(.dir))]
    NoConfig {
        /// The bundle.
        dir: PathBuf,
    },
    /// config.json is not a regular file.
    #[error("{} is not a regular file; replace it with the configuration itself", quoted_path(.path))]
    ConfigNotAFile {
        /// The file.
        path: PathBuf,
    },
    /// config.json cannot be opened or read.
    #[error("Could not read {}", quoted_path(.path))]
    ConfigUnreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The configuration is larger than what the guest can be sent.
    #[error("{} is larger than {limit} bytes, the most a guest can be sent; move bulky values (environment, annotations) into files of the rootfs", quoted_path(.path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The file is not JSON.
    #[error("{} is not valid JSON at line {line}, column {column}: {problem}; {hint}", quoted_path(.path))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1; 0 is the end of the line before.
        column: usize,
        /// What the parser found.
        problem: String,
        /// What to look for.
        hint: &'static str,
    },
    /// The configuration is of a version that is not understood.
    #[error("ociVersion {} is not supported; this runtime reads configurations of version 1.x", quoted(.version))]
    Version {
        /// The version found.
        version: String,
    },
    /// A field has a value that cannot be used.
    #[error("Invalid configuration: {field} {problem}")]
    Field {
        /// Where: a JSON path as in `linux.namespaces[2].type`.
        field: String,
        /// What is wrong and what would be right.
        problem: Problem,
    },
    /// The root file system cannot be used.
    #[error("Root file system {} (root.path) {problem}", quoted_path(.path))]
    Root {
        /// The root file system, resolved against the bundle.
        path: PathBuf,
        /// What is wrong with it.
        problem: RootProblem,
        /// The system's reason, where there is one.
        #[source]
        source: Option<io::Error>,
    },
    /// The source of a bind mount cannot be shared with the guest.
    #[error("Mount source {} ({field}) cannot be shared with the guest: {problem}", quoted_path(.source_path))]
    Source {
        /// Where: `mounts[3].source`.
        field: String,
        /// The source, resolved.
        source_path: PathBuf,
        /// Why not, and what to do instead.
        problem: SourceProblem,
        /// The system's reason, where there is one.
        #[source]
        source: Option<io::Error>,
    },
    /// The container's name cannot be used.
    #[error(transparent)]
    Id(#[from] crate::id::IdError),
    /// The guest's configuration is larger than what the guest can be sent.
    #[error(
        "The configuration for the guest is {size} bytes, more than the {limit} a guest can be sent; shorten the environment, the arguments or the list of mounts"
    )]
    GuestSpecTooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The guest's configuration cannot be written as JSON.
    #[error("Could not write the configuration for the guest as JSON")]
    Unserialisable {
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration asks for what a virtual machine, or this version, cannot do.
    #[error("{first}{}", more(*.others))]
    Refused {
        /// The first thing refused.
        first: Box<Refusal>,
        /// How many others there are.
        others: usize,
    },
}

fn more(others: usize) -> String {
    if others == 0 {
        String::new()
    } else {
        format!(" (and {others} more like it)")
    }
}

impl BundleError {
    /// An error about one field.
    pub(crate) fn field(field: impl Into<String>, problem: Problem) -> Self {
        Self::Field {
            field: field.into(),
            problem,
        }
    }
}

/// What is wrong with the value of a field.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    #[error("is missing; {0}")]
    Missing(&'static str),
    /// It is there and empty.
    #[error("is empty; {0}")]
    Empty(&'static str),
    /// A path that must be absolute is not.
    #[error("is {}, which is not an absolute path; begin it with /", quoted(.0))]
    NotAbsolute(String),
    /// A path climbs with `..`.
    #[error("is {}, which climbs with ..; write the path it means", quoted(.0))]
    Climbs(String),
    /// A string holds a NUL byte, which no system call can take.
    #[error("contains a NUL byte; remove it")]
    HasNul,
    /// A value is not one of the known ones.
    #[error("is {}, which is not known; use one of {known}", quoted(.value))]
    Unknown {
        /// The value found.
        value: String,
        /// The values that would be right.
        known: Cow<'static, str>,
    },
    /// A value stands twice where it may stand once.
    #[error("is {}, which appears before; keep one of them", quoted(.0))]
    Duplicate(String),
    /// A number is out of its range.
    #[error("is {value}; it must be {range}")]
    OutOfRange {
        /// The value found.
        value: String,
        /// The range, in words.
        range: &'static str,
    },
    /// The JSON value has the wrong type or is not one of those allowed.
    #[error("cannot be read: {0}")]
    Json(String),
    /// It contradicts another field.
    #[error("{0}")]
    Conflict(&'static str),
    /// The value has the wrong shape; the text says which would be right. The value is not
    /// shown, because it may be secret.
    #[error("{0}")]
    Malformed(&'static str),
}

/// What is wrong with a root file system.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootProblem {
    /// Nothing is there.
    #[error("does not exist; unpack one there or change root.path")]
    Missing,
    /// It is not a directory.
    #[error("is not a directory; give a directory")]
    NotADirectory,
    /// It cannot be read.
    #[error("is not readable; check its permissions and its file system")]
    Unreadable,
    /// It is the host's own root.
    #[error("is the host's own root directory; give a directory of the container's")]
    HostRoot,
}

/// Why the source of a bind mount cannot be shared.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceProblem {
    /// Nothing is there.
    #[error("it does not exist on the host; create it first")]
    Missing,
    /// It cannot be looked at.
    #[error("it is not accessible; check the permissions of the path")]
    Inaccessible,
    /// A unix socket.
    #[error(
        "it is a unix socket, and a socket cannot cross the boundary of a virtual machine through a shared file system; use a network address"
    )]
    Socket,
    /// A FIFO.
    #[error(
        "it is a FIFO, whose two ends cannot be in two kernels; use the container's stdin and stdout"
    )]
    Fifo,
    /// A device node.
    #[error(
        "it is a device node of the host's kernel; for /dev/null and its like mount a tmpfs on /dev, as every container has"
    )]
    Device,
    /// A file of a file system that is a view of the host's kernel.
    #[error(
        "it belongs to {0}, which shows the host's kernel and not the guest's; mount a {0} of the guest's own"
    )]
    KernelFiles(&'static str),
    /// A recursive bind that would take in a view of the host's kernel.
    #[error(
        "recursively it would take in {}, which shows the host's kernel; use bind instead of rbind, or a directory below it", quoted_path(.0)
    )]
    ContainsKernelFiles(PathBuf),
    /// The host's device directory.
    #[error(
        "it is the host's device directory; the container gets a /dev of its own, mount a tmpfs there"
    )]
    Devices,
}
