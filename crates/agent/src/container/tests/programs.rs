//! Which program runs, with which arguments, environment and directory.

use std::fs;

use serde_json::json;

use super::harness::{
    create, install, isolated, pipes, reap, rootfs, run, run_in, set_mode, shell, spec, wait_ready,
    with,
};

#[test]
fn program_that_exits_gives_its_code_and_its_separate_streams() {
    let outcome = run(shell("echo out; echo err >&2; exit 7"));

    assert_eq!((outcome.code, outcome.error), (7, None));
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn program_ended_by_a_signal_gives_the_signal() {
    // The first process of a PID namespace is safe from its own signals.
    let spec = with(
        shell("kill -TERM $$"),
        "/linux/namespaces",
        json!([{"type": "mount"}]),
    );
    let outcome = run(with(spec, "/hostname", json!("")));

    assert_eq!(outcome.code, -15, "{outcome:?}");
}

#[test]
fn name_without_a_slash_is_searched_in_the_containers_path() {
    let outcome = run(spec(&["id", "-u"]));

    assert_eq!(outcome.output(), "0\n");
}

#[test]
fn missing_program_is_reported_as_127_before_the_gate() {
    for args in [&["nonesuch"][..], &["/bin/nonesuch"], &["/etc/passwd/x"]] {
        let outcome = run(spec(args));

        assert_eq!(
            (outcome.program_code, outcome.started),
            (Some(127), false),
            "{outcome:?}"
        );
        assert!(outcome.failure().contains(args[0]), "{outcome:?}");
    }
}

#[test]
fn program_that_cannot_run_is_reported_as_126() {
    for args in [&["/etc/passwd"][..], &["/etc"], &["/dev/null"]] {
        let outcome = run(spec(args));

        assert_eq!(outcome.program_code, Some(126), "{outcome:?}");
    }
}

#[test]
fn program_of_an_unknown_format_is_reported_as_126_after_the_gate() {
    let rootfs = rootfs();
    fs::write(rootfs.path().join("text"), "no program\n").unwrap();
    install(rootfs.path().join("text"), &rootfs.path().join("bin/odd"));
    set_mode(&rootfs.path().join("bin/odd"), 0o755);

    let outcome = isolated(|| run_in(rootfs.path(), spec(&["odd"])));

    assert_eq!(
        (outcome.program_code, outcome.started),
        (Some(126), true),
        "{outcome:?}"
    );
    assert!(
        outcome.failure().contains("exec format error"),
        "{outcome:?}"
    );
}

#[test]
fn process_whose_gate_is_closed_exits_without_running() {
    let rootfs = rootfs();

    let (code, printed) = isolated(|| {
        let (io, mut ends) = pipes();
        let (container, child) = create(shell("echo ran"), rootfs.path(), io).unwrap();
        wait_ready(&child).unwrap();
        let pid = child.pid;
        drop(child);
        let code = reap(pid);
        let mut printed = String::new();
        std::io::Read::read_to_string(&mut ends.stdout, &mut printed).unwrap();
        container.destroy().unwrap();
        (code, printed)
    });

    assert_eq!((code, printed.as_str()), (1, ""));
}

#[test]
fn environment_is_exactly_the_specifications_plus_home() {
    let outcome = run(with(
        spec(&["busybox", "env"]),
        "/process/env",
        json!(["PATH=/bin", "A=1", "A=2", "odd"]),
    ));

    assert_eq!(outcome.output(), "PATH=/bin\nA=1\nA=2\nodd\nHOME=/root\n");
}

#[test]
fn home_comes_from_the_images_accounts_unless_it_is_set() {
    for (uid, env, home) in [
        (1000, json!(["PATH=/bin"]), "/srv/app"),
        (4242, json!(["PATH=/bin"]), "/"),
        (1000, json!(["PATH=/bin", "HOME="]), "/srv/app"),
        (1000, json!(["PATH=/bin", "HOME=/mine"]), "/mine"),
    ] {
        let spec = with(shell("echo $HOME"), "/process/env", env);
        let outcome = run(with(spec, "/process/user", json!({"uid": uid, "gid": uid})));

        assert_eq!(outcome.output(), format!("{home}\n"));
    }
}

#[test]
fn working_directory_that_is_missing_is_made() {
    let outcome = run(with(
        with(
            shell("pwd; stat -c '%U %a' ."),
            "/process/cwd",
            json!("/a/new/place"),
        ),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    ));

    assert_eq!(outcome.output(), "/a/new/place\nroot 755\n");
}

#[test]
fn working_directory_that_is_a_file_is_an_error_naming_the_field() {
    let outcome = run(with(spec(&["true"]), "/process/cwd", json!("/etc/passwd")));

    assert!(outcome.failure().contains("process.cwd"), "{outcome:?}");
}

#[test]
fn process_has_no_descriptor_but_its_streams() {
    // The fourth is the directory that is being listed.
    let outcome = run(spec(&["ls", "/proc/self/fd"]));

    assert_eq!(outcome.output(), "0\n1\n2\n3\n");
}

#[test]
fn start_hook_runs_in_the_container_and_learns_its_state() {
    let hook = json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", "cat > /state; echo $MARK >> /state"],
        "env": ["MARK=marked", "PATH=/bin"],
        "timeout": 10,
    });
    let spec = with(
        shell("cat /state"),
        "/hooks",
        json!({"startContainer": [hook]}),
    );

    let outcome = run(spec);

    let (state, mark) = outcome
        .output()
        .split_at(outcome.stdout.len() - "marked\n".len());
    let state: serde_json::Value = serde_json::from_str(state).unwrap();
    assert_eq!(
        (state["pid"].as_i64(), state["status"].as_str()),
        (Some(1), Some("created"))
    );
    assert_eq!(state["bundle"], "/bundle");
    assert_eq!(mark, "marked\n");
}

#[test]
fn start_hook_that_fails_or_hangs_keeps_the_program_from_running() {
    for (script, why) in [("exit 3", "exited with 3"), ("sleep 1000", "took too long")] {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1,
            "env": ["PATH=/bin"]});
        let outcome = run(with(
            shell("echo ran"),
            "/hooks",
            json!({"startContainer": [hook]}),
        ));

        assert!(outcome.failure().contains(why), "{outcome:?}");
        assert!(
            outcome.failure().contains("hooks.startContainer"),
            "{outcome:?}"
        );
        assert_eq!(outcome.stdout, "");
    }
}
