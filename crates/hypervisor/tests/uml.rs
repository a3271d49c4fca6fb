//! The driver `uml` with real guests.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use bulkhead_hypervisor::Wanted;
use common::{Guest, promises};

const WANTED: Wanted = Wanted::Uml;

#[test]
fn guest_that_powers_off_ends_the_process_with_success() {
    promises::guest_that_powers_off_ends_the_process_with_success(WANTED);
}

#[test]
fn guest_that_panics_says_so_and_ends_the_process() {
    let status = promises::guest_that_panics_says_so_and_ends_the_process(WANTED);
    assert_eq!(status.exit_status(), Some(127));
}

#[test]
fn guest_that_restarts_ends_the_process() {
    let status = promises::guest_that_restarts_ends_the_process(WANTED);
    assert_eq!(status.exit_status(), Some(0));
}

#[test]
fn hypervisor_process_stands_behind_all_walls() {
    promises::hypervisor_process_stands_behind_all_walls(WANTED);
}

#[test]
fn launcher_killed_takes_the_hypervisor_along() {
    promises::launcher_killed_takes_the_hypervisor_along("uml");
}

#[test]
fn kernel_image_missing_is_told_on_the_console() {
    promises::kernel_image_missing_is_told_on_the_console(WANTED);
}

#[test]
fn root_holds_kernel_initramfs_null_and_scratch_only() {
    let mut guest = Guest::that(WANTED, "wait");
    guest.wait_for("guest is up");

    let files = guest.files();

    assert_eq!(
        files,
        [
            "/dev",
            "/dev/null",
            "/initramfs",
            "/linux",
            "/tmp",
            "/tmp/vm",
            "/tmp/vm/pid"
        ]
    );
}

#[test]
fn machine_runs_on_one_processor() {
    let mut guest = Guest::that(WANTED, "wait");
    guest.wait_for("guest is up");

    let cpu = guest
        .vm
        .cpu
        .as_ref()
        .map(bulkhead_hypervisor::CpuLease::cpu);
    assert_eq!(
        guest.status("Cpus_allowed_list"),
        cpu.map(|cpu| cpu.to_string()).unwrap()
    );
}

#[test]
fn processes_of_guest_programs_stand_behind_the_same_walls() {
    let mut guest = Guest::that(WANTED, "tick");
    guest.wait_for("tick");

    let children = guest.proc(&format!("task/{}/children", guest.vm.pid));
    assert_ne!(children, "");
    for child in children.split_whitespace() {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} not in {status}");
        }
    }
}

#[test]
fn machine_cannot_be_paused() {
    let guest = Guest::that(WANTED, "wait");
    assert!(guest.vm.as_pausable().is_none());
}

#[test]
fn more_processors_than_one_are_refused() {
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.vcpus = 2;
    let error = launch_error(&*driver, &machine);
    assert_eq!(
        error,
        "2 processors are more than hypervisor uml gives a machine (1); ask for fewer or choose another with --hypervisor"
    );
}

#[test]
fn kernel_of_the_other_flavour_is_refused() {
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.kernel = common::kernel(&*common::driver(Wanted::Qemu));
    let error = launch_error(&*driver, &machine);
    assert!(
        error.contains("is of flavour vm, but hypervisor uml boots uml"),
        "{error}"
    );
}

#[test]
fn command_line_with_a_blank_is_refused() {
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.cmdline.push("a b".into());
    let error = launch_error(&*driver, &machine);
    assert!(
        error.starts_with("The kernel's command line cannot carry \"a b\""),
        "{error}"
    );
}

#[test]
fn memory_below_any_kernel_is_refused() {
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.memory_bytes = 1 << 20;
    let error = launch_error(&*driver, &machine);
    assert_eq!(error, "A machine needs at least 32 MiB of memory, not 1");
}

fn launch_error(
    driver: &dyn bulkhead_hypervisor::Driver,
    machine: &bulkhead_hypervisor::Machine,
) -> String {
    let (_read, console) = rustix::pipe::pipe().unwrap();
    let io = bulkhead_hypervisor::LaunchIo {
        console,
        bulkhead: common::example("jailed_hat"),
    };
    driver.launch(machine, io).unwrap_err().to_string()
}

#[test]
fn processes_of_the_machine_are_bounded() {
    let mut guest = Guest::that(WANTED, "wait");
    guest.wait_for("guest is up");

    let limits = guest.proc("limits");
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max processes"))
        .unwrap();
    let limit: Vec<_> = limit.split_whitespace().skip(2).take(2).collect();
    // 16 for each of 96 MiB, soft and hard.
    assert_eq!(limit, ["1536", "1536"]);
}
