//! Containers in the background: from `run --detach` to `rm`.

use bulkhead_tests::Podman;
use serde_json::Value;

use crate::podman_suite;

podman_suite! {
    both:
        detached_container_is_logged_waited_for_and_removed,
        stop_sends_term_and_waits;
    uml:
        stop_kills_what_ignores_term,
        kill_sends_a_signal,
        created_container_is_started_and_restarted,
        attach_has_the_streams,
        logs_follow_to_the_end,
        remove_by_force_ends_it,
        running_container_is_not_removed,
        restart_policy_starts_it_again,
        pause_freezes_and_unpause_thaws,
        inspect_tells_of_process_and_end,
        events_are_recorded,
        health_check_runs_in_the_container;
    newer:
        detached_container_is_logged_waited_for_and_removed,
        stop_sends_term_and_waits,
        pause_freezes_and_unpause_thaws,
        remove_by_force_ends_it;
}

/// Answers a signal with an exit code.
const ANSWERING: &str =
    "trap 'echo term; exit 7' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done";

/// Waits until the container has written a line.
fn wait_for_line(podman: &Podman, name: &str, line: &str) {
    let mut logs = podman.command(["logs", "--follow", name]).spawn();
    logs.line_is(line);
}

fn detached_container_is_logged_waited_for_and_removed(podman: &Podman) {
    let name = podman.detached(&[], "echo out; echo err >&2; exit 4");

    assert_eq!(podman.podman(&["wait", &name]).text(), "4");
    let logs = podman.podman(&["logs", &name]).expect(0);
    assert_eq!(logs.stdout, b"out\n");
    assert_eq!(logs.error(), "err\n");
    podman.podman(&["rm", &name]).expect_code(0);
    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
}

fn stop_sends_term_and_waits(podman: &Podman) {
    let name = podman.detached(&[], ANSWERING);
    wait_for_line(podman, &name, "ready");

    podman
        .podman(&["stop", "--time", "60", &name])
        .expect_code(0);

    let state = podman.inspect(&name)["State"].clone();
    assert_eq!(state["ExitCode"], 7, "{state}");
    assert_eq!(state["Running"], false);
}

fn stop_kills_what_ignores_term(podman: &Podman) {
    let name = podman.detached(&[], "trap '' TERM; echo ready; while :; do sleep 1; done");
    wait_for_line(podman, &name, "ready");

    podman
        .podman(&["stop", "--time", "1", &name])
        .expect_code(0);

    assert_eq!(podman.inspect(&name)["State"]["ExitCode"], 137);
}

fn kill_sends_a_signal(podman: &Podman) {
    let name = podman.detached(&[], ANSWERING);
    wait_for_line(podman, &name, "ready");

    podman
        .podman(&["kill", "--signal", "USR1", &name])
        .expect_code(0);
    wait_for_line(podman, &name, "usr1");
    podman.podman(&["kill", &name]).expect_code(0);

    assert_eq!(podman.podman(&["wait", &name]).text(), "137");
}

fn created_container_is_started_and_restarted(podman: &Podman) {
    let name = podman.test.new_id();
    let script = "echo again >>/log; cat /log; [ $(wc -l </log) = 2 ] || exit 1; exec sleep 1000";
    let create = [
        "create",
        "--network",
        "none",
        "--name",
        &name,
        "localhost/box:v1",
        "sh",
        "-c",
        script,
    ];
    podman.podman(&create).expect_code(0);
    assert_eq!(podman.inspect(&name)["State"]["Status"], "created");

    podman.podman(&["start", &name]).expect_code(0);
    assert_eq!(podman.podman(&["wait", &name]).text(), "1");
    podman
        .podman(&["restart", "--time", "0", &name])
        .expect_code(0);

    assert_eq!(podman.inspect(&name)["State"]["Status"], "running");
    let logs = podman.podman(&["exec", &name, "cat", "/log"]);
    assert_eq!(logs.text(), "again\nagain");
}

fn attach_has_the_streams(podman: &Podman) {
    let name = podman.detached(&["--interactive"], "read line; echo got $line; exit 8");

    let mut attach = podman.command(["attach", &name]).stdin_pipe().spawn();
    attach.write_line("it");

    assert_eq!(attach.line(), "got it");
    assert_eq!(podman.podman(&["wait", &name]).text(), "8");
}

fn logs_follow_to_the_end(podman: &Podman) {
    let name = podman.detached(&["--interactive"], "echo one; read line; echo two");
    let mut logs = podman.command(["logs", "--follow", &name]).spawn();
    logs.line_is("one");

    let mut attach = podman.command(["attach", &name]).stdin_pipe().spawn();
    attach.write_line("go");
    let _ = attach.finish();

    assert_eq!(logs.line(), "two");
    logs.finish().expect_code(0);
}

fn remove_by_force_ends_it(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    podman
        .podman(&["rm", "--force", "--time", "0", &name])
        .expect_code(0);

    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
    assert_eq!(podman.test.containers(), Vec::<String>::new());
}

fn running_container_is_not_removed(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let output = podman.podman(&["rm", &name]);

    assert_ne!(output.code(), 0, "{output}");
    assert_eq!(podman.inspect(&name)["State"]["Status"], "running");
}

fn restart_policy_starts_it_again(podman: &Podman) {
    let script = "echo again >>/log; [ $(wc -l </log) = 3 ] || exit 1; echo third; exec sleep 1000";

    let name = podman.detached(&["--restart", "on-failure:5"], script);

    let until = std::time::Instant::now() + bulkhead_tests::wait::limit();
    loop {
        let exec = podman.podman(&["exec", &name, "cat", "/log"]);
        if exec.code() == 0 && exec.text() == "again\nagain\nagain" {
            break;
        }
        assert!(std::time::Instant::now() < until, "{exec}");
    }
    assert_eq!(podman.inspect(&name)["RestartCount"], 2);
}

fn pause_freezes_and_unpause_thaws(podman: &Podman) {
    let name = podman.detached(&["--interactive"], "echo ready; read line; echo got $line");
    wait_for_line(podman, &name, "ready");

    podman.podman(&["pause", &name]).expect_code(0);
    assert_eq!(podman.inspect(&name)["State"]["Status"], "paused");
    let exec = podman.podman(&["exec", &name, "true"]);
    assert_ne!(exec.code(), 0, "{exec}");
    podman.podman(&["unpause", &name]).expect_code(0);

    let mut attach = podman.command(["attach", &name]).stdin_pipe().spawn();
    attach.write_line("it");
    attach.line_is("got it");
}

fn inspect_tells_of_process_and_end(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000");

    let state = podman.inspect(&name)["State"].clone();
    assert_eq!(state["Running"], true, "{state}");
    let pid = u32::try_from(state["Pid"].as_u64().unwrap()).unwrap();
    assert!(bulkhead_tests::wait::pidfd(pid).is_some());
    podman.podman(&["kill", &name]).expect_code(0);
    let _ = podman.podman(&["wait", &name]);

    let container = podman.inspect(&name);
    assert_eq!(container["State"]["Status"], "exited");
    assert_eq!(container["State"]["Pid"], 0);
    assert_eq!(container["State"]["OOMKilled"], false);
    let runtime = container["OCIRuntime"].as_str().unwrap_or_default();
    assert!(!runtime.is_empty(), "{container}");
}

fn events_are_recorded(podman: &Podman) {
    let name = podman.detached(&[], "exit 2");
    let _ = podman.podman(&["wait", &name]);
    podman.podman(&["rm", &name]).expect_code(0);

    let filter = format!("container={name}");
    let events = [
        "events",
        "--stream=false",
        "--format",
        "json",
        "--filter",
        &filter,
    ];
    let output = podman.podman(&events);

    let all: Vec<Value> = output
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<&str> = all
        .iter()
        .filter_map(|event| event["Status"].as_str())
        .collect();
    for wanted in ["create", "init", "start", "died", "remove"] {
        assert!(names.contains(&wanted), "{wanted}: {output}");
    }
    let died = all.iter().find(|event| event["Status"] == "died").unwrap();
    assert_eq!(died["ContainerExitCode"], 2, "{died}");
}

fn health_check_runs_in_the_container(podman: &Podman) {
    let options = [
        "--health-cmd",
        "test -e /well",
        "--health-interval",
        "disable",
    ];
    let name = podman.detached(&options, "sleep 1000");

    let ill = podman.podman(&["healthcheck", "run", &name]);
    podman
        .podman(&["exec", &name, "touch", "/well"])
        .expect_code(0);
    let well = podman.podman(&["healthcheck", "run", &name]);

    ill.expect_code(1);
    well.expect_code(0);
}
