//! Copies of what is installed, to be damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use bulkhead_tests::{Invocation, Run, Test, product};
use sha2::{Digest, Sha256};

/// A directory as `BULKHEAD_LIB` with one kernel of the test's flavour, and the initramfs.
#[derive(Debug)]
pub struct LibDir {
    dir: PathBuf,
    /// The kernel's image.
    pub image: PathBuf,
    manifest: PathBuf,
}

impl LibDir {
    /// An undamaged copy.
    pub fn new(test: &Test) -> Self {
        let flavour = test.driver.flavour();
        let kernels = product().kernels();
        let manifest = kernels
            .iter()
            .find(|manifest| manifest["flavour"] == flavour)
            .unwrap();
        let name = manifest["name"].as_str().unwrap();
        let dir = test.new_dir();
        let (from, to) = (
            product().lib.join("kernels").join(name),
            dir.join("kernels").join(name),
        );
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        fs::copy(
            product().lib.join("initramfs.cpio"),
            dir.join("initramfs.cpio"),
        )
        .unwrap();
        Self {
            image: to.join(manifest["image"].as_str().unwrap()),
            manifest: to.join("manifest.json"),
            dir,
        }
    }

    /// Puts another image in the kernel's place, as if it had been installed in order.
    pub fn install_image(&self, bytes: &[u8]) {
        fs::write(&self.image, bytes).unwrap();
        let text = fs::read(&self.manifest).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let digest = Sha256::digest(bytes);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        manifest["sha256"] = digest.into();
        manifest["size"] = bytes.len().into();
        fs::write(&self.manifest, manifest.to_string()).unwrap();
    }

    /// Replaces the initramfs.
    pub fn install_initramfs(&self, bytes: &[u8]) {
        fs::write(self.dir.join("initramfs.cpio"), bytes).unwrap();
    }

    /// Lets a `run` use it.
    pub fn used_by<'t>(&self, run: Run<'t>) -> Run<'t> {
        run.with(|invocation| self.serving(invocation))
    }

    /// The same for any command.
    pub fn serving(&self, invocation: Invocation) -> Invocation {
        invocation.env("BULKHEAD_LIB", &self.dir)
    }
}

/// A cpio archive (`newc`) with a console and one program as `/init`.
pub fn initramfs_with(init: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap(),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).unwrap(),
            0,
        ];
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    add("dev", 0o040_755, (0, 0), b"");
    add("dev/console", 0o020_600, (5, 1), b"");
    add("init", 0o100_755, (0, 0), init);
    add("TRAILER!!!", 0, (0, 0), b"");
    out
}

/// A static program from C source text.
pub fn program(name: &str, source: &str) -> Vec<u8> {
    static COMPILER: Mutex<()> = Mutex::new(());
    let guard = COMPILER.lock();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let text = path.with_extension("c");
    fs::write(&text, source).unwrap();
    compile(&text, &path);
    drop(guard);
    fs::read(path).unwrap()
}

/// A program that does nothing, for ever.
pub fn sleeper() -> Vec<u8> {
    program(
        "sleeper",
        "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n",
    )
}

/// Compiles a static program.
pub fn compile(source: &Path, program: &Path) {
    let status = Command::new("gcc")
        .args(["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(program)
        .arg(source)
        .status();
    assert!(status.expect("gcc is installed").success());
}
