//! A host that lacks something, or is set up wrongly.

use std::fs;
use std::os::unix::fs::symlink;

use bulkhead_tests::{Invocation, Test, product};

use crate::expect::{RUN, bare_run, refused, run_refused};

pub fn kernel_unknown_refused(test: &Test) {
    run_refused(
        test,
        &["--kernel", "no-such-kernel"],
        &["no-such-kernel", "installed are"],
    );
    run_refused(test, &["--kernel", "../uml"], &["../uml"]);
}

pub fn kernel_of_the_other_flavour_refused(test: &Test) {
    let other = product()
        .kernels()
        .into_iter()
        .find(|manifest| manifest["flavour"] != test.driver.flavour());
    let Some(other) = other else {
        return bulkhead_tests::harness::suite::skip(&test.name, "one flavour is installed");
    };
    let name = other["name"].as_str().unwrap();
    run_refused(test, &["--kernel", name], &[name, test.driver.flavour()]);
}

pub fn kernel_store_empty_refused(test: &Test) {
    let lib = test.new_dir();
    let run = |test: &Test| {
        test.run(["/bin/true"])
            .with(|run| run.env("BULKHEAD_LIB", &lib))
            .output()
    };
    refused(test, &run(test), RUN, &["kernel", "make"]);

    fs::create_dir(lib.join("kernels")).unwrap();
    refused(test, &run(test), RUN, &["kernel", "make"]);
}

pub fn initramfs_missing_refused(test: &Test) {
    let lib = test.new_dir();
    symlink(product().lib.join("kernels"), lib.join("kernels")).unwrap();
    let output = test
        .run(["/bin/true"])
        .with(|run| run.env("BULKHEAD_LIB", &lib))
        .output();
    refused(test, &output, RUN, &["nitramfs", "make install"]);
}

pub fn hypervisor_unknown_refused(test: &Test) {
    let rootfs = test.rootfs().display().to_string();
    let args = [
        "--hypervisor",
        "xen",
        "--rootfs",
        &rootfs,
        "--",
        "/bin/true",
    ];
    let output = bare_run(test).args(args).output();
    refused(test, &output, RUN, &["xen", "auto, kvm, uml or qemu"]);
}

pub fn memory_beyond_the_host_refused(test: &Test) {
    run_refused(test, &["--memory", "900g"], &["memory", "MiB", "--memory"]);
    run_refused(test, &["--memory", "7e"], &["7e"]);
    run_refused(test, &["--memory", "8000000t"], &["emory"]);
}

pub fn configuration_file_broken_refused(test: &Test) {
    let write = |text: &str| fs::write(test.config_dir().join("config.toml"), text).unwrap();
    write("memory_mib = \n");
    run_refused(test, &[] as &[&str], &["config.toml", "line 1"]);
    write("nonsense = 1\n");
    run_refused(test, &[] as &[&str], &["config.toml", "nonsense"]);
    write("memory_mib = 1\n");
    run_refused(test, &[] as &[&str], &["memory_mib", "1"]);
    write("hypervisor = \"xen\"\n");
    let output = bare_run(test)
        .arg("--rootfs")
        .arg(test.rootfs())
        .args(["--", "/bin/true"])
        .output();
    refused(test, &output, RUN, &["xen"]);
}

pub fn caller_without_privileges_refused(test: &Test) {
    let bin = test.dir().join("bulkhead");
    fs::copy(&product().bin, &bin).unwrap();
    let root = test.root().display().to_string();
    let rootfs = test.rootfs().display().to_string();
    let output = Invocation::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&bin)
        .args([
            "--root",
            &root,
            "run",
            "--rootfs",
            &rootfs,
            "--",
            "/bin/true",
        ])
        .output();
    refused(test, &output, RUN, &["root", "sudo"]);
}

pub fn state_directory_unusable_refused(test: &Test) {
    let file = test.dir().join("file");
    fs::write(&file, "").unwrap();
    let rootfs = test.rootfs().display().to_string();
    for root in [file.clone(), file.join("below"), "/proc/nothing".into()] {
        let root = root.display().to_string();
        let output = Invocation::new(&product().bin)
            .env("BULKHEAD_LIB", &product().lib)
            .args([
                "--root",
                &root,
                "run",
                "--hypervisor",
                test.driver.hypervisor(),
            ])
            .args(["--rootfs", &rootfs, "--", "/bin/true"])
            .output();
        refused(test, &output, RUN, &[&root]);
    }
    // Nothing was ever there: that is an empty list, not an error.
    assert_eq!(test.verb(["list", "--quiet"]).output().text(), "");
}

pub fn log_file_unusable_refused(test: &Test) {
    let log = test.dir().join("no-such-directory/log");
    let output = test
        .verb(["--log"])
        .arg(&log)
        .args(["run", "--rootfs"])
        .arg(test.rootfs());
    let output = output.args(["--", "/bin/true"]).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "log", "no-such-directory"]);
}
