//! SIGKILL to each process of an engine's container at each verb of the chain.
//!
//! A verb is caught in the middle by stopping the hypervisor before: what the sandbox process asks the
//! guest for is then under way for as long as the test wants.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bulkhead_tests::harness::inventory;
use bulkhead_tests::{Created, Inventory, Invocation, Output, Running, Test, wait};
use rustix::process::Signal;
use serde_json::json;

use crate::lib_dir::{LibDir, initramfs_with, sleeper};
use crate::scene::{
    Cast, Victim, choose_hypervisor, descendants_gone, listed, nothing_left, until_journal,
    until_spawned, why,
};

/// Everybody in the chain; the command is that of the verb.
const CHAIN: [Victim; 5] = [
    Victim::Command,
    Victim::StandIn,
    Victim::Sandbox,
    Victim::Device,
    Victim::Hypervisor,
];

/// A container as an engine has it, created; its process waits for the end of its input.
fn created(test: &Test) -> Created<'_> {
    choose_hypervisor(test);
    let bundle = test.bundle_sh("cat", |_| {});
    Created::new(test, bundle, Invocation::stdin_pipe)
}

fn started(test: &Test) -> Created<'_> {
    let container = created(test);
    container.start();
    container
}

/// The sockets a process has open.
fn sockets(pid: u32) -> BTreeSet<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    links
        .map(|link| link.display().to_string())
        .filter(|link| link.starts_with("socket:"))
        .collect()
}

/// Stops the hypervisor, then begins a verb and waits until the sandbox process has taken `connections`
/// of it.
fn caught(cast: &Cast, verb: Invocation, connections: usize) -> Running {
    cast.send(Victim::Hypervisor, Signal::STOP);
    let before = sockets(cast.sandbox);
    let verb = verb.spawn();
    let ended = wait::pidfd(verb.pid()).expect("a child that was not waited for");
    let until = Instant::now() + wait::limit();
    while sockets(cast.sandbox).difference(&before).count() < connections {
        // The kernel tells nobody of a connection but him who takes it.
        let soon = Instant::now() + Duration::from_millis(1);
        if wait::readable(ended.as_fd(), soon) {
            panic!("it was not caught: {}", verb.finish());
        }
        assert!(Instant::now() < until, "no connection");
    }
    verb
}

/// One container of those killed at a verb.
struct Scene<'t> {
    victim: Victim,
    container: Created<'t>,
    cast: Cast,
    verb: Running,
}

impl Scene<'_> {
    fn kill(&self) {
        match self.victim {
            Victim::Command => {
                self.verb.signal(Signal::KILL);
                self.cast.send(Victim::Hypervisor, Signal::CONT);
            }
            victim => self.cast.kill(victim),
        }
    }
}

/// What is said of the end of a machine that lost this process.
fn reason(victim: Victim) -> &'static str {
    match victim {
        Victim::Command => "",
        Victim::StandIn => "stand-in",
        Victim::Sandbox => "sandbox process",
        Victim::Device => "device process",
        Victim::Hypervisor => "hypervisor process",
    }
}

/// Kills each process in turn while `verb` (with the container's name for `ID`) is under way in a
/// container of its own, and hands what the verb said to `judge`. Whatever the verb: afterwards the
/// container is as it was or has stopped, and can be removed with all that belonged to it.
fn killed_at<'t>(
    test: &'t Test,
    make: impl Fn() -> Created<'t>,
    verb: &[&str],
    connections: usize,
    judge: impl Fn(Victim, &Output),
) {
    let before = Inventory::take(test);
    // All at once: some of these machines are given a few seconds to end in order.
    let scenes: Vec<_> = CHAIN
        .into_iter()
        .map(|victim| {
            let container = make();
            let cast = Cast::of_engine(test, container.id());
            let words = verb.iter().map(|word| match *word {
                "ID" => container.id(),
                word => word,
            });
            let verb = caught(&cast, test.verb(words), connections);
            Scene {
                victim,
                container,
                cast,
                verb,
            }
        })
        .collect();
    scenes.iter().for_each(Scene::kill);
    for mut scene in scenes {
        let (victim, mut container) = (scene.victim, scene.container);
        let id = container.id().to_owned();
        if victim == Victim::Command {
            // A detached process may have its streams.
            assert_eq!(scene.verb.exited().signal(), Some(9));
            let status = container.status();
            let possible = ["created", "running", "paused", "stopped"];
            assert!(possible.contains(&&*status), "{victim:?}: {status}");
        } else {
            judge(victim, &scene.verb.finish());
            assert!(!container.wait().success());
            stopped_or_gone(test, &id);
        }
        let deleted = test.verb(["delete", "--force", &id]).output();
        deleted.expect_code(0);
        scene.cast.gone();
        if victim == Victim::Command {
            container.wait();
        }
    }
    descendants_gone();
    nothing_left(test, &before);
}

/// A start that failed leaves no container; every other verb one that has stopped.
fn stopped_or_gone(test: &Test, id: &str) {
    let state = test.verb(["state", id]).output();
    if state.code() == 0 {
        let state = state.json();
        assert_eq!(state["status"], "stopped");
        assert_eq!(state["pid"], 0);
    } else {
        state.expect_error(&[id, "does not exist"]);
    }
}

/// The verb's only line names the reason, and so does `why`.
fn told(victim: Victim, output: &Output) {
    assert_ne!(output.code(), 0, "{victim:?}: {output}");
    let error = output.expect_error(&[]);
    assert!(error.starts_with("bulkhead: "), "{output}");
    // On a busy host the sandbox process may have seen the end before it has read the request.
    let why = [reason(victim), "it is stopped"];
    assert!(
        why.iter().any(|part| error.contains(part)),
        "{victim:?}: {output}"
    );
}

pub fn each_process_killed_at_start_is_told(test: &Test) {
    killed_at(test, || created(test), &["start", "ID"], 1, told);
}

pub fn each_process_killed_at_exec_is_told(test: &Test) {
    let verb = ["exec", "ID", "/bin/true"];
    killed_at(test, || started(test), &verb, 1, told);
}

pub fn each_process_killed_at_detached_exec_is_told(test: &Test) {
    let verb = ["exec", "--detach", "ID", "/bin/sleep", "1000"];
    // Its life line is handed over first.
    killed_at(test, || started(test), &verb, 2, told);
}

pub fn each_process_killed_at_kill_is_told(test: &Test) {
    let verb = ["kill", "ID", "TERM"];
    killed_at(
        test,
        || started(test),
        &verb,
        1,
        |victim, output| {
            // A machine that can still end in order gets more time than a signal.
            if !output.error().contains("did not deliver the signal") {
                told(victim, output);
            }
        },
    );
}

pub fn each_process_killed_at_pause_is_told(test: &Test) {
    killed_at(test, || started(test), &["pause", "ID"], 1, told);
}

pub fn each_process_killed_at_resume_is_told(test: &Test) {
    let paused = || {
        let container = started(test);
        container.verb("pause", &[]).expect_code(0);
        container
    };
    killed_at(test, paused, &["resume", "ID"], 1, told);
}

pub fn each_process_killed_at_update_is_told(test: &Test) {
    let verb = ["update", "--pids-limit", "40", "ID"];
    killed_at(test, || started(test), &verb, 1, told);
}

pub fn each_process_killed_at_delete_leaves_nothing(test: &Test) {
    let verb = ["delete", "--force", "ID"];
    killed_at(
        test,
        || started(test),
        &verb,
        1,
        |victim, output| {
            assert_eq!(output.code(), 0, "{victim:?}: {output}");
        },
    );
}

pub fn each_process_killed_between_verbs_is_told(test: &Test) {
    let before = Inventory::take(test);
    for victim in CHAIN {
        if victim == Victim::Command {
            continue;
        }
        let mut container = started(test);
        let id = container.id().to_owned();
        let cast = Cast::of_engine(test, &id);

        cast.kill(victim);

        assert!(!container.wait().success());
        cast.gone();
        assert_eq!(listed(test), [(id.clone(), "stopped".to_owned())]);
        assert_eq!(container.state()["pid"], 0);
        let told = why(test, &id);
        assert!(told.contains(reason(victim)), "{victim:?}: {told}");
        for verb in ["start", "pause", "resume", "kill"] {
            let refused = container.verb(verb, &[]);
            refused.expect_code(1);
            refused.expect_error(&[&id, "stopped"]);
        }
        let refused = test.verb(["exec", &id, "/bin/true"]).output();
        refused.expect_error(&[&id, "stopped"]);
        container.verb("delete", &[]).expect_code(0);
        nothing_left(test, &before);
    }
}

/// `create` of a guest that boots and never gets anywhere; or that a hook keeps from booting.
fn creating(test: &Test, lib: &LibDir, hook: Option<&str>) -> (Running, String) {
    choose_hypervisor(test);
    let bundle = test.bundle(|config| {
        if let Some(script) = hook {
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
            config["hooks"] = json!({ "createRuntime": [hook] });
        }
    });
    let create = lib.serving(test.verb(["create", "--bundle"]));
    let create = create.arg(&bundle.dir).arg(&bundle.id);
    (create.spawn(), bundle.id)
}

/// The creation fails with the reason and leaves nothing: no `delete` is needed.
fn called_off(test: &Test, before: &Inventory, victim: Victim, output: &Output) {
    if victim == Victim::Command {
        assert_eq!(output.code(), -9, "{output}");
    } else {
        output.expect_code(1);
        let error = output.expect_error(&[]);
        assert!(error.starts_with("bulkhead: "), "{output}");
        assert!(error.contains(reason(victim)), "{victim:?}: {output}");
    }
    descendants_gone();
    nothing_left(test, before);
}

pub fn each_process_killed_while_creating_calls_it_off(test: &Test) {
    let lib = LibDir::new(test);
    lib.install_initramfs(&initramfs_with(&sleeper()));
    let before = Inventory::take(test);
    for victim in CHAIN {
        let (create, id) = creating(test, &lib, None);
        until_spawned(test, &id);
        let cast = Cast::of_engine(test, &id);

        match victim {
            Victim::Command => create.signal(Signal::KILL),
            victim => cast.kill(victim),
        }

        let output = create.finish();
        cast.gone();
        called_off(test, &before, victim, &output);
    }
}

pub fn each_process_killed_during_a_hook_calls_the_creation_off(test: &Test) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);
    for victim in [Victim::Command, Victim::StandIn, Victim::Sandbox] {
        let sign = test.new_dir().join("sign");
        let script = format!("echo >{}; exec sleep 1000", sign.display());
        let (create, id) = creating(test, &lib, Some(&script));
        until_journal(test, &id, |state| state["standin"].is_object());
        wait::exists(&sign);
        let journal = crate::scene::journal(test, &id).unwrap();
        let number = |name: &str| u32::try_from(journal[name]["pid"].as_u64().unwrap()).unwrap();

        let pid = match victim {
            Victim::Command => create.pid(),
            Victim::StandIn => number("standin"),
            _ => number("sandbox"),
        };
        let pid = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.unwrap(), Signal::KILL).unwrap();

        let output = create.finish();
        called_off(test, &before, victim, &output);
    }
}

pub fn standin_of_an_exec_killed_early_leaves_no_process(test: &Test) {
    let mut container = started(test);
    let id = container.id().to_owned();
    let cast = Cast::of_engine(test, &id);
    let verb = ["exec", "--detach", &id, "/bin/sleep", "1000"];
    let verb = caught(&cast, test.verb(verb), 2);
    let standin = inventory::tree(verb.pid());
    let standin = standin.into_iter().find(|pid| *pid != verb.pid());
    let standin = i32::try_from(standin.expect("a stand-in")).unwrap();

    let standin = rustix::process::Pid::from_raw(standin).unwrap();
    rustix::process::kill_process(standin, Signal::KILL).unwrap();
    cast.send(Victim::Hypervisor, Signal::CONT);

    // Whichever was first: the start, or the end.
    let output = verb.finish();
    if output.code() != 0 {
        output.expect_error(&["bulkhead: "]);
    }
    let gone = "while pidof sleep >/dev/null; do :; done";
    container.exec(&[], gone).output().expect_code(0);
    container.close_stdin();
    assert!(container.wait().success());
}

/// What holds for any runtime.
pub fn process_killed_between_verbs_is_stopped_for_each(test: &Test) {
    if !test.driver.is_peer() {
        choose_hypervisor(test);
    }
    let bundle = test.bundle_sh("cat", |_| {});
    let mut container = Created::new(test, bundle, Invocation::stdin_pipe);
    container.start();

    container.kill();

    assert_eq!(container.wait().signal(), Some(9));
    assert_eq!(container.status(), "stopped");
    for verb in ["start", "pause", "resume", "kill"] {
        assert_ne!(container.verb(verb, &[]).code(), 0, "{verb}");
    }
    let exec = container.exec(&[], "true").output();
    assert_ne!(exec.code(), 0, "{exec}");
    container.verb("delete", &[]).expect_code(0);
    assert_ne!(container.verb("state", &[]).code(), 0);
}
