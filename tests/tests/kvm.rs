//! Containers on our own KVM machine. Where KVM interprets guest kernels a boot takes some ten seconds:
//! few tests, each with several promises.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_tests::harness::driver::{emulated_lib, virtualises};
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Container, Test, tests_on};
use rustix::process::{Pid, Signal, kill_process};

tests_on!(kvm, run_beside, [
    container_has_its_streams_files_and_exit_code
    running_container_takes_processes_and_is_described
    machine_killed_is_told_and_leaves_nothing
    memory_freed_goes_back
    memory_not_allowed_any_more_goes_back_and_returns
    guest_that_does_not_reach_its_agent_in_time_is_told_with_its_registers
]);

// What QEMU's own balloon does of it; and the same kernel and devices on another machine.
tests_on!(qemu, run_beside, [
    memory_freed_goes_back
    memory_not_allowed_any_more_goes_back_and_returns
    kernel_without_acpi_boots_and_has_its_devices
]);

// No machine of its own asks a User-Mode Linux for memory.
tests_on!(uml, run_beside, [limit_of_memory_alone_is_changed]);

/// A boot on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(300);

/// A container that says `ready` and waits.
fn waiting(test: &Test) -> Container<'_> {
    let script = "echo ready; read line; exit 9";
    let run = test.sh(script).option("-i");
    run.with(|run| run.limit(PATIENCE).stdin_pipe()).start()
}

fn guest_that_does_not_reach_its_agent_in_time_is_told_with_its_registers(test: &Test) {
    // No guest gets there as fast where its kernel is interpreted; elsewhere it is held back.
    if virtualises() {
        return skip(&test.name, "the guest would be in time");
    }
    let config = test.config_dir().join("config.toml");
    let settings = fs::read_to_string(&config).unwrap_or_default();
    let settings: String = settings
        .lines()
        .filter(|line| !line.contains("start_timeout_s"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(config, settings + "start_timeout_s = 2\n").unwrap();

    let id = test.new_id();
    let run = test.sh("true").name(&id);
    let output = run.with(|run| run.limit(PATIENCE)).output();

    output.expect_code(125);
    output.expect_error(&["within 2 s", "bulkhead why"]);
    let why = test.verb(["why", &id]).output();
    let told = why.text();
    assert!(told.contains("processor 0: rip="), "{why}");
    assert!(told.contains("until then: "), "{why}");
}

fn container_has_its_streams_files_and_exit_code(test: &Test) {
    let made = test.rootfs().join("made");

    let output = test
        .sh("cat; echo error >&2; echo kept > /made; cat /etc/group | wc -l; exit 7")
        .interactive("from the host\n")
        .with(|run| run.limit(PATIENCE))
        .output();

    output.expect_code(7);
    let lines = fs::read_to_string(test.rootfs().join("etc/group")).unwrap();
    let expected = format!("from the host\n{}\n", lines.lines().count());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        expected,
        "{output}"
    );
    assert!(output.error().contains("error"), "{output}");
    assert_eq!(fs::read_to_string(made).unwrap(), "kept\n");
}

/// The kernel for a KVM that interprets, over the same vhost-user devices.
fn kernel_without_acpi_boots_and_has_its_devices(test: &Test) {
    let lib = emulated_lib();
    assert!(
        lib.join("kernels").is_dir(),
        "to be built by `cargo xtask kernel --emulated`"
    );
    let script = "cat; cat /sys/bus/virtio/devices/*/device /sys/class/misc/hw_random/rng_current;
        ls /sys/firmware/acpi; echo kept > /made; exit 7";

    let output = test
        .sh(script)
        .options(["-i", "--memory", "64m"])
        .with(|run| {
            run.limit(PATIENCE)
                .env("BULKHEAD_LIB", &lib)
                .stdin("from the host\n")
        })
        .output();

    output.expect_code(7);
    assert!(output.error().contains("/sys/firmware/acpi"), "{output}");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"from the host"), "{output}");
    // Balloon, entropy, vsock, file system.
    for device in ["0x0005", "0x0004", "0x0013", "0x001a"] {
        assert!(lines.contains(&device), "{device}: {output}");
    }
    assert_eq!(lines.last(), Some(&"virtio_rng.0"), "{output}");
    assert_eq!(
        fs::read_to_string(test.rootfs().join("made")).unwrap(),
        "kept\n"
    );
}

fn running_container_takes_processes_and_is_described(test: &Test) {
    let container = waiting(test);
    let container = container.ready();

    let exec = container.exec(["/bin/sh", "-c", "echo inside; exit 5"]);
    let output = exec.limit(PATIENCE).output();
    output.expect_code(5);
    assert_eq!(output.stdout, b"inside\n", "{output}");

    let state = container.state();
    assert_eq!(state["hypervisor"], "kvm");
    let isolation = if virtualises() {
        "hardware-vm"
    } else {
        "emulated-vm"
    };
    assert_eq!(state["isolation"], isolation);
    let why = container.verb("why", &["--json"]).output().json();
    let cost = &why["timeline"]["cost"];
    assert!(cost["touched_pages"].as_u64().unwrap() > 1000, "{cost}");
    assert!(cost["exits"]["mmio_write"].as_u64().unwrap() > 10, "{cost}");

    let stats = container.verb("events", &["--stats"]).output().json();
    let machine = &stats["data"]["machine"];
    assert!(
        machine["cost"]["exits"]["mmio_write"].as_u64() > cost["exits"]["mmio_write"].as_u64(),
        "{machine}"
    );
    let device = |name: &str| {
        let devices = machine["devices"].as_array().unwrap();
        let device = devices.iter().find(|device| device["device"] == name);
        device.unwrap_or_else(|| panic!("no {name}: {machine}"))
    };
    assert!(device("fs")["requests"].as_u64() > Some(10), "{machine}");
    assert!(device("balloon").is_object(), "{machine}");
    assert!(device("entropy").is_object(), "{machine}");

    container.kill("KILL");
    container.finish().expect_code(137);
}

fn machine_killed_is_told_and_leaves_nothing(test: &Test) {
    let container = waiting(test).ready();
    let id = container.id.clone();
    let is_machine = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"vmm")
    };
    let machine = container.processes().into_iter().find(is_machine).unwrap();

    let machine = Pid::from_raw(i32::try_from(machine).unwrap()).unwrap();
    kill_process(machine, Signal::KILL).unwrap();

    let output = container.finish();
    output.expect_code(125);
    output.expect_error(&["hypervisor process", "SIGKILL"]);
    let why = test.verb(["why", &id]).output();
    assert!(why.text().contains("SIGKILL"), "{why}");
}

/// How much of the machine's memory is the host's, MiB: what the one file it lies in takes.
fn taken_mib(container: &Container<'_>) -> u64 {
    let is_memory = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
    };
    let fds = container.processes().into_iter().flat_map(|pid| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd"));
        entries.into_iter().flatten().flatten()
    });
    let file = fds.map(|entry| entry.path()).find(is_memory);
    let file = fs::metadata(file.expect("the memory of a machine")).unwrap();
    file.blocks() / 2048
}

/// Waits for a line of the container's that says how much memory its guest has free, MiB.
fn free_mib(container: &mut Container<'_>) -> u64 {
    let line = container.line();
    line.trim().parse().unwrap_or_else(|_| panic!("{line:?}"))
}

/// Waits until the guest has 15 MiB more or less free than before, and stays at that.
fn changed_mib(container: &mut Container<'_>, before: u64) -> u64 {
    let mut last = before;
    loop {
        let now = free_mib(container);
        if now.abs_diff(before) >= 15 && now == last {
            return now;
        }
        last = now;
    }
}

fn memory_freed_goes_back(test: &Test) {
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo ready; read line;
        rm /dev/shm/x
        while :; do awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo; sleep 1; done";
    let run = test.sh(script).options(["-i", "--memory", "144m"]);
    let run = run.with(|run| run.limit(PATIENCE).stdin_pipe());
    let mut container = run.start().ready();
    let used = taken_mib(&container);
    assert!(used >= 40, "{used}");

    container.write_line("");
    // A kernel for one processor keeps up to an eighth of its memory in that one's own lists.
    let least = if test.driver.hypervisor() == "kvm" {
        15
    } else {
        30
    };
    // A line each second until there is nothing new.
    while taken_mib(&container) + least > used {
        free_mib(&mut container);
    }

    container.kill("KILL");
    container.finish().expect_code(137);
}

/// Says each second how much memory the guest has free.
const FREE: &str = "echo ready
    while :; do awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo; sleep 1; done";

fn update_memory(test: &Test, id: &str, bytes: u64) {
    let bytes = bytes.to_string();
    let update = test.verb(["update", "--memory", &bytes, id]);
    update.limit(PATIENCE).output().expect_code(0);
}

fn memory_not_allowed_any_more_goes_back_and_returns(test: &Test) {
    let run = test.sh(FREE).options(["--memory", "112m"]);
    let mut container = run.with(|run| run.limit(PATIENCE)).start().ready();
    let before = free_mib(&mut container);
    let id = container.id.clone();

    update_memory(test, &id, 72 << 20);
    let less = changed_mib(&mut container, before);
    assert!(less < before, "{less} of {before}");
    update_memory(test, &id, 112 << 20);
    let more = changed_mib(&mut container, less);
    assert!(more > less, "{less} to {more} of {before}");

    container.kill("KILL");
    container.finish().expect_code(137);
}

fn limit_of_memory_alone_is_changed(test: &Test) {
    let script = "echo ready; while read line; do
        cat /sys/fs/cgroup/memory.max; awk '/MemTotal/ { print $2 }' /proc/meminfo; done";
    let run = test.sh(script).options(["-i", "--memory", "112m"]);
    let mut container = run.with(|run| run.stdin_pipe()).start().ready();
    let limit_and_total = |container: &mut Container<'_>| {
        container.write_line("");
        [(); 2].map(|()| container.line().trim().parse::<u64>().unwrap())
    };
    let [limit, total] = limit_and_total(&mut container);
    assert_eq!(limit, 112 << 20);

    let id = container.id.clone();
    update_memory(test, &id, 72 << 20);
    assert_eq!(limit_and_total(&mut container), [72 << 20, total]);

    container.kill("KILL");
    container.finish().expect_code(137);
}
