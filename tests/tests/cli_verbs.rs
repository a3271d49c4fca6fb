//! The verbs that look at containers and put them away: `list`, `state`, `ps`, `logs`, `why`,
//! `delete`, `pause`, `resume`, `doctor`, `completion`; and where messages go.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_tests::harness::bundle::push;
use bulkhead_tests::{Container, Test, suite, wait};
use serde_json::{Value, json};

suite! {
    both:
        list_shows_running_and_stopped,
        ps_shows_processes,
        why_has_spans_of_host_kernel_and_agent,
        delete_force_ends_a_running_container,
        pause_freezes_and_resume_thaws;
    uml:
        list_without_containers_is_empty,
        list_quiet_prints_names,
        list_json_has_what_engines_read,
        state_has_what_engines_read,
        state_of_a_missing_container_is_an_error,
        ps_json_is_a_list_of_numbers,
        logs_has_the_guests_console,
        why_after_a_failed_start_has_cause_and_fix,
        why_of_an_unknown_container_is_an_error,
        why_tells_of_memory,
        delete_running_is_refused,
        delete_stopped_removes,
        delete_missing_is_an_error_unless_forced,
        paused_container_refuses_exec_and_can_be_killed,
        doctor_passes_with_evidence_and_remedies,
        doctor_without_kernels_fails,
        completion_scripts_are_valid,
        help_names_every_verb,
        error_goes_to_the_log_as_json,
        error_goes_to_the_log_as_text,
        debug_adds_lines_to_the_log_in_the_form_of_the_error,
        configuration_file_chooses_the_hypervisor,
        configuration_file_forbids_annotations,
        configuration_file_with_an_error_is_refused;
}

/// A container that answers lines until its input ends.
fn answering(test: &Test) -> Container<'_> {
    let run = test.sh("echo ready; exec cat").option("-i");
    run.with(|command| command.stdin_pipe()).start().ready()
}

/// A container that has ended with 3 and was kept.
fn stopped(test: &Test) -> String {
    let id = test.new_id();
    test.sh("exit 3").name(&id).keep().output().expect_code(3);
    id
}

/// The rows of a table, without its heading.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(1);
    rows.map(|row| row.split_whitespace().collect()).collect()
}

fn list_without_containers_is_empty(test: &Test) {
    let output = test.verb(["list"]).output();

    assert_eq!(output.text().lines().count(), 1, "{output}");
    assert!(output.text().starts_with("ID"), "{output}");
}

fn list_shows_running_and_stopped(test: &Test) {
    let running = answering(test);
    let ended = stopped(test);

    let output = test.verb(["list"]).output();

    let heading = output.text().lines().next().unwrap();
    let columns: Vec<&str> = heading.split_whitespace().collect();
    assert_eq!(
        columns[..6],
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let mut rows = rows(output.text());
    rows.sort_by_key(|row| row[2]);
    assert_eq!(rows.len(), 2, "{output}");
    assert_eq!((rows[0][0], rows[0][2]), (running.id.as_str(), "running"));
    assert!(rows[0][1].parse::<u32>().unwrap() > 1);
    assert_eq!(
        (rows[1][0], rows[1][1], rows[1][2]),
        (ended.as_str(), "0", "stopped")
    );
}

fn list_quiet_prints_names(test: &Test) {
    let mut ids = [stopped(test), stopped(test)];

    let output = test.verb(["list", "-q"]).output();

    ids.sort();
    assert_eq!(output.text().lines().collect::<Vec<_>>(), ids);
}

fn list_json_has_what_engines_read(test: &Test) {
    let container = answering(test);

    let list = test.verb(["list", "--format", "json"]).output().json();

    assert_eq!(list.as_array().map(Vec::len), Some(1));
    assert_eq!(list[0], container.state());
}

fn state_has_what_engines_read(test: &Test) {
    let bundle = test.bundle_sh("echo ready; cat", |config| {
        config["annotations"] = json!({ "org.example.key": "value" });
    });
    let container = bundle.start().ready();

    let state = container.state();

    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert_eq!(state["id"], container.id);
    assert_eq!(state["status"], "running");
    assert_eq!(state["bundle"], bundle.dir.to_str().unwrap());
    assert_eq!(state["rootfs"], bundle.rootfs().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(state["owner"], "root");
    assert_eq!(state["hypervisor"], test.driver.hypervisor());
    let pid = u32::try_from(state["pid"].as_u64().unwrap()).unwrap();
    assert!(wait::pidfd(pid).is_some());
    let created = state["created"].as_str().unwrap();
    assert!(
        created.starts_with("20") && created.ends_with('Z'),
        "{created}"
    );
}

fn state_of_a_missing_container_is_an_error(test: &Test) {
    let output = test.verb(["state", "nobody"]).output();

    output.expect_code(1);
    output.expect_error(&["nobody", "does not exist"]);
}

fn ps_shows_processes(test: &Test) {
    // Ready when the second program runs, not when it is about to.
    let script = "echo ready >/tmp/word; tail -f /tmp/word & read line";
    let run = test.sh(script).options(["-i", "-u", "alice"]);
    let container = run.with(|command| command.stdin_pipe()).start().ready();

    let output = test.verb(["ps", &container.id]).output();

    let heading = output.text().lines().next().unwrap();
    assert_eq!(
        heading.split_whitespace().collect::<Vec<_>>(),
        ["UID", "PID", "PPID", "TIME", "CMD"]
    );
    let mut found: Vec<(&str, &str)> = rows(output.text())
        .iter()
        .map(|row| (row[0], row[4]))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("1000", "/bin/sh"), ("1000", "tail")]);
}

fn ps_json_is_a_list_of_numbers(test: &Test) {
    let container = answering(test);

    let list = test
        .verb(["ps", "--format", "json", &container.id])
        .output()
        .json();

    let pids = list.as_array().unwrap();
    assert_eq!(pids.len(), 1);
    assert!(pids[0].as_u64().unwrap() > 0);
}

fn logs_has_the_guests_console(test: &Test) {
    // A message of the highest urgency reaches the console whatever the kernel was told.
    let script = "printf '<0>marker \\033[31m\\n' >/dev/kmsg; echo ready; cat";
    let bundle = test.bundle_sh(script, |config| {
        let device =
            json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 });
        config["linux"]["devices"] = json!([device]);
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" });
        push(config, "/linux/resources/devices", rule);
    });
    let container = bundle.start().ready();
    let dir = test.root().join(&container.id);
    wait::until_changed(&dir, || {
        let console = fs::read(dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).contains("marker")
    });

    let output = container.verb("logs", &[]).output();

    assert!(output.text().contains("marker"), "{output}");
    assert!(!output.stdout.contains(&0x1b), "{output}");
}

fn why_has_spans_of_host_kernel_and_agent(test: &Test) {
    let id = stopped(test);

    let text = test.verb(["why", &id]).output();
    let report = test.verb(["why", "--json", &id]).output().json();

    let spans = report["timeline"]["spans"].as_array().unwrap();
    for actor in ["host", "kernel", "agent"] {
        assert!(
            spans.iter().any(|span| span["actor"] == actor),
            "{actor}: {report:#}"
        );
        assert!(text.text().contains(actor), "{text}");
    }
    let origin = report["timeline"]["origin_ns"].as_u64().unwrap();
    for span in spans {
        let (start, end) = (
            span["start_ns"].as_u64().unwrap(),
            span["end_ns"].as_u64().unwrap(),
        );
        assert!(origin <= start && start <= end, "{span}");
    }
    assert_eq!(report["exit"]["code"], 3);
    assert!(text.text().contains(test.driver.hypervisor()), "{text}");
}

fn why_after_a_failed_start_has_cause_and_fix(test: &Test) {
    let id = test.new_id();
    test.run(["/bin/none"]).name(&id).output().expect_code(127);

    let text = test.verb(["why", &id]).output();
    let report = test.verb(["why", "--json", &id]).output().json();

    let cause = report["failure"]["cause"].as_str().unwrap();
    assert!(
        cause.starts_with(char::is_uppercase) && cause.contains("/bin/none"),
        "{cause}"
    );
    assert_ne!(report["failure"]["fix"], "");
    assert!(text.text().contains(cause), "{text}");
    assert!(text.text().contains("\nfix "), "{text}");
    let spans = report["timeline"]["spans"].as_array().unwrap();
    assert!(
        spans.iter().any(|span| span["actor"] == "kernel"),
        "{report:#}"
    );
}

fn why_of_an_unknown_container_is_an_error(test: &Test) {
    let output = test.verb(["why", "nobody"]).output();

    output.expect_code(1);
    output.expect_error(&["nobody", "does not exist"]);
}

fn why_tells_of_memory(test: &Test) {
    let id = test.new_id();
    let run = test.run(["tail", "/dev/zero"]).name(&id).keep();
    run.options(["--memory", "48m"]).output().expect_code(137);

    let output = test.verb(["why", &id]).output();

    assert!(output.text().contains("memory"), "{output}");
    assert!(output.text().contains("--memory"), "{output}");
}

fn delete_running_is_refused(test: &Test) {
    let mut container = answering(test);

    let output = container.verb("delete", &[]).output();

    output.expect_code(1);
    output.expect_error(&[&container.id, "running", "--force"]);
    container.write_line("still here");
    assert_eq!(container.line(), "still here");
}

fn delete_force_ends_a_running_container(test: &Test) {
    let mut container = answering(test);
    let processes = container.processes();

    let output = test.verb(["delete", "--force", &container.id]).output();

    output.expect_code(0);
    assert_eq!(output.stderr, b"", "{output}");
    assert_eq!(test.containers(), [""; 0]);
    container.end().expect_code(137);
    for pid in processes {
        wait::gone(pid);
    }
}

fn delete_stopped_removes(test: &Test) {
    let ids = [stopped(test), stopped(test)];

    test.verb(["delete"]).args(&ids).output().expect_code(0);

    assert_eq!(test.verb(["list", "-q"]).output().text(), "");
}

fn delete_missing_is_an_error_unless_forced(test: &Test) {
    let plain = test.verb(["delete", "nobody"]).output();
    let forced = test.verb(["delete", "--force", "nobody"]).output();

    plain.expect_code(1);
    plain.expect_error(&["nobody", "does not exist"]);
    forced.expect_code(0);
}

fn pause_freezes_and_resume_thaws(test: &Test) {
    let mut container = answering(test);

    container.verb("pause", &[]).output().expect_code(0);
    let paused = container.state();
    container.write_line("hello");
    let mut output = container.take_stdout();
    // That nothing comes cannot be waited for, only given a chance.
    let chance = Instant::now() + Duration::from_millis(300);
    let answered = wait::readable(output.as_fd(), chance);
    container.verb("resume", &[]).output().expect_code(0);
    let resumed = container.state();
    let mut answer = [0; 6];
    output.read_exact(&mut answer).unwrap();

    assert_eq!(paused["status"], "paused");
    assert!(!answered);
    assert_eq!(resumed["status"], "running");
    assert_eq!(&answer, b"hello\n");
}

fn paused_container_refuses_exec_and_can_be_killed(test: &Test) {
    let mut container = answering(test);
    container.verb("pause", &[]).output().expect_code(0);

    let exec = container.exec(["true"]).output();
    let pause = container.verb("pause", &[]).output();
    container.kill("KILL");

    exec.expect_code(255);
    exec.expect_error(&[&container.id, "paused"]);
    pause.expect_error(&[&container.id, "paused"]);
    container.end().expect_code(137);
}

fn doctor_passes_with_evidence_and_remedies(test: &Test) {
    let text = test.verb(["doctor"]).output();
    let findings = test.verb(["doctor", "--json"]).output().json();

    let findings = findings.as_array().unwrap();
    for finding in findings {
        assert_ne!(finding["evidence"], "", "{finding}");
        let is_good = finding["verdict"] == "ok";
        assert_eq!(
            is_good,
            finding["remedy"].as_str().unwrap_or_default().is_empty(),
            "{finding}"
        );
        assert!(
            text.text().contains(finding["check"].as_str().unwrap()),
            "{finding}"
        );
    }
    let kvm = findings
        .iter()
        .find(|finding| finding["check"] == "KVM")
        .unwrap();
    assert!(
        kvm["evidence"].as_str().unwrap().contains("/dev/kvm"),
        "{kvm}"
    );
}

fn doctor_without_kernels_fails(test: &Test) {
    let output = test
        .verb(["doctor"])
        .env("BULKHEAD_LIB", test.new_dir())
        .output();

    output.expect_code(1);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.lines().any(|line| line.starts_with("fail ")),
        "{output}"
    );
    assert!(text.contains("make install"), "{output}");
}

fn completion_scripts_are_valid(test: &Test) {
    for (shell, check) in [("bash", "complete -p bulkhead"), ("zsh", "true")] {
        let script = test.verb(["completion", shell]).output();
        let script = script.text();

        assert!(script.contains("_bulkhead"), "{shell}");
        assert!(script.contains("--pids-limit"), "{shell}");
        let file = test.new_dir().join("script");
        fs::write(&file, script).unwrap();
        let load = format!("test {shell} = zsh || . {}; {check}", file.display());
        let output = Command::new("bash").args(["-c", &load]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

fn help_names_every_verb(test: &Test) {
    let output = test.verb(["--help"]).output();

    for verb in [
        "run",
        "list",
        "state",
        "ps",
        "exec",
        "kill",
        "pause",
        "resume",
        "delete",
        "logs",
        "why",
        "doctor",
        "kernel",
        "completion",
    ] {
        assert!(
            output.text().contains(&format!("\n  {verb} ")),
            "{verb}: {output}"
        );
    }
    assert!(
        test.verb(["--version"])
            .output()
            .text()
            .starts_with("bulkhead version 0.")
    );
}

/// Runs a verb that fails, with a log in a form, and returns the log.
fn log_of_failure(test: &Test, format: &str) -> String {
    log_of_failure_with(test, format, &[])
}

/// The log of a verb that fails, with further options.
fn log_of_failure_with(test: &Test, format: &str, more: &[&str]) -> String {
    let log = test.new_dir().join("log");
    let mut options = vec!["--log", log.to_str().unwrap(), "--log-format", format];
    options.extend(more);
    options.extend(["state", "nobody"]);
    test.verb(options).output().expect_code(1);
    fs::read_to_string(log).unwrap()
}

fn error_goes_to_the_log_as_json(test: &Test) {
    let log = log_of_failure(test, "json");

    let entry: Value = serde_json::from_str(log.trim_end()).unwrap();
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().unwrap().contains("nobody"), "{entry}");
    assert!(entry["time"].as_str().unwrap().starts_with("20"), "{entry}");
}

fn error_goes_to_the_log_as_text(test: &Test) {
    let log = log_of_failure(test, "text");

    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(
        log.contains("level=error") && log.contains("nobody"),
        "{log}"
    );
}

fn debug_adds_lines_to_the_log_in_the_form_of_the_error(test: &Test) {
    let json = log_of_failure_with(test, "json", &["--debug"]);
    let text = log_of_failure_with(test, "text", &["--debug"]);

    let mut entries: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(entries.pop().unwrap()["level"], "error", "{json}");
    assert!(!entries.is_empty(), "{json}");
    for entry in entries {
        assert_eq!(entry["level"], "debug");
        assert!(!entry["msg"].as_str().unwrap().is_empty(), "{entry}");
        assert!(entry["time"].as_str().unwrap().starts_with("20"), "{entry}");
    }
    let mut lines: Vec<&str> = text.lines().collect();
    assert!(lines.pop().unwrap().contains(" level=error msg="), "{text}");
    assert!(!lines.is_empty(), "{text}");
    for line in lines {
        assert!(line.starts_with("time=\"20"), "{text}");
        assert!(line.contains(" level=debug msg=\""), "{text}");
    }
}

fn configuration_file_chooses_the_hypervisor(test: &Test) {
    let name = test.driver.hypervisor();
    fs::write(
        test.config_dir().join("config.toml"),
        format!("hypervisor = {name:?}\n"),
    )
    .unwrap();
    let rootfs = test.rootfs().display().to_string();

    let run = test.verb(["run", "--rm", "--json", "--rootfs", &rootfs, "--", "true"]);

    let report: Value = serde_json::from_str(run.output().error().trim_end()).unwrap();
    assert_eq!(report["hypervisor"], name);
}

fn configuration_file_forbids_annotations(test: &Test) {
    fs::write(
        test.config_dir().join("config.toml"),
        "allowed_annotations = []\n",
    )
    .unwrap();
    let bundle = test.bundle(|config| {
        config["annotations"] = json!({ "io.bulkhead.memory_mib": "512" });
    });

    let output = bundle.output();

    output.expect_error(&["io.bulkhead.memory_mib", "allowed_annotations"]);
}

fn configuration_file_with_an_error_is_refused(test: &Test) {
    fs::write(test.config_dir().join("config.toml"), "memroy_mib = 512\n").unwrap();

    let output = test.run(["true"]).output();

    output.expect_code(125);
    output.expect_error(&["config.toml", "memroy_mib"]);
}
