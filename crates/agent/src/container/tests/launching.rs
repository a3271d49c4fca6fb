//! The launchers of a container: what their children leave them, and what they leave each other.

use std::{ffi::c_void, os::fd::OwnedFd, ptr};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, pidfd_send_signal},
};
use serde_json::{Value, json};

use super::harness::{Ends, Sleeper, finish, isolated, pipes, rootfs, sleeping};
use crate::container::{
    Child,
    sharing::{self, Stack},
    sys,
};

fn process(script: &str) -> Value {
    let mut process = sleeping()["process"].take();
    process["args"] = json!(["sh", "-c", script]);
    process
}

fn begin(sleeper: &Sleeper, process: Value) -> (Child, Ends) {
    let (io, ends) = pipes();
    let process = serde_json::from_value(process).unwrap();
    (sleeper.container.exec(&process, io).unwrap(), ends)
}

/// The first of the container's launchers, once it has one.
fn launcher(sleeper: &Sleeper) -> OwnedFd {
    assert_eq!(sleeper.exec(process("true")).code, 0);
    let launchers = sleeper.container.launchers.lock().unwrap();
    launchers.first().unwrap().pidfd.try_clone().unwrap()
}

fn lives(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
}

#[test]
fn launcher_outlasts_a_child_that_failed() {
    let rootfs = rootfs();

    let (missing, nowhere, fine, kept) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let launcher = launcher(&sleeper);
        let mut absent = process("true");
        absent["args"] = json!(["nonesuch"]);
        let missing = sleeper.exec(absent);
        let mut astray = process("true");
        astray["cwd"] = json!("/no/such/place");
        let nowhere = sleeper.exec(astray);
        let fine = sleeper.exec(process("echo fine"));
        let kept = lives(&launcher);
        sleeper.kill();
        (missing, nowhere, fine, kept)
    });

    assert_eq!(missing.program_code, Some(127));
    assert!(nowhere.failure().contains("process.cwd"), "{nowhere:?}");
    assert_eq!(fine.output(), "fine\n");
    assert!(kept, "the launcher ended");
}

extern "C" fn be_killed(_: *const c_void) -> ! {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    unreachable!("no process survives this")
}

extern "C" fn give_up(_: *const c_void) -> ! {
    sys::exit_now(1)
}

/// It may have been in the middle of an allocation in the memory it shared.
#[test]
fn memory_shared_with_a_child_killed_on_its_way_is_not_in_order() {
    let rootfs = rootfs();

    let in_order = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let stack = Stack::new().unwrap();
        let in_order = [give_up, be_killed, give_up].map(|run| {
            let cgroup = sleeper.container.cgroup.as_fd();
            // SAFETY: this process is single-threaded, waits at once, and `run` wants no argument.
            let child = unsafe { sharing::start(&stack, cgroup, run, ptr::null()) };
            child.unwrap().over()
        });
        sleeper.kill();
        in_order
    });

    assert_eq!(in_order, [true, false, true]);
}

#[test]
fn launcher_that_was_killed_is_replaced() {
    let rootfs = rootfs();

    let outcome = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let launcher = launcher(&sleeper);
        pidfd_send_signal(&launcher, Signal::KILL).unwrap();
        super::harness::wait_readable(launcher);
        let outcome = sleeper.exec(process("echo again"));
        sleeper.kill();
        outcome
    });

    assert_eq!(outcome.output(), "again\n");
}

#[test]
fn further_processes_begun_at_once_have_each_its_own_streams() {
    const COUNT: usize = 20;
    let rootfs = rootfs();

    let (outputs, launchers) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let begun: Vec<_> = (0..COUNT)
            .map(|n| begin(&sleeper, process(&format!("cat; echo {n}"))))
            .collect();
        let outputs: Vec<_> = begun
            .into_iter()
            .map(|(child, ends)| finish(child, ends))
            .collect();
        sleeper.container.settle();
        let launchers = sleeper.container.launchers.lock().unwrap().len();
        sleeper.kill();
        (outputs, launchers)
    });

    for (n, outcome) in outputs.iter().enumerate() {
        assert_eq!(outcome.output(), format!("{n}\n"));
    }
    assert!(launchers <= 2, "{launchers} launchers are kept");
}

#[test]
fn more_processes_than_a_launcher_starts_leave_no_launchers_behind() {
    let rootfs = rootfs();

    let (failed, left) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let failed = (0..600)
            .filter(|_| {
                let code = sleeper.exec(process("true")).code;
                sleeper.container.settle();
                code != 0
            })
            .count();
        let launchers = sleeper.container.launchers.lock().unwrap().len();
        sleeper.kill();
        (failed, launchers)
    });

    assert_eq!(failed, 0);
    assert!(left <= 2, "{left} launchers are kept");
}

#[test]
fn processes_with_other_bounding_sets_are_not_confused() {
    let rootfs = rootfs();
    let bounded = |names: &[&str]| {
        let mut process = process("grep CapBnd /proc/self/status");
        process["capabilities"] = json!({"bounding": names});
        process
    };

    let outputs = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let sets: [&[&str]; 3] = [&["CAP_KILL"], &["CAP_KILL", "CAP_CHOWN"], &["CAP_KILL"]];
        let outputs = sets.map(|names| sleeper.exec(bounded(names)).output().to_owned());
        sleeper.kill();
        outputs
    });

    let sets = outputs.map(|line| line.trim_end().replace("CapBnd:\t", ""));
    assert_eq!(
        sets,
        ["0000000000000020", "0000000000000021", "0000000000000020"]
    );
}

#[test]
fn further_process_shares_a_pid_namespace_that_is_not_the_containers_own() {
    let rootfs = rootfs();
    let mut spec = sleeping();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");

    let (outcome, agent) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), spec);
        let outcome = sleeper.exec(process("readlink /proc/self/ns/pid"));
        sleeper.kill();
        let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
        (outcome, own.to_str().unwrap().to_owned())
    });

    assert_eq!(outcome.output().trim_end(), agent);
}

#[test]
fn launcher_ends_with_its_container() {
    let rootfs = rootfs();

    isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let launcher = launcher(&sleeper);
        sleeper.kill();
        super::harness::wait_readable(launcher);
    });
}
