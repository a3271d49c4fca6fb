//! Guests that break: reported as such, in less than two seconds, with the last console lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bulkhead_tests::{Container, Inventory, Output, Run, Test, wait};

use crate::lib_dir::compile;
use crate::scene::{Cast, listed, nothing_left, why};

/// How soon it must be told.
const SOON: Duration = Duration::from_secs(2);

/// `run` of `crash WHAT ID ARGUMENTS…` with every right a container can have. Kept.
fn crash<'t>(test: &'t Test, what: &str, arguments: &[&str]) -> Run<'t> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("crash");
        compile(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/crash.c"),
            &program,
        );
        program
    });
    fs::copy(program, test.rootfs().join("crash")).unwrap();
    let id = test.new_id();
    let command = ["/crash", what, &id]
        .into_iter()
        .chain(arguments.iter().copied());
    test.run(command)
        .name(&id)
        .keep()
        .options(["--cap-add", "ALL"])
        .options(["--security-opt", "seccomp=unconfined"])
        .options(["--security-opt", "systempaths=unconfined"])
}

/// Waits until the guest's kernel says `line` on its console, and for the end, which must come soon
/// after.
#[track_caller]
fn ends_soon(test: &Test, container: &mut Container<'_>, line: &str) -> Output {
    let dir = test.root().join(&container.id);
    container.line_is("now");
    wait::until_changed(&dir, || {
        let console = fs::read(dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).contains(line)
    });
    let since = Instant::now();
    let output = container.end();
    let took = since.elapsed();
    assert!(took < SOON, "told after {took:?}: {output}");
    output
}

/// The whole story of a guest that breaks: reported soon with this in its cause and on its console,
/// listed until it is removed, and nothing left.
#[track_caller]
fn broken(test: &Test, run: Run<'_>, cause: &[&str], console: &str) {
    let before = Inventory::take(test);
    let mut container = run.start();
    let id = container.id.clone();

    let output = ends_soon(test, &mut container, console);

    output.expect_code(125);
    assert_eq!(listed(test), [(id.clone(), "stopped".to_owned())]);
    output.expect_error(cause);
    let told = why(test, &id);
    for part in cause {
        assert!(told.contains(part), "{part:?} is missing: {told}");
    }
    let lines = told.lines().filter(|line| line.contains("console:"));
    assert!(lines.count() > 3, "no console lines: {told}");
    let logs = test.verb(["logs", &id]).output();
    assert!(logs.text().contains(console), "{logs}");
    test.verb(["delete", &id]).output().expect_code(0);
    nothing_left(test, &before);
}

pub fn agent_killed_is_reported(test: &Test) {
    let run = crash(test, "agent", &[]);
    broken(test, run, &["agent", "died"], "Attempted to kill init");
}

pub fn kernel_panic_is_reported(test: &Test) {
    let run = crash(test, "panic", &[]);
    let image = test.rootfs().join("ext4.img");
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-O", "^has_journal"])
        .arg(&image)
        .arg("1m")
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("mkfs.ext4 is installed").success());
    broken(test, run, &["kernel panicked", "EXT4-fs"], "Kernel panic");
}

pub fn guest_out_of_memory_is_reported(test: &Test) {
    let run =
        crash(test, "eat-all", &["20"]).options(["--annotation", "io.bulkhead.memory_mib=64"]);
    broken(test, run, &["out of memory", "memory"], "Out of memory");
}

pub fn container_out_of_memory_is_reported(test: &Test) {
    let run = crash(test, "eat", &["20"]).options(["--memory", "32m"]);
    let before = Inventory::take(test);
    let mut container = run.start();
    let id = container.id.clone();

    let output = ends_soon(test, &mut container, "out of memory");

    output.expect_code(137);
    output.expect_error(&["bulkhead: ", "memory", "--memory"]);
    let told = why(test, &id);
    assert!(told.contains("137") && told.contains("memory"), "{told}");
    test.verb(["delete", &id]).output().expect_code(0);
    nothing_left(test, &before);
}

/// An agent that does not answer: its container can still be killed and removed.
pub fn agent_frozen_container_still_killable(test: &Test) {
    let runs = [crash(test, "freeze", &[]), crash(test, "freeze", &[])];
    let before = Inventory::take(test);
    for (run, verb) in runs
        .into_iter()
        .zip([&["kill", "ID", "KILL"][..], &["delete", "--force", "ID"]])
    {
        let container = run.start();
        let sign = test.rootfs().join("frozen");
        wait::exists(&sign);
        fs::remove_file(sign).unwrap();
        let id = container.id.clone();
        let cast = Cast::of(&container, test);

        let args = verb
            .iter()
            .map(|word| if *word == "ID" { &*id } else { *word });
        let output = test.verb(args).output();

        output.expect_code(0);
        let output = container.finish();
        assert!([125, 137].contains(&output.code()), "{output}");
        cast.gone();
        test.verb(["delete", "--force", &id])
            .output()
            .expect_code(0);
        nothing_left(test, &before);
    }
}
