//! `bulkhead doctor`: what of this host Bulkhead can use, each finding with its remedy.

use std::path::Path;
use std::process::ExitCode;

use bulkhead_hypervisor::{Abilities, Wanted, choose, kvm_verdict};
use bulkhead_kernels::{Flavour, Store, initramfs, lib_dir};
use bulkhead_sandbox::config::Config;
use bulkhead_sandbox::error::chain;
use serde::Serialize;

use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Something is not to be had; containers run without it.
    Note,
    /// No container can run.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    evidence: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// Runs every check. The exit code is 1 when no container could run.
pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let findings = [
        root(),
        kvm(),
        driver("driver kvm", Wanted::Kvm),
        driver("driver uml", Wanted::Uml),
        driver("driver qemu", Wanted::Qemu),
        driver("driver auto", Wanted::Auto),
        kernels(Flavour::Uml),
        kernels(Flavour::Vm),
        agent(),
        namespaces(),
        landlock(),
        overlay(),
        writable("state directory", &globals.root),
        writable("image store", Path::new(bulkhead_sandbox::paths::DATA_DIR)),
        memory(),
        configuration(),
    ];
    if args.json {
        println!("{:#}", serde_json::json!(findings));
    } else {
        for finding in &findings {
            let verdict = format!("{:?}", finding.verdict).to_lowercase();
            println!("{verdict:<5} {:<16} {}", finding.check, finding.evidence);
            if !finding.remedy.is_empty() {
                println!("{:<22} -> {}", "", finding.remedy);
            }
        }
    }
    let failed = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn ok(check: &'static str, evidence: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Ok,
        evidence: evidence.into(),
        remedy: String::new(),
    }
}

fn note(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Finding {
    let (evidence, remedy) = (evidence.into(), remedy.into());
    Finding {
        check,
        verdict: Verdict::Note,
        evidence,
        remedy,
    }
}

fn fail(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Finding {
    let (evidence, remedy) = (evidence.into(), remedy.into());
    Finding {
        check,
        verdict: Verdict::Fail,
        evidence,
        remedy,
    }
}

fn root() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    // Numbers of linux/capability.h.
    let needed = [
        (21, "SYS_ADMIN"),
        (7, "SETUID"),
        (6, "SETGID"),
        (27, "MKNOD"),
        (0, "CHOWN"),
    ];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter_map(|(bit, name)| (effective >> bit & 1 == 0).then_some(name))
        .collect();
    if missing.is_empty() {
        ok(
            "privileges",
            "every capability needed for the jails is there",
        )
    } else {
        fail(
            "privileges",
            format!("missing CAP_{}", missing.join(", CAP_")),
            "run as root",
        )
    }
}

/// The second fence of our machine's process; it works without.
fn landlock() -> Finding {
    match bulkhead_jail::landlock_version() {
        Some(version) => ok(
            "Landlock",
            format!("version {version}: a second fence around our KVM machine"),
        ),
        None => note(
            "Landlock",
            "the host's kernel has none: our KVM machine has its jail only",
            "start the kernel with landlock in lsm=, or use one with CONFIG_SECURITY_LANDLOCK",
        ),
    }
}

fn kvm() -> Finding {
    let verdict = kvm_verdict();
    if verdict.usable {
        ok("KVM", verdict.evidence)
    } else {
        note(
            "KVM",
            verdict.evidence,
            "containers are isolated by User-Mode Linux, or by QEMU without acceleration; kvm is for \
             tests here, if at all; for hardware isolation use a host with VT-x or AMD-V (nested virtualisation in a VM)",
        )
    }
}

fn driver(check: &'static str, wanted: Wanted) -> Finding {
    match choose(wanted) {
        Ok(choice) => {
            let driver = choice.driver;
            let machine = Abilities {
                max_vcpus: driver.max_vcpus(),
                ..Abilities::of(driver.kind())
            };
            ok(
                check,
                format!(
                    "{} ({}): {}; its machines: {machine}",
                    driver.kind(),
                    driver.isolation(),
                    choice.reason
                ),
            )
        }
        Err(error) if wanted == Wanted::Auto => {
            fail(check, chain(&error), "install one of the drivers")
        }
        Err(error) => note(
            check,
            chain(&error),
            "needed only with --hypervisor of that name",
        ),
    }
}

fn kernels(flavour: Flavour) -> Finding {
    let check = match flavour {
        Flavour::Uml => "kernel uml",
        Flavour::Vm => "kernel vm",
    };
    match Store::open(&lib_dir())
        .find(flavour, None)
        .and_then(|kernel| {
            kernel.verify()?;
            Ok(kernel)
        }) {
        Ok(kernel) => ok(
            check,
            format!(
                "{} {}, digest verified",
                kernel.manifest.name, kernel.manifest.version
            ),
        ),
        Err(error) => note(
            check,
            chain(&error),
            "`make kernel` builds it, `make install` installs it",
        ),
    }
}

fn agent() -> Finding {
    let path = initramfs(&lib_dir());
    match std::fs::metadata(&path) {
        Ok(data) => ok(
            "agent",
            format!("{} ({} KiB)", path.display(), data.len() / 1024),
        ),
        Err(error) => fail(
            "agent",
            format!("{}: {error}", path.display()),
            "run `make install`",
        ),
    }
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["mnt", "pid", "net", "ipc", "uts"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        ok("namespaces", "mount, pid, network, ipc and uts namespaces")
    } else {
        fail(
            "namespaces",
            format!("the host's kernel lacks {}", missing.join(", ")),
            "use a kernel with CONFIG_NAMESPACES and all of them",
        )
    }
}

fn overlay() -> Finding {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        ok("overlayfs", "images get a writable layer of their own")
    } else {
        note(
            "overlayfs",
            "not in the host's kernel",
            "`modprobe overlay`; needed for --image",
        )
    }
}

fn writable(check: &'static str, dir: &Path) -> Finding {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) => ok(check, format!("{} can be written", dir.display())),
        Err(error) => fail(
            check,
            format!("{} cannot be written: {error}", existing.display()),
            "make it writable, or choose another one with --root",
        ),
    }
}

fn memory() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024;
    if available >= 512 {
        ok("memory", format!("{available} MiB available"))
    } else {
        note(
            "memory",
            format!("only {available} MiB available"),
            "a VM has 256 MiB by default",
        )
    }
}

fn configuration() -> Finding {
    match Config::load() {
        Ok(config) => ok(
            "configuration",
            format!(
                "hypervisor {}, {} MiB a VM",
                config.hypervisor, config.memory_mib
            ),
        ),
        Err(error) => fail("configuration", chain(&error), "correct the file"),
    }
}
