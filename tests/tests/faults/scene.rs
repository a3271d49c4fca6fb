//! Processes of a container under test, and the moments at which something happens to them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bulkhead_tests::harness::inventory;
use bulkhead_tests::{Container, Inventory, Output, Running, Test, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The processes of the host of one container, each pinned by a descriptor: their numbers may be
/// used again, these may not.
#[derive(Debug)]
pub struct Cast {
    /// The `run` command; 0 for an engine's container, whose commands have ended.
    pub command: u32,
    /// The stand-in of an engine's container.
    pub standin: u32,
    /// The sandbox process.
    pub sandbox: u32,
    /// The device process.
    pub device: u32,
    /// The hypervisor.
    pub hypervisor: u32,
    fds: BTreeMap<u32, OwnedFd>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The `run` command.
    Command,
    /// The stand-in an engine takes for the container's process.
    StandIn,
    /// The sandbox process.
    Sandbox,
    /// The device process.
    Device,
    /// The hypervisor.
    Hypervisor,
}

/// Those of a container with an attached command.
pub const EVERYONE: [Victim; 4] = [
    Victim::Command,
    Victim::Sandbox,
    Victim::Device,
    Victim::Hypervisor,
];

impl Cast {
    /// The processes of a container that has all of them.
    pub fn of(container: &Container<'_>, test: &Test) -> Self {
        let cast = Self::as_far_as_there(container, test);
        let all = [cast.sandbox, cast.device, cast.hypervisor];
        assert!(all.iter().all(|pid| *pid != 0), "not complete: {cast:?}");
        cast
    }

    /// The processes a container has now, whatever it is about to do; those it lacks are 0.
    pub fn as_far_as_there(container: &Container<'_>, test: &Test) -> Self {
        Self::with(container.pid(), &container.id, test)
    }

    /// The processes of an engine's container, which has all of them.
    pub fn of_engine(test: &Test, id: &str) -> Self {
        let cast = Self::with(0, id, test);
        let all = [cast.standin, cast.sandbox, cast.device, cast.hypervisor];
        assert!(all.iter().all(|pid| *pid != 0), "not complete: {cast:?}");
        cast
    }

    fn with(command: u32, id: &str, test: &Test) -> Self {
        let journal = journal(test, id).unwrap_or_default();
        let number = |value: &Value| u32::try_from(value["pid"].as_u64().unwrap_or(0)).unwrap();
        let sandbox = number(&journal["sandbox"]);
        let (device, hypervisor) = (
            number(&journal["helpers"][0]),
            number(&journal["helpers"][1]),
        );
        let standin = number(&journal["standin"]);
        let mut all = if sandbox == 0 {
            Vec::new()
        } else {
            inventory::tree(sandbox)
        };
        all.extend([command, standin].iter().filter(|pid| **pid != 0));
        let fds = all
            .into_iter()
            .filter_map(|pid| Some((pid, wait::pidfd(pid)?)));
        Self {
            command,
            standin,
            sandbox,
            device,
            hypervisor,
            fds: fds.collect(),
        }
    }

    /// The number of one of them.
    pub fn pid(&self, victim: Victim) -> u32 {
        match victim {
            Victim::Command => self.command,
            Victim::StandIn => self.standin,
            Victim::Sandbox => self.sandbox,
            Victim::Device => self.device,
            Victim::Hypervisor => self.hypervisor,
        }
    }

    /// Kills one of them, if it is still there.
    pub fn kill(&self, victim: Victim) {
        self.send(victim, Signal::KILL);
    }

    /// Sends one of them a signal, if it is still there.
    pub fn send(&self, victim: Victim, signal: Signal) {
        let pid = self.pid(victim);
        let there = self
            .fds
            .get(&pid)
            .is_some_and(|fd| !wait::readable(fd.as_fd(), Instant::now()));
        if there {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            // It may end in between.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until all of them have ended.
    #[track_caller]
    pub fn gone(&self) {
        let until = Instant::now() + wait::limit();
        for (pid, fd) in &self.fds {
            let ended = wait::readable(fd.as_fd(), until);
            assert!(ended, "process {pid} is left of {self:?}");
        }
    }
}

/// The journal of a container, if it has one.
pub fn journal(test: &Test, id: &str) -> Option<Value> {
    let text = fs::read(test.root().join(id).join("state.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Waits until a container's journal is as wanted.
pub fn until_journal(test: &Test, id: &str, wanted: impl Fn(&Value) -> bool) {
    // The directories appear one after the other.
    fs::create_dir_all(test.root()).unwrap();
    let dir = test.root().join(id);
    wait::until_changed(&test.root(), || dir.exists());
    wait::until_changed(&dir, || {
        journal(test, id).is_some_and(|state| wanted(&state))
    });
}

/// Waits until all processes of a container exist.
pub fn until_spawned(test: &Test, id: &str) {
    until_journal(test, id, |state| {
        state["helpers"]
            .as_array()
            .is_some_and(|helpers| helpers.len() == 2)
    });
}

/// Waits until this process has no descendants: orphans come to it.
pub fn descendants_gone() {
    let us = std::process::id();
    while let Some(pid) = inventory::tree(us).into_iter().find(|pid| *pid != us) {
        wait::gone(pid);
    }
}

/// Waits until one of several commands has ended, and says which.
pub fn first_ended(commands: &[Running]) -> usize {
    let fds: Vec<_> = commands
        .iter()
        .map(|command| wait::pidfd(command.pid()).expect("a child that was not waited for"))
        .collect();
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let limit = Timespec::try_from(wait::limit()).unwrap();
    assert_ne!(
        poll(&mut polled, Some(&limit)).unwrap(),
        0,
        "none of them has ended"
    );
    polled
        .iter()
        .position(|fd| !fd.revents().is_empty())
        .unwrap()
}

/// Waits until a container's command has made its directory.
pub fn until_begun(test: &Test, id: &str) {
    let dir = test.root().join(id);
    fs::create_dir_all(test.root()).unwrap();
    wait::until_changed(&test.root(), || dir.exists());
}

/// A container whose process waits for a line and then ends with code 7.
pub fn waiting(test: &Test) -> Container<'_> {
    let run = test
        .sh("echo ready; read line; echo bye; exit 7")
        .option("-i");
    run.with(bulkhead_tests::Invocation::stdin_pipe)
        .start()
        .ready()
}

/// Has engines' containers run on the test's hypervisor: `create` has no option for it.
pub fn choose_hypervisor(test: &Test) {
    let config = test.config_dir().join("config.toml");
    fs::write(config, test.driver.config()).unwrap();
}

/// What `list` says: name and status of each container.
pub fn listed(test: &Test) -> Vec<(String, String)> {
    let list = test.verb(["list", "--format", "json"]).output().json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = list.as_array().expect("a list").clone();
    list.iter()
        .map(|state| (text(&state["id"]), text(&state["status"])))
        .collect()
}

/// Asserts that the machine is as before but for records of failures, and that nothing is listed.
#[track_caller]
pub fn nothing_left(test: &Test, before: &Inventory) {
    assert_eq!(listed(test), [], "listed");
    let root = test.root().display().to_string();
    let mut differences = before.differences(&Inventory::take(test));
    let root = format!("+ file {root}");
    // The processors that machines are pinned to are shared out by names that live as long as a
    // process holds them: other people's machines have some, too.
    // So have the directories of other test processes.
    let ours = test.dir().display().to_string();
    let expected = |line: &String| {
        line == &root
            || line.contains("/.failures")
            || line.contains(" @bulkhead/cpu")
            || (line.contains("/tmp/bh-") && !line.contains(&ours))
    };
    differences.retain(|line| !expected(line));
    assert!(
        differences.is_empty(),
        "something is left, or lost: {differences:#?}"
    );
    let sockets = sockets_of(&test.root());
    assert!(sockets.is_empty(), "{sockets:?}");
}

/// Sockets below a directory that still have a name.
fn sockets_of(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect()
}

/// Asserts that a start failed in order: exit code 125, one line on standard error with `parts`.
#[track_caller]
pub fn failed_start(output: &Output, parts: &[&str]) {
    output.expect_code(125);
    let error = output.expect_error(parts);
    assert!(error.starts_with("bulkhead: "), "{output}");
}

/// What `why` tells of a container.
pub fn why(test: &Test, id: &str) -> String {
    test.verb(["why", id]).output().text().to_owned()
}
