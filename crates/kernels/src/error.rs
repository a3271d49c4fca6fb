//! What can go wrong with installed kernels.

use std::io;
use std::path::PathBuf;

use crate::Flavour;

/// An operation on installed kernels failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelsError {
    /// A file or directory of the store could not be used.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },

    /// A name is not usable as the name of a kernel.
    #[error(
        "Kernel name {name:?} is not usable: {reason}; use letters, digits, '.', '_', '+' and '-', at most 64"
    )]
    InvalidName {
        /// The name as given.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },

    /// No kernel of the flavour is installed.
    #[error(
        "No {flavour} kernel is installed under {}; build one with `make kernel`, install one with `bulkhead kernel add`, or point BULKHEAD_LIB at the right directory",
        dir.display()
    )]
    NoneInstalled {
        /// Flavour looked for.
        flavour: Flavour,
        /// Directory that was searched.
        dir: PathBuf,
    },

    /// A kernel's manifest is there, its image is not.
    #[error(
        "Cannot find the image {} of kernel {name:?}; remove it with `bulkhead kernel remove {name}`, then build it with `make kernel` or add it again",
        path.display()
    )]
    NoImage {
        /// The kernel.
        name: String,
        /// Where its image should be.
        path: PathBuf,
        /// Why it could not be looked at.
        #[source]
        source: io::Error,
    },

    /// The kernel asked for by name is not installed.
    #[error("Kernel {name:?} is not installed; installed are: {}", list(.installed))]
    NotFound {
        /// The name asked for.
        name: String,
        /// Names of what is installed.
        installed: Vec<String>,
    },

    /// The kernel asked for cannot run on the hypervisor chosen.
    #[error(
        "Kernel {name:?} is a {has} kernel and the chosen hypervisor runs {wanted} kernels; choose one of: {}, or another hypervisor",
        list(.suitable)
    )]
    WrongFlavour {
        /// The name asked for.
        name: String,
        /// Its flavour.
        has: Flavour,
        /// The flavour wanted.
        wanted: Flavour,
        /// Names of installed kernels of the flavour wanted.
        suitable: Vec<String>,
    },

    /// A manifest is not valid JSON or lacks a field.
    #[error("Cannot parse the kernel manifest {}; remove that kernel and add it again", path.display())]
    Manifest {
        /// The manifest's path.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },

    /// A manifest contradicts where it lies or what lies beside it.
    #[error("The kernel manifest {} is inconsistent: {reason}; remove that kernel and add it again", path.display())]
    Inconsistent {
        /// The manifest's path.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },

    /// The image is not the one the manifest describes.
    #[error(
        "The kernel image {} has changed since it was installed (sha256 {actual}, expected {expected}); remove that kernel and add it again",
        path.display()
    )]
    Digest {
        /// The image's path.
        path: PathBuf,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the file.
        actual: String,
    },

    /// A kernel of that name is there already.
    #[error(
        "A kernel named {name:?} is installed already; choose another --name or remove that one first"
    )]
    AlreadyInstalled {
        /// The name.
        name: String,
    },

    /// The file given is not a kernel image this project can boot.
    #[error("{} is not a usable kernel image: {reason}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// The image carries no configuration.
    #[error(
        "{} carries no configuration (it was built without CONFIG_IKCONFIG); give its .config with --config",
        path.display()
    )]
    NoConfig {
        /// The image.
        path: PathBuf,
    },

    /// The configuration was found but cannot be understood.
    #[error("Cannot read the kernel configuration in {}: {reason}", path.display())]
    BadConfig {
        /// The image or the configuration file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A kernel lacks something that is needed.
    #[error("Kernel {kernel:?} lacks {}; {}", needs(.missing), alternatives(.suitable))]
    MissingFeatures {
        /// The kernel that was to be used.
        kernel: String,
        /// What it lacks and what for; never empty.
        missing: Vec<crate::Need>,
        /// Installed kernels of the same flavour that lack nothing.
        suitable: Vec<String>,
    },
}

impl KernelsError {
    /// For `map_err`: names the attempt and the path of an I/O error.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn needs(missing: &[crate::Need]) -> String {
    let each: Vec<_> = missing
        .iter()
        .map(|need| format!("CONFIG_{} (needed for {})", need.feature, need.reason))
        .collect();
    each.join(", ")
}

fn alternatives(suitable: &[String]) -> String {
    if suitable.is_empty() {
        "no installed kernel of that flavour has all of it: add one with `bulkhead kernel add`, or drop the request"
            .to_owned()
    } else {
        format!(
            "choose one that has it with --kernel: {}",
            suitable.join(", ")
        )
    }
}
