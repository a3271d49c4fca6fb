//! The process: what it is started with.

use serde_json::{Value, json};

use crate::requirement::Exception::{Crun, Runc};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::{Subject, status};

pub const PROCESS: &[Requirement] = requirements! {
    "Configuration: Process";
    arguments_are_passed_exactly = "`args` are passed as they are";
    program_is_looked_up_in_path = "`args[0]` without a slash is looked up in the container's `PATH`";
    empty_arguments_are_an_error = "Empty `args` are an error";
    missing_program_is_an_error = "A program that does not exist is an error that names it";
    environment_is_the_configured = "`env` is the environment, but for `HOME`, which runtimes add";
    working_directory_is_set = "`cwd` is the working directory";
    working_directory_is_made = "A `cwd` that does not exist is made";
    relative_working_directory_is_an_error = "A `cwd` that is not absolute is an error" [
        Crun("1.8 takes it"),
    ];
    user_and_group_are_set = "`user.uid`, `user.gid`, `user.additionalGids`";
    umask_is_set = "`user.umask`";
    rlimits_are_set = "`rlimits`: soft and hard limit are the configured";
    unknown_rlimit_is_an_error = "An unknown `rlimits[].type` is an error";
    duplicate_rlimit_is_an_error = "Two `rlimits` of one type are an error";
    bounding_capabilities_are_set = "`capabilities.bounding`";
    effective_and_permitted_capabilities_are_set = "`capabilities.effective`, `capabilities.permitted`";
    inheritable_and_ambient_capabilities_are_set = "`capabilities.inheritable`, `capabilities.ambient`, of a user that is not root";
    no_capabilities_are_none = "Without `capabilities` there are none";
    unknown_capability_is_a_warning = "An unknown capability is a warning";
    no_new_privileges_is_set = "`noNewPrivileges` true";
    no_new_privileges_is_off_by_default = "`noNewPrivileges` left out";
    oom_score_is_set = "`oomScoreAdj` is set";
    oom_score_left_out_is_unchanged = "`oomScoreAdj` left out: unchanged";
    scheduler_is_set = "`scheduler`: policy and nice value" [
        Runc("1.1 ignores it"),
        Crun("1.8 ignores it"),
    ];
    io_priority_is_set = "`ioPriority`" [
        Runc("1.1 ignores it"),
        Crun("1.8 ignores it"),
    ];
    console_size_without_terminal_is_ignored = "`consoleSize` without `terminal` is ignored";
    streams_are_separate_and_exact = "stdin, stdout and stderr are the runtime's, separate and byte by byte";
    only_three_descriptors_are_open = "Only stdin, stdout and stderr are open";
};

fn arguments_are_passed_exactly(subject: &Subject) {
    let output = subject.ran("", |config| {
        config["process"]["args"] = json!(["/bin/printf", "[%s]", "", "a b", "$HOME", "ü\n"]);
    });

    assert_eq!(output.text(), "[][a b][$HOME][ü\n]");
}

fn program_is_looked_up_in_path(subject: &Subject) {
    let bundle = subject.bundle(|config| {
        config["process"]["args"] = json!(["here"]);
        config["process"]["env"] = json!(["PATH=/nowhere:/opt:/bin"]);
    });
    bulkhead_tests::harness::rootfs::add_script(&bundle.rootfs(), "/opt/here", "echo found");

    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);
    let output = run.arg(&bundle.id).output();

    assert_eq!(output.text(), "found");
}

fn empty_arguments_are_an_error(subject: &Subject) {
    subject.refused(|config| config["process"]["args"] = json!([]));
}

fn missing_program_is_an_error(subject: &Subject) {
    let output = subject.ran("", |config| {
        config["process"]["args"] = json!(["/no/such/program"]);
    });

    subject.assert_error(&output);
    assert!(output.error().contains("/no/such/program"), "{output}");
}

fn environment_is_the_configured(subject: &Subject) {
    let output = subject.ran("", |config| {
        config["process"]["args"] = json!(["/bin/env"]);
        config["process"]["env"] = json!(["PATH=/bin", "A=1 2", "EMPTY=", "B=x=y"]);
    });

    let mut lines: Vec<&str> = output.text().lines().collect();
    lines.retain(|line| !line.starts_with("HOME="));
    lines.sort_unstable();
    assert_eq!(lines, ["A=1 2", "B=x=y", "EMPTY=", "PATH=/bin"]);
}

fn working_directory_is_set(subject: &Subject) {
    let output = subject.ran("/bin/pwd", |config| {
        config["process"]["cwd"] = json!("/home/alice");
    });

    assert_eq!(output.text(), "/home/alice");
}

fn working_directory_is_made(subject: &Subject) {
    let output = subject.ran("/bin/pwd", |config| {
        config["process"]["cwd"] = json!("/a/b")
    });

    assert_eq!(output.text(), "/a/b");
}

fn relative_working_directory_is_an_error(subject: &Subject) {
    subject.refused(|config| config["process"]["cwd"] = json!("home"));
}

fn user_and_group_are_set(subject: &Subject) {
    let output = subject.ran("id -u; id -g; id -G", |config| {
        config["process"]["user"] = json!({ "uid": 1234, "gid": 50, "additionalGids": [44, 4321] });
    });

    assert_eq!(output.text(), "1234\n50\n50 44 4321");
}

fn umask_is_set(subject: &Subject) {
    let output = subject.ran("umask", |config| {
        config["process"]["user"]["umask"] = json!(0o027)
    });

    assert_eq!(output.text(), "0027");
}

fn rlimits_are_set(subject: &Subject) {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Ss; ulimit -Hs";

    let output = subject.ran(script, |config| {
        config["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 2 << 20 },
        ]);
    });

    assert_eq!(output.text(), "100\n200\n1024\n2048");
}

fn unknown_rlimit_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOTHING", "soft": 1, "hard": 1 }]);
    });
}

fn duplicate_rlimit_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_NOFILE", "soft": 101, "hard": 201 },
        ]);
    });
}

/// `/proc/self/status` of a process with capabilities and, if not root, a user.
fn status_with(subject: &Subject, uid: u32, capabilities: Value) -> String {
    let output = subject.ran("", |config| {
        config["process"]["args"] = json!(["/bin/cat", "/proc/self/status"]);
        config["process"]["user"] = json!({ "uid": uid, "gid": uid });
        config["process"]["capabilities"] = capabilities;
    });
    output.text().to_owned()
}

fn bounding_capabilities_are_set(subject: &Subject) {
    let text = status_with(
        subject,
        0,
        json!({ "bounding": ["CAP_CHOWN", "CAP_SYS_CHROOT"] }),
    );

    // Numbers 0 and 18.
    assert_eq!(status(&text, "CapBnd"), "0000000000040001");
}

fn effective_and_permitted_capabilities_are_set(subject: &Subject) {
    let set = json!(["CAP_CHOWN", "CAP_KILL"]);

    let capabilities = json!({ "bounding": set, "permitted": set, "effective": set });
    let text = status_with(subject, 0, capabilities);

    assert_eq!(status(&text, "CapPrm"), "0000000000000021");
    assert_eq!(status(&text, "CapEff"), "0000000000000021");
}

fn inheritable_and_ambient_capabilities_are_set(subject: &Subject) {
    let two = json!(["CAP_CHOWN", "CAP_KILL"]);
    let one = json!(["CAP_KILL"]);

    let capabilities = json!({
        "bounding": two, "permitted": two, "effective": two, "inheritable": one, "ambient": one,
    });
    let text = status_with(subject, 1000, capabilities);

    for set in ["CapInh", "CapAmb", "CapPrm", "CapEff"] {
        assert_eq!(status(&text, set), "0000000000000020", "{set}");
    }
}

fn no_capabilities_are_none(subject: &Subject) {
    let text = status_with(subject, 0, json!({}));

    assert_eq!(status(&text, "CapEff"), "0000000000000000");
    assert_eq!(status(&text, "CapBnd"), "0000000000000000");
}

fn unknown_capability_is_a_warning(subject: &Subject) {
    let set = json!(["CAP_CHOWN", "CAP_NO_SUCH_THING"]);

    let capabilities = json!({ "bounding": set, "permitted": set, "effective": set });
    let text = status_with(subject, 0, capabilities);

    assert_eq!(status(&text, "CapEff"), "0000000000000001");
}

fn no_new_privileges_is_set(subject: &Subject) {
    let output = subject.ran("cat /proc/self/status", |config| {
        config["process"]["noNewPrivileges"] = json!(true);
    });

    assert_eq!(status(output.text(), "NoNewPrivs"), "1");
}

fn no_new_privileges_is_off_by_default(subject: &Subject) {
    let output = subject.ran("cat /proc/self/status", |config| {
        config["process"]
            .as_object_mut()
            .unwrap()
            .remove("noNewPrivileges");
    });

    assert_eq!(status(output.text(), "NoNewPrivs"), "0");
}

fn oom_score_is_set(subject: &Subject) {
    let output = subject.ran("cat /proc/self/oom_score_adj", |config| {
        config["process"]["oomScoreAdj"] = json!(789);
    });

    assert_eq!(output.text(), "789");
}

fn oom_score_left_out_is_unchanged(subject: &Subject) {
    let ours = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();

    let output = subject.ran("cat /proc/self/oom_score_adj", |_| {});

    assert_eq!(output.text(), ours.trim());
}

fn scheduler_is_set(subject: &Subject) {
    // The 19th field, counted from behind the name, is the nice value, the 41st the policy.
    let script = "set -- $(sed 's/.*) //' /proc/self/stat); echo ${17}; echo ${39}";

    let output = subject.ran(script, |config| {
        config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
    });

    assert_eq!(output.text(), "7\n3");
}

fn io_priority_is_set(subject: &Subject) {
    let output = subject.ran("ionice", |config| {
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    });

    assert_eq!(output.text(), "best-effort: prio 6");
}

fn console_size_without_terminal_is_ignored(subject: &Subject) {
    let output = subject.ran("echo hello", |config| {
        config["process"]["consoleSize"] = json!({ "height": 10, "width": 20 });
    });

    assert_eq!(output.text(), "hello");
}

fn streams_are_separate_and_exact(subject: &Subject) {
    let bundle = subject.bundle_sh("cat; printf 'c\\377\\0' >&2", |_| {});
    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);

    let output = run.arg(&bundle.id).stdin(*b"a\0b\r\n").output().expect(0);

    assert_eq!(output.stdout, b"a\0b\r\n");
    assert_eq!(output.stderr, b"c\xff\0");
}

fn only_three_descriptors_are_open(subject: &Subject) {
    // The shell opens the directory itself.
    let output = subject.ran(
        "for fd in /proc/self/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; true",
        |_| {},
    );

    let mut open: Vec<&str> = output.text().lines().collect();
    open.retain(|fd| !["0", "1", "2"].contains(fd));
    assert!(open.is_empty(), "{output}");
}
