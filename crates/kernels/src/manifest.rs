//! What is known of one installed kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{KernelsError, Result};

/// What kind of machine a kernel image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// User-Mode Linux: an executable of the host.
    Uml,
    /// A virtual machine: an x86-64 ELF image with a PVH entry.
    Vm,
}

impl Flavour {
    /// Every flavour there is.
    pub const ALL: [Self; 2] = [Self::Uml, Self::Vm];

    /// The name used in manifests, options and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Vm => "vm",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Flavour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|flavour| flavour.as_str() == text)
            .ok_or_else(|| format!("Unknown kernel flavour {text:?}; there are: uml, vm"))
    }
}

/// Description of one installed kernel, stored beside its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name, equal to the name of the directory.
    pub name: String,
    /// Kernel release without local suffix, e.g. `6.12.117`.
    pub version: String,
    /// The kind of machine it is for.
    pub flavour: Flavour,
    /// Architecture of its user space, e.g. `x86_64`.
    pub arch: String,
    /// File name of the image, beside the manifest.
    pub image: String,
    /// SHA-256 of the image, 64 hexadecimal digits.
    pub sha256: String,
    /// Size of the image in bytes.
    pub size: u64,
    /// Configuration options that are `=y`, without the `CONFIG_` prefix.
    pub features: BTreeSet<String>,
    /// Where the source came from.
    pub source: String,
    /// Patches applied to that source, in order.
    pub patches: Vec<String>,
    /// Whether the kernel can load modules.
    pub modules: bool,
}

/// An installed kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What is known of it.
    pub manifest: Manifest,
    /// Absolute path of the image.
    pub image: PathBuf,
}

impl Kernel {
    /// Whether the kernel was built with `CONFIG_<feature>=y`.
    pub fn has(&self, feature: &str) -> bool {
        self.manifest.features.contains(feature)
    }

    /// Reads the whole image and compares its digest with the manifest's.
    ///
    /// Blocks for the time of reading it (about 20 ms for 20 MB).
    ///
    /// # Errors
    /// [`KernelsError::Digest`] if the image is not the one that was installed;
    /// [`KernelsError::Io`] if it cannot be read.
    pub fn verify(&self) -> Result<()> {
        let file = File::open(&self.image)
            .map_err(KernelsError::io("open the kernel image", &self.image))?;
        let actual =
            digest(file).map_err(KernelsError::io("read the kernel image", &self.image))?;
        if actual == self.manifest.sha256 {
            return Ok(());
        }
        Err(KernelsError::Digest {
            path: self.image.clone(),
            expected: self.manifest.sha256.clone(),
            actual,
        })
    }
}

/// SHA-256 of `bytes` as 64 hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn digest(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut reader, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Checks that `name` is safe as a directory name and as a word on a command
/// line.
///
/// # Errors
/// [`KernelsError::InvalidName`] naming the rule that is broken.
pub fn validate_name(name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 64 {
        "it is too long"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "it must begin with a letter or digit"
    } else if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
    {
        "it has a character that is not allowed"
    } else {
        return Ok(());
    };
    Err(KernelsError::InvalidName {
        name: name.to_owned(),
        reason,
    })
}

/// Checks what the type system cannot: that a manifest read from `path` keeps
/// within its own directory.
pub(crate) fn validate(manifest: &Manifest, directory: &str, path: &Path) -> Result<()> {
    let reason = if manifest.name != directory {
        format!(
            "it is named {:?} but lies in the directory {directory:?}",
            manifest.name
        )
    } else if validate_name(&manifest.image).is_err() {
        format!("its image {:?} is not a plain file name", manifest.image)
    } else if manifest.sha256.len() != 64 || !manifest.sha256.bytes().all(|b| b.is_ascii_hexdigit())
    {
        "its digest is not 64 hexadecimal digits".to_owned()
    } else {
        return Ok(());
    };
    Err(KernelsError::Inconsistent {
        path: path.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_plain_is_accepted() {
        for name in ["uml-6.12.117", "a", "6.12", "vm_x+1"] {
            validate_name(name).unwrap();
        }
    }

    #[test]
    fn name_leaving_its_directory_is_refused() {
        for name in [
            "", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a b", "a\0b", "ä",
        ] {
            assert!(validate_name(name).is_err(), "{name:?}");
        }
        assert!(validate_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn flavour_text_round_trips() {
        for flavour in Flavour::ALL {
            assert_eq!(flavour.to_string().parse::<Flavour>().unwrap(), flavour);
        }
        assert!("kvm".parse::<Flavour>().is_err());
    }
}
