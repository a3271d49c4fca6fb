//! Debian packages that the build and the suites need.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::command::{command, output, run};

/// What is going to be done with the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Compile kernels, agent and host program.
    Build,
    /// Also run a container.
    Run,
    /// Also run the suites.
    Everything,
}

/// Package and the purpose that needs it. Some would start a service, which is
/// forbidden while they are installed: the suites start what they need themselves.
const PACKAGES: &[(&str, Purpose)] = &[
    // The kernel's build.
    ("bc", Purpose::Build),
    ("bison", Purpose::Build),
    ("flex", Purpose::Build),
    ("libc6-dev", Purpose::Build),
    ("libelf-dev", Purpose::Build),
    ("linux-source-6.12", Purpose::Build),
    ("make", Purpose::Build),
    ("patch", Purpose::Build),
    ("xz-utils", Purpose::Build),
    // Linked statically into agent and host program.
    ("libcap-ng-dev", Purpose::Build),
    ("libseccomp-dev", Purpose::Build),
    // The second hypervisor, and the root file system of the first container.
    ("busybox-static", Purpose::Run),
    ("qemu-system-x86", Purpose::Run),
    // Peers, image and archive tools of the suites; a C++ compiler for libFuzzer.
    ("cpio", Purpose::Everything),
    ("crun", Purpose::Everything),
    ("e2fsprogs", Purpose::Everything),
    ("g++", Purpose::Everything),
    ("runc", Purpose::Everything),
    ("skopeo", Purpose::Everything),
    ("umoci", Purpose::Everything),
    // Container engines, and what they call.
    ("aardvark-dns", Purpose::Everything),
    ("buildah", Purpose::Everything),
    ("catatonit", Purpose::Everything),
    ("conmon", Purpose::Everything),
    ("containerd", Purpose::Everything),
    ("containernetworking-plugins", Purpose::Everything),
    ("docker-compose", Purpose::Everything),
    ("docker.io", Purpose::Everything),
    ("iproute2", Purpose::Everything),
    ("iptables", Purpose::Everything),
    ("mmdebstrap", Purpose::Everything),
    ("mount", Purpose::Everything),
    ("netavark", Purpose::Everything),
    ("nftables", Purpose::Everything),
    ("podman", Purpose::Everything),
];

/// Installs what is missing for `purpose`; does nothing, in a few
/// milliseconds, if nothing is. With `verbose`, prints what is there.
pub fn ensure(purpose: Purpose, verbose: bool) -> Result<()> {
    let wanted: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, need)| *need <= purpose)
        .map(|(name, _)| *name)
        .collect();
    let missing = missing(&wanted);
    if !missing.is_empty() {
        install(&missing)?;
    }
    if verbose {
        print_versions(&wanted)?;
    }
    Ok(())
}

/// Version of an installed package; `None` if it is not installed.
pub fn version(package: &str) -> Option<String> {
    let text = output(
        command("dpkg-query")
            .args(["-W", "-f=${db:Status-Abbrev}${Version}", package])
            .stderr(Stdio::null()),
    )
    .ok()?;
    text.strip_prefix("ii ")
        .map(|version| version.trim().to_owned())
}

fn missing(wanted: &[&str]) -> Vec<String> {
    // dpkg-query fails if one of the names is unknown and still prints the rest.
    let installed: BTreeSet<String> = command("dpkg-query")
        .args(["-W", "-f=${db:Status-Abbrev}${Package}\n"])
        .args(wanted)
        .stderr(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("ii ")?.trim().to_owned()))
        .collect();
    wanted
        .iter()
        .filter(|name| !installed.contains(**name))
        .map(|name| (*name).to_owned())
        .collect()
}

fn install(missing: &[String]) -> Result<()> {
    let list = missing.join(" ");
    if !Path::new("/etc/debian_version").exists() {
        bail!(
            "This is not a Debian system: install the equivalents of these packages by hand: {list}"
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("Packages are missing; as root, run: apt-get install --no-install-recommends {list}");
    }
    println!("setup: installing {list}");
    let apt = |args: &[&str]| {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y"])
            .args(args);
        apt
    };
    run(&mut apt(&["update"])).context("Cannot refresh the package lists")?;
    let _policy = NoServices::new()?;
    run(apt(&["install", "--no-install-recommends"]).args(missing)).with_context(|| {
        format!(
            "Cannot install {list}; linux-source-6.12 comes from bookworm-security, \
             which has to be among the apt sources"
        )
    })
}

/// While this lives, packages that are installed start no service.
struct NoServices {
    /// What said so before.
    before: Option<Vec<u8>>,
}

impl NoServices {
    const PATH: &str = "/usr/sbin/policy-rc.d";
    /// 101 is "action forbidden by policy", see invoke-rc.d(8).
    const POLICY: &str = "#!/bin/sh\nexit 101\n";

    fn new() -> Result<Self> {
        let before = fs::read(Self::PATH).ok();
        let written = fs::write(Self::PATH, Self::POLICY)
            .and_then(|()| fs::set_permissions(Self::PATH, Permissions::from_mode(0o755)));
        let policy = Self { before };
        written.with_context(|| format!("Cannot write {}", Self::PATH))?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let restored = match &self.before {
            // The mode is still that of an executable.
            Some(text) => fs::write(Self::PATH, text),
            None => fs::remove_file(Self::PATH),
        };
        if let Err(error) = restored {
            eprintln!("setup: Cannot restore {}: {error}", Self::PATH);
        }
    }
}

fn print_versions(wanted: &[&str]) -> Result<()> {
    print!(
        "{}",
        output(
            command("dpkg-query")
                .args(["-W", "-f=${Package} ${Version}\n"])
                .args(wanted)
        )?
    );
    for program in ["rustc", "gcc", "ld"] {
        let text = output(command(program).arg("--version"))?;
        println!("{}", text.lines().next().unwrap_or_default());
    }
    Ok(())
}
