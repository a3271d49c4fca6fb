//! The host's configuration: `/etc/bulkhead/config.toml`, then `/etc/bulkhead/config.d/*.toml` in
//! the order of their names; a later file's value replaces an earlier one's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the configuration is, unless `BULKHEAD_CONFIG_DIR` says otherwise.
pub const CONFIG_DIR: &str = "/etc/bulkhead";

/// Annotation that chooses an installed kernel by name.
pub const KERNEL_ANNOTATION: &str = "io.bulkhead.kernel";
/// Annotation that chooses the hypervisor: `auto`, `kvm`, `uml` or `qemu`.
pub const HYPERVISOR_ANNOTATION: &str = "io.bulkhead.hypervisor";
/// Annotation that sets the VM's memory, MiB.
pub const MEMORY_ANNOTATION: &str = "io.bulkhead.memory_mib";

/// What the host's administrator decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `auto`, `kvm`, `uml` or `qemu`.
    pub hypervisor: String,
    /// Installed kernel to use; `None` for the newest of the driver's flavour.
    pub kernel: Option<String>,
    /// Memory of a VM whose container has no memory limit, MiB.
    pub memory_mib: u64,
    /// Whether the memory of VMs is made of the host's huge pages of 2 MiB; with `kvm` and `qemu`.
    pub huge_pages: bool,
    /// What a VM gets beyond its container's memory limit, MiB.
    pub overhead_mib: u64,
    /// What the processes of a VM may take on the host beyond the VM's memory, MiB; `None` for what the
    /// driver needs. Counts where the container has a memory limit and a control group.
    pub host_overhead_mib: Option<u64>,
    /// How long a guest may take to call home, seconds.
    pub start_timeout_s: u64,
    /// `io.bulkhead.*` annotations containers may carry.
    pub allowed_annotations: BTreeSet<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hypervisor: "auto".into(),
            kernel: None,
            memory_mib: 256,
            huge_pages: false,
            overhead_mib: 64,
            host_overhead_mib: None,
            start_timeout_s: 60,
            allowed_annotations: [KERNEL_ANNOTATION, HYPERVISOR_ANNOTATION, MEMORY_ANNOTATION]
                .map(String::from)
                .into(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hypervisor: Option<String>,
    kernel: Option<String>,
    memory_mib: Option<u64>,
    huge_pages: Option<bool>,
    overhead_mib: Option<u64>,
    host_overhead_mib: Option<u64>,
    start_timeout_s: Option<u64>,
    allowed_annotations: Option<BTreeSet<String>>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or the directory could not be read.
    #[error("Failed to read the configuration in {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Not TOML, or a key or value nobody knows.
    #[error("Configuration file {path} is not valid: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// A value out of range.
    #[error("Configuration value {key} = {value} is out of range: use {range}")]
    Range {
        /// The key.
        key: &'static str,
        /// What was given.
        value: u64,
        /// What is accepted.
        range: &'static str,
    },
}

impl Config {
    /// Reads the host's configuration; without any file, the defaults.
    ///
    /// # Errors
    /// A file that cannot be read or understood; nothing is skipped in silence.
    pub fn load() -> Result<Self, ConfigError> {
        let dir = std::env::var_os("BULKHEAD_CONFIG_DIR").map_or(CONFIG_DIR.into(), PathBuf::from);
        Self::load_from(&dir)
    }

    fn load_from(dir: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut files = vec![dir.join("config.toml")];
        let extra = dir.join("config.d");
        match fs::read_dir(&extra) {
            Ok(entries) => {
                let mut names: Vec<PathBuf> = entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
                    .collect();
                names.sort();
                files.extend(names);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(ConfigError::Read {
                    path: extra,
                    source,
                });
            }
        }
        for path in files {
            match fs::read_to_string(&path) {
                Ok(text) => config.merge(&text, &path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ConfigError::Read { path, source }),
            }
        }
        config.check()?;
        Ok(config)
    }

    fn merge(&mut self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim().replace('\n', " "),
        })?;
        let Self {
            hypervisor,
            kernel,
            memory_mib,
            huge_pages,
            overhead_mib,
            start_timeout_s,
            ..
        } = self;
        replace(hypervisor, file.hypervisor);
        replace(memory_mib, file.memory_mib);
        replace(huge_pages, file.huge_pages);
        replace(overhead_mib, file.overhead_mib);
        replace(start_timeout_s, file.start_timeout_s);
        if file.host_overhead_mib.is_some() {
            self.host_overhead_mib = file.host_overhead_mib;
        }
        if file.kernel.is_some() {
            *kernel = file.kernel;
        }
        replace(&mut self.allowed_annotations, file.allowed_annotations);
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let within = |key, value, low, high, range| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Range { key, value, range })
            }
        };
        within("memory_mib", self.memory_mib, 64, 1 << 20, "64 to 1048576")?;
        within(
            "overhead_mib",
            self.overhead_mib,
            16,
            1 << 16,
            "16 to 65536",
        )?;
        if let Some(mib) = self.host_overhead_mib {
            within("host_overhead_mib", mib, 16, 1 << 16, "16 to 65536")?;
        }
        within(
            "start_timeout_s",
            self.start_timeout_s,
            1,
            3600,
            "1 to 3600",
        )
    }
}

fn replace<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_later_file_wins_and_absent_directory_gives_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            Config::load_from(&dir.path().join("none")).unwrap(),
            Config::default()
        );
        fs::write(
            dir.path().join("config.toml"),
            "memory_mib = 512\nkernel = \"a\"",
        )
        .unwrap();
        fs::create_dir(dir.path().join("config.d")).unwrap();
        fs::write(dir.path().join("config.d/10-x.toml"), "memory_mib = 1024").unwrap();
        let config = Config::load_from(dir.path()).unwrap();
        assert_eq!(
            (config.memory_mib, config.kernel.as_deref()),
            (1024, Some("a"))
        );
    }

    #[test]
    fn load_unknown_key_or_value_out_of_range_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "memroy_mib = 512").unwrap();
        assert!(matches!(
            Config::load_from(dir.path()),
            Err(ConfigError::Parse { .. })
        ));
        fs::write(dir.path().join("config.toml"), "memory_mib = 1").unwrap();
        assert!(matches!(
            Config::load_from(dir.path()),
            Err(ConfigError::Range { .. })
        ));
    }
}
