//! The built product under test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::driver::{emulated_lib, only, virtualises};

/// Where the executable and what it boots are.
#[derive(Debug, Clone)]
pub struct Product {
    /// The executable.
    pub bin: PathBuf,
    /// Kernels and initramfs.
    pub lib: PathBuf,
}

/// The product: `BULKHEAD_BIN` and `BULKHEAD_LIB`, else the build tree.
///
/// # Panics
/// When it is not built: nothing can be tested then, and nothing must look as if it had been.
pub fn product() -> &'static Product {
    static PRODUCT: OnceLock<Product> = OnceLock::new();
    PRODUCT.get_or_init(|| {
        let build = source_tree().join("build");
        let set = |name| std::env::var_os(name).map(PathBuf::from);
        let bin = set("BULKHEAD_BIN").unwrap_or_else(|| build.join("bin/bulkhead"));
        let lib = set("BULKHEAD_LIB").unwrap_or_else(|| {
            if only("kvm") && !virtualises() {
                emulated_lib()
            } else {
                build.join("lib/bulkhead")
            }
        });
        for path in [&bin, &lib.join("initramfs.cpio"), &lib.join("kernels")] {
            assert!(
                path.exists(),
                "{} does not exist: the tests run the built product, run `make build` first",
                path.display()
            );
        }
        Product { bin, lib }
    })
}

/// Root of the source tree.
#[must_use]
pub fn source_tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the source tree")
}

impl Product {
    /// Whether a kernel of a flavour (`uml`, `vm`) is installed.
    #[must_use]
    pub fn has_kernel(&self, flavour: &str) -> bool {
        self.kernels()
            .iter()
            .any(|manifest| manifest["flavour"] == flavour)
    }

    /// The manifests of all installed kernels.
    ///
    /// # Panics
    /// When one cannot be read.
    #[must_use]
    pub fn kernels(&self) -> Vec<serde_json::Value> {
        let dir = std::fs::read_dir(self.lib.join("kernels")).expect("kernels are installed");
        // Links are the choices of a default.
        dir.map(|entry| entry.unwrap().path())
            .filter(|path| !path.is_symlink())
            .map(|path| path.join("manifest.json"))
            .filter(|path| path.exists())
            .map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
            .collect()
    }
}
