//! SIGKILL to each process at several moments.

use std::fs;

use bulkhead_tests::{Container, Inventory, Invocation, Output, Test};
use rustix::process::Signal;

use crate::lib_dir::{LibDir, initramfs_with, sleeper};
use crate::scene::{
    Cast, EVERYONE, Victim, journal, listed, nothing_left, until_spawned, waiting, why,
};

/// A container whose guest boots and never gets anywhere.
fn booting<'t>(test: &'t Test, lib: &LibDir) -> (Container<'t>, Cast) {
    lib.install_initramfs(&initramfs_with(&sleeper()));
    let container = lib.used_by(test.run(["/bin/true"])).start();
    until_spawned(test, &container.id);
    let cast = Cast::of(&container, test);
    (container, cast)
}

/// Kills one process of a running container; what is left once all is over is the caller's to judge.
fn killed_while_running(test: &Test, victim: Victim) -> (Output, String) {
    let before = Inventory::take(test);
    let container = waiting(test);
    let id = container.id.clone();
    let cast = Cast::of(&container, test);

    cast.kill(victim);

    let output = container.finish();
    cast.gone();
    nothing_left(test, &before);
    (output, id)
}

fn killed_while_booting(test: &Test, victim: Victim) -> (Output, String) {
    let lib = LibDir::new(test);
    let before = Inventory::take(test);
    let (container, cast) = booting(test, &lib);
    let id = container.id.clone();

    cast.kill(victim);

    let output = container.finish();
    cast.gone();
    nothing_left(test, &before);
    (output, id)
}

#[track_caller]
fn told(test: &Test, output: &Output, id: &str, parts: &[&str]) {
    output.expect_code(125);
    let error = output.expect_error(parts);
    assert!(error.starts_with("bulkhead: "), "{output}");
    let why = why(test, id);
    for part in parts {
        assert!(why.contains(part), "{part:?} is missing: {why}");
    }
    assert!(why.contains("fix"), "{why}");
}

pub fn command_killed_while_running_takes_all_along(test: &Test) {
    let (output, _) = killed_while_running(test, Victim::Command);
    assert_eq!(output.code(), -9, "{output}");
}

pub fn sandbox_killed_while_running_is_told(test: &Test) {
    let (output, id) = killed_while_running(test, Victim::Sandbox);
    told(test, &output, &id, &["sandbox process"]);
}

pub fn hypervisor_killed_while_running_is_told(test: &Test) {
    let (output, id) = killed_while_running(test, Victim::Hypervisor);
    told(test, &output, &id, &["hypervisor process", "SIGKILL"]);
}

pub fn device_process_killed_while_running_is_told(test: &Test) {
    let (output, id) = killed_while_running(test, Victim::Device);
    told(test, &output, &id, &["device process", "SIGKILL"]);
}

pub fn command_killed_while_booting_takes_all_along(test: &Test) {
    let (output, _) = killed_while_booting(test, Victim::Command);
    assert_eq!(output.code(), -9, "{output}");
}

pub fn sandbox_killed_while_booting_is_told(test: &Test) {
    let (output, id) = killed_while_booting(test, Victim::Sandbox);
    told(test, &output, &id, &["sandbox process"]);
}

pub fn hypervisor_killed_while_booting_is_told(test: &Test) {
    let (output, id) = killed_while_booting(test, Victim::Hypervisor);
    told(test, &output, &id, &["hypervisor process", "SIGKILL"]);
}

pub fn device_process_killed_while_booting_is_told(test: &Test) {
    let (output, id) = killed_while_booting(test, Victim::Device);
    told(test, &output, &id, &["device process", "SIGKILL"]);
}

pub fn each_process_killed_while_ending_leaves_nothing(test: &Test) {
    let before = Inventory::take(test);
    for victim in EVERYONE {
        let mut container = waiting(test);
        let cast = Cast::of(&container, test);
        container.write_line("");
        container.line_is("bye");

        cast.kill(victim);

        // Whichever was first: its own end, or the other one.
        let output = container.finish();
        let possible = [7, 125, -9];
        assert!(possible.contains(&output.code()), "{victim:?}: {output}");
        cast.gone();
        nothing_left(test, &before);
    }
}

pub fn command_and_sandbox_killed_listed_truthfully(test: &Test) {
    let before = Inventory::take(test);
    let container = waiting(test);
    let cast = Cast::of(&container, test);

    // Nobody is left to clean up, until the next verb.
    cast.send(Victim::Command, Signal::STOP);
    cast.kill(Victim::Sandbox);
    cast.kill(Victim::Command);

    cast.gone();
    container.finish().expect_code(-9);
    nothing_left(test, &before);
}

pub fn everything_killed_at_once_listed_truthfully(test: &Test) {
    let before = Inventory::take(test);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
        let container = waiting(test);
        let cast = Cast::of(&container, test);
        for index in order {
            cast.send(EVERYONE[index], Signal::STOP);
        }
        for index in order {
            cast.kill(EVERYONE[index]);
        }
        cast.gone();
        container.finish().expect_code(-9);
        nothing_left(test, &before);
    }
}

pub fn kept_container_with_its_processes_killed_stays_listed(test: &Test) {
    let before = Inventory::take(test);
    let script = "echo ready; read line";
    let run = test
        .sh(script)
        .option("-i")
        .with(Invocation::stdin_pipe)
        .keep();
    let container = run.start().ready();
    let id = container.id.clone();
    let cast = Cast::of(&container, test);

    cast.send(Victim::Command, Signal::STOP);
    cast.kill(Victim::Sandbox);
    cast.kill(Victim::Command);
    cast.gone();

    assert_eq!(listed(test), [(id.clone(), "stopped".to_owned())]);
    let state = container.state();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&"stopped".into(), &0.into())
    );
    assert!(why(test, &id).contains("sandbox process was killed"));
    let refused = test.run(["/bin/true"]).name(&id).output();
    refused.expect_error(&["already in use"]);
    for verb in ["kill", "pause"] {
        let output = container.verb(verb, &[]).output();
        assert_ne!(output.code(), 0, "{output}");
        output.expect_error(&[&id]);
    }
    container.verb("delete", &[]).output().expect_code(0);
    container.finish().expect_code(-9);
    nothing_left(test, &before);
}

pub fn state_damaged_is_told_and_removable(test: &Test) {
    let before = Inventory::take(test);
    for name in ["damaged", "well"] {
        let code = test.run(["/bin/true"]).keep().name(name).output().code();
        assert_eq!(code, 0);
    }
    assert!(journal(test, "damaged").is_some());
    fs::write(test.root().join("damaged/state.json"), "{ \"id\": ").unwrap();

    let list = test.verb(["list", "--quiet"]).output();
    assert_eq!(list.text(), "well");
    assert!(
        list.error().contains("damaged") && list.error().contains("delete --force"),
        "{list}"
    );
    let refused = test.verb(["state", "damaged"]).output();
    refused.expect_error(&["damaged", "delete --force"]);
    let refused = test.verb(["delete", "damaged"]).output();
    refused.expect_error(&["damaged", "delete --force"]);

    test.verb(["delete", "--force", "damaged"])
        .output()
        .expect_code(0);
    test.verb(["delete", "well"]).output().expect_code(0);
    nothing_left(test, &before);
}

pub fn sandbox_terminated_ends_the_container_in_order(test: &Test) {
    let before = Inventory::take(test);
    let script = "echo kept >/kept; echo ready; read line";
    let run = test.sh(script).option("-i").with(Invocation::stdin_pipe);
    let container = run.start().ready();
    let cast = Cast::of(&container, test);

    cast.send(Victim::Sandbox, Signal::TERM);

    let output = container.finish();
    output.expect_code(137);
    assert_eq!(output.error(), "");
    cast.gone();
    let file = test.rootfs().join("kept");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
    fs::remove_file(file).unwrap();
    nothing_left(test, &before);
}
