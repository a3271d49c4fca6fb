//! The driver `qemu` with real guests.

mod common;

use bulkhead_hypervisor::{Kind, Wanted};
use common::{Guest, promises};

const WANTED: Wanted = Wanted::Qemu;

#[test]
fn guest_that_powers_off_ends_the_process_with_success() {
    promises::guest_that_powers_off_ends_the_process_with_success(WANTED);
}

#[test]
fn guest_that_panics_says_so_and_ends_the_process() {
    let status = promises::guest_that_panics_says_so_and_ends_the_process(WANTED);
    assert_eq!(status.exit_status(), Some(0));
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
    promises::launcher_killed_takes_the_hypervisor_along("qemu");
}

#[test]
fn kernel_image_missing_is_told_on_the_console() {
    promises::kernel_image_missing_is_told_on_the_console(WANTED);
}

#[test]
fn root_holds_what_qemu_needs_only() {
    let mut guest = Guest::that(WANTED, "wait");
    guest.wait_for("guest is up");

    let files = guest.files();

    let known = [
        "/qemu",
        "/kernel",
        "/initramfs",
        "/lib",
        "/lib64",
        "/modules",
        "/firmware",
    ];
    let strange: Vec<_> = files
        .iter()
        .filter(|file| !known.iter().any(|known| file.starts_with(known)))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(!guest.proc("mountinfo").contains(" - proc "));
}

#[test]
fn machine_paused_stands_still_and_goes_on() {
    let mut guest = Guest::that(WANTED, "tick");
    guest.wait_for("tick");
    let pausable = guest.vm.as_pausable().unwrap();

    pausable.pause().unwrap();
    assert!(!pausable.is_running().unwrap());
    pausable.resume().unwrap();
    assert!(pausable.is_running().unwrap());

    guest.wait_for("tick");
}

#[test]
fn two_processors_are_brought_up() {
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.vcpus = 2;
    machine.cmdline.insert(0, "ignore_loglevel".into());
    let mut guest = Guest::boot(&*driver, &machine);
    guest.wait_for("smp: Brought up 1 node, 2 CPUs");
    guest.wait_for("guest is up");
}

#[test]
fn driver_here_is_what_was_wanted() {
    assert_eq!(common::driver(WANTED).kind(), Kind::Qemu);
}
