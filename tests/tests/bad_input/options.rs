//! Options of `run` that cannot be understood, or ask for what cannot be done.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;

use bulkhead_tests::Test;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::expect::{RUN, bare_run, each_run_refused, nothing_left, refused, run_refused};

pub fn sizes_and_numbers_not_understood_refused(test: &Test) {
    each_run_refused(
        test,
        &[
            (&["--memory", "much"], &["much", "512m"]),
            (&["--memory", "-1"], &["-1"]),
            (&["--memory=0"], &["0"]),
            (&["--memory", "1x"], &["1x"]),
            (&["--memory", ""], &["Size"]),
            (&["--cpus", "two"], &["two"]),
            (&["--cpus", "0"], &["0"]),
            (&["--cpus", "1,5"], &["1,5"]),
            (&["--cpus", "nan"], &["nan"]),
            (&["--pids-limit", "many"], &["many"]),
            (&["--pids-limit=-7"], &["-7"]),
        ],
    );
}

pub fn volumes_not_understood_refused(test: &Test) {
    let dir = test.new_dir().display().to_string();
    let with = |rest: &str| format!("{dir}{rest}");
    for (volume, parts) in [
        (with(""), &["SOURCE:DESTINATION"][..]),
        (with(":relative"), &["relative", "absolute"]),
        (with(":/"), &["--rootfs"]),
        (with(":/a/../../etc"), &[".."]),
        (with(":/a:nonsense"), &["nonsense"]),
        (with(":/a:ro:extra"), &["SOURCE:DESTINATION"]),
        ("named:/a".into(), &["named", "path"]),
        (":/a".into(), &["Volume"]),
        (String::new(), &["Volume"]),
    ] {
        run_refused(test, &["-v", &volume], parts);
    }
    let (a, b) = (with(":/same"), with(":/same"));
    run_refused(test, &["-v", &a, "-v", &b], &["/same", "keep one"]);
    each_run_refused(
        test,
        &[
            (&["--tmpfs", "relative"], &["relative", "absolute"]),
            (&["--tmpfs", "/"], &["Tmpfs"]),
            (&["--tmpfs", "/a:nonsense"], &["nonsense"]),
            (&["-e", "=value"], &["has no name"]),
            (&["-w", "relative"], &["relative", "absolute"]),
            (&["--annotation", "nothing"], &["nothing", "NAME=value"]),
        ],
    );
}

pub fn volumes_that_cannot_be_shared_refused(test: &Test) {
    let dir = test.new_dir();
    let path = |name: &str| dir.join(name).display().to_string();
    run_refused(
        test,
        &["-v", &format!("{}:/a", path("missing"))],
        &["missing", "does not exist"],
    );

    let _socket = UnixListener::bind(dir.join("socket")).unwrap();
    run_refused(
        test,
        &["-v", &format!("{}:/a", path("socket"))],
        &["socket"],
    );

    mknodat(
        CWD,
        dir.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    run_refused(test, &["-v", &format!("{}:/a", path("fifo"))], &["FIFO"]);

    for (volume, part) in [
        ("/dev/null:/a", "device"),
        ("/dev:/a", "/dev"),
        ("/proc:/a", "proc"),
        ("/sys:/a", "sys"),
        ("/proc/self/root:/a", "/proc"),
    ] {
        run_refused(test, &["-v", volume], &[part]);
    }
}

pub fn users_not_understood_refused(test: &Test) {
    each_run_refused(
        test,
        &[
            (&["-u", "nobody-here"], &["nobody-here", "/etc/passwd"]),
            (&["-u", "root:no-group"], &["no-group", "/etc/group"]),
            (&["-u", "4294967295"], &["4294967295"]),
            (&["-u", "1:2:3"], &["1:2:3"]),
            (&["-u", ":"], &["User"]),
        ],
    );
}

pub fn security_options_not_understood_refused(test: &Test) {
    each_run_refused(
        test,
        &[
            (&["--cap-add", "FLY"], &["FLY", "not known"]),
            (&["--cap-drop", "cap_"], &["cap_"]),
            (
                &["--security-opt", "nonsense"],
                &["nonsense", "seccomp=FILE"],
            ),
            (&["--security-opt", "apparmor=strict"], &["apparmor"]),
            (&["--security-opt", "label=type:x"], &["label"]),
        ],
    );
}

pub fn seccomp_profiles_unusable_refused(test: &Test) {
    let dir = test.new_dir();
    let option = |name: &str| format!("seccomp={}", dir.join(name).display());
    run_refused(
        test,
        &["--security-opt", &option("missing")],
        &["missing", "seccomp"],
    );

    fs::write(dir.join("broken"), "{ \"defaultAction\":\n nonsense }").unwrap();
    run_refused(
        test,
        &["--security-opt", &option("broken")],
        &["broken", "line 2"],
    );

    fs::write(
        dir.join("action"),
        "{ \"defaultAction\": \"SCMP_ACT_PERHAPS\" }",
    )
    .unwrap();
    run_refused(
        test,
        &["--security-opt", &option("action")],
        &["SCMP_ACT_PERHAPS"],
    );

    run_refused(
        test,
        &["--security-opt", &format!("seccomp={}", dir.display())],
        &["seccomp"],
    );
}

pub fn arguments_not_utf8_refused(test: &Test) {
    let odd = OsStr::from_bytes(b"\xff\xfe\x1b[2J");
    let in_command = test.run([OsStr::new("/bin/echo"), odd]).output();
    refused(test, &in_command, RUN, &["UTF-8"]);

    let in_option = test
        .run(["/bin/true"])
        .option("--hostname")
        .option(odd)
        .output();
    refused(test, &in_option, RUN, &["UTF-8"]);

    let rootfs = test.dir().join(odd);
    fs::create_dir(&rootfs).unwrap();
    let in_path = test.run(["/bin/true"]).rootfs(&rootfs).output();
    refused(test, &in_path, RUN, &["UTF-8"]);

    // Where it is a path of the host and nothing of the container's.
    let dir = test.dir().join(OsStr::from_bytes(b"bundle-\xff"));
    fs::create_dir(&dir).unwrap();
    let output = bare_run(test).arg("a").dir(&dir).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: "]);
    nothing_left(test);
}

pub fn names_invalid_refused(test: &Test) {
    let long = "x".repeat(129);
    for name in [
        "../escape",
        "a/b",
        ".",
        "..",
        ".hidden",
        "a b",
        "a\nb",
        "ä",
        "\u{1b}[2J",
        &long,
    ] {
        let output = test.run(["/bin/true"]).name(name).output();
        refused(test, &output, RUN, &["Container id"]);
    }
    let output = test.run(["/bin/true"]).option("--name=").output();
    assert_ne!(output.code(), 0, "{output}");

    let output = bare_run(test)
        .args(["--rootfs"])
        .arg(test.rootfs())
        .args(["--name=", "--", "/bin/true"])
        .output();
    refused(test, &output, RUN, &["Container id", "empty"]);
    assert!(!test.dir().join("escape").exists());
}

pub fn flags_unknown_refused(test: &Test) {
    let output = test.run(["/bin/true"]).option("--no-such-flag").output();
    refused(test, &output, RUN, &["--no-such-flag", "--help"]);

    let output = test.verb(["no-such-verb"]).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "no-such-verb"]);

    let output = test.verb(["list", "--format", "xml"]).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "xml"]);

    let output = test.verb(["state"]).output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: "]);
}

pub fn forms_mixed_refused(test: &Test) {
    let bundle = test.bundle(|_| {});
    let dir = bundle.dir.display().to_string();
    for args in [
        &["--bundle", &dir, "-e", "A=1", "a"][..],
        &["--bundle", &dir, "--memory", "64m", "a"],
        &["--bundle", &dir, "a", "b"],
        &["--bundle", &dir],
    ] {
        let output = bare_run(test).args(args).output();
        refused(test, &output, 1, &[]);
    }
    let rootfs = test.rootfs().display().to_string();
    for args in [
        &["--bundle", &dir, "--rootfs", &rootfs, "a"][..],
        &["--image", &dir, "--rootfs", &rootfs, "a"],
    ] {
        let output = bare_run(test).args(args).output();
        refused(test, &output, RUN, &["cannot be used with"]);
    }
}
