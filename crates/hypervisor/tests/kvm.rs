//! The driver `kvm` with real guests. Where KVM interprets them, a boot takes some ten seconds; so a
//! handful of tests, each of several promises.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use bulkhead_hypervisor::{HypervisorError, Isolation, Wanted};
use common::{Guest, promises};

const WANTED: Wanted = Wanted::Kvm;

/// Whether there is a KVM at all; says so if not.
fn kvm() -> bool {
    let there = std::path::Path::new("/dev/kvm").exists();
    if !there {
        println!("SKIP: there is no /dev/kvm");
    }
    there
}

#[test]
fn machine_paused_stands_still_and_goes_on_and_is_counted() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::that(WANTED, "tick");
    guest.wait_for("tick");
    let pausable = guest.vm.as_pausable().unwrap();
    let measurable = guest.vm.as_measurable().unwrap();

    pausable.pause().unwrap();
    assert!(!pausable.is_running().unwrap());
    let before = measurable.statistics().unwrap();
    let again = measurable.statistics().unwrap();
    // Nothing of the guest runs between the two.
    assert_eq!(before.exits, again.exits);
    assert_eq!(before.touched_pages, again.touched_pages);
    assert!(
        before.exits.port > 0 && before.touched_pages > 1000,
        "{before}"
    );
    every_thread_has_its_own_filter(&guest);
    pausable.resume().unwrap();
    assert!(pausable.is_running().unwrap());

    guest.wait_for("tick");
}

/// The filter of the whole process is of two programs, that of each thread of two more.
fn every_thread_has_its_own_filter(guest: &Guest) {
    let threads = std::fs::read_dir(format!("/proc/{}/task", guest.vm.pid)).unwrap();
    let filters: Vec<_> = threads
        .map(|thread| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("Seccomp_filters"));
            line.unwrap().split_whitespace().last().unwrap().to_owned()
        })
        .collect();
    // The processor's, the one that takes orders, and one that KVM makes for itself.
    assert!(filters.len() >= 2, "{filters:?}");
    assert!(filters.iter().all(|count| count == "4"), "{filters:?}");
}

#[test]
fn guest_that_panics_says_so_and_ends_the_process() {
    if !kvm() {
        return;
    }
    let status = promises::guest_that_panics_says_so_and_ends_the_process(WANTED);
    // By its panic port: a reset would be a success.
    assert_eq!(status.exit_status(), Some(125));
}

#[test]
fn machine_process_stands_behind_all_walls() {
    if !kvm() {
        return;
    }
    promises::hypervisor_process_stands_behind_all_walls(WANTED);
}

#[test]
fn launcher_killed_takes_the_machine_along() {
    if !kvm() {
        return;
    }
    promises::launcher_killed_takes_the_hypervisor_along("kvm");
}

#[test]
fn root_holds_nothing() {
    if !kvm() {
        return;
    }
    let guest = Guest::that(WANTED, "wait");
    // It is in its jail before the first byte is said.
    while guest.status("Seccomp") != "2" {
        std::thread::yield_now();
    }
    assert_eq!(guest.files(), Vec::<String>::new());
    assert!(!guest.proc("mountinfo").contains(" - proc "));
}

#[test]
fn kernel_image_missing_is_told_on_the_console() {
    if !kvm() {
        return;
    }
    let driver = common::driver(WANTED);
    let mut machine = common::machine(&*driver, "off");
    machine.kernel.image = "/does/not/exist".into();
    let mut guest = Guest::boot(&*driver, &machine);
    let text = guest.rest();
    assert!(
        text.contains("Could not open \"/does/not/exist\""),
        "{text}"
    );
    assert_eq!(guest.wait().exit_status(), Some(125));
}

#[test]
fn stock_kernel_where_kvm_interprets_is_refused_with_the_reason() {
    if !kvm() {
        return;
    }
    let driver = common::driver(WANTED);
    if driver.isolation() != Isolation::EmulatedVm {
        return;
    }
    let mut machine = common::machine(&*driver, "off");
    machine.kernel.manifest.patches.clear();
    let (_, console) = rustix::pipe::pipe().unwrap();
    let io = bulkhead_hypervisor::LaunchIo {
        console,
        bulkhead: common::example("jailed_hat"),
    };
    let error = driver.launch(&machine, io).unwrap_err();
    assert!(
        matches!(error, HypervisorError::EmulatedKernel { .. }),
        "{error}"
    );
}
