//! `bulkhead exec`: further processes in a running container.
//!
//! Each test but those under `ours` is proved on a peer runtime, as module `peer`.

#![allow(clippy::unwrap_used)]

use std::fs;

use bulkhead_tests::{Container, Invocation, Running, Test, bundle_suite};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

bundle_suite! {
    both:
        exit_code_of_exec_returned,
        streams_are_separate_and_exact,
        stdin_reaches_process_with_its_end,
        twenty_at_once_all_answer;
    uml:
        signal_that_ends_process_gives_128_and_its_number,
        environment_is_the_containers_and_more,
        directory_is_the_containers_or_the_given,
        user_is_the_given,
        additional_groups_apply,
        capabilities_are_the_containers,
        capability_given_is_added,
        no_new_privileges_applies,
        process_of_a_file_runs,
        namespaces_are_the_containers,
        large_output_arrives_whole,
        signal_to_exec_reaches_its_process,
        container_that_ends_takes_its_processes_along;
    ours:
        user_by_name_is_looked_up,
        missing_program_gives_127,
        program_that_is_no_program_gives_126,
        missing_container_is_an_error,
        stopped_container_is_an_error,
        child_left_behind_does_not_hang_exec,
        exec_leaves_no_streams;
}

/// A container that runs until its input ends.
fn idle<'t>(test: &'t Test, change: impl FnOnce(&mut Value)) -> Container<'t> {
    test.bundle_sh("echo ready; cat", change).start().ready()
}

fn exit_code_of_exec_returned(test: &Test) {
    let container = idle(test, |_| {});

    let success = container.exec(["true"]).output();
    let failure = container.sh("exit 42");

    success.expect_code(0);
    failure.expect_code(42);
}

fn signal_that_ends_process_gives_128_and_its_number(test: &Test) {
    let container = idle(test, |_| {});

    let output = container.sh("kill -KILL $$");

    output.expect_code(128 + 9);
}

fn streams_are_separate_and_exact(test: &Test) {
    let container = idle(test, |_| {});

    let output = container
        .sh(r"printf 'a\0b\r\n'; printf 'c\377' >&2")
        .expect(0);

    assert_eq!(output.stdout, b"a\0b\r\n");
    assert_eq!(output.stderr, b"c\xff");
}

fn stdin_reaches_process_with_its_end(test: &Test) {
    let container = idle(test, |_| {});

    let output = container
        .exec(["sh", "-c", "cat; echo end"])
        .stdin("one\ntwo")
        .output();

    assert_eq!(output.text(), "one\ntwoend");
}

fn twenty_at_once_all_answer(test: &Test) {
    let container = idle(test, |_| {});
    let script = |number: i32| format!("read line; echo $line {number}; exit {number}");

    let started: Vec<Running> = (0..20)
        .map(|number| {
            container
                .exec(["sh", "-c", &script(number)])
                .stdin("hello\n")
                .spawn()
        })
        .collect();
    let ended = started.into_iter().map(Running::finish);

    for (number, output) in (0..).zip(ended) {
        output.expect_code(number);
        assert_eq!(output.stdout, format!("hello {number}\n").as_bytes());
    }
}

fn environment_is_the_containers_and_more(test: &Test) {
    let container = idle(test, |config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=container", "B=container"]);
    });

    let options = ["--env", "B=exec", "--env", "C=exec"];
    let output = container
        .exec_with(&options, ["sh", "-c", "echo $A $B $C"])
        .output();

    assert_eq!(output.text(), "container exec exec");
}

fn directory_is_the_containers_or_the_given(test: &Test) {
    let container = idle(test, |config| config["process"]["cwd"] = json!("/home"));

    let same = container.exec(["/bin/pwd"]).output();
    let given = container
        .exec_with(&["--cwd", "/etc"], ["/bin/pwd"])
        .output();

    assert_eq!(same.text(), "/home");
    assert_eq!(given.text(), "/etc");
}

fn user_is_the_given(test: &Test) {
    let container = idle(test, |_| {});

    let output = container
        .exec_with(&["--user", "1000:50"], ["sh", "-c", "id -u; id -g"])
        .output();

    assert_eq!(output.text(), "1000\n50");
}

fn user_by_name_is_looked_up(test: &Test) {
    let container = idle(test, |_| {});

    let output = container
        .exec_with(&["--user", "alice"], ["sh", "-c", "id -u; id -G"])
        .output();

    assert_eq!(output.text(), "1000\n1000 44 50");
}

fn additional_groups_apply(test: &Test) {
    let container = idle(test, |_| {});

    let options = ["--user", "1000:50", "-g", "44", "-g", "77"];
    let output = container.exec_with(&options, ["id", "-G"]).output();

    assert_eq!(output.text(), "50 44 77");
}

/// The effective capabilities of a process that prints its status.
fn effective(invocation: Invocation) -> String {
    let output = invocation.output();
    let line = output
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"));
    line.unwrap().to_owned()
}

fn capabilities_are_the_containers(test: &Test) {
    let container = idle(test, |config| {
        for set in ["bounding", "permitted", "effective"] {
            config["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
        }
    });

    let found = effective(container.exec(["cat", "/proc/self/status"]));

    assert_eq!(found, "0000000000000021");
}

fn capability_given_is_added(test: &Test) {
    let container = idle(test, |config| {
        for set in ["bounding", "permitted", "effective"] {
            config["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
        }
    });

    let found =
        effective(container.exec_with(&["--cap", "CAP_SYS_CHROOT"], ["cat", "/proc/self/status"]));

    assert_eq!(found, "0000000000040021");
}

fn no_new_privileges_applies(test: &Test) {
    let container = idle(test, |config| {
        config["process"]
            .as_object_mut()
            .unwrap()
            .remove("noNewPrivileges");
    });
    let command = ["grep", "NoNewPrivs", "/proc/self/status"];

    let without = container.exec(command).output();
    let with = container.exec_with(&["--no-new-privs"], command).output();

    assert_eq!(without.text(), "NoNewPrivs:\t0");
    assert_eq!(with.text(), "NoNewPrivs:\t1");
}

fn process_of_a_file_runs(test: &Test) {
    let container = idle(test, |_| {});
    let file = test.new_dir().join("process.json");
    let process = json!({
        "args": ["/bin/sh", "-c", "echo $X; pwd; id -u"],
        "env": ["PATH=/bin", "X=file"],
        "cwd": "/tmp",
        "user": { "uid": 1, "gid": 1 },
    });
    fs::write(&file, process.to_string()).unwrap();

    let exec = test
        .verb(["exec", "--process"])
        .arg(&file)
        .arg(&container.id);

    assert_eq!(exec.output().text(), "file\n/tmp\n1");
}

fn namespaces_are_the_containers(test: &Test) {
    let container = idle(test, |config| config["hostname"] = json!("inside"));

    let output = container.sh("hostname; cat /proc/1/comm; echo x >/tmp/x; test $$ != 1");

    assert_eq!(output.text(), "inside\ncat");
    assert!(container.exec(["cat", "/tmp/x"]).output().text() == "x");
}

fn large_output_arrives_whole(test: &Test) {
    let container = idle(test, |_| {});

    let output = container.sh("seq 1 1000000").expect(0);

    let wanted: String = (1..=1_000_000)
        .map(|number| format!("{number}\n"))
        .collect();
    assert_eq!(Sha256::digest(&output.stdout), Sha256::digest(wanted));
}

fn signal_to_exec_reaches_its_process(test: &Test) {
    let container = idle(test, |_| {});
    // SIGKILL: the child may not have come to its `exec`, and have its shell's trap.
    let script = "trap 'echo got it; kill -9 $!; exit 9' TERM; sleep 1000 & echo waiting; wait; echo woke up";
    let mut exec = container.exec(["sh", "-c", script]).spawn();
    exec.line_is("waiting");

    exec.signal(Signal::TERM);

    assert_eq!(exec.line(), "got it");
    exec.end().expect_code(9);
    container.exec(["true"]).output().expect_code(0);
}

fn container_that_ends_takes_its_processes_along(test: &Test) {
    let mut container = idle(test, |_| {});
    let mut exec = container
        .exec(["sh", "-c", "echo waiting; sleep 1000"])
        .spawn();
    exec.line_is("waiting");

    container.close_stdin();

    container.end().expect_code(0);
    exec.end().expect_code(128 + 9);
}

fn missing_program_gives_127(test: &Test) {
    let container = idle(test, |_| {});

    let output = container.exec(["/bin/none"]).output();

    output.expect_code(127);
    output.expect_error(&["/bin/none"]);
}

fn program_that_is_no_program_gives_126(test: &Test) {
    let container = idle(test, |_| {});

    let output = container.exec(["/etc/passwd"]).output();

    output.expect_code(126);
    output.expect_error(&["/etc/passwd"]);
}

fn missing_container_is_an_error(test: &Test) {
    let output = test.verb(["exec", "nobody", "true"]).output();

    output.expect_code(255);
    output.expect_error(&["nobody"]);
}

fn stopped_container_is_an_error(test: &Test) {
    let id = test.new_id();
    test.run(["true"]).name(&id).keep().output().expect_code(0);

    let output = test.verb(["exec", &id, "true"]).output();

    output.expect_code(255);
    output.expect_error(&[&id, "stopped"]);
}

fn child_left_behind_does_not_hang_exec(test: &Test) {
    let container = idle(test, |_| {});

    let output = container.sh("sleep 1000 & echo started");

    assert_eq!(output.text(), "started");
    assert!(container.sh("ps").text().contains("sleep 1000"));
}

fn exec_leaves_no_streams(test: &Test) {
    let container = idle(test, |_| {});
    let streams = test.root().join(&container.id).join("io");
    let before = fs::read_dir(&streams).unwrap().count();

    container.exec(["true"]).output().expect_code(0);
    container.exec(["/bin/none"]).output().expect_code(127);

    assert_eq!(fs::read_dir(&streams).unwrap().count(), before);
}
