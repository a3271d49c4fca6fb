//! Further processes in a container.

use serde_json::{Value, json};

use super::harness::{Sleeper, isolated, outside, rootfs, sleeping, with};

/// A process object that runs a shell script.
fn process(script: &str) -> Value {
    let mut process = sleeping()["process"].take();
    process["args"] = json!(["sh", "-c", script]);
    process
}

/// Runs a further process in a container made from `spec`.
fn exec_in(spec: Value, process: Value) -> super::harness::Outcome {
    let rootfs = rootfs();
    isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), spec);
        let outcome = sleeper.exec(process);
        assert_eq!(sleeper.kill(), -9);
        outcome
    })
}

#[test]
fn further_process_is_in_the_containers_namespaces_and_root() {
    let kinds = "pid ipc uts mnt cgroup";
    let script = format!(
        "hostname; cat /proc/1/comm; for n in {kinds}; do \
         [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo $n differs; done; \
         cat /proc/self/cgroup /proc/1/cgroup | grep ^0:"
    );

    let outcome = exec_in(sleeping(), process(&script));

    assert_eq!(outcome.output(), "box\nsleep\n0::/\n0::/\n");
}

#[test]
fn further_process_has_its_own_user_capabilities_limits_and_directory() {
    let mut wanted =
        process("id -u; id -G; pwd; umask; ulimit -n; grep -E '^(CapEff|NoNew)' /proc/self/status");
    wanted["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7], "umask": 0o77});
    wanted["cwd"] = json!("/tmp");
    wanted["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]);
    wanted["noNewPrivileges"] = json!(false);
    let caps = json!(["CAP_KILL"]);
    wanted["capabilities"] = json!({"bounding": caps, "permitted": caps, "effective": caps,
        "inheritable": caps, "ambient": caps});

    let outcome = exec_in(sleeping(), wanted);

    assert_eq!(
        outcome.output(),
        "1000\n1000 7\n/tmp\n0077\n64\nCapEff:\t0000000000000020\nNoNewPrivs:\t0\n"
    );
}

#[test]
fn further_process_is_under_the_containers_seccomp_profile() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});

    let outcome = exec_in(
        with(sleeping(), "/linux/seccomp", profile),
        process("mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status"),
    );

    assert_eq!(
        outcome.output(),
        "mkdir: can't create directory '/tmp/x': Function not implemented\nSeccomp:\t2\n"
    );
}

#[test]
fn further_process_in_a_missing_directory_is_an_error_naming_the_field() {
    let mut wanted = process("true");
    wanted["cwd"] = json!("/no/such/place");

    let outcome = exec_in(sleeping(), wanted);

    assert!(outcome.failure().contains("process.cwd"), "{outcome:?}");
}

#[test]
fn further_program_that_is_missing_is_reported_as_127() {
    let mut wanted = process("true");
    wanted["args"] = json!(["nonesuch"]);

    assert_eq!(exec_in(sleeping(), wanted).program_code, Some(127));
}

#[test]
fn further_process_holds_no_descriptor_of_the_agents() {
    let outcome = exec_in(sleeping(), process("ls /proc/self/fd"));

    assert_eq!(outcome.output(), "0\n1\n2\n3\n");
}

#[test]
fn further_process_of_a_dead_container_is_an_error() {
    let rootfs = rootfs();

    let outcome = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        nix::sys::signal::kill(sleeper.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        super::harness::wait_readable(sleeper.pidfd());
        let outcome = sleeper.exec(process("true"));
        assert_eq!(sleeper.kill(), -9);
        outcome
    });

    assert!(outcome.failure().contains("namespace"), "{outcome:?}");
}

#[test]
fn creator_stays_in_its_own_pid_namespace() {
    let rootfs = rootfs();

    let (before, after) = isolated(|| {
        let own = || std::fs::read_link("/proc/self/ns/pid_for_children").unwrap();
        let before = own();
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        assert_eq!(sleeper.exec(process("true")).code, 0);
        let after = own();
        sleeper.kill();
        (before, after)
    });

    assert_eq!(before, after);
}

#[test]
fn further_process_sees_what_the_container_has_mounted() {
    let (_keep, source) = outside();
    std::fs::write(source.join("mark"), "bound\n").unwrap();
    let mount = json!({"destination": "/data", "type": "bind", "source": source,
        "options": ["bind", "ro"]});

    let outcome = exec_in(
        with(sleeping(), "/mounts/-", mount),
        process("cat /data/mark"),
    );

    assert_eq!(outcome.output(), "bound\n");
}

#[test]
fn further_process_of_a_paused_container_is_refused() {
    let rootfs = rootfs();

    let (paused, resumed) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        sleeper.container.pause().unwrap();
        let paused = sleeper.exec(process("true"));
        sleeper.container.resume().unwrap();
        let resumed = sleeper.exec(process("true"));
        sleeper.kill();
        (paused, resumed)
    });

    assert!(paused.failure().contains("resume it first"), "{paused:?}");
    assert_eq!(resumed.output(), "");
}
