//! Ends in order, and starts that fail at each step.

use std::fs;

use bulkhead_tests::{Inventory, Test};
use rustix::process::Signal;

use crate::lib_dir::{LibDir, initramfs_with, program, sleeper};
use crate::scene::{Cast, failed_start, listed, nothing_left, until_spawned, waiting, why};

pub fn end_in_order_leaves_nothing(test: &Test) {
    let before = Inventory::take(test);

    let mut container = waiting(test);
    let cast = Cast::of(&container, test);
    assert_eq!(listed(test), [(container.id.clone(), "running".to_owned())]);
    container.write_line("");
    container.finish().expect_code(7);

    cast.gone();
    nothing_left(test, &before);
}

pub fn end_by_signal_leaves_nothing(test: &Test) {
    let before = Inventory::take(test);

    let container = waiting(test);
    let cast = Cast::of(&container, test);
    container.kill("KILL");
    container.finish().expect_code(137);

    cast.gone();
    nothing_left(test, &before);
}

pub fn kernel_image_missing_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    fs::remove_file(&lib.image).unwrap();
    let before = Inventory::take(test);

    let output = lib.used_by(test.run(["/bin/true"])).output();

    failed_start(&output, &["kernel", "make kernel"]);
    nothing_left(test, &before);
}

pub fn kernel_image_damaged_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);
    let whole = fs::read(&lib.image).unwrap();
    let half = &whole[..whole.len() / 2];

    // Not an image at all; one that was cut short; one whose code is damaged.
    let mut scratched = whole.clone();
    let middle = scratched.len() / 3;
    scratched[middle..middle + 500_000].fill(0xcc);
    for image in [&vec![b'x'; whole.len()][..], half, &scratched] {
        lib.install_image(image);
        let run = lib.used_by(test.run(["/bin/true"])).name("damaged");
        let output = run.output();
        failed_start(&output, &[]);
        let why = why(test, "damaged");
        assert!(why.contains("cause") && why.contains("fix"), "{why}");
        nothing_left(test, &before);
    }
}

pub fn initramfs_damaged_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);

    lib.install_initramfs(&[b'x'; 100_000]);
    let output = lib
        .used_by(test.run(["/bin/true"]))
        .name("damaged")
        .output();
    failed_start(&output, &["kernel", "panicked"]);
    let told = why(test, "damaged");
    assert!(
        told.contains("console:") && told.contains("panic"),
        "{told}"
    );
    nothing_left(test, &before);

    // One whose program is none.
    lib.install_initramfs(&initramfs_with(b"\x7fELFgarbage"));
    let output = lib
        .used_by(test.run(["/bin/true"]))
        .name("damaged")
        .output();
    failed_start(&output, &["kernel", "panicked"]);
    nothing_left(test, &before);
}

pub fn initramfs_empty_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);

    lib.install_initramfs(b"");
    let output = lib.used_by(test.run(["/bin/true"])).output();

    failed_start(&output, &[]);
    nothing_left(test, &before);
}

pub fn hypervisor_that_exits_at_once_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);

    lib.install_image(&program("exits", "int main(void) { return 3; }\n"));
    let output = lib.used_by(test.run(["/bin/true"])).name("exits").output();
    failed_start(&output, &["hypervisor", "status 3"]);
    assert!(why(test, "exits").contains("status 3"));
    nothing_left(test, &before);

    // One that tries what its filter forbids.
    let forbidden = "#include <unistd.h>\nint main(void) { return chroot(\"/\"); }\n";
    lib.install_image(&program("forbidden", forbidden));
    let output = lib.used_by(test.run(["/bin/true"])).output();
    failed_start(&output, &["seccomp"]);
    nothing_left(test, &before);
}

pub fn hypervisor_that_never_calls_home_fails_clean(test: &Test) {
    let lib = LibDir::new(test);
    fs::write(
        test.config_dir().join("config.toml"),
        "start_timeout_s = 1\n",
    )
    .unwrap();
    let before = Inventory::take(test);

    lib.install_image(&sleeper());
    let output = lib.used_by(test.run(["/bin/true"])).output();
    failed_start(&output, &["did not call home within 1 s"]);
    nothing_left(test, &before);
}

pub fn program_missing_fails_clean(test: &Test) {
    let before = Inventory::take(test);

    let output = test.run(["/no/such/program"]).name("missing").output();

    output.expect_code(127);
    assert!(why(test, "missing").contains("/no/such/program"));
    nothing_left(test, &before);
}

pub fn bundle_refused_leaves_nothing(test: &Test) {
    let bundle = test.bundle(|config| {
        config["linux"]["intelRdt"] = serde_json::json!({ "closID": "x" });
    });
    let before = Inventory::take(test);

    let output = bundle.output();

    output.expect_code(1);
    nothing_left(test, &before);
}

pub fn start_called_off_by_a_signal_leaves_nothing(test: &Test) {
    let lib = LibDir::new(test);
    lib.install_image(&sleeper());
    let before = Inventory::take(test);

    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let container = lib.used_by(test.run(["/bin/true"])).start();
        until_spawned(test, &container.id);
        let cast = Cast::of(&container, test);
        container.signal(signal);
        container.finish().expect_code(code);
        cast.gone();
        nothing_left(test, &before);
    }
}
