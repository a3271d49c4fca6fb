//! Root file systems and programs that cannot be run.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use bulkhead_tests::harness::rootfs::add_script;
use bulkhead_tests::{Invocation, Test, product};

use crate::expect::{BUNDLE, RUN, bare_run, nothing_left, refused};

pub fn program_missing_is_127(test: &Test) {
    let output = test.run(["/no/such/program"]).output();
    refused(test, &output, 127, &["/no/such/program"]);

    let output = test.run(["no-such-program"]).output();
    refused(test, &output, 127, &["no-such-program"]);

    let bundle = test.bundle(|config| config["process"]["args"] = serde_json::json!(["gone"]));
    refused(test, &bundle.output(), 127, &["gone"]);
}

pub fn program_not_executable_is_126(test: &Test) {
    fs::write(test.rootfs().join("plain"), "text").unwrap();
    let output = test.run(["/plain"]).output();
    refused(test, &output, 126, &["/plain"]);

    let output = test.run(["/etc"]).output();
    refused(test, &output, 126, &["/etc"]);
}

pub fn program_with_a_foreign_format_is_126(test: &Test) {
    let make = |name: &str, bytes: &[u8]| {
        let path = test.rootfs().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    };
    make("garbage", b"\x7fELF\x02\x01\x01garbage");
    refused(test, &test.run(["/garbage"]).output(), 126, &["/garbage"]);

    make("empty", b"");
    refused(test, &test.run(["/empty"]).output(), 126, &["/empty"]);

    // The kernel says "no such file", and means the interpreter.
    add_script(test.rootfs(), "/script", "true");
    make("script", b"#!/no/such/interpreter\n");
    let output = test.run(["/script"]).output();
    assert!([126, 127].contains(&output.code()), "{output}");
    output.expect_error(&["/script"]);

    symlink("loop", test.rootfs().join("loop")).unwrap();
    let output = test.run(["/loop"]).output();
    assert!([126, 127].contains(&output.code()), "{output}");
    output.expect_error(&["/loop"]);
    nothing_left(test);
}

pub fn command_missing_from_the_line_refused(test: &Test) {
    let none: [&str; 0] = [];
    refused(test, &test.run(none).output(), RUN, &["No command"]);

    refused(test, &test.run([""]).output(), RUN, &["No command"]);

    let output = bare_run(test).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "--rootfs"]);
}

pub fn working_directory_missing_tells_why(test: &Test) {
    // A directory that a file stands in the way of; a missing one is made, as docker does.
    let output = test
        .run(["/bin/true"])
        .options(["-w", "/etc/passwd/sub"])
        .output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "/etc/passwd/sub"]);
    nothing_left(test);
}

pub fn rootfs_unusable_refused(test: &Test) {
    let missing = test.dir().join("no-such-rootfs");
    let output = test.run(["/bin/true"]).rootfs(&missing).output();
    refused(test, &output, RUN, &["no-such-rootfs"]);

    let file = test.dir().join("file");
    fs::write(&file, "").unwrap();
    let output = test.run(["/bin/true"]).rootfs(&file).output();
    refused(test, &output, RUN, &["file", "ot a directory"]);

    let output = test.run(["/bin/true"]).rootfs("/").output();
    refused(test, &output, RUN, &["host's own root"]);

    let empty = test.new_dir();
    let output = test.run(["/bin/true"]).rootfs(&empty).output();
    refused(test, &output, 127, &["/bin/true"]);
}

pub fn rootfs_unreadable_refused(test: &Test) {
    let rootfs = test.new_rootfs();
    fs::set_permissions(&rootfs, Permissions::from_mode(0o700)).unwrap();
    chown(&rootfs, Some(1000), Some(1000)).unwrap();
    // Root that may not override permissions, as on a network file system that does not trust it.
    let output = Invocation::new("setpriv")
        .args([
            "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-all",
        ])
        .arg(&product().bin)
        .arg("--root")
        .arg(test.root())
        .env("BULKHEAD_LIB", &product().lib)
        .env("BULKHEAD_CONFIG_DIR", test.config_dir())
        .args(["run", "--hypervisor", test.driver.hypervisor(), "--rootfs"])
        .arg(&rootfs)
        .args(["--", "/bin/true"])
        .output();
    refused(test, &output, RUN, &[rootfs.to_str().unwrap(), "ermission"]);
}

pub fn name_in_use_refused_and_its_owner_unharmed(test: &Test) {
    let mut owner = test
        .sh("echo ready; read line; echo $line")
        .option("-i")
        .with(Invocation::stdin_pipe)
        .start()
        .ready();

    let output = test.run(["/bin/true"]).name(&owner.id).output();
    output.expect_code(RUN);
    output.expect_error(&["bulkhead: ", &owner.id, "already in use", "delete"]);
    let bundle = test.bundle(|_| {});
    let output = bare_run(test)
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(&owner.id)
        .output();
    output.expect_code(BUNDLE);
    output.expect_error(&["already in use"]);

    assert_eq!(owner.state()["status"], "running");
    owner.write_line("unharmed");
    assert_eq!(owner.line(), "unharmed");
    owner.finish().expect_code(0);
}
