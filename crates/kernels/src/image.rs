//! From a kernel image that somebody built to the manifest that describes it.

use std::path::Path;

use crate::{
    Config, Flavour, KernelsError, Manifest, Result, base_features, sha256_hex, validate_name,
};

/// Largest image that is looked at, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;

/// How a kernel is to be added.
#[derive(Clone, Debug, Default)]
pub struct Addition<'a> {
    /// Its configuration, if the image does not carry it.
    pub config: Option<&'a Path>,
    /// Name to install it under; `<flavour>-<version>` if not given.
    pub name: Option<&'a str>,
    /// Where the source came from, in words.
    pub source: &'a str,
    /// Patches that were applied.
    pub patches: Vec<String>,
}

/// Examines the bytes of a kernel image and describes it.
///
/// `path` names the image in messages and gives its file name.
///
/// # Errors
/// [`KernelsError::NotAKernel`] if it is not an x86-64 ELF image that one of
/// our hypervisors can boot or if it lacks what every guest needs;
/// [`KernelsError::NoConfig`] or [`KernelsError::BadConfig`] if its
/// configuration cannot be learnt; [`KernelsError::InvalidName`].
pub fn describe(image: &[u8], path: &Path, addition: &Addition<'_>) -> Result<Manifest> {
    let unusable = |reason: String| KernelsError::NotAKernel {
        path: path.to_owned(),
        reason,
    };
    require_elf(image).map_err(|reason| unusable(reason.to_owned()))?;
    let config = match addition.config {
        Some(file) => Config::read(file)?,
        None => Config::embedded(image, path)?.ok_or_else(|| KernelsError::NoConfig {
            path: path.to_owned(),
        })?,
    };
    let flavour = if config.features.contains("UML") {
        Flavour::Uml
    } else {
        Flavour::Vm
    };
    let lacking: Vec<_> = base_features(flavour)
        .filter(|feature| !config.features.contains(*feature))
        .collect();
    if !lacking.is_empty() {
        return Err(unusable(format!(
            "as a {flavour} kernel it lacks what every guest needs: CONFIG_{}; build it with these set to y",
            lacking.join(", CONFIG_")
        )));
    }
    let version = config
        .version
        .or_else(|| banner_version(image))
        .ok_or_else(|| {
            unusable("neither its configuration nor its banner tell its version".to_owned())
        })?;
    let name = match addition.name {
        Some(name) => name.to_owned(),
        None => format!("{flavour}-{version}"),
    };
    validate_name(&name)?;
    Ok(Manifest {
        name,
        version,
        flavour,
        arch: "x86_64".to_owned(),
        image: match flavour {
            Flavour::Uml => "linux".to_owned(),
            Flavour::Vm => "vmlinux".to_owned(),
        },
        sha256: sha256_hex(image),
        size: u64::try_from(image.len()).unwrap_or(u64::MAX),
        modules: config.features.contains("MODULES"),
        features: config.features,
        source: addition.source.to_owned(),
        patches: addition.patches.clone(),
    })
}

/// Accepts 64-bit little-endian x86-64 ELF files only.
fn require_elf(image: &[u8]) -> Result<(), &'static str> {
    const ELF64_LE: &[u8] = b"\x7fELF\x02\x01";
    const EM_X86_64: [u8; 2] = 62_u16.to_le_bytes();
    if image.get(0x202..0x206) == Some(b"HdrS") {
        return Err(
            "it is a compressed bzImage; give the uncompressed ELF file `vmlinux` of the same build",
        );
    }
    if !image.starts_with(ELF64_LE) {
        return Err(
            "it is not a 64-bit ELF file; expected are `vmlinux` or User-Mode Linux's `linux`",
        );
    }
    if image.get(18..20) != Some(&EM_X86_64[..]) {
        return Err("it is not built for x86-64");
    }
    Ok(())
}

/// Takes `6.12.117` from the banner `Linux version 6.12.117 (who@where) …`.
fn banner_version(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    image
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, word)| *word == BANNER)
        .find_map(|(at, _)| {
            let rest = image.get(at.checked_add(BANNER.len())?..)?;
            let end = rest.iter().take(64).position(|byte| *byte == b' ')?;
            let version = std::str::from_utf8(rest.get(..end)?).ok()?;
            version
                .starts_with(|c: char| c.is_ascii_digit())
                .then(|| version.to_owned())
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    /// An ELF heading followed by an embedded configuration.
    pub(crate) fn image(flavour: Flavour, version: &str, without: &[&str]) -> Vec<u8> {
        let mut config = format!("# Linux/any {version} Kernel Configuration\n");
        for feature in base_features(flavour).chain(["SECCOMP_FILTER", "CGROUP_PIDS"]) {
            if !without.contains(&feature) {
                config.push_str(&format!("CONFIG_{feature}=y\n"));
            }
        }
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(config.as_bytes()).unwrap();
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(18, 0);
        image.extend(62_u16.to_le_bytes());
        image.extend(b"IKCFG_ST");
        image.extend(gz.finish().unwrap());
        image.extend(b"IKCFG_ED");
        image
    }

    fn describe_bytes(image: &[u8]) -> Result<Manifest> {
        describe(image, Path::new("/somewhere/linux"), &Addition::default())
    }

    #[test]
    fn image_with_embedded_configuration_is_described() {
        let bytes = image(Flavour::Uml, "6.12.9", &[]);

        let manifest = describe_bytes(&bytes).unwrap();

        assert_eq!(manifest.name, "uml-6.12.9");
        assert_eq!(manifest.flavour, Flavour::Uml);
        assert_eq!(manifest.sha256, sha256_hex(&bytes));
        assert_eq!(manifest.size, bytes.len() as u64);
        assert!(manifest.features.contains("CGROUP_PIDS"));
        assert!(!manifest.modules);
    }

    #[test]
    fn image_without_virtio_fs_is_refused_by_name() {
        let bytes = image(Flavour::Vm, "6.12.9", &["VIRTIO_FS"]);

        let err = describe_bytes(&bytes).unwrap_err();

        assert!(err.to_string().contains("CONFIG_VIRTIO_FS"), "{err}");
    }

    #[test]
    fn image_compressed_is_refused_with_the_remedy() {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");

        let err = describe_bytes(&bytes).unwrap_err();

        assert!(err.to_string().contains("vmlinux"), "{err}");
    }

    #[test]
    fn image_of_another_kind_is_refused() {
        let mut foreign = image(Flavour::Vm, "6.12.9", &[]);
        foreign[18] = 183; // AArch64
        for bytes in [&b""[..], b"#!/bin/sh\n", &foreign] {
            assert!(matches!(
                describe_bytes(bytes),
                Err(KernelsError::NotAKernel { .. })
            ));
        }
    }

    #[test]
    fn image_without_configuration_asks_for_it() {
        let mut bytes = image(Flavour::Vm, "6.12.9", &[]);
        bytes.truncate(20);

        assert!(matches!(
            describe_bytes(&bytes),
            Err(KernelsError::NoConfig { .. })
        ));
    }

    #[test]
    fn version_missing_from_configuration_comes_from_the_banner() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let text: String = base_features(Flavour::Uml)
            .map(|feature| format!("CONFIG_{feature}=y\n"))
            .collect();
        std::fs::write(&config, text).unwrap();
        let mut bytes = image(Flavour::Uml, "1.0", &[]);
        bytes.truncate(20);
        bytes.extend(b"Linux version %s Linux version 7.2.1 (a@b) (gcc)");
        let addition = Addition {
            config: Some(&config),
            ..Addition::default()
        };

        let manifest = describe(&bytes, Path::new("linux"), &addition).unwrap();

        assert_eq!(manifest.version, "7.2.1");
    }

    proptest! {
        #[test]
        fn image_of_any_bytes_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = describe_bytes(&tail);
            let mut bytes = image(Flavour::Vm, "6.1", &[]);
            bytes.truncate(20);
            bytes.extend(b"Linux version ");
            bytes.extend(&tail);
            let _ = describe_bytes(&bytes);
            let _ = banner_version(&bytes);
        }
    }
}
