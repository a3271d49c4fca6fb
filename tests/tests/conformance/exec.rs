//! `exec`.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use bulkhead_tests::wait;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;

use crate::requirement::Exception::Crun;
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::{Subject, status};

pub const EXEC: &[Requirement] = requirements! {
    "Command line: exec";
    exit_code_is_the_commands = "`exec` returns the exit code of the command";
    streams_are_the_callers = "stdin, stdout and stderr are the caller's, separate";
    command_is_in_the_containers_namespaces = "The command is in the container's namespaces";
    command_has_the_processes_environment = "Environment and capabilities are those of the container's process";
    command_has_the_processes_user = "User, groups and directory are those of the container's process" [
        Crun("1.8 takes root and `/`"),
    ];
    missing_command_is_an_error = "A command that does not exist is an error that names it";
    exec_in_a_created_container_runs = "`exec` in a container that is created";
    exec_in_a_stopped_container_is_an_error = "`exec` in a stopped container is an error";
    exec_in_a_missing_container_is_an_error = "`exec` in a container that does not exist is an error";
    process_document_is_taken = "`--process FILE`";
    options_change_the_process = "`--user`, `--env`, `--cwd`";
    additional_groups_are_set = "`--additional-gids`" [
        Crun("1.8 does not have it"),
    ];
    capability_is_added = "`--cap`: in addition to those of the container's process" [
        Crun("1.8 takes these only"),
    ];
    no_new_privileges_is_set = "`--no-new-privs`";
    detached_command_goes_on = "`--detach --pid-file`: the engine waits for the process and has its exit code";
    signal_to_a_detached_command_reaches_it = "`--detach --pid-file`: a signal sent to the process reaches the command";
    command_ends_with_the_container = "A command ends when the container's process does";
    limits_of_the_container_apply = "The container's limits hold for the command, too";
};

fn exit_code_is_the_commands(subject: &Subject) {
    let container = subject.running(|_| {});

    container.exec(&[], "exit 9").output().expect_code(9);
}

fn streams_are_the_callers(subject: &Subject) {
    let container = subject.running(|_| {});

    let exec = container.exec(&[], "cat; echo err >&2").stdin("some input");
    let output = exec.output().expect(0);

    assert_eq!(output.stdout, b"some input");
    assert_eq!(output.error(), "err\n");
}

fn command_is_in_the_containers_namespaces(subject: &Subject) {
    let mut container = subject.running_script(
        "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done; echo ready; read line",
        |_| {},
    );
    let script =
        "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done; cat /proc/1/comm";

    let output = container.exec(&[], script).output();

    let (links, first) = output.text().rsplit_once('\n').unwrap();
    assert_eq!(first, "sh");
    let own = container.exec(
        &[],
        "for n in pid net ipc uts mnt; do readlink /proc/1/ns/$n; done",
    );
    assert_eq!(own.output().text(), links);
    container.kill();
}

fn command_has_the_processes_environment(subject: &Subject) {
    let container = subject.running(|config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=b c"]);
    });

    let output = container
        .exec(&[], "echo $A; cat /proc/self/status")
        .output();

    assert!(output.text().starts_with("b c\n"), "{output}");
    // Three capabilities of the default configuration: 5, 10 and 29.
    assert_eq!(status(output.text(), "CapBnd"), "0000000020000420");
    assert_eq!(status(output.text(), "CapEff"), "0000000020000420");
}

fn command_has_the_processes_user(subject: &Subject) {
    let container = subject.running(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 50, "additionalGids": [44] });
        config["process"]["cwd"] = json!("/home/alice");
    });

    let output = container.exec(&[], "id -u; id -G; pwd").output();

    assert_eq!(output.text(), "1000\n50 44\n/home/alice");
}

fn missing_command_is_an_error(subject: &Subject) {
    let container = subject.running(|_| {});

    let output = subject
        .verb(["exec", container.id(), "no-such-command"])
        .output();

    subject.assert_error(&output);
    assert!(output.error().contains("no-such-command"), "{output}");
}

fn exec_in_a_created_container_runs(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let output = container.exec(&[], "echo hello").output();

    assert_eq!(output.text(), "hello");
    assert_eq!(container.status(), "created");
}

fn exec_in_a_stopped_container_is_an_error(subject: &Subject) {
    let container = subject.stopped();

    let output = container.exec(&[], "true").output();

    subject.assert_error(&output);
}

fn exec_in_a_missing_container_is_an_error(subject: &Subject) {
    let output = subject.verb(["exec", "nobody", "true"]).output();

    subject.assert_error(&output);
}

fn process_document_is_taken(subject: &Subject) {
    let container = subject.running(|_| {});
    let file = container.bundle.dir.join("process.json");
    let process = json!({
        "terminal": false,
        "user": { "uid": 1000, "gid": 44 },
        "args": ["/bin/sh", "-c", "id -u; id -g; pwd; echo $A"],
        "env": ["PATH=/bin", "A=b"],
        "cwd": "/tmp",
        "capabilities": {},
    });
    fs::write(&file, process.to_string()).unwrap();

    let exec = subject.verb(["exec", "--process"]).arg(&file);
    let output = exec.arg(container.id()).output();

    assert_eq!(output.text(), "1000\n44\n/tmp\nb");
}

fn options_change_the_process(subject: &Subject) {
    let container = subject.running(|_| {});
    let options = ["--user", "1000:50", "--env", "A=b", "--cwd", "/tmp"];

    let output = container
        .exec(&options, "id -u; id -g; echo $A; pwd")
        .output();

    assert_eq!(output.text(), "1000\n50\nb\n/tmp");
}

fn additional_groups_are_set(subject: &Subject) {
    let container = subject.running(|_| {});
    let options = ["--user", "1000:50", "--additional-gids", "44"];

    let output = container.exec(&options, "id -G").output();

    assert_eq!(output.text(), "50 44");
}

fn capability_is_added(subject: &Subject) {
    let container = subject.running(|_| {});

    let exec = container.exec(&["--cap", "CAP_CHOWN"], "cat /proc/self/status");
    let output = exec.output();

    assert_eq!(status(output.text(), "CapEff"), "0000000020000421");
}

fn no_new_privileges_is_set(subject: &Subject) {
    let container = subject.running(|config| {
        config["process"]
            .as_object_mut()
            .unwrap()
            .remove("noNewPrivileges");
    });

    let off = container.exec(&[], "cat /proc/self/status").output();
    let on = container
        .exec(&["--no-new-privs"], "cat /proc/self/status")
        .output();

    assert_eq!(status(off.text(), "NoNewPrivs"), "0");
    assert_eq!(status(on.text(), "NoNewPrivs"), "1");
}

/// The process a detached `exec` has left, and what it writes.
fn detached(
    subject: &Subject,
    id: &str,
    script: &str,
) -> (Pid, bulkhead_tests::harness::running::Running) {
    let file = subject.new_dir().join("pid");
    let exec = subject.verb(["exec", "--detach", "--pid-file"]).arg(&file);
    let mut exec = exec.args([id, "/bin/sh", "-c", script]).spawn();
    assert!(exec.exited().success());
    (pid_in(&file), exec)
}

/// The process a file names.
pub fn pid_in(file: &Path) -> Pid {
    let text = fs::read_to_string(file).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Waits for the end of a process as its parent; its exit code.
pub fn exit_code(pid: Pid) -> Option<i32> {
    let number = u32::try_from(pid.as_raw_nonzero().get()).unwrap();
    let fd = wait::pidfd(number).expect("a child of ours");
    assert!(
        wait::readable(fd.as_fd(), Instant::now() + wait::limit()),
        "it did not end"
    );
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}

fn detached_command_goes_on(subject: &Subject) {
    let container = subject.running(|_| {});

    let script = "while [ ! -e /go ]; do sleep 0.1; done; echo hello; exit 6";
    let (pid, exec) = detached(subject, container.id(), script);
    fs::write(container.bundle.rootfs().join("go"), "").unwrap();

    assert_eq!(exit_code(pid), Some(6));
    assert_eq!(exec.finish().text(), "hello");
}

fn signal_to_a_detached_command_reaches_it(subject: &Subject) {
    let container = subject.running(|_| {});

    let script = "trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done";
    let (pid, mut exec) = detached(subject, container.id(), script);
    exec.line_is("ready");
    kill_process(pid, Signal::TERM).unwrap();

    assert_eq!(exit_code(pid), Some(8));
    drop(exec);
}

fn command_ends_with_the_container(subject: &Subject) {
    let mut container = subject.running(|_| {});
    let mut exec = container.exec(&[], "echo ready; sleep 1000").spawn();
    exec.line_is("ready");

    container.verb("kill", &["KILL"]).expect_code(0);

    container.wait();
    let output = exec.finish();
    assert_eq!(output.code(), 137, "{output}");
}

fn limits_of_the_container_apply(subject: &Subject) {
    let container = subject.running(|config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 8 });
    });
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; echo unreached";

    let output = container.exec(&[], script).output();

    assert_ne!(output.code(), 0, "{output}");
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("unreached"),
        "{output}"
    );
}
