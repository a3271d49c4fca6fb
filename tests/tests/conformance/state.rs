//! The state of a container.

use serde_json::json;

use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const STATE: &[Requirement] = requirements! {
    "Runtime: State";
    version_is_one_of_the_specification = "`ociVersion` is a version of the specification";
    identity_is_the_given_one = "`id` is the container's ID";
    pid_is_the_container_process = "`pid` is the process that `--pid-file` names, created and running";
    bundle_is_absolute = "`bundle` is the absolute path of the bundle, however it was given";
    annotations_are_the_configured = "`annotations` are those of the configuration";
    status_follows_the_lifecycle = "`status` is created, then running, then stopped";
    missing_container_is_an_error = "`state` of a container that does not exist is an error";
    missing_argument_is_an_error = "`state` without an ID is an error";
};

fn version_is_one_of_the_specification(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let state = container.state();

    let version = state["ociVersion"].as_str().unwrap();
    let numbers: Vec<&str> = version.splitn(3, '.').collect();
    assert_eq!(numbers.len(), 3, "{version}");
    assert_eq!(numbers[0], "1");
}

fn identity_is_the_given_one(subject: &Subject) {
    let container = subject.created("true", |_| {});

    assert_eq!(container.state()["id"], container.id());
}

fn pid_is_the_container_process(subject: &Subject) {
    let mut container = subject.created("echo ready; sleep 1000", |_| {});

    assert_eq!(container.state()["pid"], container.pid);
    container.start();
    container.line_is("ready");
    assert_eq!(container.state()["pid"], container.pid);
}

fn bundle_is_absolute(subject: &Subject) {
    let bundle = subject.bundle_sh("true", |_| {});
    let mut create = subject
        .verb(["create", "--bundle", ".", &bundle.id])
        .dir(&bundle.dir)
        .spawn();
    assert!(create.exited().success());

    let state = subject.verb(["state", &bundle.id]).output().json();

    assert_eq!(state["bundle"], bundle.dir.to_str().unwrap());
}

fn annotations_are_the_configured(subject: &Subject) {
    let container = subject.created("true", |config| {
        config["annotations"] = json!({ "org.example.one": "1", "org.example.empty": "" });
    });

    let state = container.state();

    assert_eq!(state["annotations"]["org.example.one"], "1");
    assert_eq!(state["annotations"]["org.example.empty"], "");
}

fn status_follows_the_lifecycle(subject: &Subject) {
    let bundle = subject.bundle_sh("echo ready; read line", |_| {});
    let mut container = bulkhead_tests::Created::new(subject, bundle, |it| it.stdin_pipe());

    assert_eq!(container.status(), "created");
    container.start();
    container.line_is("ready");
    assert_eq!(container.status(), "running");
    container.close_stdin();
    container.wait();
    assert_eq!(container.status(), "stopped");
}

fn missing_container_is_an_error(subject: &Subject) {
    let output = subject.verb(["state", "nobody"]).output();

    subject.assert_error(&output);
}

fn missing_argument_is_an_error(subject: &Subject) {
    let output = subject.verb(["state"]).output();

    assert_ne!(output.code(), 0, "{output}");
}
