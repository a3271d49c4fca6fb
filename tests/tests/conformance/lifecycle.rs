//! `create`, `start`, `kill`, `delete`.

use std::fs;

use bulkhead_tests::Created;
use serde_json::json;

use crate::requirement::Exception::{Crun, Differs, Runc};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const CREATE: &[Requirement] = requirements! {
    "Runtime: Create";
    create_does_not_run_the_program = "`create` does not run the program";
    change_of_configuration_after_create_has_no_effect = "A change of `config.json` after `create` has no effect";
    create_without_identity_is_an_error = "`create` without an ID is an error";
    create_without_configuration_is_an_error = "`create` of a bundle without `config.json` is an error";
    create_of_an_identity_in_use_is_an_error = "`create` with an ID in use is an error, and the other container is as it was";
    create_of_an_invalid_identity_is_an_error = "`create` with an ID that would be a path is an error";
    create_that_failed_leaves_nothing = "After a `create` that failed there is no container, and its ID is free";
    property_that_cannot_be_applied_is_an_error = "A property that cannot be applied is an error";
};

pub const START: &[Requirement] = requirements! {
    "Runtime: Start";
    start_runs_the_program = "`start` runs the program";
    start_without_identity_is_an_error = "`start` without an ID is an error";
    start_of_a_missing_container_is_an_error = "`start` of a container that does not exist is an error";
    start_of_a_running_container_is_an_error = "`start` of a running container is an error and has no effect";
    start_of_a_stopped_container_is_an_error = "`start` of a stopped container is an error and has no effect";
    start_without_process_is_an_error = "A configuration without `process` is an error, at the latest of `start`";
};

pub const KILL: &[Requirement] = requirements! {
    "Runtime: Kill";
    kill_sends_the_signal = "`kill` sends the container process the signal";
    kill_of_a_created_container_reaches_it = "`kill` reaches a container that is created";
    kill_without_identity_is_an_error = "`kill` without an ID is an error";
    kill_of_a_missing_container_is_an_error = "`kill` of a container that does not exist is an error";
    kill_of_a_stopped_container_is_an_error = "`kill` of a stopped container is an error";
    kill_takes_names_and_numbers = "`kill` takes `USR1`, `SIGUSR1` and `10`";
    kill_without_signal_sends_term = "`kill` without a signal sends SIGTERM";
    kill_of_an_unknown_signal_is_an_error = "`kill` with a signal that does not exist is an error and has no effect" [
        Crun("1.8 says nothing"),
    ];
    kill_all_reaches_every_process = "`kill --all` reaches every process of the container";
};

pub const DELETE: &[Requirement] = requirements! {
    "Runtime: Delete";
    delete_of_a_stopped_container_removes_it = "`delete` of a stopped container removes it, and its ID is free";
    delete_without_identity_is_an_error = "`delete` without an ID is an error";
    delete_of_a_missing_container_is_an_error = "`delete` of a container that does not exist is an error";
    delete_of_a_created_container_is_an_error = "`delete` of a container that is only created is an error" [
        Runc("ends and removes it"),
        Crun("ends and removes it"),
        Differs("ends and removes it, as engines expect"),
    ];
    delete_of_a_running_container_is_an_error = "`delete` of a running container is an error and has no effect";
    delete_spares_what_the_container_did_not_make = "`delete` spares the bundle and what was mounted from the host";
    delete_force_ends_a_running_container = "`delete --force` ends and removes a running container";
    delete_force_of_a_missing_container_succeeds = "`delete --force` of a container that does not exist succeeds";
};

fn create_does_not_run_the_program(subject: &Subject) {
    let mut container = subject.created("touch /ran; echo ready", |_| {});
    let ran = container.bundle.rootfs().join("ran");

    assert!(container.is_alive());
    assert!(!ran.exists());
    container.start();
    container.line_is("ready");
    assert!(ran.exists());
}

fn change_of_configuration_after_create_has_no_effect(subject: &Subject) {
    let container = subject.created("echo first", |_| {});
    let file = container.bundle.dir.join("config.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("echo first", "echo second")).unwrap();

    container.start();

    assert_eq!(container.finish().text(), "first");
}

fn create_without_identity_is_an_error(subject: &Subject) {
    let bundle = subject.bundle(|_| {});

    let output = subject
        .verb(["create", "--bundle"])
        .arg(&bundle.dir)
        .output();

    assert_ne!(output.code(), 0, "{output}");
}

fn create_without_configuration_is_an_error(subject: &Subject) {
    let bundle = subject.bundle(|_| {});
    fs::remove_file(bundle.dir.join("config.json")).unwrap();

    subject.refused_bundle(&bundle, &[]);
}

fn create_of_an_identity_in_use_is_an_error(subject: &Subject) {
    let first = subject.created("echo first", |_| {});
    let second = subject.bundle_sh("echo second", |_| {});

    let create = subject.verb(["create", "--bundle"]).arg(&second.dir);
    let output = create.arg(first.id()).output();

    subject.assert_error(&output);
    first.start();
    assert_eq!(first.finish().text(), "first");
}

fn create_of_an_invalid_identity_is_an_error(subject: &Subject) {
    for id in ["../out", "a/b", ".."] {
        let bundle = subject.bundle(|_| {});

        let create = subject.verb(["create", "--bundle"]).arg(&bundle.dir);
        let output = create.arg(id).output();

        assert_ne!(output.code(), 0, "{output}");
    }
}

fn create_that_failed_leaves_nothing(subject: &Subject) {
    let bundle = subject.bundle_sh("echo mended", |_| {});
    let away = bundle.dir.join("away");
    fs::rename(bundle.rootfs(), &away).unwrap();

    subject.refused_bundle(&bundle, &[]);
    fs::rename(&away, bundle.rootfs()).unwrap();
    let container = Created::new(subject, bundle, |it| it);

    container.start();
    assert_eq!(container.finish().text(), "mended");
}

fn property_that_cannot_be_applied_is_an_error(subject: &Subject) {
    let error = subject.refused(|config| {
        config["linux"]["sysctl"] = json!({ "net.ipv4.no_such_parameter": "1" });
    });

    assert!(error.contains("no_such_parameter"), "{error}");
}

fn start_runs_the_program(subject: &Subject) {
    let container = subject.created("echo hello", |_| {});

    container.start();

    assert_eq!(container.finish().text(), "hello");
}

fn start_without_identity_is_an_error(subject: &Subject) {
    let output = subject.verb(["start"]).output();

    assert_ne!(output.code(), 0, "{output}");
}

fn start_of_a_missing_container_is_an_error(subject: &Subject) {
    let output = subject.verb(["start", "nobody"]).output();

    subject.assert_error(&output);
}

fn start_of_a_running_container_is_an_error(subject: &Subject) {
    let mut container = subject.running_script("echo ready; read line; echo got $line", |_| {});

    let output = container.verb("start", &[]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "running");
    container.write_line("it");
    assert_eq!(container.line(), "got it");
}

fn start_of_a_stopped_container_is_an_error(subject: &Subject) {
    let container = subject.stopped();

    let output = container.verb("start", &[]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "stopped");
}

fn start_without_process_is_an_error(subject: &Subject) {
    let bundle = subject.bundle(|config| {
        config.as_object_mut().unwrap().remove("process");
    });
    let create = subject.verb(["create", "--bundle"]).arg(&bundle.dir);
    let mut create = create.arg(&bundle.id).spawn();

    let created = create.exited().success();

    if created {
        let output = subject.verb(["start", &bundle.id]).output();
        subject.assert_error(&output);
    }
}

fn kill_sends_the_signal(subject: &Subject) {
    let script = "trap 'echo got it' USR2; echo ready; while :; do sleep 0.1; done";
    let mut container = subject.running_script(script, |_| {});

    container.verb("kill", &["USR2"]).expect_code(0);

    assert_eq!(container.line(), "got it");
}

fn kill_of_a_created_container_reaches_it(subject: &Subject) {
    let mut container = subject.created("true", |_| {});

    container.verb("kill", &["KILL"]).expect_code(0);

    assert!(container.ends_within(std::time::Duration::from_secs(20)));
    assert_eq!(container.status(), "stopped");
}

fn kill_without_identity_is_an_error(subject: &Subject) {
    let output = subject.verb(["kill"]).output();

    assert_ne!(output.code(), 0, "{output}");
}

fn kill_of_a_missing_container_is_an_error(subject: &Subject) {
    let output = subject.verb(["kill", "nobody", "KILL"]).output();

    subject.assert_error(&output);
}

fn kill_of_a_stopped_container_is_an_error(subject: &Subject) {
    let container = subject.stopped();

    let output = container.verb("kill", &["KILL"]);

    subject.assert_error(&output);
}

fn kill_takes_names_and_numbers(subject: &Subject) {
    let script = "trap 'echo got it' USR1; echo ready; while :; do sleep 0.1; done";
    let mut container = subject.running_script(script, |_| {});

    for signal in ["USR1", "SIGUSR1", "10"] {
        container.verb("kill", &[signal]).expect_code(0);
        assert_eq!(container.line(), "got it", "{signal}");
    }
}

fn kill_without_signal_sends_term(subject: &Subject) {
    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut container = subject.running_script(script, |_| {});

    container.verb("kill", &[]).expect_code(0);

    assert_eq!(container.line(), "got it");
    assert_eq!(container.wait().code(), Some(5));
}

fn kill_of_an_unknown_signal_is_an_error(subject: &Subject) {
    let container = subject.running(|_| {});

    let output = container.verb("kill", &["SIGNOTHING"]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "running");
}

fn kill_all_reaches_every_process(subject: &Subject) {
    let script = "(trap 'echo child' USR1; echo ready; while :; do sleep 0.1; done) & \
                  trap : USR1; while :; do wait; done";
    let mut container = subject.running_script(script, |_| {});

    subject
        .verb(["kill", "--all", container.id(), "USR1"])
        .output()
        .expect_code(0);

    assert_eq!(container.line(), "child");
}

fn delete_of_a_stopped_container_removes_it(subject: &Subject) {
    let container = subject.stopped();

    container.verb("delete", &[]).expect_code(0);

    subject.assert_missing(container.id());
    let mut bundle = subject.bundle_sh("echo second", |_| {});
    container.id().clone_into(&mut bundle.id);
    let second = Created::new(subject, bundle, |it| it);
    second.start();
    assert_eq!(second.finish().text(), "second");
}

fn delete_without_identity_is_an_error(subject: &Subject) {
    let output = subject.verb(["delete"]).output();

    assert_ne!(output.code(), 0, "{output}");
}

fn delete_of_a_missing_container_is_an_error(subject: &Subject) {
    let output = subject.verb(["delete", "nobody"]).output();

    subject.assert_error(&output);
}

fn delete_of_a_created_container_is_an_error(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let output = container.verb("delete", &[]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "created");
}

fn delete_of_a_running_container_is_an_error(subject: &Subject) {
    let mut container = subject.running_script("echo ready; read line; echo got $line", |_| {});

    let output = container.verb("delete", &[]);

    subject.assert_error(&output);
    assert_eq!(container.status(), "running");
    container.write_line("it");
    assert_eq!(container.line(), "got it");
}

fn delete_spares_what_the_container_did_not_make(subject: &Subject) {
    let volume = subject.new_dir();
    fs::write(volume.join("mine"), "text").unwrap();
    let mut container = subject.created("touch /made /mnt/made", |config| {
        let entry = json!({ "destination": "/mnt", "type": "bind", "source": volume, "options": ["rbind"] });
        config["mounts"].as_array_mut().unwrap().push(entry);
    });
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    assert_eq!(fs::read_to_string(volume.join("mine")).unwrap(), "text");
    assert!(volume.join("made").exists());
    assert!(container.bundle.rootfs().join("made").exists());
}

fn delete_force_ends_a_running_container(subject: &Subject) {
    let container = subject.running(|_| {});

    subject
        .verb(["delete", "--force", container.id()])
        .output()
        .expect_code(0);

    subject.assert_missing(container.id());
    assert!(!container.is_alive());
}

fn delete_force_of_a_missing_container_succeeds(subject: &Subject) {
    let output = subject.verb(["delete", "--force", "nobody"]).output();

    output.expect_code(0);
}
