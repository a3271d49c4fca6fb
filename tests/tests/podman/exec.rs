//! `podman exec`.

use bulkhead_tests::Podman;
use bulkhead_tests::harness::pty::{TALKING, talk};

use crate::podman_suite;

podman_suite! {
    both:
        output_and_exit_code_returned,
        terminal_is_the_callers;
    uml:
        stdin_reaches_command_with_its_end,
        missing_command_gives_127,
        file_that_is_no_program_gives_126,
        options_change_the_command,
        command_sees_the_containers_processes,
        detached_command_goes_on,
        container_that_is_stopped_refuses;
    newer:
        output_and_exit_code_returned,
        terminal_is_the_callers,
        command_sees_the_containers_processes;
}

fn output_and_exit_code_returned(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let output = podman.podman(&["exec", &name, "sh", "-c", "echo out; echo err >&2; exit 9"]);

    output.expect_code(9);
    assert_eq!(output.stdout, b"out\n");
    assert!(output.error().starts_with("err\n"), "{output}");
}

fn stdin_reaches_command_with_its_end(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let exec = podman.command(["exec", "-i", &name, "wc", "-c"]);
    let output = exec.stdin(vec![b'x'; 100_000]).output();

    assert_eq!(output.text(), "100000");
}

fn terminal_is_the_callers(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    talk(podman.command(["exec", "-it", &name, "sh", "-c", TALKING]));
}

fn missing_command_gives_127(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let output = podman.podman(&["exec", &name, "no-such-command"]);

    output.expect_code(127);
    assert!(output.error().contains("no-such-command"), "{output}");
}

fn file_that_is_no_program_gives_126(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let output = podman.podman(&["exec", &name, "/etc/passwd"]);

    output.expect_code(126);
}

fn options_change_the_command(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");
    let options = [
        "exec",
        "--user",
        "alice",
        "--workdir",
        "/tmp",
        "--env",
        "A=b c",
    ];

    let exec = podman
        .command(options)
        .args([&name, "sh", "-c", "id -u; id -G; pwd; echo $A"]);
    let output = exec.output();

    assert_eq!(output.text(), "1000\n1000 44 50\n/tmp\nb c");
}

fn command_sees_the_containers_processes(podman: &Podman) {
    let name = podman.detached(&["--hostname", "inside"], "exec sleep 1000");

    let exec = [
        "exec",
        &name,
        "sh",
        "-c",
        "cat /proc/1/comm; hostname; ls /sys/class/net",
    ];
    let output = podman.podman(&exec);

    assert_eq!(output.text(), "sleep\ninside\nlo");
}

fn detached_command_goes_on(podman: &Podman) {
    let name = podman.detached(&["--interactive"], "read line; cat /said");

    let script = "echo said >/said";
    podman
        .podman(&["exec", "--detach", &name, "sh", "-c", script])
        .expect_code(0);
    let until = [
        "exec",
        &name,
        "sh",
        "-c",
        "until [ -s /said ]; do sleep 0.1; done",
    ];
    podman.podman(&until).expect_code(0);

    let mut attach = podman.command(["attach", &name]).stdin_pipe().spawn();
    attach.write_line("go");
    attach.line_is("said");
}

fn container_that_is_stopped_refuses(podman: &Podman) {
    let name = podman.detached(&[], "true");
    let _ = podman.podman(&["wait", &name]);

    let output = podman.podman(&["exec", &name, "true"]);

    assert_ne!(output.code(), 0, "{output}");
}
