//! What an engine sees of a container, and the verbs that only runc's command line has.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::requirement::Exception::{Crun, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const ENGINE: &[Requirement] = requirements! {
    "Command line: what the engine sees";
    pid_file_names_a_child_of_the_engine = "The process of `--pid-file` ends with the exit code of the container's";
    death_by_signal_is_seen = "It dies of the signal that killed the container's process";
    signal_to_the_process_is_the_containers = "A signal sent to it is the container's process's";
    sigkill_to_the_process_ends_the_container = "SIGKILL sent to it ends the container";
    output_is_complete_at_the_end = "At its end all output has been written, and the streams are closed";
    end_of_input_is_the_containers = "The end of stdin reaches the container's process";
    output_closed_by_the_engine_is_a_broken_pipe = "Output that nobody reads any more is a broken pipe";
    preserved_descriptors_are_refused_or_passed = "`--preserve-fds 0` is accepted";
};

pub const VERBS: &[Requirement] = requirements! {
    "Command line: verbs and options of runc's";
    run_returns_the_exit_code = "`run` returns the exit code of the process";
    run_returns_128_and_the_signal = "`run` returns 128 and the number of the signal that ended the process";
    run_leaves_no_container = "`run` leaves no container";
    run_detached_returns_at_once = "`run --detach --pid-file` returns, and the container runs";
    list_has_each_container = "`list`: a table that begins with ID, PID, STATUS, BUNDLE, CREATED, OWNER" [
        Crun("1.8 has other columns"),
    ];
    list_quiet_has_names = "`list --quiet`: names only";
    list_json_is_a_list_of_states = "`list --format json`: a list with `id`, `pid`, `status`, `bundle`";
    ps_shows_processes = "`ps`: a table of the container's processes, with their commands" [
        Crun("1.8 shows numbers only"),
    ];
    ps_json_is_a_list_of_numbers = "`ps --format json`: a list of PIDs of the host, the container's among them";
    ps_json_has_every_process = "`ps --format json`: every process of the container" [
        Vm("the others have no PID on the host; the table has them"),
    ];
    pause_freezes_and_resume_thaws = "`pause` freezes all processes, status paused; `resume` thaws them";
    paused_container_refuses_delete_and_exec = "A paused container refuses `delete` and `exec`";
    pause_of_a_paused_container_is_an_error = "`pause` of a paused container is an error" [
        Crun("1.8 says nothing"),
    ];
    pause_of_a_stopped_container_is_an_error = "`pause` of a stopped container is an error";
    resume_of_a_running_container_is_an_error = "`resume` of a container that is not paused is an error" [
        Crun("1.8 says nothing"),
    ];
    update_changes_the_pids_limit = "`update --pids-limit`: in force at once";
    update_takes_resources = "`update --resources -`: resources on stdin";
    update_of_a_missing_container_is_an_error = "`update` of a container that does not exist is an error";
    events_has_statistics = "`events --stats`: memory, CPU and number of processes" [
        Crun("does not have it"),
    ];
    features_is_a_document = "`features`: versions, hooks, namespaces, capabilities, seccomp" [
        Crun("1.8 does not have it"),
    ];
    spec_writes_a_configuration_that_runs = "`spec` writes a configuration that runs";
    spec_replaces_nothing = "`spec` does not replace a `config.json`";
    version_names_the_specification = "`--version`: name, version, version of the specification";
    log_has_the_error_as_json = "`--log FILE --log-format json`: the error as a JSON line with `level` and `msg`";
    roots_are_separate = "`--root`: containers of another root are not seen";
    unknown_verb_is_an_error = "An unknown verb and an unknown option are errors";
};

fn pid_file_names_a_child_of_the_engine(subject: &Subject) {
    let mut container = subject.created("exit 42", |_| {});

    container.start();

    assert_eq!(container.wait().code(), Some(42));
}

fn death_by_signal_is_seen(subject: &Subject) {
    let mut container = subject.running(|_| {});

    container.verb("kill", &["KILL"]).expect_code(0);

    let status = container.wait();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
}

fn signal_to_the_process_is_the_containers(subject: &Subject) {
    let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut container = subject.running_script(script, |_| {});

    container.signal(Signal::TERM);

    assert_eq!(container.line(), "got it");
    assert_eq!(container.wait().code(), Some(9));
}

fn sigkill_to_the_process_ends_the_container(subject: &Subject) {
    let mut container = subject.running(|_| {});

    container.kill();

    assert_eq!(container.status(), "stopped");
}

fn output_is_complete_at_the_end(subject: &Subject) {
    let container = subject.created(
        "yes 0123456789abcde | head -c 1600000; echo err >&2",
        |_| {},
    );

    container.start();

    let output = container.finish();
    assert_eq!(output.stdout.len(), 1_600_000);
    assert_eq!(output.error(), "err\n");
}

fn end_of_input_is_the_containers(subject: &Subject) {
    let mut container = subject.running_script("echo ready; wc -c", |_| {});
    container.stdin().write_all(&[b'x'; 100_000]).unwrap();

    container.close_stdin();

    assert_eq!(container.line().trim(), "100000");
}

fn output_closed_by_the_engine_is_a_broken_pipe(subject: &Subject) {
    let mut container = subject.running_script("echo ready; yes", |_| {});

    container.close_stdout();

    let status = container.wait();
    assert!(!status.success(), "{status}");
}

fn preserved_descriptors_are_refused_or_passed(subject: &Subject) {
    let bundle = subject.bundle_sh("echo hello", |_| {});

    let run = subject.verb(["run", "--preserve-fds", "0", "--bundle"]);
    let output = run.arg(&bundle.dir).arg(&bundle.id).output();

    assert_eq!(output.text(), "hello");
}

fn run_returns_the_exit_code(subject: &Subject) {
    subject.ran("exit 7", |_| {}).expect_code(7);
}

fn run_returns_128_and_the_signal(subject: &Subject) {
    let bundle = subject.bundle_sh("echo ready; sleep 1000", |_| {});
    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);
    let mut run = run.arg(&bundle.id).spawn();
    run.line_is("ready");

    subject
        .verb(["kill", &bundle.id, "KILL"])
        .output()
        .expect_code(0);

    run.finish().expect_code(137);
}

fn run_leaves_no_container(subject: &Subject) {
    let bundle = subject.bundle(|_| {});
    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);

    run.arg(&bundle.id).output().expect_code(0);

    subject.assert_missing(&bundle.id);
}

fn run_detached_returns_at_once(subject: &Subject) {
    let bundle = subject.bundle_sh("echo ready; sleep 1000", |_| {});
    let file = bundle.dir.join("pid");
    let run = subject.verb(["run", "--detach", "--pid-file"]).arg(&file);
    let mut run = run.arg("--bundle").arg(&bundle.dir).arg(&bundle.id).spawn();

    assert!(run.exited().success());

    let pid = fs::read_to_string(&file).unwrap();
    let state = subject.verb(["state", &bundle.id]).output().json();
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"].to_string(), pid.trim());
    run.line_is("ready");
}

fn list_has_each_container(subject: &Subject) {
    let first = subject.created("true", |_| {});
    let second = subject.running(|_| {});

    let output = subject.verb(["list"]).output();

    let mut lines = output.text().lines();
    let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading[..6],
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let mut rows: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().collect())
        .collect();
    rows.sort_by_key(|row| row[2]);
    for (row, (container, status)) in rows.iter().zip([(&first, "created"), (&second, "running")]) {
        assert_eq!(row[0], container.id());
        assert_eq!(row[1], container.pid.to_string());
        assert_eq!(row[2], status);
        assert_eq!(row[3], container.bundle.dir.to_str().unwrap());
    }
    assert_eq!(rows.len(), 2);
}

fn list_quiet_has_names(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let output = subject.verb(["list", "--quiet"]).output();

    assert_eq!(output.text(), container.id());
}

fn list_json_is_a_list_of_states(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let list = subject.verb(["list", "--format", "json"]).output().json();

    assert_eq!(list.as_array().map(Vec::len), Some(1));
    assert_eq!(list[0]["id"], container.id());
    assert_eq!(list[0]["pid"], container.pid);
    assert_eq!(list[0]["status"], "created");
    assert_eq!(list[0]["bundle"], container.bundle.dir.to_str().unwrap());
}

fn ps_shows_processes(subject: &Subject) {
    let container = subject.running_script("sleep 1000 & echo ready; read line", |_| {});

    let output = subject.verb(["ps", container.id()]).output();

    assert!(output.text().contains("PID"), "{output}");
    assert!(output.text().contains("sleep"), "{output}");
}

fn ps_json_is_a_list_of_numbers(subject: &Subject) {
    let container = subject.running_script("sleep 1000 & echo ready; read line", |_| {});

    let list = subject
        .verb(["ps", "--format", "json", container.id()])
        .output()
        .json();

    assert!(
        list.as_array().unwrap().contains(&json!(container.pid)),
        "{list}"
    );
}

fn ps_json_has_every_process(subject: &Subject) {
    let container = subject.running_script("sleep 1000 & echo ready; read line", |_| {});

    let list = subject
        .verb(["ps", "--format", "json", container.id()])
        .output()
        .json();

    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
}

fn pause_freezes_and_resume_thaws(subject: &Subject) {
    let mut container =
        subject.running_script("echo ready; while read line; do echo $line; done", |_| {});

    container.verb("pause", &[]).expect_code(0);

    assert_eq!(container.status(), "paused");
    container.write_line("hello");
    // Nothing can come until it is thawed: seen by the order of both.
    container.verb("resume", &[]).expect_code(0);
    assert_eq!(container.status(), "running");
    assert_eq!(container.line(), "hello");
}

fn paused_container_refuses_delete_and_exec(subject: &Subject) {
    let container = subject.running(|_| {});
    container.verb("pause", &[]).expect_code(0);

    let delete = container.verb("delete", &[]);
    let exec = container.exec(&[], "true").output();

    container.verb("resume", &[]).expect_code(0);
    subject.assert_error(&delete);
    subject.assert_error(&exec);
}

fn pause_of_a_paused_container_is_an_error(subject: &Subject) {
    let container = subject.running(|_| {});
    container.verb("pause", &[]).expect_code(0);

    let output = container.verb("pause", &[]);

    container.verb("resume", &[]).expect_code(0);
    subject.assert_error(&output);
}

fn pause_of_a_stopped_container_is_an_error(subject: &Subject) {
    let container = subject.stopped();

    let output = container.verb("pause", &[]);

    subject.assert_error(&output);
}

fn resume_of_a_running_container_is_an_error(subject: &Subject) {
    let container = subject.running(|_| {});

    let output = container.verb("resume", &[]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "running");
}

/// Tells how many of twelve processes could be made.
const FORKS: &str =
    "n=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & n=$((n+1)); echo $n; done";

fn update_changes_the_pids_limit(subject: &Subject) {
    let script = format!("echo ready; read line; {FORKS}");
    let mut container = subject.running_script(&script, |_| {});

    subject
        .verb(["update", "--pids-limit", "5", container.id()])
        .output()
        .expect_code(0);

    container.write_line("go");
    let output = container.finish();
    let made = String::from_utf8_lossy(&output.stdout);
    assert!(made.lines().count() < 6, "{output}");
}

fn update_takes_resources(subject: &Subject) {
    let script = format!("echo ready; read line; {FORKS}");
    let mut container = subject.running_script(&script, |_| {});

    let update = subject.verb(["update", "--resources", "-", container.id()]);
    let resources = json!({ "pids": { "limit": 5 } }).to_string();
    update.stdin(resources).output().expect_code(0);

    container.write_line("go");
    let output = container.finish();
    let made = String::from_utf8_lossy(&output.stdout);
    assert!(made.lines().count() < 6, "{output}");
}

fn update_of_a_missing_container_is_an_error(subject: &Subject) {
    let output = subject
        .verb(["update", "--pids-limit", "5", "nobody"])
        .output();

    subject.assert_error(&output);
}

fn events_has_statistics(subject: &Subject) {
    // Enough work for a clock that ticks.
    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo ready; read line";
    let container = subject.running_script(script, |config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    });

    let event = subject
        .verb(["events", "--stats", container.id()])
        .output()
        .json();

    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], container.id());
    let number = |pointer: &str| {
        let value = event.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("{pointer}: {event}"))
    };
    assert!(number("/data/memory/usage/usage") > 0);
    assert!(number("/data/memory/usage/limit") >= 64 << 20);
    assert!(number("/data/cpu/usage/total") > 0);
    assert!(number("/data/pids/current") >= 1);
}

fn features_is_a_document(subject: &Subject) {
    let features = subject.verb(["features"]).output().json();

    for pointer in ["/ociVersionMin", "/ociVersionMax"] {
        let version = features.pointer(pointer).and_then(Value::as_str);
        assert!(
            version.is_some_and(|version| version.starts_with("1.")),
            "{features}"
        );
    }
    let has = |pointer: &str, entry: &str| {
        let list = features.pointer(pointer).and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|it| it == entry))
    };
    assert!(has("/hooks", "poststop"), "{features}");
    assert!(has("/mountOptions", "nosuid"), "{features}");
    assert!(has("/linux/namespaces", "network"), "{features}");
    assert!(has("/linux/capabilities", "CAP_CHOWN"), "{features}");
    assert!(
        has("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
        "{features}"
    );
}

fn spec_writes_a_configuration_that_runs(subject: &Subject) {
    let bundle = subject.bundle(|_| {});
    let file = bundle.dir.join("config.json");
    fs::remove_file(&file).unwrap();

    subject
        .verb(["spec"])
        .dir(&bundle.dir)
        .output()
        .expect_code(0);

    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(config["process"]["terminal"], true);
    assert_eq!(config["root"]["readonly"], true);
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/echo", "hello"]);
    fs::write(&file, config.to_string()).unwrap();
    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);
    assert_eq!(run.arg(&bundle.id).output().text(), "hello");
}

fn spec_replaces_nothing(subject: &Subject) {
    let dir = subject.new_dir();
    fs::write(dir.join("config.json"), "mine").unwrap();

    let output = subject.verb(["spec"]).dir(&dir).output();

    subject.assert_error(&output);
    assert_eq!(fs::read_to_string(dir.join("config.json")).unwrap(), "mine");
}

fn version_names_the_specification(subject: &Subject) {
    let output = subject.verb(["--version"]).output();

    let text = output.text();
    assert!(text.lines().next().unwrap().contains("version"), "{output}");
    let spec = text.lines().find_map(|line| line.strip_prefix("spec: "));
    assert!(
        spec.is_some_and(|version| version.starts_with("1.")),
        "{output}"
    );
}

fn log_has_the_error_as_json(subject: &Subject) {
    let file = subject.new_dir().join("log");
    let log = file.to_str().unwrap();

    let args = ["--log", log, "--log-format", "json", "start", "nobody"];
    let output = subject.verb(args).output();

    assert_ne!(output.code(), 0, "{output}");
    let text = fs::read_to_string(&file).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(!line["msg"].as_str().unwrap().is_empty(), "{line}");
}

fn roots_are_separate(subject: &Subject) {
    let container = subject.created("true", |_| {});
    let other = subject.new_dir();

    let output = subject
        .verb(["--root", other.to_str().unwrap(), "state", container.id()])
        .output();

    subject.assert_error(&output);
}

fn unknown_verb_is_an_error(subject: &Subject) {
    let verb = subject.verb(["no-such-verb"]).output();
    let option = subject.verb(["list", "--no-such-option"]).output();

    assert_ne!(option.code(), 0, "{option}");
    assert_ne!(verb.code(), 0, "{verb}");
}
