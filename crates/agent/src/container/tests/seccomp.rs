//! Seccomp profiles at work.

use serde_json::{Value, json};

use super::harness::{run, shell, with};

fn profile(syscalls: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": syscalls})
}

fn run_under(profile: Value, script: &str) -> super::harness::Outcome {
    run(with(shell(script), "/linux/seccomp", profile))
}

#[test]
fn denied_call_returns_the_errno_of_its_rule() {
    let rules =
        json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]);

    let outcome = run_under(profile(rules), "mkdir /tmp/x 2>&1; rmdir /tmp/y 2>&1; true");

    assert!(
        outcome
            .output()
            .contains("'/tmp/x': Function not implemented"),
        "{outcome:?}"
    );
    assert!(
        outcome
            .output()
            .contains("'/tmp/y': No such file or directory"),
        "{outcome:?}"
    );
}

#[test]
fn denied_call_without_an_errno_is_not_permitted() {
    let rules =
        json!([{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO"}]);

    let outcome = run_under(profile(rules), "mkdir /tmp/x 2>&1; true");

    assert!(
        outcome.output().contains("Operation not permitted"),
        "{outcome:?}"
    );
}

#[test]
fn call_of_a_killing_rule_ends_the_process() {
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);

        let outcome = run_under(profile(rules), "mkdir /tmp/x; echo $?");

        assert_eq!(
            outcome.output(),
            format!("{}\n", 128 + libc::SIGSYS),
            "{action}"
        );
    }
}

#[test]
fn call_of_a_traced_or_logged_rule_does_what_the_kernel_says() {
    let traced = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRACE"}]);
    let logged = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG"}]);

    // Without a tracer the call fails with ENOSYS.
    let traced = run_under(profile(traced), "mkdir /tmp/x 2>&1; true");
    let logged = run_under(profile(logged), "mkdir /tmp/x && echo made");

    assert!(
        traced.output().contains("Function not implemented"),
        "{traced:?}"
    );
    assert_eq!(logged.output(), "made\n");
}

#[test]
fn rule_with_arguments_applies_to_these_arguments_alone() {
    // kill(pid, signal): signal 10 is denied, 0 is not.
    let args = json!([{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]);
    let rules =
        json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": args}]);

    let outcome = run_under(
        profile(rules),
        "kill -0 1 && echo ok; kill -USR1 1 2>&1; true",
    );

    assert!(outcome.output().starts_with("ok\n"), "{outcome:?}");
    assert!(
        outcome.output().contains("Function not implemented"),
        "{outcome:?}"
    );
}

#[test]
fn rule_that_compares_one_argument_twice_means_either() {
    let args = json!([{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]);
    let rules =
        json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": args}]);

    let outcome = run_under(
        profile(rules),
        "kill -10 1 2>&1; kill -12 1 2>&1; kill -0 1 && echo ok",
    );

    assert_eq!(
        outcome.output().matches("Function not implemented").count(),
        2,
        "{outcome:?}"
    );
    assert!(outcome.output().ends_with("ok\n"), "{outcome:?}");
}

#[test]
fn masked_comparison_looks_at_the_masked_bits() {
    // 0o100 is O_CREAT: opening to create is denied, opening to read is not.
    let args = |index: u32| json!([{"index": index, "value": 0o100, "valueTwo": 0o100, "op": "SCMP_CMP_MASKED_EQ"}]);
    let rules = json!([
        {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": args(1)},
        {"names": ["openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": args(2)},
    ]);

    let outcome = run_under(
        profile(rules),
        "cat /etc/passwd | head -n1; echo x > /tmp/new",
    );

    assert!(outcome.stdout.starts_with("root:"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("Function not implemented"),
        "{outcome:?}"
    );
}

/// What a shell, `cat` and `echo` need, and nothing the set-up needs before.
fn allow_list() -> Value {
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [{
        "names": ["execve", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq",
            "prlimit64", "readlink", "getrandom", "mprotect", "mmap", "munmap", "ioctl", "getuid",
            "getgid", "geteuid", "getegid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
            "getpid", "getppid", "getcwd", "stat", "newfstatat", "fstat", "open", "openat", "read",
            "write", "writev", "close", "fcntl", "exit_group", "exit", "uname", "capset", "prctl",
            "sendfile"],
        "action": "SCMP_ACT_ALLOW"}]})
}

#[test]
fn profile_that_allows_only_the_program_lets_it_run() {
    for nnp in [true, false] {
        for uid in [0, 1000] {
            let spec = with(shell("echo ran"), "/linux/seccomp", allow_list());
            let spec = with(spec, "/process/noNewPrivileges", json!(nnp));
            let outcome = run(with(spec, "/process/user", json!({"uid": uid, "gid": uid})));

            assert_eq!(outcome.output(), "ran\n", "nnp {nnp}, user {uid}");
        }
    }
}

#[test]
fn capability_kept_for_the_filter_does_not_reach_the_program() {
    let spec = shell("grep -E '^Cap(Prm|Eff)' /proc/self/status");
    let spec = with(spec, "/process/noNewPrivileges", json!(false));
    let spec = with(spec, "/process/user", json!({"uid": 1000, "gid": 1000}));
    let spec = with(
        spec,
        "/process/capabilities",
        json!({"bounding": ["CAP_SYS_ADMIN"]}),
    );

    let outcome = run(with(spec, "/linux/seccomp", profile(json!([]))));

    assert_eq!(
        outcome.output(),
        "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
    );
}

#[test]
fn flags_of_the_profile_are_accepted() {
    let flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
    ];
    let profile = with(profile(json!([])), "/flags", json!(flags));

    let outcome = run_under(profile, "grep Seccomp: /proc/self/status");

    assert_eq!(outcome.output(), "Seccomp:\t2\n");
}

#[test]
fn profile_that_wants_a_supervisor_is_refused_by_name() {
    let rules = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);

    let outcome = run_under(profile(rules), "true");

    assert!(
        outcome.failure().contains("linux.seccomp.syscalls[0]"),
        "{outcome:?}"
    );
}
