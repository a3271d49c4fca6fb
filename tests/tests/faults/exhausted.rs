//! A host that runs out of something in the middle of a start. By giving a little more each time the
//! start fails at one step after the other.

use std::fs;
use std::path::PathBuf;

use bulkhead_tests::{Inventory, Invocation, Output, Test};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::scene::{descendants_gone, nothing_left};

/// A small file system as state directory.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(test: &Test, options: &str) -> Self {
        let at = test.root();
        fs::create_dir_all(&at).unwrap();
        let data = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
        Self { at }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// Starts with ever more of something until one succeeds; asserts that each before failed in order,
/// with one of `reasons`. At least `least` must fail, otherwise nothing was tested.
#[track_caller]
fn until_enough(
    test: &Test,
    amounts: impl IntoIterator<Item = u32>,
    least: usize,
    reasons: &[&str],
    start: impl Fn(u32) -> Output,
) {
    let before = Inventory::take(test);
    let mut failures = 0;
    for amount in amounts {
        let output = start(amount);
        // What the command killed may still be on its way out.
        descendants_gone();
        nothing_left(test, &before);
        if output.code() == 0 {
            assert_eq!(output.text(), "hello");
            assert!(
                failures >= least,
                "only {failures} failures before {amount} was enough"
            );
            return;
        }
        failures += 1;
        // 126: the machine was there, and had not enough to execute the program.
        assert!(
            [125, 126].contains(&output.code()),
            "with {amount}: {output}"
        );
        let error = output.expect_error(&["bulkhead: "]);
        let named = reasons.iter().any(|reason| error.contains(reason));
        assert!(named, "with {amount}: {output}");
    }
    panic!("never enough: {failures} failures");
}

pub fn disk_full_fails_clean_at_every_step(test: &Test) {
    let start = |options: String| {
        let disk = SmallDisk::mount(test, &options);
        let output = test.run(["/bin/echo", "hello"]).output();
        drop(disk);
        output
    };
    let reasons = ["No space left on device"];
    // The root of the file system is an inode, too.
    until_enough(test, 2..60, 5, &reasons, |inodes| {
        start(format!("nr_inodes={inodes}"))
    });
    let start = |pages: u32| start(format!("size={}", pages * 4096));
    until_enough(test, 1..60, 2, &reasons, start);
}

pub fn descriptors_exhausted_fails_clean_at_every_step(test: &Test) {
    let start = |count: u32| limited(test, &format!("--nofile={count}:{count}"));
    until_enough(test, 8..200, 10, &[""], start);
}

pub fn processes_exhausted_fails_clean(test: &Test) {
    let start = |count: u32| limited(test, &format!("--nproc={count}:{count}"));
    until_enough(test, 0..30, 1, &[""], start);
}

/// `run … echo hello` with a limit on its resources.
fn limited(test: &Test, limit: &str) -> Output {
    let run = test.run(["/bin/echo", "hello"]).invocation().into_command();
    let environment = run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let limited = environment.fold(
        Invocation::new("prlimit").arg(limit),
        |limited, (name, value)| limited.env(name, value),
    );
    limited.arg(run.get_program()).args(run.get_args()).output()
}
