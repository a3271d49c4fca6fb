//! Kernel configurations: a `.config` file, or the copy of it that
//! `CONFIG_IKCONFIG` embeds in the image.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::{KernelsError, Result};

/// The kernel brackets its gzip-compressed configuration with these words.
const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// A configuration is about 100 kB; more than this is not one.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A kernel's configuration, as far as it matters for running containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Kernel release named in the heading, e.g. `6.12.117`.
    pub version: Option<String>,
    /// Architecture named in the heading: `um`, `x86`, …
    pub arch: Option<String>,
    /// Options that are `=y`, without the `CONFIG_` prefix. Options that are
    /// `=m` do not count: a guest has no modules to load.
    pub features: BTreeSet<String>,
}

impl Config {
    /// Reads the text of a `.config`.
    pub fn parse(text: &str) -> Self {
        let mut config = Self::default();
        for line in text.lines() {
            if let Some(option) = line.strip_prefix("CONFIG_") {
                if let Some((name, "y")) = option.split_once('=') {
                    config.features.insert(name.to_owned());
                }
            } else if config.version.is_none() {
                config.read_heading(line);
            }
        }
        config
    }

    /// Finds the configuration embedded in `image`; `None` if there is none.
    ///
    /// # Errors
    /// [`KernelsError::BadConfig`] if it is there but damaged. `path` is used
    /// in the message only.
    pub fn embedded(image: &[u8], path: &Path) -> Result<Option<Self>> {
        let Some(packed) = between(image, START, END) else {
            return Ok(None);
        };
        let bad = |reason: String| KernelsError::BadConfig {
            path: path.to_owned(),
            reason,
        };
        let mut text = String::new();
        GzDecoder::new(packed)
            .take(MAX_CONFIG_BYTES)
            .read_to_string(&mut text)
            .map_err(|err| bad(format!("its embedded copy does not unpack: {err}")))?;
        let config = Self::parse(&text);
        if config.features.is_empty() {
            return Err(bad("its embedded copy names no option".to_owned()));
        }
        Ok(Some(config))
    }

    /// Reads a `.config` file.
    ///
    /// # Errors
    /// [`KernelsError::Io`] if it cannot be read, [`KernelsError::BadConfig`]
    /// if it is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(KernelsError::io("read the kernel configuration", path))?;
        let config = Self::parse(&text);
        if config.features.is_empty() {
            let reason = "it has no line of the form CONFIG_NAME=y".to_owned();
            return Err(KernelsError::BadConfig {
                path: path.to_owned(),
                reason,
            });
        }
        Ok(config)
    }

    /// Takes version and architecture from `# Linux/x86 6.12.117 Kernel Configuration`.
    fn read_heading(&mut self, line: &str) {
        let Some(heading) = line.strip_prefix("# Linux/") else {
            return;
        };
        let Some(heading) = heading.strip_suffix(" Kernel Configuration") else {
            return;
        };
        if let Some((arch, version)) = heading.split_once(' ') {
            self.arch = Some(arch.to_owned());
            self.version = Some(version.to_owned());
        }
    }
}

/// The bytes of `haystack` after the first `start` and before the next `end`.
fn between<'a>(haystack: &'a [u8], start: &[u8], end: &[u8]) -> Option<&'a [u8]> {
    let find =
        |bytes: &[u8], word: &[u8]| bytes.windows(word.len()).position(|window| window == word);
    let after = haystack.get(find(haystack, start)?.checked_add(start.len())?..)?;
    after.get(..find(after, end)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "#\n# Automatically generated file; DO NOT EDIT.\n\
        # Linux/x86 6.12.117 Kernel Configuration\n#\nCONFIG_SECCOMP=y\n\
        # CONFIG_MODULES is not set\nCONFIG_EXT4_FS=m\nCONFIG_HZ=100\nCONFIG_X=\"y\"\n";

    fn image_with(config: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(config).unwrap();
        [b"\x7fELF...", START, &gz.finish().unwrap(), END, b"tail"].concat()
    }

    #[test]
    fn config_text_gives_version_and_only_built_in_options() {
        let config = Config::parse(TEXT);

        assert_eq!(config.version.as_deref(), Some("6.12.117"));
        assert_eq!(config.arch.as_deref(), Some("x86"));
        assert_eq!(config.features.into_iter().collect::<Vec<_>>(), ["SECCOMP"]);
    }

    #[test]
    fn config_embedded_is_found_and_unpacked() {
        let config = Config::embedded(&image_with(TEXT.as_bytes()), Path::new("k")).unwrap();

        assert_eq!(config, Some(Config::parse(TEXT)));
    }

    #[test]
    fn config_absent_is_none() {
        assert_eq!(
            Config::embedded(b"\x7fELF no configuration", Path::new("k")).unwrap(),
            None
        );
    }

    #[test]
    fn config_damaged_is_an_error_naming_the_image() {
        let mut image = image_with(TEXT.as_bytes());
        image[b"\x7fELF...".len() + START.len()] ^= 0xff;

        let err = Config::embedded(&image, Path::new("/k/linux")).unwrap_err();

        assert!(err.to_string().contains("/k/linux"), "{err}");
    }

    #[test]
    fn config_without_options_is_an_error() {
        assert!(Config::embedded(&image_with(b"nothing"), Path::new("k")).is_err());
    }

    proptest! {
        #[test]
        fn config_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let framed = [START, &bytes, END].concat();
            let _ = Config::embedded(&framed, Path::new("k"));
            let _ = Config::embedded(&bytes, Path::new("k"));
        }
    }
}
