//! Linux: seccomp.

use serde_json::{Value, json};

use crate::requirement::Exception::{Runc, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::{Subject, status};

pub const SECCOMP: &[Requirement] = requirements! {
    "Linux: seccomp";
    rule_with_errno_refuses = "Action `SCMP_ACT_ERRNO` with `errnoRet`";
    rule_with_errno_defaults_to_eperm = "Action `SCMP_ACT_ERRNO` without `errnoRet` is EPERM";
    default_action_refuses = "`defaultAction`, `defaultErrnoRet`";
    rule_with_kill_ends_the_process = "Action `SCMP_ACT_KILL_PROCESS` ends the process by SIGSYS";
    argument_decides = "`args`: a rule for a value of an argument";
    filter_is_in_force = "The process has a filter";
    unknown_action_is_an_error = "An unknown action is an error";
    unknown_architecture_is_an_error = "An unknown architecture is an error";
    unknown_call_is_ignored = "A system call the library does not know is no error";
    errno_of_an_action_without_one_is_an_error = "`errnoRet` of an action that has none is an error" [
        Runc("1.1 ignores it"),
    ];
    listener_is_an_engines = "`listenerPath`, action `SCMP_ACT_NOTIFY`: the listener is sent to the socket" [
        Vm("refused: the listener would look into processes of another kernel"),
    ];
};

/// A profile that allows everything but for one rule.
fn but_for(names: &[&str], rule: Value) -> Value {
    let mut rule = rule;
    rule["names"] = json!(names);
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule],
    })
}

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

fn rule_with_errno_refuses(subject: &Subject) {
    let output = subject.ran("mkdir /tmp/x || echo refused", |config| {
        let rule = json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSPC });
        config["linux"]["seccomp"] = but_for(&MKDIR, rule);
    });

    assert_eq!(output.text(), "refused");
    assert!(output.error().contains("No space left"), "{output}");
}

fn rule_with_errno_defaults_to_eperm(subject: &Subject) {
    let output = subject.ran("mkdir /tmp/x || echo refused", |config| {
        config["linux"]["seccomp"] = but_for(&MKDIR, json!({ "action": "SCMP_ACT_ERRNO" }));
    });

    assert_eq!(output.text(), "refused");
    assert!(output.error().contains("not permitted"), "{output}");
}

fn default_action_refuses(subject: &Subject) {
    // Everything a shell does is allowed by a rule over an argument that is always true.
    let output = subject.ran("mkdir /tmp/x || echo refused", |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": libc::EXDEV,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": allowed(), "action": "SCMP_ACT_ALLOW" }],
        });
    });

    assert_eq!(output.text(), "refused");
    assert!(output.error().contains("ross-device"), "{output}");
}

/// What a shell and a runtime's own last steps need.
fn allowed() -> Vec<&'static str> {
    "access arch_prctl brk capget capset chdir clock_gettime clone clone3 close close_range dup dup2 \
     dup3 epoll_ctl epoll_pwait execve exit exit_group faccessat faccessat2 fchdir fcntl fork fstat \
     fstatfs futex getcwd getdents64 getegid geteuid getgid getpgrp getpid getppid getrandom gettid \
     getuid ioctl lseek lstat madvise mmap mprotect munmap nanosleep newfstatat open openat pipe pipe2 \
     poll prctl pread64 prlimit64 read readlink readlinkat rseq rt_sigaction rt_sigprocmask \
     rt_sigreturn sched_yield set_robust_list set_tid_address setgid setgroups setpgid setresgid \
     setresuid setsid setuid sigaltstack stat statfs statx sysinfo tgkill umask uname vfork wait4 \
     waitid write writev"
        .split_whitespace()
        .collect()
}

fn rule_with_kill_ends_the_process(subject: &Subject) {
    let output = subject.ran("mkdir /tmp/x; echo $?", |config| {
        let rule = json!({ "action": "SCMP_ACT_KILL_PROCESS" });
        config["linux"]["seccomp"] = but_for(&MKDIR, rule);
    });

    // 31 is SIGSYS.
    assert!(output.text().ends_with("159"), "{output}");
}

fn argument_decides(subject: &Subject) {
    let script = "trap : USR1 USR2; kill -USR1 $$ && echo one; kill -USR2 $$ && echo two; true";

    let output = subject.ran(script, |config| {
        let args = json!([{ "index": 1, "value": libc::SIGUSR1, "op": "SCMP_CMP_EQ" }]);
        let rule = json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": args });
        config["linux"]["seccomp"] = but_for(&["kill"], rule);
    });

    assert_eq!(output.text(), "two");
}

fn filter_is_in_force(subject: &Subject) {
    let output = subject.ran("cat /proc/self/status", |config| {
        config["linux"]["seccomp"] = but_for(&MKDIR, json!({ "action": "SCMP_ACT_ERRNO" }));
    });

    assert_eq!(status(output.text(), "Seccomp"), "2");
}

fn unknown_action_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["linux"]["seccomp"] = but_for(&MKDIR, json!({ "action": "SCMP_ACT_NOTHING" }));
    });
}

fn unknown_architecture_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        let mut profile = but_for(&MKDIR, json!({ "action": "SCMP_ACT_ERRNO" }));
        profile["architectures"] = json!(["SCMP_ARCH_ABACUS"]);
        config["linux"]["seccomp"] = profile;
    });
}

fn unknown_call_is_ignored(subject: &Subject) {
    let output = subject.ran("echo hello", |config| {
        let rule = json!({ "action": "SCMP_ACT_ERRNO" });
        config["linux"]["seccomp"] = but_for(&["no_such_call", "mkdir"], rule);
    });

    assert_eq!(output.text(), "hello");
}

fn errno_of_an_action_without_one_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        let rule = json!({ "action": "SCMP_ACT_KILL_PROCESS", "errnoRet": 5 });
        config["linux"]["seccomp"] = but_for(&MKDIR, rule);
    });
}

fn listener_is_an_engines(subject: &Subject) {
    let socket = subject.new_dir().join("listener");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();

    let container = subject.created("echo hello", |config| {
        let mut profile = but_for(&["mkdir"], json!({ "action": "SCMP_ACT_NOTIFY" }));
        profile["listenerPath"] = json!(socket);
        config["linux"]["seccomp"] = profile;
    });
    container.start();

    let until = std::time::Instant::now() + bulkhead_tests::wait::limit();
    let listening = std::os::fd::AsFd::as_fd(&listener);
    assert!(
        bulkhead_tests::wait::readable(listening, until),
        "nobody came"
    );
    assert_eq!(container.finish().text(), "hello");
}
