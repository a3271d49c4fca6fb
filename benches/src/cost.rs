//! What a start on our KVM machine costs, counted: figures that do not depend on how busy the host is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bundle::Bundle;

/// Counts of one start, until the agent called home, as `run --json` tells them; none where there is no
/// KVM.
///
/// Where KVM interprets guest kernels, the kernel that is made for that is used, in a machine of 64 MiB.
pub fn measure(bulkhead: &Path, dir: &Path, bundle: &Bundle) -> Result<Option<Value>> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(None);
    }
    let config = dir.join("cost");
    std::fs::create_dir_all(&config)?;
    std::fs::write(
        config.join("config.toml"),
        "memory_mib = 64\nstart_timeout_s = 240\n",
    )?;
    let mut command = Command::new(bulkhead);
    command.env("BULKHEAD_CONFIG_DIR", &config);
    let emulated = bulkhead
        .ancestors()
        .nth(2)
        .map(|build| build.join("lib-emulated"))
        .filter(|lib| lib.join("kernels").is_dir() && !virtualises());
    if let Some(lib) = emulated {
        command.env("BULKHEAD_LIB", lib);
    }
    command.arg("--root").arg(dir.join("root-cost"));
    command.args(["run", "--hypervisor", "kvm", "--json", "--bundle"]);
    let output = command.arg(&bundle.dir).arg("cost").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let Some(line) = text.lines().find(|line| line.starts_with('{')) else {
        bail!("no report of a start on kvm: {text}");
    };
    let report: Value = serde_json::from_str(line)?;
    let cost = report["timeline"]["cost"].clone();
    cost.is_object()
        .then_some(Some(cost))
        .context("the start was not counted")
}

/// Prints the counts.
pub fn print(cost: &Value) {
    println!("a start on our KVM machine until the agent calls home, counted");
    for (name, value) in cost.as_object().into_iter().flatten() {
        match value.as_object() {
            None => println!("  {name:<16} {value:>12}"),
            Some(parts) => {
                for (part, value) in parts {
                    println!("  {name}.{part:<10} {value:>12}");
                }
            }
        }
    }
    println!();
}

fn virtualises() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split(' ').any(|flag| flag == "vmx" || flag == "svm"))
}
