//! What every refusal has in common.

use std::ffi::OsStr;
use std::fs;

use bulkhead_tests::{Invocation, Output, Test};

/// Docker's and Podman's exit code for an error that is not the container's own.
pub const RUN: i32 = 125;

/// runc's exit code for any error.
pub const BUNDLE: i32 = 1;

/// Asserts a refusal: this exit code, one line on standard error that names each of `parts` and
/// something to do, nothing on standard output, nothing left.
#[track_caller]
pub fn refused(test: &Test, output: &Output, code: i32, parts: &[&str]) {
    output.expect_code(code);
    let error = output.expect_error(parts);
    assert!(error.starts_with("bulkhead: "), "not ours: {output}");
    assert!(
        error.len() < 2000,
        "no one reads {} bytes: {output}",
        error.len()
    );
    assert!(
        !error.trim_end().chars().any(char::is_control),
        "drives the terminal: {output}"
    );
    assert!(output.stdout.is_empty(), "{output}");
    nothing_left(test);
}

/// Asserts that the state directory holds nothing but records for `why`.
#[track_caller]
pub fn nothing_left(test: &Test) {
    let left: Vec<_> = fs::read_dir(test.root())
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".failures")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// `run --hypervisor … --name NEW OPTIONS… --rootfs ROOTFS -- COMMAND…` refused.
#[track_caller]
pub fn run_refused<A: AsRef<OsStr>>(test: &Test, options: &[A], parts: &[&str]) {
    let output = test.run(["/bin/true"]).options(options).output();
    refused(test, &output, RUN, parts);
}

/// The same for several lists of options.
#[track_caller]
pub fn each_run_refused(test: &Test, cases: &[(&[&str], &[&str])]) {
    for (options, parts) in cases {
        run_refused(test, options, parts);
    }
}

/// `run` with nothing that the harness would add.
pub fn bare_run(test: &Test) -> Invocation {
    test.verb(["run"])
}
