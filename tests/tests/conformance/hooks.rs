//! Hooks: when each is called, where, with what, and what comes of one that fails.

use std::fs;
use std::path::Path;

use bulkhead_tests::Created;
use bulkhead_tests::harness::rootfs;
use serde_json::{Value, json};

use crate::requirement::Exception::{Crun, Differs, Runc, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const HOOKS: &[Requirement] = requirements! {
    "Configuration: Hooks";
    create_calls_its_hooks_in_order = "`create` calls prestart, createRuntime, createContainer, in this order";
    start_calls_start_container_before_the_program = "`start` calls startContainer, before the program";
    start_calls_poststart_before_it_returns = "`start` calls poststart, before it returns" [
        Runc("1.1 calls it in `create`"),
    ];
    delete_calls_poststop = "`delete` calls poststop, not sooner, and before it returns";
    hooks_of_one_kind_are_called_as_listed = "Hooks of one kind are called in the listed order";
    hook_has_its_arguments_and_environment = "A hook has its `args` and its `env`";
    prestart_has_the_state_on_stdin = "prestart has the state on stdin: ID, bundle, pid, annotations";
    create_runtime_has_the_state_on_stdin = "createRuntime has the state on stdin, not yet created";
    create_container_has_the_state_on_stdin = "createContainer has the state on stdin";
    start_container_has_the_state_on_stdin = "startContainer has the state on stdin";
    poststart_has_the_state_on_stdin = "poststart has the state on stdin, with status running" [
        Runc("1.1 calls it in `create`"),
    ];
    poststop_has_the_state_on_stdin = "poststop has the state on stdin, with status stopped";
    runtime_hooks_run_in_the_runtime_namespaces = "prestart, createRuntime, poststart and poststop run in the runtime's namespaces";
    create_container_runs_in_the_mount_namespace = "createContainer runs in the container's mount namespace, with a path of the host" [
        Vm("it runs on the host in the container's network namespace; the other namespaces are in another kernel"),
    ];
    create_container_runs_in_the_network_namespace = "createContainer runs in the container's network namespace";
    start_container_runs_in_the_container = "startContainer runs in the container, with a path of the container";
    interface_made_by_a_hook_is_there = "A network interface that createRuntime puts into the container's namespace is there";
    failing_prestart_ends_create = "prestart that fails: `create` fails, no container";
    failing_create_runtime_ends_create = "createRuntime that fails: `create` fails, no container";
    failing_create_container_ends_create = "createContainer that fails: `create` fails, no container";
    failing_start_container_ends_the_container = "startContainer that fails: the program is not run, the container ended";
    failing_start_container_is_told_by_start = "startContainer that fails: `start` fails" [
        Runc("1.1 does not wait for it"),
        Crun("1.8 does not wait for it"),
    ];
    failing_poststart_is_a_warning = "poststart that fails: a warning, the container runs" [
        Runc("1.1 ends the container"),
        Differs("an error that ends the container, as runc and version 1.3 of the specification have it"),
    ];
    failing_poststop_is_a_warning = "poststop that fails: a warning, the container is deleted";
    hooks_behind_a_failing_poststop_are_called = "poststop that fails: the next one is called" [
        Runc("1.1 leaves the rest out"),
    ];
    hook_past_its_timeout_is_ended = "A hook past its `timeout` is ended and has failed";
    hook_that_is_missing_is_an_error = "A hook whose program does not exist has failed";
};

/// A hook that runs a script. It reads its input: crun 1.8 takes one that does not for a failure.
fn hook(script: &str) -> Value {
    let script = format!("cat >/dev/null; {script}");
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// A hook that adds a word to a file.
fn says(word: &str, file: &Path) -> Value {
    hook(&format!("echo {word} >>{}", file.display()))
}

/// A hook that copies its input to a file.
fn copies(file: &Path) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("cat >{}", file.display())] })
}

fn words(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn json_of(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn create_calls_its_hooks_in_order(subject: &Subject) {
    let log = subject.new_dir().join("log");

    let container = subject.created("true", |config| {
        config["hooks"] = json!({
            "createContainer": [says("createContainer", &log)],
            "createRuntime": [says("createRuntime", &log)],
            "prestart": [says("prestart", &log)],
            "poststop": [says("poststop", &log)],
        });
    });

    assert_eq!(container.status(), "created");
    assert_eq!(
        words(&log),
        ["prestart", "createRuntime", "createContainer"]
    );
}

fn start_calls_start_container_before_the_program(subject: &Subject) {
    let mut container = subject.created("cp /said /then", |config| {
        config["hooks"] = json!({ "startContainer": [hook("echo startContainer >>/said")] });
    });
    let rootfs = container.bundle.rootfs();
    assert!(!rootfs.join("said").exists(), "called too soon");

    container.start();

    container.wait();
    assert_eq!(words(&rootfs.join("then")), ["startContainer"]);
}

fn start_calls_poststart_before_it_returns(subject: &Subject) {
    let log = subject.new_dir().join("log");
    let container = subject.created("true", |config| {
        config["hooks"] = json!({ "poststart": [says("poststart", &log)] });
    });
    assert_eq!(words(&log).len(), 0, "called too soon");

    container.start();

    assert_eq!(words(&log), ["poststart"]);
}

fn delete_calls_poststop(subject: &Subject) {
    let log = subject.new_dir().join("log");
    let mut container = subject.created("true", |config| {
        config["hooks"] = json!({ "poststop": [says("poststop", &log)] });
    });
    container.start();
    container.wait();
    assert_eq!(container.status(), "stopped");
    assert_eq!(words(&log).len(), 0, "called too soon");

    container.verb("delete", &[]).expect_code(0);

    assert_eq!(words(&log), ["poststop"]);
}

fn hooks_of_one_kind_are_called_as_listed(subject: &Subject) {
    let log = subject.new_dir().join("log");

    let container = subject.created("true", |config| {
        let hooks = ["one", "two", "three"].map(|word| says(word, &log));
        config["hooks"] = json!({ "createRuntime": hooks });
    });

    assert_eq!(words(&log), ["one", "two", "three"]);
    drop(container);
}

fn hook_has_its_arguments_and_environment(subject: &Subject) {
    let dir = subject.new_dir();
    let script = format!("echo \"$0|$1|$A\" >{}/log", dir.display());

    let container = subject.created("true", |config| {
        let hook = json!({
            "path": "/bin/sh",
            "args": ["sh", "-c", script, "name", "an argument"],
            "env": ["A=some text", "PATH=/bin:/usr/bin"],
        });
        config["hooks"] = json!({ "createRuntime": [hook] });
    });

    let log = fs::read_to_string(dir.join("log")).unwrap();
    assert_eq!(log.trim(), "name|an argument|some text");
    drop(container);
}

/// The state a hook of a kind had, and the container it was called for.
fn state_at<'t>(subject: &'t Subject, kind: &str) -> (Value, Created<'t>) {
    let file = subject.new_dir().join("state");
    let mut container = subject.created("true", |config| {
        config["hooks"] = json!({ kind: [copies(&file)] });
        config["annotations"] = json!({ "org.example.key": "value" });
    });
    if kind.starts_with("post") {
        container.start();
    }
    if kind == "poststop" {
        container.wait();
        container.verb("delete", &[]).expect_code(0);
    }
    (json_of(&file), container)
}

#[track_caller]
fn assert_identity(state: &Value, container: &Created<'_>) {
    assert_eq!(state["id"], container.id());
    assert_eq!(state["bundle"], container.bundle.dir.to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    let version = state["ociVersion"].as_str().unwrap();
    assert!(version.starts_with("1."), "{version}");
}

fn prestart_has_the_state_on_stdin(subject: &Subject) {
    let (state, container) = state_at(subject, "prestart");

    assert_identity(&state, &container);
    assert_eq!(state["pid"], container.pid);
}

fn create_runtime_has_the_state_on_stdin(subject: &Subject) {
    let (state, container) = state_at(subject, "createRuntime");

    assert_identity(&state, &container);
    assert_eq!(state["pid"], container.pid);
    let status = state["status"].as_str().unwrap();
    // runc says creating and crun created; neither is running.
    assert!(["creating", "created"].contains(&status), "{status}");
}

fn create_container_has_the_state_on_stdin(subject: &Subject) {
    let (state, container) = state_at(subject, "createContainer");

    assert_identity(&state, &container);
}

fn start_container_has_the_state_on_stdin(subject: &Subject) {
    let mut container = subject.created("true", |config| {
        config["hooks"] = json!({ "startContainer": [copies(Path::new("/state"))] });
        config["annotations"] = json!({ "org.example.key": "value" });
    });

    container.start();
    container.wait();

    let state = json_of(&container.bundle.rootfs().join("state"));
    // The bundle may be named as the container sees it.
    assert_eq!(state["id"], container.id());
    assert_eq!(state["annotations"]["org.example.key"], "value");
}

fn poststart_has_the_state_on_stdin(subject: &Subject) {
    let (state, container) = state_at(subject, "poststart");

    assert_identity(&state, &container);
    assert_eq!(state["pid"], container.pid);
    assert_eq!(state["status"], "running");
}

fn poststop_has_the_state_on_stdin(subject: &Subject) {
    let (state, container) = state_at(subject, "poststop");

    assert_identity(&state, &container);
    assert_eq!(state["status"], "stopped");
}

fn runtime_hooks_run_in_the_runtime_namespaces(subject: &Subject) {
    let log = subject.new_dir().join("log");
    let script = format!(
        "for n in net pid uts ipc; do readlink /proc/self/ns/$n; done >>{}",
        log.display()
    );

    let mut container = subject.created("true", |config| {
        let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
        let hooks = kinds.map(|kind| (kind.to_owned(), json!([hook(&script)])));
        config["hooks"] = Value::Object(hooks.into_iter().collect());
    });
    container.start();
    container.wait();
    container.verb("delete", &[]).expect_code(0);

    let ours = ["net", "pid", "uts", "ipc"].map(|name| namespace_of("self", name));
    let all: Vec<String> = ours.iter().cycle().take(16).cloned().collect();
    assert_eq!(words(&log), all);
}

fn namespace_of(pid: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    link.display().to_string()
}

/// What a createContainer hook sees as its namespace of a kind.
fn namespace_at_create_container<'t>(subject: &'t Subject, kind: &str) -> (String, Created<'t>) {
    let log = subject.new_dir().join("log");
    let script = format!("readlink /proc/self/ns/{kind} >{}", log.display());
    let container = subject.created("true", |config| {
        config["hooks"] = json!({ "createContainer": [hook(&script)] });
    });
    (words(&log).concat(), container)
}

fn create_container_runs_in_the_mount_namespace(subject: &Subject) {
    let (namespace, container) = namespace_at_create_container(subject, "mnt");

    assert_eq!(namespace, namespace_of(&container.pid.to_string(), "mnt"));
    assert_ne!(namespace, namespace_of("self", "mnt"));
}

fn create_container_runs_in_the_network_namespace(subject: &Subject) {
    let (namespace, container) = namespace_at_create_container(subject, "net");

    assert_eq!(namespace, namespace_of(&container.pid.to_string(), "net"));
    assert_ne!(namespace, namespace_of("self", "net"));
}

fn start_container_runs_in_the_container(subject: &Subject) {
    let bundle = subject.bundle_sh("cat /name", |config| {
        config["hostname"] = json!("inside");
        let hook = json!({ "path": "/opt/hook", "env": ["PATH=/bin"] });
        config["hooks"] = json!({ "startContainer": [hook] });
    });
    rootfs::add_script(&bundle.rootfs(), "/opt/hook", "hostname >/name");
    let container = Created::new(subject, bundle, |it| it);

    container.start();

    assert_eq!(container.finish().text(), "inside");
}

fn interface_made_by_a_hook_is_there(subject: &Subject) {
    let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' | head -n 1); \
        exec nsenter --target $pid --net -- sh -c \
        'ip link add hooked type veth peer name other && ip address add 10.9.8.7/24 dev hooked && ip link set hooked up'";
    // crun writes its state over several lines.
    let script = format!("tr -d '\\n' | ({script})");

    let container = subject.created("ip -4 -o address show dev hooked", |config| {
        let hook = json!({
            "path": "/bin/sh",
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        });
        config["hooks"] = json!({ "createRuntime": [hook] });
    });
    container.start();

    let output = container.finish();
    assert!(output.text().contains("10.9.8.7/24"), "{output}");
}

/// A bundle with a hook of a kind that fails is not created.
fn assert_ends_create(subject: &Subject, kind: &str) {
    let log = subject.new_dir().join("log");

    subject.refused(|config| {
        let failing = hook(&format!("echo called >>{}; exit 7", log.display()));
        config["hooks"] = json!({ kind: [failing] });
    });

    assert_eq!(words(&log), ["called"]);
}

fn failing_prestart_ends_create(subject: &Subject) {
    assert_ends_create(subject, "prestart");
}

fn failing_create_runtime_ends_create(subject: &Subject) {
    assert_ends_create(subject, "createRuntime");
}

fn failing_create_container_ends_create(subject: &Subject) {
    assert_ends_create(subject, "createContainer");
}

/// A container whose startContainer hook fails, and what `start` said.
fn with_failing_start_container(subject: &Subject) -> (Created<'_>, bulkhead_tests::Output) {
    let container = subject.created("touch /ran", |config| {
        config["hooks"] = json!({ "startContainer": [hook("exit 7")] });
    });
    let output = container.verb("start", &[]);
    (container, output)
}

fn failing_start_container_ends_the_container(subject: &Subject) {
    let (mut container, _) = with_failing_start_container(subject);

    assert!(!container.wait().success());
    assert!(!container.bundle.rootfs().join("ran").exists());
    // It may have been destroyed already.
    let state = container.verb("state", &[]);
    assert!(
        state.code() != 0 || state.json()["status"] == "stopped",
        "{state}"
    );
}

fn failing_start_container_is_told_by_start(subject: &Subject) {
    let (container, output) = with_failing_start_container(subject);

    subject.assert_error(&output);
    drop(container);
}

fn failing_poststart_is_a_warning(subject: &Subject) {
    let mut container = subject.created("echo ready; sleep 1000", |config| {
        config["hooks"] = json!({ "poststart": [hook("exit 7")] });
    });

    container.start();

    container.line_is("ready");
    assert_eq!(container.status(), "running");
}

fn failing_poststop_is_a_warning(subject: &Subject) {
    let mut container = subject.created("true", |config| {
        config["hooks"] = json!({ "poststop": [hook("exit 7")] });
    });
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    subject.assert_missing(container.id());
}

fn hooks_behind_a_failing_poststop_are_called(subject: &Subject) {
    let log = subject.new_dir().join("log");
    let mut container = subject.created("true", |config| {
        config["hooks"] = json!({ "poststop": [hook("exit 7"), says("next", &log)] });
    });
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    assert_eq!(words(&log), ["next"]);
}

fn hook_past_its_timeout_is_ended(subject: &Subject) {
    let began = std::time::Instant::now();

    subject.refused(|config| {
        let mut slow = hook("exec sleep 60");
        slow["timeout"] = json!(1);
        config["hooks"] = json!({ "createRuntime": [slow] });
    });

    assert!(began.elapsed().as_secs() < 30);
}

fn hook_that_is_missing_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["hooks"] = json!({ "createRuntime": [{ "path": "/no/such/hook" }] });
    });
}
