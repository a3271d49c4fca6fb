//! Bundles that are none.

use std::fs;
use std::os::unix::fs::symlink;

use bulkhead_tests::harness::bundle::default_config;
use bulkhead_tests::{Bundle, Test};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::expect::{BUNDLE, bare_run, refused};

fn with_configuration<'t>(test: &'t Test, text: impl AsRef<[u8]>) -> Bundle<'t> {
    let bundle = test.bundle(|_| {});
    fs::write(bundle.dir.join("config.json"), text).unwrap();
    bundle
}

pub fn bundle_missing_refused(test: &Test) {
    let dir = test.dir().join("no-such-bundle");
    let output = bare_run(test).arg("--bundle").arg(&dir).arg("a").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["no-such-bundle", "does not exist", "--bundle"],
    );
}

pub fn bundle_without_configuration_refused(test: &Test) {
    let dir = test.new_dir();
    let output = bare_run(test).arg("--bundle").arg(&dir).arg("a").output();
    refused(test, &output, BUNDLE, &["has no config.json"]);

    let output = bare_run(test).arg("a").dir(&dir).output();
    refused(test, &output, BUNDLE, &["has no config.json"]);
}

pub fn bundle_that_is_a_file_refused(test: &Test) {
    let file = test.dir().join("file");
    fs::write(&file, "").unwrap();
    let output = bare_run(test).arg("--bundle").arg(&file).arg("a").output();
    refused(test, &output, BUNDLE, &["not a directory"]);
}

pub fn configuration_not_json_refused_with_its_position(test: &Test) {
    let bundle = with_configuration(test, "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}\n");
    refused(
        test,
        &bundle.output(),
        BUNDLE,
        &["config.json", "line 3", "column 3"],
    );

    let bundle = with_configuration(test, "\u{1b}[2J{}");
    refused(test, &bundle.output(), BUNDLE, &["config.json", "line 1"]);
}

pub fn configuration_cut_short_refused_with_its_position(test: &Test) {
    let whole = serde_json::to_string_pretty(&default_config()).unwrap();
    let lines = whole.lines().count();
    let half: Vec<&str> = whole.lines().take(lines / 2).collect();
    let bundle = with_configuration(test, half.join("\n"));
    let line = format!("line {}", lines / 2);
    refused(test, &bundle.output(), BUNDLE, &["config.json", &line]);

    let bundle = with_configuration(test, "");
    refused(test, &bundle.output(), BUNDLE, &["config.json", "line 1"]);
}

pub fn configuration_of_ten_megabytes_refused(test: &Test) {
    let bundle = test.bundle(|config| {
        config["annotations"] = serde_json::json!({ "filler": "x".repeat(10 << 20) });
    });
    refused(
        test,
        &bundle.output(),
        BUNDLE,
        &["config.json", "larger than"],
    );

    // Ten megabytes of depth: a recursive reader would overflow its stack.
    let bundle = with_configuration(test, "[".repeat(10 << 20));
    refused(test, &bundle.output(), BUNDLE, &["config.json"]);
    let bundle = with_configuration(test, "[".repeat(1 << 18));
    refused(test, &bundle.output(), BUNDLE, &["line 1"]);
}

pub fn configuration_that_is_a_directory_refused(test: &Test) {
    let dir = test.new_dir();
    fs::create_dir(dir.join("config.json")).unwrap();
    let output = bare_run(test).arg("--bundle").arg(&dir).arg("a").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["config.json", "not a regular file"],
    );
}

pub fn configuration_that_is_a_fifo_refused_at_once(test: &Test) {
    let dir = test.new_dir();
    mknodat(
        CWD,
        dir.join("config.json"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let output = bare_run(test).arg("--bundle").arg(&dir).arg("a").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["config.json", "not a regular file"],
    );

    let dir = test.new_dir();
    symlink("/dev/zero", dir.join("config.json")).unwrap();
    let output = bare_run(test).arg("--bundle").arg(&dir).arg("a").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["config.json", "not a regular file"],
    );
}

pub fn configuration_of_random_bytes_refused(test: &Test) {
    let bytes: Vec<u8> = (0..4096_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    let bundle = with_configuration(test, bytes);
    refused(test, &bundle.output(), BUNDLE, &["config.json", "line 1"]);

    // Text that is JSON but for its encoding.
    let bundle = with_configuration(
        test,
        b"{\"ociVersion\": \"1.0.2\", \"hostname\": \"\xff\xfe\"}",
    );
    refused(test, &bundle.output(), BUNDLE, &["config.json", "line 1"]);
}

pub fn rootfs_of_a_bundle_unusable_refused(test: &Test) {
    let bundle = test.bundle(|config| config["root"]["path"] = "elsewhere".into());
    refused(
        test,
        &bundle.output(),
        BUNDLE,
        &["elsewhere", "root.path", "does not exist"],
    );

    let bundle = test.bundle(|config| config["root"]["path"] = "config.json".into());
    refused(
        test,
        &bundle.output(),
        BUNDLE,
        &["config.json", "not a directory"],
    );

    let bundle = test.bundle(|config| config["root"]["path"] = "/".into());
    refused(test, &bundle.output(), BUNDLE, &["host's own root"]);

    let bundle = test.bundle(|config| config["root"]["path"] = "".into());
    refused(test, &bundle.output(), BUNDLE, &["root.path"]);

    let bundle = test.bundle(|config| {
        config.as_object_mut().unwrap().remove("root");
    });
    refused(test, &bundle.output(), BUNDLE, &["root"]);
}
