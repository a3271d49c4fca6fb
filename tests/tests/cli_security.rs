//! Who the command is and what it may do: `-u`, `--cap-add`, `--cap-drop`, `--security-opt`.

#![allow(clippy::unwrap_used)]

use std::fs;

use bulkhead_tests::{Run, Test, suite};
use serde_json::json;

suite! {
    both:
        capabilities_are_dockers_by_default,
        user_by_name_has_its_groups,
        seccomp_default_profile_denies;
    uml:
        user_and_group_by_number_apply,
        user_with_group_has_no_further_ones,
        user_that_is_unknown_by_number_is_accepted,
        user_that_is_unknown_by_name_is_refused,
        user_has_its_home,
        user_other_than_root_has_no_capabilities,
        capability_all_added_gives_all,
        capability_all_dropped_leaves_none,
        capability_added_after_all_dropped_is_the_only_one,
        capability_dropped_is_missing,
        capability_dropped_is_refused_by_the_kernel,
        capability_unknown_is_refused,
        seccomp_unconfined_denies_nothing,
        seccomp_profile_of_a_file_applies,
        seccomp_profile_that_is_broken_is_refused,
        seccomp_profile_that_is_missing_is_refused,
        no_new_privileges_is_off_by_default,
        no_new_privileges_keeps_set_user_id_off,
        set_user_id_works_by_default,
        proc_is_masked_and_read_only_where_it_matters;
}

/// What `NAME:` says in the status of the command.
fn status(run: Run<'_>, name: &str) -> String {
    let output = run.output();
    let found = output
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    found.unwrap().to_owned()
}

/// A command that prints its status.
fn printing(test: &Test) -> Run<'_> {
    test.run(["cat", "/proc/self/status"])
}

fn user_by_name_has_its_groups(test: &Test) {
    let output = test
        .sh("id -u; id -g; id -G")
        .options(["-u", "alice"])
        .output();

    assert_eq!(output.text(), "1000\n1000\n1000 44 50");
}

fn user_and_group_by_number_apply(test: &Test) {
    let output = test
        .sh("id -u; id -g; touch /tmp/x; stat -c %u:%g /tmp/x")
        .options(["--user", "7:8"])
        .output();

    assert_eq!(output.text(), "7\n8\n7:8");
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(test.rootfs().join("tmp/x")).unwrap();
    assert_eq!((made.uid(), made.gid()), (7, 8));
}

fn user_with_group_has_no_further_ones(test: &Test) {
    let output = test
        .sh("id -u; id -G")
        .options(["-u", "alice:video"])
        .output();

    assert_eq!(output.text(), "1000\n44");
}

fn user_that_is_unknown_by_number_is_accepted(test: &Test) {
    let output = test.sh("id -u; id -g").options(["-u", "4242"]).output();

    assert_eq!(output.text(), "4242\n0");
}

fn user_that_is_unknown_by_name_is_refused(test: &Test) {
    let output = test.run(["true"]).options(["-u", "mallory"]).output();

    output.expect_code(125);
    output.expect_error(&["mallory", "/etc/passwd"]);
}

fn user_has_its_home(test: &Test) {
    let output = test
        .sh("echo $HOME; echo x >~/x")
        .options(["-u", "alice"])
        .output();

    assert_eq!(output.text(), "/home/alice");
    assert!(test.rootfs().join("home/alice/x").exists());
}

fn capabilities_are_dockers_by_default(test: &Test) {
    let output = printing(test).output();

    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
    // NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP; none of them inherited or ambient.
    for (set, mask) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
    ] {
        let line = format!("{set}:\t{mask}\n");
        assert!(
            output.text().contains(&line),
            "{line:?} is missing: {output}"
        );
    }
}

fn user_other_than_root_has_no_capabilities(test: &Test) {
    let output = printing(test).options(["-u", "alice"]).output();

    assert!(
        output.text().contains("CapPrm:\t0000000000000000\n"),
        "{output}"
    );
    assert!(
        output.text().contains("CapEff:\t0000000000000000\n"),
        "{output}"
    );
    assert!(
        output.text().contains("CapBnd:\t00000000a80425fb\n"),
        "{output}"
    );
}

fn capability_all_added_gives_all(test: &Test) {
    let run = test.sh("grep CapEff /proc/self/status; cat /proc/sys/kernel/cap_last_cap");

    let output = run.options(["--cap-add", "ALL"]).output();

    let (mask, last) = output.text().split_once('\n').unwrap();
    let all = (1_u64 << (last.parse::<u32>().unwrap() + 1)) - 1;
    assert_eq!(mask, format!("CapEff:\t{all:016x}"));
}

fn capability_all_dropped_leaves_none(test: &Test) {
    let output = printing(test).options(["--cap-drop", "all"]).output();

    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let line = format!("{set}:\t0000000000000000\n");
        assert!(
            output.text().contains(&line),
            "{line:?} is missing: {output}"
        );
    }
}

fn capability_added_after_all_dropped_is_the_only_one(test: &Test) {
    let run = printing(test).options(["--cap-drop", "ALL", "--cap-add", "cap_net_admin"]);

    assert_eq!(status(run, "CapEff"), "0000000000001000");
}

fn capability_dropped_is_missing(test: &Test) {
    let run = printing(test).options(["--cap-drop", "CHOWN", "--cap-drop=CAP_SETFCAP"]);

    assert_eq!(status(run, "CapEff"), "00000000280425fa");
}

fn capability_dropped_is_refused_by_the_kernel(test: &Test) {
    let script = "touch /tmp/x; chown 1000 /tmp/x";

    let with = test.sh(script).output();
    let without = test.sh(script).options(["--cap-drop", "CHOWN"]).output();

    with.expect_code(0);
    assert!(
        without.error().contains("Operation not permitted"),
        "{without}"
    );
}

fn capability_unknown_is_refused(test: &Test) {
    let output = test.run(["true"]).options(["--cap-add", "FLY"]).output();

    output.expect_code(125);
    output.expect_error(&["FLY"]);
}

fn seccomp_default_profile_denies(test: &Test) {
    // Both are Docker's to deny without CAP_SYS_ADMIN, whether or not the kernel could.
    let script = "grep Seccomp: /proc/self/status; unshare -U true; unshare -m true; true";

    let output = test.sh(script).output();

    assert_eq!(output.text(), "Seccomp:\t2");
    assert_eq!(
        output.error().matches("Operation not permitted").count(),
        2,
        "{output}"
    );
}

fn seccomp_unconfined_denies_nothing(test: &Test) {
    let run = test.sh("grep Seccomp: /proc/self/status; unshare -m true && echo done");

    let output = run
        .options([
            "--security-opt",
            "seccomp=unconfined",
            "--cap-add",
            "SYS_ADMIN",
        ])
        .output();

    assert_eq!(output.text(), "Seccomp:\t0\ndone");
}

fn seccomp_profile_of_a_file_applies(test: &Test) {
    let file = test.new_dir().join("profile.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
    });
    fs::write(&file, profile.to_string()).unwrap();

    let option = format!("seccomp={}", file.display());
    let output = test
        .sh("mkdir /tmp/x")
        .options(["--security-opt", &option])
        .output();

    output.expect_code(1);
    assert!(
        output.error().contains("No space left on device"),
        "{output}"
    );
}

fn seccomp_profile_that_is_broken_is_refused(test: &Test) {
    let file = test.new_dir().join("profile.json");
    fs::write(&file, "{ \"defaultAction\": \"SCMP_ACT_NOTHING\" }").unwrap();

    let option = format!("seccomp={}", file.display());
    let output = test
        .run(["true"])
        .options(["--security-opt", &option])
        .output();

    output.expect_code(125);
    output.expect_error(&["profile.json", "SCMP_ACT_NOTHING"]);
}

fn seccomp_profile_that_is_missing_is_refused(test: &Test) {
    let output = test
        .run(["true"])
        .options(["--security-opt", "seccomp=/no/such.json"])
        .output();

    output.expect_code(125);
    output.expect_error(&["/no/such.json", "No such file"]);
}

fn no_new_privileges_is_off_by_default(test: &Test) {
    assert_eq!(status(printing(test), "NoNewPrivs"), "0");
}

/// Makes alice root by a program that belongs to root and says so in its mode.
fn become_root(test: &Test) -> Run<'_> {
    use std::os::unix::fs::PermissionsExt;
    let program = test.rootfs().join("bin/busybox");
    fs::set_permissions(program, fs::Permissions::from_mode(0o4755)).unwrap();
    // Root without a password.
    fs::write(
        test.rootfs().join("etc/passwd"),
        "root::0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
    test.run(["su", "root", "-c", "id -u"])
        .options(["-u", "alice"])
}

fn set_user_id_works_by_default(test: &Test) {
    let output = become_root(test).output();

    assert_eq!(output.text(), "0");
}

fn no_new_privileges_keeps_set_user_id_off(test: &Test) {
    let output = become_root(test)
        .options(["--security-opt", "no-new-privileges"])
        .output();

    assert_ne!(output.code(), 0, "{output}");
    assert!(output.stdout.is_empty(), "{output}");
}

fn proc_is_masked_and_read_only_where_it_matters(test: &Test) {
    let script = "echo x >/proc/sys/kernel/hostname; \
                  cat /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls -A /sys/firmware 2>/dev/null | wc -l";

    let output = test.sh(script).output();

    assert_eq!(output.text(), "0\n0");
    assert_eq!(
        output.error().matches("Read-only file system").count(),
        1,
        "{output}"
    );
}
