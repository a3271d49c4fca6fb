//! `make run`: from nothing to a container in its own virtual machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_kernels::Flavour;

use crate::build::{self, put};
use crate::command::{command, read};
use crate::{paths, setup};

const BUSYBOX: &str = "/bin/busybox";

/// What the container says about itself.
const SCRIPT: &str = "echo \"guest kernel: $(uname -sr) ($(uname -m))\"; \
    echo \"processes the container sees: $(ls -d /proc/[0-9]* | wc -l)\"";

/// Builds what is missing and runs a container.
pub fn run(hypervisor: &str) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Run, false)?;
    build::all(flavour(hypervisor))?;
    let rootfs = rootfs()?;
    let bulkhead = paths::build().join("bin/bulkhead");
    let name = format!("demo-{}", std::process::id());
    println!("host kernel:  Linux {}", host_release());
    let status = command(&bulkhead)
        .args([
            "run",
            "--name",
            &name,
            "--hypervisor",
            hypervisor,
            "--rootfs",
        ])
        .arg(&rootfs)
        .args(["--", "/bin/sh", "-c", SCRIPT])
        .status()
        .with_context(|| format!("Cannot start {}", bulkhead.display()))?;
    // Isolation, and where the time went: also worth seeing after a failure.
    let explained = command(&bulkhead).args(["why", &name]).status()?;
    let deleted = command(&bulkhead)
        .args(["delete", "--force", &name])
        .status()?;
    Ok(
        if status.success() && explained.success() && deleted.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        },
    )
}

/// The only kernel flavour that is going to be booted, if that is known: a
/// machine without hardware virtualisation need not wait for the other one.
fn flavour(hypervisor: &str) -> Option<Flavour> {
    match hypervisor {
        "uml" => Some(Flavour::Uml),
        "qemu" | "kvm" => Some(Flavour::Vm),
        _ if Path::new("/dev/kvm").exists() && hardware_virtualisation() => None,
        _ => Some(Flavour::Uml),
    }
}

fn hardware_virtualisation() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| {
                line.split_whitespace()
                    .any(|flag| matches!(flag, "vmx" | "svm"))
            })
    })
}

fn host_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A root file system of busybox and nothing else.
fn rootfs() -> Result<PathBuf> {
    let rootfs = paths::build().join("demo/rootfs");
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        let path = rootfs.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    }
    put(
        &rootfs.join("bin/busybox"),
        &read(Path::new(BUSYBOX))?,
        0o755,
    )?;
    put(
        &rootfs.join("etc/passwd"),
        b"root:x:0:0:root:/root:/bin/sh\n",
        0o644,
    )?;
    put(&rootfs.join("etc/group"), b"root:x:0:\n", 0o644)?;
    for applet in ["sh", "cat", "echo", "ls", "ps", "true", "uname", "wc"] {
        let path = rootfs.join("bin").join(applet);
        if fs::symlink_metadata(&path).is_err() {
            symlink("busybox", &path)
                .with_context(|| format!("Cannot create {}", path.display()))?;
        }
    }
    Ok(rootfs)
}
