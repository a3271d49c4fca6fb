//! A host that runs out of something in the middle of a start. By giving a little more each time the
//! start fails at one step after the other.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use bulkhead_tests::{Created, Inventory, Invocation, Output, Test};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::scene::{choose_hypervisor, descendants_gone, nothing_left};

/// A small file system as state directory.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// At the test's state directory.
    fn mount(test: &Test, options: &str) -> Self {
        let at = test.root();
        fs::create_dir_all(&at).unwrap();
        let data = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
        Self { at }
    }
}

impl SmallDisk {
    /// Leaves no block, or no inode, for anybody else.
    fn fill(&self, what: Filling) {
        match what {
            Filling::Blocks => {
                let mut filler = fs::File::create(self.at.join(".filler")).unwrap();
                let full = (0..).find_map(|_| filler.write_all(&[0; 4096]).err());
                assert_eq!(full.unwrap().kind(), ErrorKind::StorageFull);
            }
            Filling::Inodes => {
                let dir = self.at.join(".filler");
                fs::create_dir(&dir).unwrap();
                let full = (0..).find_map(|number| {
                    let file = fs::File::create(dir.join(format!("{number}")));
                    file.err()
                });
                assert_eq!(full.unwrap().kind(), ErrorKind::StorageFull);
            }
        }
    }

    fn free(&self, what: Filling) {
        let filler = self.at.join(".filler");
        match what {
            Filling::Blocks => fs::remove_file(filler).unwrap(),
            Filling::Inodes => fs::remove_dir_all(filler).unwrap(),
        }
    }
}

/// What a disk runs out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Blocks,
    Inodes,
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// How `run` ends: 126 if the machine was there, and had not enough to execute the program.
const RUN: &[i32] = &[125, 126];

/// What is told of a full disk.
const FULL: &[&str] = &["No space left on device"];

/// Starts with ever more of something until one succeeds; asserts that each before failed in order,
/// with one of these codes and reasons. At least `least` must fail, otherwise nothing was tested.
#[track_caller]
fn until_enough(
    test: &Test,
    amounts: impl IntoIterator<Item = u32>,
    least: usize,
    (codes, reasons): (&[i32], &[&str]),
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
        assert!(codes.contains(&output.code()), "with {amount}: {output}");
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
    // The root of the file system is an inode, too.
    until_enough(test, 2..60, 5, (RUN, FULL), |inodes| {
        start(format!("nr_inodes={inodes}"))
    });
    let start = |pages: u32| start(format!("size={}", pages * 4096));
    until_enough(test, 1..60, 2, (RUN, FULL), start);
}

pub fn disk_full_create_fails_clean_at_every_step(test: &Test) {
    choose_hypervisor(test);
    // What is created is not started, and says nothing.
    let bundle = test.bundle(|_| {});
    let root = test.root();
    let start = |options: String| {
        let disk = SmallDisk::mount(test, &options);
        let create = test.verb(["create", "--bundle"]).arg(&bundle.dir);
        let create = create.arg(&bundle.id);
        // The stand-in keeps the streams.
        let file = test.dir().join("error");
        let script = format!(
            "\"$@\" >/dev/null 2>{} </dev/null && exec echo hello",
            file.display()
        );
        let mut output = create.in_shell(&script).output();
        output.stderr = fs::read(&file).unwrap();
        test.verb(["delete", "--force", &bundle.id])
            .output()
            .expect_code(0);
        drop(disk);
        output
    };
    let root = root.display().to_string();
    let check = |output: Output| {
        if output.code() != 0 {
            output.expect_error(&[&root, "`df -i`"]);
        }
        output
    };
    until_enough(test, 2..60, 5, (&[1], FULL), |inodes| {
        check(start(format!("nr_inodes={inodes}")))
    });
    let start = |pages: u32| check(start(format!("size={}", pages * 4096)));
    until_enough(test, 1..60, 2, (&[1], FULL), start);
}

/// A disk that is filled later does no harm to what runs, and can be freed at any time.
pub fn disk_filled_while_running_is_survived(test: &Test) {
    choose_hypervisor(test);
    for what in [Filling::Blocks, Filling::Inodes] {
        let before = Inventory::take(test);
        let disk = SmallDisk::mount(test, "size=2m,nr_inodes=200");
        let bundle = test.bundle_sh("while read line; do echo \"$line\"; done; exit 7", |_| {});
        let mut container = Created::new(test, bundle, Invocation::stdin_pipe);
        container.start();
        disk.fill(what);

        container.write_line("one");
        assert_eq!(container.line(), "one");
        assert_eq!(container.status(), "running");
        let refused = test.run(["/bin/true"]).output();
        let at = test.root().display().to_string();
        refused.expect_code(125);
        refused.expect_error(&[&at, "No space left on device", "`df -i`"]);
        let exec = container.exec(&[], "echo in").output();
        match what {
            Filling::Blocks => assert_eq!(exec.text(), "in"),
            Filling::Inodes => {
                exec.expect_error(&[&at, "No space left on device", "`df -i`"]);
            }
        }
        let signal = test.dir().join("pid");
        let detached = ["--detach", "--pid-file", signal.to_str().unwrap()];
        let exec = container.exec(&detached, "exit 3").output();
        exec.expect_code(0);
        for (verb, status) in [("pause", "paused"), ("resume", "running")] {
            container.verb(verb, &[]).expect_code(0);
            assert_eq!(container.status(), status);
        }
        container.write_line("two");
        assert_eq!(container.line(), "two");
        container.close_stdin();
        assert_eq!(container.wait().code(), Some(7));

        // The end was written down, by a process that has ended as well.
        descendants_gone();
        let state = container.state();
        assert_eq!(state["status"], "stopped", "{state:#}");
        assert_eq!(state["exitCode"], 7, "{state:#}");
        container.verb("delete", &[]).expect_code(0);
        disk.free(what);
        test.run(["/bin/true"]).output().expect_code(0);
        drop(container);
        drop(disk);
        nothing_left(test, &before);
    }
}

pub fn descriptors_exhausted_fails_clean_at_every_step(test: &Test) {
    let start = |count: u32| limited(test, &format!("--nofile={count}:{count}"));
    until_enough(test, 8..200, 10, (RUN, &[""]), start);
}

pub fn processes_exhausted_fails_clean(test: &Test) {
    let start = |count: u32| limited(test, &format!("--nproc={count}:{count}"));
    until_enough(test, 0..30, 1, (RUN, &[""]), start);
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

/// What holds for any runtime.
pub fn container_survives_a_disk_filled_later(test: &Test) {
    if !test.driver.is_peer() {
        choose_hypervisor(test);
    }
    let disk = SmallDisk::mount(test, "size=2m");
    let bundle = test.bundle_sh("read line; echo \"$line\"; exit 7", |_| {});
    let mut container = Created::new(test, bundle, Invocation::stdin_pipe);
    container.start();

    disk.fill(Filling::Blocks);

    container.exec(&[], "true").output().expect_code(0);
    container.write_line("still here");
    assert_eq!(container.line(), "still here");
    assert_eq!(container.wait().code(), Some(7));
    assert_eq!(container.status(), "stopped");
    container.verb("delete", &[]).expect_code(0);
    drop(container);
    drop(disk);
}
