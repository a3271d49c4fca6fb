//! `podman run` in the foreground.

use bulkhead_tests::Podman;
use bulkhead_tests::harness::pty::{TALKING, talk};
use bulkhead_tests::harness::running::Running;

use crate::podman_suite;

podman_suite! {
    both:
        output_and_exit_code_returned,
        terminal_is_the_callers,
        init_reaps_and_forwards;
    uml:
        streams_are_separate_and_exact,
        stdin_reaches_process_with_its_end,
        missing_command_gives_127,
        file_that_is_no_program_gives_126,
        removed_when_ended,
        name_in_use_is_refused,
        signal_to_podman_is_forwarded,
        kernel_is_the_guests;
    newer:
        output_and_exit_code_returned,
        streams_are_separate_and_exact,
        missing_command_gives_127,
        init_reaps_and_forwards;
}

fn output_and_exit_code_returned(podman: &Podman) {
    let output = podman.ran(&[], "echo hello; exit 3");

    output.expect_code(3);
    assert_eq!(output.stdout, b"hello\n");
}

fn streams_are_separate_and_exact(podman: &Podman) {
    let output = podman
        .ran(&[], r"printf 'a\0b\r\n'; printf 'c\377' >&2")
        .expect(0);

    assert_eq!(output.stdout, b"a\0b\r\n");
    assert_eq!(output.stderr, b"c\xff");
}

fn stdin_reaches_process_with_its_end(podman: &Podman) {
    let run = podman.run(&["--rm", "-i"], "cat; echo end");

    let output = run.stdin("one\ntwo").output();

    assert_eq!(output.text(), "one\ntwoend");
}

fn terminal_is_the_callers(podman: &Podman) {
    talk(podman.run(&["--rm", "-it"], TALKING));
}

fn missing_command_gives_127(podman: &Podman) {
    let run = podman.command(["run", "--rm", "--network", "none", "localhost/box:v1"]);

    let output = run.arg("no-such-command").output();

    output.expect_code(127);
    assert!(output.error().contains("no-such-command"), "{output}");
}

fn file_that_is_no_program_gives_126(podman: &Podman) {
    let run = podman.command(["run", "--rm", "--network", "none", "localhost/box:v1"]);

    let output = run.arg("/etc/passwd").output();

    output.expect_code(126);
}

fn removed_when_ended(podman: &Podman) {
    podman.ran(&[], "true").expect_code(0);

    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
    assert_eq!(podman.test.containers(), Vec::<String>::new());
}

fn name_in_use_is_refused(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let output = podman.ran(&["--name", &name], "true");

    output.expect_code(125);
    assert!(output.error().contains("already in use"), "{output}");
}

/// A container in the foreground that has said `ready`, and of which Podman knows that it runs: before,
/// Podman 4.3 may lose a signal.
fn started(podman: &Podman, options: &[&str], script: &str) -> Running {
    let name = podman.test.new_id();
    let mut run = podman
        .run(&[&["--rm", "--name", &name], options].concat(), script)
        .spawn();
    run.line_is("ready");
    podman
        .podman(&["wait", "--condition", "running", &name])
        .expect_code(0);
    run
}

fn signal_to_podman_is_forwarded(podman: &Podman) {
    let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let run = started(podman, &[], script);

    run.signal(rustix::process::Signal::TERM);

    let output = run.finish();
    assert_eq!(output.stdout, b"got it\n");
    output.expect_code(9);
}

fn init_reaps_and_forwards(podman: &Podman) {
    let script = "trap 'exit 6' TERM; grep -qE 'catatonit|podman-init' /proc/1/comm && echo ready; while :; do sleep 0.1; done";
    let run = started(podman, &["--init"], script);

    run.signal(rustix::process::Signal::TERM);

    run.finish().expect_code(6);
}

fn kernel_is_the_guests(podman: &Podman) {
    let output = podman.ran(&[], "uname -r");

    let same = output.text() == bulkhead_tests::wait::host_kernel();
    assert_eq!(same, podman.test.driver.is_peer(), "{output}");
}
