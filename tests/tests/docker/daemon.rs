//! What needs a dockerd of its own.

use std::sync::Arc;

use bulkhead_tests::harness::docker::Daemons;
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Docker, Engines, Test, tests_on};

use crate::with_daemons;

tests_on!(
    uml,
    run_beside,
    [
        live_restore_keeps_containers_across_a_restart
        live_restore_keeps_containers_when_the_daemons_are_killed
        restart_of_the_daemon_starts_those_again_whose_policy_says_so
    ]
);
tests_on!(
    peer,
    run_beside,
    [
        live_restore_keeps_containers_across_a_restart
        live_restore_keeps_containers_when_the_daemons_are_killed
        restart_of_the_daemon_starts_those_again_whose_policy_says_so
    ]
);

const LIVE_RESTORE: [&str; 1] = ["--live-restore"];

/// Answers a signal with an exit code, and tells when it finds a file.
const NOTICING: &str =
    "trap 'exit 7' TERM; echo ready; while :; do [ ! -e /go ] || echo went; sleep 0.1; done";

/// Runs a test with daemons of its own, started with these options.
fn with_own(test: &Test, options: &[&str], run: impl FnOnce(&Docker)) {
    let engines = match Engines::chosen(&Daemons::PROGRAMS) {
        Ok(engines) => engines,
        Err(reason) => return skip(&test.name, &reason),
    };
    with_daemons(test, Arc::new(Daemons::start(&engines, options)), run);
}

fn wait_for_line(docker: &Docker, name: &str, line: &str) {
    let mut logs = docker.command(["logs", "--follow", name]).spawn();
    logs.line_is(line);
}

/// The daemons are ended and started again: a container that ran before, runs on and is theirs.
fn keeps_containers(docker: &Docker, start_again: impl FnOnce(&Daemons)) {
    let name = docker.detached(&[], NOTICING);
    wait_for_line(docker, &name, "ready");
    let before = docker.inspect(&name)["State"]["Pid"].clone();

    start_again(&docker.daemons);

    assert_eq!(docker.inspect(&name)["State"]["Pid"], before);
    let touch = docker.docker(&["exec", &name, "touch", "/go"]);
    touch.expect_code(0);
    wait_for_line(docker, &name, "went");
    let stop = docker.docker(&["stop", "--time", "60", &name]);
    stop.expect_code(0);
    assert_eq!(docker.inspect(&name)["State"]["ExitCode"], 7);
}

fn live_restore_keeps_containers_across_a_restart(test: &Test) {
    with_own(test, &LIVE_RESTORE, |docker| {
        keeps_containers(docker, |daemons| {
            daemons.stop_dockerd();
            daemons.start_dockerd(&LIVE_RESTORE);
        });
    });
}

fn live_restore_keeps_containers_when_the_daemons_are_killed(test: &Test) {
    with_own(test, &LIVE_RESTORE, |docker| {
        keeps_containers(docker, |daemons| {
            daemons.kill();
            daemons.start_containerd();
            daemons.start_dockerd(&LIVE_RESTORE);
        });
    });
}

fn restart_of_the_daemon_starts_those_again_whose_policy_says_so(test: &Test) {
    with_own(test, &[], |docker| {
        let start = |policy: &str| {
            let name = docker.detached(&["--restart", policy], NOTICING);
            wait_for_line(docker, &name, "ready");
            name
        };
        let [always, never] = ["always", "no"].map(start);
        let before = docker.inspect(&always)["State"]["Pid"].clone();

        docker.daemons.stop_dockerd();
        docker.daemons.start_dockerd(&[]);

        let state = |name: &str| docker.inspect(name)["State"].clone();
        assert_eq!(state(&never)["Status"], "exited", "{}", state(&never));
        assert_eq!(state(&never)["ExitCode"], 7);
        assert_eq!(state(&always)["Status"], "running", "{}", state(&always));
        assert_ne!(state(&always)["Pid"], before);
        let exec = docker.docker(&["exec", &always, "echo", "here"]);
        assert_eq!(exec.text(), "here");
    });
}
