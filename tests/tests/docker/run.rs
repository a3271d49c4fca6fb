//! Containers without a network: `run`, `exec`, and what comes after.

use std::fs;

use bulkhead_tests::Docker;
use bulkhead_tests::harness::pty::{TALKING, talk};
use bulkhead_tests::harness::suite::skip;

use crate::docker_suite;

docker_suite! {
    both:
        output_and_exit_code_returned,
        detached_container_is_logged_stopped_and_removed;
    uml:
        streams_are_separate_and_exact,
        stdin_reaches_process_with_its_end,
        terminal_is_the_callers,
        missing_command_gives_127,
        init_forwards_signals,
        kill_sends_a_signal,
        container_is_restarted,
        restart_policy_starts_it_again,
        pause_freezes_and_unpause_thaws,
        exec_has_output_and_exit_code,
        exec_has_a_terminal,
        exec_of_a_missing_command_gives_127,
        volume_is_shared,
        named_volume_outlives_the_container,
        memory_limit_kills,
        pids_limit_is_updated,
        privileged_may_mount,
        stats_are_those_of_the_container,
        top_shows_processes,
        files_are_copied_both_ways,
        health_check_makes_it_healthy;
    newer:
        output_and_exit_code_returned,
        detached_container_is_logged_stopped_and_removed,
        missing_command_gives_127,
        terminal_is_the_callers,
        pause_freezes_and_unpause_thaws,
        exec_has_output_and_exit_code,
        restart_policy_starts_it_again,
        volume_is_shared,
        stats_are_those_of_the_container,
        files_are_copied_both_ways,
        health_check_makes_it_healthy,
        privileged_may_mount;
    not_yet:
        memory_limit_that_killed_is_told = "the guest's kernel kills, and containerd watches the host's control group";
}

/// Answers a signal with an exit code.
const ANSWERING: &str =
    "trap 'echo term; exit 7' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done";

/// Waits until the container has written a line.
fn wait_for_line(docker: &Docker, name: &str, line: &str) {
    docker
        .command(["logs", "--follow", name])
        .spawn()
        .line_is(line);
}

fn output_and_exit_code_returned(docker: &Docker) {
    let output = docker.ran(&[], "echo hello; uname -r; exit 3");

    output.expect_code(3);
    let text = String::from_utf8_lossy(&output.stdout);
    let (hello, kernel) = text.trim_end().split_once('\n').unwrap();
    assert_eq!(hello, "hello");
    let same = kernel == bulkhead_tests::wait::host_kernel();
    assert_eq!(same, docker.test.driver.is_peer(), "{kernel}");
}

fn streams_are_separate_and_exact(docker: &Docker) {
    let output = docker
        .ran(&[], r"printf 'a\0b\r\n'; printf 'c\377' >&2")
        .expect(0);

    assert_eq!(output.stdout, b"a\0b\r\n");
    assert_eq!(output.stderr, b"c\xff");
}

fn stdin_reaches_process_with_its_end(docker: &Docker) {
    let run = docker.run(&["--rm", "-i"], "wc -c; echo end");

    let output = run.stdin(vec![b'x'; 100_000]).output();

    assert_eq!(output.text(), "100000\nend");
}

fn terminal_is_the_callers(docker: &Docker) {
    talk(docker.run(&["--rm", "-it"], TALKING));
}

fn missing_command_gives_127(docker: &Docker) {
    let run = docker.made_by("run", &["--rm", "--network=none", "box:v1"]);

    let output = run.arg("no-such-command").output();

    output.expect_code(127);
    assert!(output.error().contains("no-such-command"), "{output}");
}

fn detached_container_is_logged_stopped_and_removed(docker: &Docker) {
    let name = docker.detached(&[], ANSWERING);
    wait_for_line(docker, &name, "ready");

    docker
        .docker(&["stop", "--time", "60", &name])
        .expect_code(0);

    assert_eq!(docker.docker(&["wait", &name]).text(), "7");
    assert_eq!(docker.docker(&["logs", &name]).text(), "ready\nterm");
    assert_eq!(docker.inspect(&name)["State"]["ExitCode"], 7);
    docker.docker(&["rm", &name]).expect_code(0);
    assert_ne!(docker.docker(&["inspect", &name]).code(), 0);
}

fn init_forwards_signals(docker: &Docker) {
    let name = docker.detached(&["--init"], ANSWERING);
    wait_for_line(docker, &name, "ready");

    docker
        .docker(&["stop", "--time", "60", &name])
        .expect_code(0);

    assert_eq!(docker.docker(&["wait", &name]).text(), "7");
}

fn kill_sends_a_signal(docker: &Docker) {
    let name = docker.detached(&[], ANSWERING);
    wait_for_line(docker, &name, "ready");

    docker
        .docker(&["kill", "--signal", "USR1", &name])
        .expect_code(0);
    wait_for_line(docker, &name, "usr1");
    docker.docker(&["kill", &name]).expect_code(0);

    assert_eq!(docker.docker(&["wait", &name]).text(), "137");
}

fn container_is_restarted(docker: &Docker) {
    let name = docker.detached(&[], "echo again >>/log; cat /log; exec sleep 1000");

    docker
        .docker(&["restart", "--time", "0", &name])
        .expect_code(0);

    // It may not have come to it yet.
    let script = "until [ $(wc -l </log) = 2 ]; do sleep 0.1; done; cat /log";
    let output = docker.docker(&["exec", &name, "sh", "-c", script]);
    assert_eq!(output.text(), "again\nagain");
}

fn restart_policy_starts_it_again(docker: &Docker) {
    let script = "echo again >>/log; [ $(wc -l </log) = 3 ] || exit 1; echo third; exec sleep 1000";

    let name = docker.detached(&["--restart", "on-failure:5"], script);

    let filter = format!("container={name}");
    let events = [
        "events",
        "--since",
        "0",
        "--filter",
        &filter,
        "--filter",
        "event=start",
    ];
    let mut events = docker.command(events).spawn();
    (0..3).for_each(|_| drop(events.line()));
    assert_eq!(docker.inspect(&name)["RestartCount"], 2);
}

fn pause_freezes_and_unpause_thaws(docker: &Docker) {
    let name = docker.detached(&[], ANSWERING);
    wait_for_line(docker, &name, "ready");

    docker.docker(&["pause", &name]).expect_code(0);
    assert_eq!(docker.inspect(&name)["State"]["Status"], "paused");
    docker.docker(&["unpause", &name]).expect_code(0);

    docker
        .docker(&["kill", "--signal", "USR1", &name])
        .expect_code(0);
    wait_for_line(docker, &name, "usr1");
    assert_eq!(docker.inspect(&name)["State"]["Status"], "running");
}

fn exec_has_output_and_exit_code(docker: &Docker) {
    let name = docker.detached(&[], "sleep 1000");
    let options = [
        "exec",
        "--user",
        "alice",
        "--workdir",
        "/tmp",
        "--env",
        "A=b c",
    ];

    let exec = docker.command(options).args([
        &name,
        "sh",
        "-c",
        "id -u; pwd; echo $A; echo err >&2; exit 9",
    ]);
    let output = exec.output().expect(9);

    assert_eq!(output.stdout, b"1000\n/tmp\nb c\n");
    assert_eq!(output.error(), "err\n");
}

fn exec_has_a_terminal(docker: &Docker) {
    let name = docker.detached(&[], "sleep 1000");

    talk(docker.command(["exec", "-it", &name, "sh", "-c", TALKING]));
}

fn exec_of_a_missing_command_gives_127(docker: &Docker) {
    let name = docker.detached(&[], "sleep 1000");

    let output = docker.docker(&["exec", &name, "no-such-command"]);

    // Docker 20.10 tells by the runtime's message whether the command was not found.
    assert!([126, 127].contains(&output.code()), "{output}");
    let told = [
        output.error(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ]
    .concat();
    assert!(told.contains("no-such-command"), "{output}");
}

fn volume_is_shared(docker: &Docker) {
    let dir = docker.test.new_dir();
    fs::write(dir.join("in"), "from the host").unwrap();
    let volume = format!("{}:/mnt", dir.display());

    let output = docker.ran(&["--volume", &volume], "cat /mnt/in; echo back >/mnt/out");

    assert_eq!(output.text(), "from the host");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "back\n");
}

fn named_volume_outlives_the_container(docker: &Docker) {
    let volume = docker.test.new_id();
    let option = format!("{volume}:/mnt");
    docker
        .ran(&["--volume", &option], "echo kept >/mnt/file")
        .expect_code(0);

    let output = docker.ran(&["--volume", &option], "cat /mnt/file");

    assert_eq!(output.text(), "kept");
    docker.docker(&["volume", "rm", &volume]).expect_code(0);
}

fn memory_limit_kills(docker: &Docker) {
    let output = docker.ran(
        &["--memory", "64m", "--memory-swap", "64m"],
        "tail /dev/zero; echo $?",
    );

    assert_eq!(output.text(), "137");
}

fn memory_limit_that_killed_is_told(docker: &Docker) {
    let name = docker.detached(
        &["--memory", "64m", "--memory-swap", "64m"],
        "exec tail /dev/zero",
    );

    assert_eq!(docker.docker(&["wait", &name]).text(), "137");
    assert_eq!(docker.inspect(&name)["State"]["OOMKilled"], true);
}

fn pids_limit_is_updated(docker: &Docker) {
    let script = "echo ready; until [ -e /mnt/go ]; do sleep 0.1; done; \
                  for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo unreached";
    let dir = docker.test.new_dir();
    let name = docker.detached(&["--volume", &format!("{}:/mnt", dir.display())], script);
    wait_for_line(docker, &name, "ready");

    docker
        .docker(&["update", "--pids-limit", "6", &name])
        .expect_code(0);
    fs::write(dir.join("go"), "").unwrap();

    assert_ne!(docker.docker(&["wait", &name]).text(), "0");
    assert!(!docker.docker(&["logs", &name]).text().contains("unreached"));
}

/// Whether we have every capability there is.
fn has_all_capabilities() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let all = (2_u64 << last.trim().parse::<u32>().unwrap()) - 1;
    value("CapEff:").map(|bits| u64::from_str_radix(bits, 16)) == Some(Ok(all))
}

fn privileged_may_mount(docker: &Docker) {
    // Docker asks for every capability, whether its host has it or not.
    if docker.test.driver.is_peer() && !has_all_capabilities() {
        return skip(
            &docker.test.name,
            "this machine's root lacks capabilities that a container would get",
        );
    }
    let script = "mount -t tmpfs none /mnt && echo mounted";

    let output = docker.ran(&["--privileged"], script);

    assert_eq!(output.text(), "mounted");
}

fn stats_are_those_of_the_container(docker: &Docker) {
    let name = docker.detached(&["--memory", "128m"], "sleep 1000 & sleep 2000; true");

    let stats = docker
        .docker(&["stats", "--no-stream", "--format", "{{json .}}", &name])
        .json();

    assert_eq!(stats["Name"], name.as_str(), "{stats}");
    let usage = stats["MemUsage"].as_str().unwrap();
    assert!(!usage.starts_with("0B"), "{stats}");
    assert!(
        stats["PIDs"].as_str().unwrap().parse::<u32>().unwrap() >= 1,
        "{stats}"
    );
}

fn top_shows_processes(docker: &Docker) {
    let name = docker.detached(&[], "sleep 1000 & sleep 2000; true");

    let output = docker.docker(&["top", &name]);

    assert!(output.text().contains("sleep 2000"), "{output}");
    assert!(output.text().contains("sleep 1000"), "{output}");
}

fn files_are_copied_both_ways(docker: &Docker) {
    let dir = docker.test.new_dir();
    fs::write(dir.join("in"), "text").unwrap();
    let name = docker.detached(&[], "sleep 1000");
    let (inward, outward) = (format!("{name}:/tmp/in"), format!("{name}:/etc/passwd"));
    let (file, target) = (dir.join("in"), dir.join("out"));

    docker
        .command(["cp"])
        .arg(&file)
        .arg(&inward)
        .output()
        .expect_code(0);
    docker
        .command(["cp", &outward])
        .arg(&target)
        .output()
        .expect_code(0);

    assert_eq!(
        docker.docker(&["exec", &name, "cat", "/tmp/in"]).text(),
        "text"
    );
    assert!(fs::read_to_string(target).unwrap().contains("alice"));
}

fn health_check_makes_it_healthy(docker: &Docker) {
    let options = [
        "--health-cmd",
        "test -e /well",
        "--health-interval",
        "200ms",
    ];
    let name = docker.detached(&options, "touch /well; sleep 1000");
    let filter = format!("container={name}");
    let events = [
        "events",
        "--since",
        "0",
        "--filter",
        &filter,
        "--filter",
        "event=health_status",
    ];

    let line = docker.command(events).spawn().line();

    assert!(line.contains("healthy"), "{line}");
    assert_eq!(
        docker.inspect(&name)["State"]["Health"]["Status"],
        "healthy"
    );
}
