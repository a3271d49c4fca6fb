//! A root file system with newer container engines than this machine's distribution has.
//!
//! Debian's next release is unpacked, not installed: no program of it is run while it is made, and the
//! suites give what little is missing then.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bulkhead_kernels::sha256_hex;

use crate::command::{brief, command, run};
use crate::paths;

/// The release.
const SUITE: &str = "trixie";

/// Where packages come from.
const MIRROR: &str = "http://deb.debian.org/debian";

/// What is in there, with all it depends on.
const PACKAGES: &[&str] = &[
    "aardvark-dns",
    "base-files",
    "busybox-static",
    "catatonit",
    "conmon",
    "containerd",
    "coreutils",
    "crun",
    "dash",
    "dbus",
    "docker-cli",
    "docker.io",
    "iproute2",
    "iptables",
    "netavark",
    "nftables",
    "podman",
    "procps",
    "runc",
    "systemd",
    "util-linux",
];

/// Links that Debian's maintainer scripts would make.
const LINKS: &[(&str, &str)] = &[
    ("usr/sbin/iptables", "xtables-nft-multi"),
    ("usr/sbin/iptables-save", "xtables-nft-multi"),
    ("usr/sbin/iptables-restore", "xtables-nft-multi"),
    ("usr/sbin/ip6tables", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-save", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-restore", "xtables-nft-multi"),
];

/// Files that they would make.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ndocker:x:99:\nmessagebus:x:100:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/machine-id", "uninitialized\n"),
];

/// Seconds that a slow mirror may take.
const LIMIT: &str = "600";

/// The root file system; it is made if it is not in the cache, which takes 20 seconds and 600 MB.
///
/// # Errors
/// Without root, and when the mirror cannot be reached.
pub fn ensure() -> Result<PathBuf> {
    let cache = paths::cache()?.join("engines");
    let root = cache.join(format!("{SUITE}-{}", key()));
    if root.is_dir() {
        return Ok(root);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("Newer engines need root: nothing else may unpack them");
    }
    fs::create_dir_all(&cache).with_context(|| format!("Cannot create {}", cache.display()))?;
    let _lock = paths::lock(&cache, "engines")?;
    if root.is_dir() {
        return Ok(root);
    }
    eprintln!("engines: unpacking Debian {SUITE} to {}", root.display());
    let start = Instant::now();
    let fresh = cache.join("unpacking");
    if fresh.is_dir() {
        // It was interrupted.
        fs::remove_dir_all(&fresh).with_context(|| format!("Cannot remove {}", fresh.display()))?;
    }
    unpack(&fresh)?;
    complete(&fresh)?;
    fs::rename(&fresh, &root).with_context(|| format!("Cannot name {}", root.display()))?;
    eprintln!("engines: {}", brief(start.elapsed()));
    Ok(root)
}

/// Changes with whatever goes into it.
fn key() -> String {
    let all = format!("{SUITE} {PACKAGES:?} {LINKS:?} {FILES:?}");
    sha256_hex(all.as_bytes()).chars().take(16).collect()
}

fn unpack(fresh: &Path) -> Result<()> {
    let mut unpack = command("timeout");
    unpack
        .args(["--kill-after=10", LIMIT, "mmdebstrap", "--quiet"])
        .arg("--variant=extract")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args([SUITE.as_ref(), fresh.as_os_str(), MIRROR.as_ref()]);
    run(&mut unpack).with_context(|| format!("Cannot unpack Debian {SUITE} from {MIRROR}"))
}

fn complete(root: &Path) -> Result<()> {
    for (name, target) in LINKS {
        match symlink(target, root.join(name)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("Cannot make the link {name}"));
            }
            _ => {}
        }
    }
    for (name, text) in FILES {
        fs::write(root.join(name), text).with_context(|| format!("Cannot write {name}"))?;
    }
    Ok(())
}
