//! Signals: to the command that runs a container, and by `bulkhead kill`.
//!
//! Each test but those under `ours` is proved on a peer runtime, as module `peer`.

#![allow(clippy::unwrap_used)]

use bulkhead_tests::{Container, Test, bundle_suite};
use rustix::process::Signal;

bundle_suite! {
    both:
        sigterm_to_run_reaches_process,
        kill_by_name_reaches_process,
        kill_sigkill_ends_container;
    uml:
        signals_to_run_reach_process,
        signal_without_handler_leaves_first_process_alone,
        kill_by_number_reaches_process,
        kill_without_signal_sends_sigterm,
        kill_all_reaches_every_process,
        kill_unknown_signal_is_an_error,
        kill_missing_container_is_an_error,
        signals_in_quick_succession_all_arrive;
    ours:
        kill_stopped_container_is_an_error,
        sigint_to_run_in_either_form_reaches_process;
}

/// A container that says which signals it gets, and ends with 5 on SIGTERM.
fn listening(test: &Test) -> Container<'_> {
    let script = "for s in HUP INT QUIT USR1 USR2 CONT WINCH; do trap \"echo $s\" $s; done
                  trap 'echo TERM; exit 5' TERM
                  sleep 1000 &
                  echo ready
                  while :; do wait; done";
    test.bundle_sh(script, |_| {}).start().ready()
}

fn sigterm_to_run_reaches_process(test: &Test) {
    let mut container = listening(test);

    container.signal(Signal::TERM);

    assert_eq!(container.line(), "TERM");
    container.end().expect_code(5);
}

fn signals_to_run_reach_process(test: &Test) {
    let mut container = listening(test);
    let signals = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::CONT, "CONT"),
    ];

    for (signal, name) in signals {
        container.signal(signal);

        assert_eq!(container.line(), name);
    }
    container.kill("KILL");
    container.end().expect_code(137);
}

fn signals_in_quick_succession_all_arrive(test: &Test) {
    let mut container = listening(test);

    container.signal(Signal::USR1);
    container.signal(Signal::USR2);
    container.signal(Signal::HUP);
    let mut lines = [container.line(), container.line(), container.line()];

    lines.sort();
    assert_eq!(lines, ["HUP", "USR1", "USR2"]);
    container.kill("KILL");
    container.end().expect_code(137);
}

fn signal_without_handler_leaves_first_process_alone(test: &Test) {
    // The first process of a namespace only gets what it asked for: so it is with every runtime.
    let mut container = test
        .bundle_sh("echo ready; exec cat", |_| {})
        .start()
        .ready();

    container.signal(Signal::TERM);
    container.write_line("still here");

    assert_eq!(container.line(), "still here");
    container.end().expect_code(0);
}

fn kill_by_name_reaches_process(test: &Test) {
    let mut container = listening(test);

    for (name, line) in [("USR1", "USR1"), ("SIGUSR2", "USR2"), ("SIGTERM", "TERM")] {
        container.kill(name);

        assert_eq!(container.line(), line);
    }
    container.end().expect_code(5);
}

fn kill_by_number_reaches_process(test: &Test) {
    let mut container = listening(test);

    for (number, line) in [("10", "USR1"), ("1", "HUP"), ("15", "TERM")] {
        container.kill(number);

        assert_eq!(container.line(), line);
    }
    container.end().expect_code(5);
}

fn kill_without_signal_sends_sigterm(test: &Test) {
    let mut container = listening(test);

    container.verb("kill", &[]).output().expect_code(0);

    assert_eq!(container.line(), "TERM");
    container.end().expect_code(5);
}

fn kill_sigkill_ends_container(test: &Test) {
    let mut container = listening(test);

    container.kill("KILL");

    container.end().expect_code(128 + 9);
}

fn kill_all_reaches_every_process(test: &Test) {
    let script =
        "sh -c 'trap \"echo child\" USR1; echo ready; sleep 1000 & while :; do wait; done' &
                  trap 'echo parent' USR1; while :; do wait; done";
    let mut container = test.bundle_sh(script, |_| {}).start().ready();

    let kill = test.verb(["kill", "--all", &container.id, "USR1"]);
    kill.output().expect_code(0);
    let mut lines = [container.line(), container.line()];

    lines.sort();
    assert_eq!(lines, ["child", "parent"]);
    container.kill("KILL");
    container.end().expect_code(137);
}

fn kill_unknown_signal_is_an_error(test: &Test) {
    let container = listening(test);

    let output = container.verb("kill", &["SIGNONE"]).output();

    assert_ne!(output.code(), 0, "{output}");
    assert!(output.error().contains("SIGNONE"), "{output}");
}

fn kill_missing_container_is_an_error(test: &Test) {
    let output = test.verb(["kill", "nobody", "KILL"]).output();

    assert_ne!(output.code(), 0, "{output}");
    assert!(output.error().contains("does not exist"), "{output}");
}

fn kill_stopped_container_is_an_error(test: &Test) {
    let id = test.new_id();
    test.run(["true"]).name(&id).keep().output().expect_code(0);

    let output = test.verb(["kill", &id, "KILL"]).output();

    output.expect_error(&[&id, "stopped"]);
}

fn sigint_to_run_in_either_form_reaches_process(test: &Test) {
    let script = "trap 'echo INT; exit 4' INT; sleep 1000 & echo ready; wait";
    let mut container = test.sh(script).start().ready();

    container.signal(Signal::INT);

    assert_eq!(container.line(), "INT");
    container.end().expect_code(4);
}
