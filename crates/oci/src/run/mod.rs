//! From the options of `run` to a configuration: the same meaning as in docker and podman.

mod capabilities;
mod defaults;
mod error;
mod parse;
mod seccomp;
mod security;
mod spec;
mod user;
mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use capabilities::{CapabilityOption, all_capabilities};
pub use error::{OptionError, RunError, VolumeProblem};
pub use parse::{Cpus, parse_annotation, parse_cpus, parse_pids_limit, parse_size, resolve_env};
pub use seccomp::SeccompChoice;
pub(crate) use seccomp::go_architecture;
pub use security::Security;
pub use spec::{default_spec, spec_for_run};
pub use user::{Identity, identify};
pub use volume::{Tmpfs, Volume, parse_tmpfs, parse_volume};

/// What the options of `run` ask for, parsed. `Default` is a container without any.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The container's name; also its host name, unless that is given.
    pub id: String,
    /// The root file system on the host: `--rootfs`, or where the image was unpacked.
    pub rootfs: PathBuf,
    /// The command and its arguments; empty takes the image's.
    pub args: Vec<String>,
    /// Replaces the image's entrypoint and command.
    pub entrypoint: Option<Vec<String>>,
    /// `-t`: a terminal instead of pipes.
    pub terminal: bool,
    /// `-e`, resolved: `NAME=value` each.
    pub env: Vec<String>,
    /// `-w`: the working directory.
    pub workdir: Option<String>,
    /// `-u`: `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// `-v`.
    pub volumes: Vec<Volume>,
    /// `--tmpfs`.
    pub tmpfs: Vec<Tmpfs>,
    /// `--read-only`: the root file system cannot be written.
    pub read_only: bool,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--memory`, in bytes.
    pub memory_bytes: Option<u64>,
    /// `--cpus`.
    pub cpus: Option<Cpus>,
    /// `--pids-limit`.
    pub pids_limit: Option<i64>,
    /// `--cap-add`.
    pub cap_add: Vec<CapabilityOption>,
    /// `--cap-drop`.
    pub cap_drop: Vec<CapabilityOption>,
    /// `--security-opt`.
    pub security: Security,
    /// `--annotation`.
    pub annotations: BTreeMap<String, String>,
    /// Whether the guest's kernel runs 32-bit programs (`IA32_EMULATION`); only then the
    /// default seccomp filter has a part for them.
    pub compat_32_bit: bool,
}
