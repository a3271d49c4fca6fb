//! The root file system, and what belongs to no other section of the configuration.

use std::fs;

use serde_json::json;

use crate::requirement::Exception::{Crun, Runc};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const ROOT: &[Requirement] = requirements! {
    "Configuration: Root";
    relative_path_is_in_the_bundle = "A relative `root.path` is relative to the bundle";
    absolute_path_is_taken_as_it_is = "An absolute `root.path` is taken as it is";
    missing_directory_is_an_error = "A `root.path` that does not exist is an error";
    readonly_root_cannot_be_written = "`root.readonly`: the root file system cannot be written";
    root_is_writable_by_default = "Otherwise it can, and what is written is in the directory";
};

pub const REST: &[Requirement] = requirements! {
    "Configuration: the rest";
    hostname_is_set = "`hostname` is what processes see";
    domainname_is_set = "`domainname` is what processes see" [
        Runc("1.1 ignores it"),
    ];
    unknown_annotation_is_ignored = "Unknown annotations are no error";
    unknown_property_is_ignored = "Unknown properties are no error, wherever they are";
    value_of_a_wrong_type_is_an_error = "A value of a wrong type is an error" [
        Crun("1.8 ignores the value"),
    ];
    text_that_is_no_json_is_an_error = "A `config.json` that is no JSON is an error";
    later_minor_version_is_accepted = "An `ociVersion` of the same major version is accepted" [
        Crun("1.8 accepts 1.0 only"),
    ];
    text_that_is_no_version_is_an_error = "An `ociVersion` that is no version is an error" [
        Runc("1.1 does not look at it"),
    ];
};

fn relative_path_is_in_the_bundle(subject: &Subject) {
    let bundle = subject.bundle_sh("cat /here", |_| {});
    fs::write(bundle.rootfs().join("here"), "relative").unwrap();
    fs::rename(bundle.rootfs(), bundle.dir.join("other")).unwrap();
    let file = bundle.dir.join("config.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"rootfs\"", "\"./other\"")).unwrap();

    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);
    let output = run.arg(&bundle.id).output();

    assert_eq!(output.text(), "relative");
}

fn absolute_path_is_taken_as_it_is(subject: &Subject) {
    let rootfs = subject.new_rootfs();
    fs::write(rootfs.join("here"), "absolute").unwrap();

    let output = subject.ran("cat /here", |config| config["root"]["path"] = json!(rootfs));

    assert_eq!(output.text(), "absolute");
}

fn missing_directory_is_an_error(subject: &Subject) {
    subject.refused(|config| config["root"]["path"] = json!("elsewhere"));
}

fn readonly_root_cannot_be_written(subject: &Subject) {
    let output = subject.ran("touch /file || echo refused", |config| {
        config["root"]["readonly"] = json!(true);
    });

    assert_eq!(output.text(), "refused");
    assert!(output.error().contains("Read-only"), "{output}");
}

fn root_is_writable_by_default(subject: &Subject) {
    let container = subject.created("echo text >/file", |_| {});
    let file = container.bundle.rootfs().join("file");

    container.start();
    container.finish().expect_code(0);

    assert_eq!(fs::read_to_string(file).unwrap(), "text\n");
}

fn hostname_is_set(subject: &Subject) {
    let output = subject.ran("hostname", |config| config["hostname"] = json!("a-name"));

    assert_eq!(output.text(), "a-name");
}

fn domainname_is_set(subject: &Subject) {
    let output = subject.ran("cat /proc/sys/kernel/domainname", |config| {
        config["domainname"] = json!("example.org");
    });

    assert_eq!(output.text(), "example.org");
}

fn unknown_annotation_is_ignored(subject: &Subject) {
    let output = subject.ran("echo hello", |config| {
        config["annotations"] = json!({ "com.example.gpu-cores": "2" });
    });

    assert_eq!(output.text(), "hello");
}

fn unknown_property_is_ignored(subject: &Subject) {
    let output = subject.ran("echo hello", |config| {
        config["unheardOf"] = json!({ "a": [1, 2] });
        config["process"]["unheardOf"] = json!("b");
        config["linux"]["unheardOf"] = json!(3);
        config["root"]["unheardOf"] = json!(null);
    });

    assert_eq!(output.text(), "hello");
}

fn value_of_a_wrong_type_is_an_error(subject: &Subject) {
    subject.refused(|config| config["process"]["args"] = json!({ "not": "a list" }));
}

fn text_that_is_no_json_is_an_error(subject: &Subject) {
    let bundle = subject.bundle(|_| {});
    fs::write(bundle.dir.join("config.json"), "{ \"ociVersion\": ").unwrap();

    subject.refused_bundle(&bundle, &[]);
}

fn later_minor_version_is_accepted(subject: &Subject) {
    let output = subject.ran("echo hello", |config| config["ociVersion"] = json!("1.2.0"));

    assert_eq!(output.text(), "hello");
}

fn text_that_is_no_version_is_an_error(subject: &Subject) {
    subject.refused(|config| config["ociVersion"] = json!("no version"));
}
