//! `Info`: what this guest is.

use bulkhead_agent_api::messages::InfoResponse;

use super::Service;
use super::error::RpcError;

/// `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Reads what the kernel says about itself, and adds the agent's own start.
pub fn info(service: &Service) -> Result<InfoResponse, RpcError> {
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let memory = rustix::system::sysinfo();
    let mut response = InfoResponse::new();
    response.kernel_release = kernel_release();
    response.kernel_version = text(system.version());
    response.machine = text(system.machine());
    response.agent_version = env!("CARGO_PKG_VERSION").to_owned();
    response.cgroup_controllers = read("/sys/fs/cgroup/cgroup.controllers")?
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
    response.filesystems = filesystems(&read("/proc/filesystems")?);
    response.seccomp = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    response.memory_total_bytes = memory.totalram.saturating_mul(memory.mem_unit.into());
    response.cpus = cpus()?;
    response.spans = service.boot.to_vec();
    Ok(response)
}

fn read(file: &'static str) -> Result<String, RpcError> {
    std::fs::read_to_string(file).map_err(|source| RpcError::System {
        what: "read what the kernel offers; are /proc and /sys mounted?",
        source,
    })
}

fn cpus() -> Result<u32, RpcError> {
    rustix::thread::sched_getaffinity(None)
        .map(|set| set.count())
        .map_err(|error| RpcError::System {
            what: "count the processors",
            source: error.into(),
        })
}

/// The last word of each line of `/proc/filesystems`.
fn filesystems(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_ascii_whitespace().next_back())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_with_and_without_device_are_listed() {
        assert_eq!(
            filesystems("nodev\tproc\n\text4\n\nnodev\tvirtiofs\n"),
            ["proc", "ext4", "virtiofs"]
        );
    }

    proptest::proptest! {
        #[test]
        fn filesystems_any_text_has_no_blank_names(text in "\\PC{0,100}") {
            proptest::prop_assert!(filesystems(&text).iter().all(|name| !name.trim().is_empty()));
        }
    }
}
