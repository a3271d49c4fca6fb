//! `bulkhead run --bundle DIR ID`, runc's form: what `config.json` says of the process, the container
//! gets. Mounts and files are in `cli_mounts.rs`.
//!
//! Each test but those under `ours` is proved on a peer runtime, as module `peer`.

#![allow(clippy::unwrap_used)]

use std::fs;

use bulkhead_tests::harness::bundle::push;
use bulkhead_tests::{Test, bundle_suite};
use serde_json::{Value, json};

bundle_suite! {
    both:
        exit_code_of_process_returned,
        streams_are_separate_and_exact,
        capabilities_five_sets_apply_to_user,
        memory_limit_reached_process_killed,
        pids_limit_reached_no_more_processes,
        seccomp_errno_rule_applies;
    uml:
        bundle_in_current_directory_runs,
        rootfs_with_absolute_path_runs,
        stdin_reaches_process_with_its_end,
        environment_is_the_configured_one,
        program_is_looked_up_in_path,
        process_is_first_of_its_namespace,
        hostname_is_set,
        working_directory_is_set,
        working_directory_that_is_missing_is_made,
        user_with_additional_groups_applies,
        umask_applies,
        rlimits_apply,
        sysctl_applies,
        oom_score_applies,
        capabilities_of_root_are_the_configured_ones,
        no_new_privileges_applies,
        no_new_privileges_left_out_stays_off,
        seccomp_kill_rule_ends_process,
        seccomp_argument_rule_decides,
        seccomp_default_deny_lists_the_allowed,
        process_killed_by_signal_gives_128_and_its_number;
    ours:
        domainname_is_set,
        missing_program_gives_127,
        program_that_is_no_program_gives_126,
        cpu_limit_is_in_the_guests_cgroup,
        container_of_bundle_leaves_nothing;
}

/// Sets every capability set that matters to root.
fn set_capabilities(config: &mut Value, sets: &[&str], capabilities: &[&str]) {
    config["process"]["capabilities"] = json!({});
    for set in sets {
        config["process"]["capabilities"][set] = json!(capabilities);
    }
}

/// Value of a line `NAME:\tVALUE`, as /proc/PID/status has them.
fn status<'a>(text: &'a str, name: &str) -> &'a str {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
}

/// A profile that allows everything but for one rule.
fn seccomp(names: &[&str], rule: Value) -> Value {
    let mut syscall = json!({ "names": names });
    syscall
        .as_object_mut()
        .unwrap()
        .extend(rule.as_object().unwrap().clone());
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [syscall],
    })
}

fn exit_code_of_process_returned(test: &Test) {
    let output = test.bundle_sh("exit 3", |_| {}).output();

    output.expect_code(3);
}

fn streams_are_separate_and_exact(test: &Test) {
    let bundle = test.bundle_sh(r"printf 'a\0b\r\n'; printf 'c\377' >&2", |_| {});

    let output = bundle.output().expect(0);

    assert_eq!(output.stdout, b"a\0b\r\n");
    assert_eq!(output.stderr, b"c\xff");
}

fn stdin_reaches_process_with_its_end(test: &Test) {
    let bundle = test.bundle_sh("cat; echo end", |_| {});

    let output = bundle.invocation().stdin("one\ntwo").output();

    assert_eq!(output.text(), "one\ntwoend");
}

fn bundle_in_current_directory_runs(test: &Test) {
    let output = test
        .bundle_sh("echo hello", |_| {})
        .invocation_here()
        .output();

    assert_eq!(output.text(), "hello");
}

fn rootfs_with_absolute_path_runs(test: &Test) {
    let rootfs = test.new_rootfs();
    fs::write(rootfs.join("here"), "absolute").unwrap();
    let bundle = test.bundle_sh("cat /here", |config| config["root"]["path"] = json!(rootfs));

    let output = bundle.output();

    assert_eq!(output.text(), "absolute");
}

fn environment_is_the_configured_one(test: &Test) {
    let bundle = test.bundle(|config| {
        config["process"]["args"] = json!(["/bin/env"]);
        config["process"]["env"] = json!(["PATH=/bin", "A=1 2", "EMPTY=", "U=ü"]);
    });

    let output = bundle.output();

    let mut lines: Vec<&str> = output.text().lines().collect();
    lines.sort_unstable();
    // Runtimes add the user's home directory, which programs rely on.
    assert_eq!(lines, ["A=1 2", "EMPTY=", "HOME=/root", "PATH=/bin", "U=ü"]);
}

fn program_is_looked_up_in_path(test: &Test) {
    let bundle = test.bundle(|config| {
        config["process"]["args"] = json!(["here"]);
        config["process"]["env"] = json!(["PATH=/nowhere:/opt:/bin"]);
    });
    bulkhead_tests::harness::rootfs::add_script(&bundle.rootfs(), "/opt/here", "echo found");

    let output = bundle.output();

    assert_eq!(output.text(), "found");
}

fn process_is_first_of_its_namespace(test: &Test) {
    let output = test
        .bundle_sh("echo $$; cat /proc/1/comm; true", |_| {})
        .output();

    assert_eq!(output.text(), "1\nsh");
}

fn hostname_is_set(test: &Test) {
    let bundle = test.bundle_sh("hostname", |config| {
        config["hostname"] = json!("some-host.example")
    });

    let output = bundle.output();

    assert_eq!(output.text(), "some-host.example");
}

fn domainname_is_set(test: &Test) {
    let bundle = test.bundle_sh("cat /proc/sys/kernel/domainname", |config| {
        config["ociVersion"] = json!("1.1.0");
        config["domainname"] = json!("example.org");
    });

    let output = bundle.output();

    assert_eq!(output.text(), "example.org");
}

fn working_directory_is_set(test: &Test) {
    let bundle = test.bundle_sh("/bin/pwd", |config| {
        config["process"]["cwd"] = json!("/home/alice")
    });

    let output = bundle.output();

    assert_eq!(output.text(), "/home/alice");
}

fn working_directory_that_is_missing_is_made(test: &Test) {
    let bundle = test.bundle_sh("/bin/pwd", |config| {
        config["process"]["cwd"] = json!("/a/b/c")
    });

    let output = bundle.output();

    assert_eq!(output.text(), "/a/b/c");
}

fn user_with_additional_groups_applies(test: &Test) {
    let bundle = test.bundle_sh("id -u; id -g; id -G", |config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 50, "additionalGids": [44, 1234] });
    });

    let output = bundle.output();

    assert_eq!(output.text(), "1000\n50\n50 44 1234");
}

fn umask_applies(test: &Test) {
    let bundle = test.bundle_sh("umask; touch /tmp/x; stat -c %a /tmp/x", |config| {
        config["process"]["user"]["umask"] = json!(0o027);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "0027\n640");
}

fn rlimits_apply(test: &Test) {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Ss";
    let bundle = test.bundle_sh(script, |config| {
        config["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 512 },
            { "type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 8_388_608 },
        ]);
    });

    let output = bundle.output();

    // Core files are counted in blocks of 512 bytes, stacks in KiB.
    assert_eq!(output.text(), "100\n200\n0\n1\n4096");
}

fn sysctl_applies(test: &Test) {
    let bundle = test.bundle_sh("cat /proc/sys/net/ipv4/ip_forward", |config| {
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });

    let output = bundle.output();

    assert_eq!(output.text(), "1");
}

fn oom_score_applies(test: &Test) {
    let bundle = test.bundle_sh("cat /proc/self/oom_score_adj", |config| {
        config["process"]["oomScoreAdj"] = json!(789);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "789");
}

fn capabilities_of_root_are_the_configured_ones(test: &Test) {
    let sets = ["bounding", "permitted", "effective"];
    let bundle = test.bundle_sh("cat /proc/self/status", |config| {
        set_capabilities(config, &sets, &["CAP_CHOWN", "CAP_KILL"]);
    });

    let output = bundle.output();

    // Numbers 0 and 5.
    let text = output.text();
    assert_eq!(status(text, "CapBnd"), "0000000000000021");
    assert_eq!(status(text, "CapPrm"), "0000000000000021");
    assert_eq!(status(text, "CapEff"), "0000000000000021");
    assert_eq!(status(text, "CapInh"), "0000000000000000");
    assert_eq!(status(text, "CapAmb"), "0000000000000000");
}

fn capabilities_five_sets_apply_to_user(test: &Test) {
    let bundle = test.bundle(|config| {
        config["process"]["args"] = json!(["/bin/cat", "/proc/self/status"]);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        });
    });

    let output = bundle.output();

    // An execve by a user that is not root keeps the ambient ones only.
    let text = output.text();
    assert_eq!(status(text, "CapBnd"), "0000000000040021");
    assert_eq!(status(text, "CapInh"), "0000000000000020");
    assert_eq!(status(text, "CapAmb"), "0000000000000020");
    assert_eq!(status(text, "CapPrm"), "0000000000000020");
    assert_eq!(status(text, "CapEff"), "0000000000000020");
}

fn no_new_privileges_applies(test: &Test) {
    let output = test.bundle_sh("cat /proc/self/status", |_| {}).output();

    assert_eq!(status(output.text(), "NoNewPrivs"), "1");
}

fn no_new_privileges_left_out_stays_off(test: &Test) {
    let bundle = test.bundle_sh("cat /proc/self/status", |config| {
        config["process"]
            .as_object_mut()
            .unwrap()
            .remove("noNewPrivileges");
    });

    let output = bundle.output();

    assert_eq!(status(output.text(), "NoNewPrivs"), "0");
}

fn seccomp_errno_rule_applies(test: &Test) {
    let script = "mkdir /tmp/x; mkdir /tmp/y || grep Seccomp: /proc/self/status";
    let bundle = test.bundle_sh(script, |config| {
        let rule = json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 28 });
        config["linux"]["seccomp"] = seccomp(&["mkdir", "mkdirat"], rule);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "Seccomp:\t2");
    assert_eq!(
        output.error().matches("No space left on device").count(),
        2,
        "{output}"
    );
}

fn seccomp_kill_rule_ends_process(test: &Test) {
    let bundle = test.bundle_sh(
        "mkdir /tmp/x; echo survived $?; exec mkdir /tmp/x",
        |config| {
            let rule = json!({ "action": "SCMP_ACT_KILL_PROCESS" });
            config["linux"]["seccomp"] = seccomp(&["mkdir", "mkdirat"], rule);
        },
    );

    let output = bundle.output();

    // 31 is SIGSYS.
    output.expect_code(128 + 31);
    assert_eq!(output.stdout, b"survived 159\n");
}

fn seccomp_argument_rule_decides(test: &Test) {
    let script = "trap : USR1 USR2; kill -USR1 $$ && echo one; kill -USR2 $$ && echo two; true";
    let bundle = test.bundle_sh(script, |config| {
        let rule = json!({
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [{ "index": 1, "value": libc::SIGUSR1, "op": "SCMP_CMP_EQ" }],
        });
        config["linux"]["seccomp"] = seccomp(&["kill"], rule);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "two", "{output}");
}

fn seccomp_default_deny_lists_the_allowed(test: &Test) {
    let bundle = test.bundle_sh("mkdir /tmp/a || echo denied; uname -s", |config| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [],
        });
        config["linux"]["seccomp"] = profile;
        // What a shell and a runtime's own last steps need.
        let allowed = [
            "access",
            "arch_prctl",
            "brk",
            "capget",
            "capset",
            "chdir",
            "clock_gettime",
            "clone",
            "clone3",
            "close",
            "close_range",
            "dup",
            "dup2",
            "dup3",
            "epoll_ctl",
            "epoll_pwait",
            "execve",
            "exit",
            "exit_group",
            "faccessat",
            "faccessat2",
            "fchdir",
            "fcntl",
            "fork",
            "fstat",
            "fstatfs",
            "futex",
            "getcwd",
            "getdents64",
            "getegid",
            "geteuid",
            "getgid",
            "getpgrp",
            "getpid",
            "getppid",
            "getrandom",
            "gettid",
            "getuid",
            "ioctl",
            "lseek",
            "lstat",
            "madvise",
            "mmap",
            "mprotect",
            "munmap",
            "nanosleep",
            "newfstatat",
            "open",
            "openat",
            "pipe",
            "pipe2",
            "poll",
            "prctl",
            "pread64",
            "prlimit64",
            "read",
            "readlink",
            "readlinkat",
            "rseq",
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "sched_yield",
            "set_robust_list",
            "set_tid_address",
            "setgid",
            "setgroups",
            "setpgid",
            "setresgid",
            "setresuid",
            "setsid",
            "setuid",
            "sigaltstack",
            "stat",
            "statfs",
            "statx",
            "sysinfo",
            "tgkill",
            "umask",
            "uname",
            "vfork",
            "wait4",
            "waitid",
            "write",
            "writev",
        ];
        let rule = json!({ "names": allowed.as_slice(), "action": "SCMP_ACT_ALLOW" });
        push(config, "/linux/seccomp/syscalls", rule);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "denied\nLinux");
    assert!(output.error().contains("Permission denied"), "{output}");
}

fn memory_limit_reached_process_killed(test: &Test) {
    // `tail` has to keep the last line, and this one does not end.
    let bundle = test.bundle_sh("tail /dev/zero; echo $?", |config| {
        let limit = 32 << 20;
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    });

    let output = bundle.output();

    assert_eq!(output.text(), "137");
}

fn pids_limit_reached_no_more_processes(test: &Test) {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo unreached";
    let bundle = test.bundle_sh(script, |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 8 });
    });

    let output = bundle.output();

    // The shell gives up when it cannot fork.
    assert_ne!(output.code(), 0, "{output}");
    assert!(!output.stdout.starts_with(b"unreached"), "{output}");
    assert!(output.error().contains("can't fork"), "{output}");
}

fn cpu_limit_is_in_the_guests_cgroup(test: &Test) {
    let bundle = test.bundle_sh(
        "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight",
        |config| {
            let cgroup = bulkhead_tests::harness::bundle::mount(
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["ro"],
            );
            push(config, "/mounts", cgroup);
            push(config, "/linux/namespaces", json!({ "type": "cgroup" }));
            config["linux"]["resources"]["cpu"] =
                json!({ "quota": 50_000, "period": 100_000, "shares": 1024 });
        },
    );

    let output = bundle.output();

    // Shares of cgroup v1 become weights: 1024 is 39.
    assert_eq!(output.text(), "50000 100000\n39");
}

fn process_killed_by_signal_gives_128_and_its_number(test: &Test) {
    // The first process of a namespace cannot signal itself; one it forked can be it.
    let mut container = test
        .bundle_sh("echo ready; exec cat", |_| {})
        .start()
        .ready();

    container.kill("KILL");
    let output = container.end();

    output.expect_code(128 + 9);
}

fn missing_program_gives_127(test: &Test) {
    let bundle = test.bundle(|config| config["process"]["args"] = json!(["/bin/none"]));

    let output = bundle.output();

    output.expect_code(127);
    output.expect_error(&["/bin/none"]);
}

fn program_that_is_no_program_gives_126(test: &Test) {
    let bundle = test.bundle(|config| config["process"]["args"] = json!(["/etc/passwd"]));

    let output = bundle.output();

    output.expect_code(126);
    output.expect_error(&["/etc/passwd"]);
}

fn container_of_bundle_leaves_nothing(test: &Test) {
    test.bundle_sh("true", |_| {}).output().expect_code(0);

    let list = test.verb(["list", "-q"]).output();

    assert_eq!(list.text(), "");
}
