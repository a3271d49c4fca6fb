//! Building the programs and laying everything out under `build/`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bulkhead_kernels::Flavour;

use crate::command::{cargo, command, output, read, run};
use crate::cpio::Archive;
use crate::{kernel, paths};

/// Name under which containerd looks for its shim: the same executable.
pub const SHIM: &str = "containerd-shim-bulkhead-v2";

/// Builds everything and lays it out as under an installation prefix.
pub fn all(flavour: Option<Flavour>) -> Result<()> {
    // What fails soonest comes first; the kernels are the longest.
    initramfs()?;
    host()?;
    kernel::stage(flavour)
}

/// Builds the guest's PID 1 and returns its path.
///
/// Linked statically at a fixed address: relocating itself at start would cost
/// a guest page faults for nothing.
pub fn agent() -> Result<PathBuf> {
    println!("agent: building");
    let triple = host_triple()?;
    run(cargo_static(
        &triple,
        "-Ctarget-feature=+crt-static -Crelocation-model=static",
    )?
    .args([
        "--package=bulkhead-agent",
        "--profile=agent",
        "--target-dir=target/agent",
    ]))?;
    Ok(paths::root()
        .join("target/agent")
        .join(triple)
        .join("agent/bulkhead-agent"))
}

/// Packs the agent as the guest's whole initramfs and returns its path.
pub fn initramfs() -> Result<PathBuf> {
    let agent = read(&agent()?)?;
    ensure!(
        agent.len() <= 3 << 20,
        "The agent has grown to {} bytes; at most 3 MiB are promised",
        agent.len()
    );
    let mut archive = Archive::new();
    // Without a console in the archive PID 1 starts with no standard streams.
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, &agent);
    let path = bulkhead_kernels::initramfs(&paths::build_lib());
    put(&path, &archive.finish(), 0o644)?;
    println!(
        "initramfs: {}, agent of {} KiB",
        path.display(),
        agent.len() >> 10
    );
    Ok(path)
}

/// Builds the host's executable and puts it, and the shim's name, in `build/bin`.
pub fn host() -> Result<PathBuf> {
    println!("bulkhead: building");
    let triple = host_triple()?;
    let mut cargo = cargo_static(&triple, "-Ctarget-feature=+crt-static")?;
    cargo.args([
        "--package=bulkhead",
        "--release",
        "--target-dir=target/dist",
    ]);
    if let Some(commit) = commit() {
        cargo.env("BULKHEAD_COMMIT", commit);
    }
    run(&mut cargo)?;
    let built = paths::root()
        .join("target/dist")
        .join(triple)
        .join("release/bulkhead");
    let bin = paths::build().join("bin");
    let path = bin.join("bulkhead");
    put(&path, &read(&built)?, 0o755)?;
    let shim = bin.join(SHIM);
    if fs::read_link(&shim).ok().as_deref() != Some(Path::new("bulkhead")) {
        symlink("bulkhead", &shim).with_context(|| format!("Cannot create {}", shim.display()))?;
    }
    println!("bulkhead: {}", path.display());
    Ok(path)
}

/// `cargo build` of static executables. A target must be named: otherwise the
/// flags would reach build scripts and procedural macros, which cannot be static.
fn cargo_static(triple: &str, rustflags: &str) -> Result<std::process::Command> {
    let mut cargo = cargo();
    cargo
        .args(["build", "--locked"])
        .arg(format!("--target={triple}"))
        .env("RUSTFLAGS", rustflags)
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBCAPNG_LINK_TYPE", "static");
    // rustc does not look where the C compiler looks.
    let archive = output(command("gcc").arg("-print-file-name=libseccomp.a"))?;
    let directory = Path::new(archive.trim())
        .parent()
        .filter(|dir| dir.is_absolute());
    let directory = directory.context("libseccomp.a is missing; run `cargo xtask setup`")?;
    cargo
        .env("LIBSECCOMP_LIB_PATH", directory)
        .env("LIBCAPNG_LIB_PATH", directory);
    Ok(cargo)
}

/// What `bulkhead --version` tells; a tree that is not from git has none.
fn commit() -> Option<String> {
    let mut git = command("git");
    git.args(["rev-parse", "--verify", "--quiet", "HEAD"]);
    let text = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(text.stdout).ok()?.trim().to_owned())
}

/// The target triple of this machine, e.g. `x86_64-unknown-linux-gnu`.
fn host_triple() -> Result<String> {
    let text = output(command("rustc").arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not name its host")
}

/// Writes a file in one step, unless it is there already with these bytes. A
/// process that runs the old one keeps it.
pub fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let directory = path.parent().context("a file needs a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("Cannot create {}", directory.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = directory.join(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&fresh, bytes)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // The error that counts is the one being returned.
        let _ = fs::remove_file(&fresh);
    }
    written.with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_put_again_with_the_same_bytes_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin/program");
        put(&path, b"one", 0o755).unwrap();
        let before = fs::metadata(&path).unwrap();
        put(&path, b"one", 0o755).unwrap();
        let same = fs::metadata(&path).unwrap();
        put(&path, b"two", 0o755).unwrap();

        use std::os::unix::fs::MetadataExt;
        assert_eq!(before.ino(), same.ino());
        assert_eq!(before.mode() & 0o777, 0o755);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
