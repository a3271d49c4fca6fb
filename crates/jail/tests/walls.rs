//! A jailed process as seen from outside, through /proc. Runs as root, on real namespaces.

mod common;

use bulkhead_jail::{Capability, Entry, Jail, Profile};
use common::Running;
use rustix::process::Signal;

const UID: u32 = 0x7000_0042;

fn empty_jail() -> Jail {
    Jail::new("bulkhead", UID, UID, Profile::Device)
}

#[test]
fn jailed_process_seen_from_outside_has_no_power() {
    let mut process = Running::act(&empty_jail(), "wait");
    assert_eq!(process.line(), "ready");

    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(process.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Seccomp"), "2");
    assert_eq!(process.status("Uid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(process.status("Gid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(process.status("Groups"), "");
    assert!(process.status("NSpid").ends_with("\t1"));
    let core = process.proc("limits");
    assert!(
        core.lines()
            .any(|line| line.starts_with("Max core file size") && line.contains(" 0 "))
    );
}

#[test]
fn jailed_process_has_every_namespace_to_itself() {
    let mut process = Running::act(&empty_jail(), "wait");
    assert_eq!(process.line(), "ready");

    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let theirs = std::fs::read_link(format!("/proc/{}/ns/{kind}", process.child.pid));
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}"));
        assert_ne!(
            theirs.expect("namespace"),
            ours.expect("namespace"),
            "{kind}"
        );
    }
}

#[test]
fn jailed_process_sees_one_mount_and_an_empty_root() {
    let mut process = Running::act(&empty_jail(), "wait");
    assert_eq!(process.line(), "ready");

    let mounts = process.proc("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let options = mounts.split(' ').nth(5).expect("options");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|o| o == option), "{options}");
    }
    let root = std::fs::read_dir(format!("/proc/{}/root/", process.child.pid)).expect("root");
    assert_eq!(root.count(), 0);
}

#[test]
fn capabilities_asked_for_root_are_exactly_those() {
    let mut jail = Jail::new("bulkhead", 0, 0, Profile::Device);
    jail.capabilities = vec![Capability::Chown, Capability::Setuid, Capability::Mknod];
    let mut process = Running::act(&jail, "wait");
    assert_eq!(process.line(), "ready");

    let expected = format!("{:016x}", (1u64 << 0) | (1 << 7) | (1 << 27));
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(process.status(set), expected, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(process.status(set), "0000000000000000", "{set}");
    }
}

#[test]
fn capabilities_asked_for_another_user_survive_the_change() {
    let mut jail = empty_jail();
    jail.capabilities = vec![Capability::DacOverride];
    let mut process = Running::act(&jail, "wait");
    assert_eq!(process.line(), "ready");

    assert_eq!(process.status("CapEff"), "0000000000000002");
    assert_eq!(process.status("CapBnd"), "0000000000000002");
}

#[test]
fn process_pinned_to_a_processor_runs_only_there() {
    let mut jail = empty_jail();
    jail.cpus = vec![0];
    let mut process = Running::act(&jail, "wait");
    assert_eq!(process.line(), "ready");

    assert_eq!(process.status("Cpus_allowed_list"), "0");
}

#[test]
fn descriptors_not_given_are_closed() {
    let mut process = Running::act(&empty_jail(), "wait");
    assert_eq!(process.line(), "ready");

    let open = std::fs::read_dir(format!("/proc/{}/fd", process.child.pid)).expect("fd");
    let mut open: Vec<_> = open.map(|fd| fd.expect("fd").file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
}

#[test]
fn parent_killed_takes_the_jailed_process_along() {
    let jail = serde_json::to_string(&empty_jail()).expect("json");
    let mut parent = Running::start(&["parent", &jail]);
    assert_eq!(parent.line(), "ready");
    let mut pid = [0; 16];
    let length = std::io::Read::read(&mut parent.errors, &mut pid).expect("pid");
    let pid = std::str::from_utf8(&pid[..length])
        .expect("text")
        .trim()
        .to_owned();
    // The pid is that of the parent's pid namespace, in which it is number 2 or above.
    assert_ne!(pid, "1");

    rustix::process::pidfd_send_signal(&parent.child.pidfd, Signal::KILL).expect("kill");
    common::wait(&parent.child.pidfd);

    // The write end of this pipe is closed once the grandchild is gone; until then this blocks.
    assert_eq!(parent.line(), "");
}

#[test]
fn jail_entered_without_spawn_is_refused() {
    let jail = serde_json::to_string(&empty_jail()).expect("json");
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--uts", "--"])
        .arg(common::jailed())
        .args(["act", &jail, "wait"])
        .output()
        .expect("unshare");

    let text = String::from_utf8(output.stderr).expect("text");
    assert!(
        text.contains("Descriptor 3 does not refer to the parent process"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn source_missing_is_named_in_the_error() {
    let mut jail = empty_jail();
    jail.root
        .entries
        .push(common::bind("/does/not/exist", "/here"));
    let (_, errors, _) = Running::act(&jail, "wait").finish();

    assert_eq!(
        errors.trim_end(),
        "Could not build the jail's root: take from the host \"/does/not/exist\": \
         No such file or directory (os error 2)"
    );
}

#[test]
fn target_with_parent_component_is_refused() {
    let mut jail = empty_jail();
    jail.root.entries.push(Entry::Dir {
        path: "/a/../../b".into(),
        mode: 0o755,
    });
    let (_, errors, _) = Running::act(&jail, "wait").finish();

    assert!(
        errors.contains("Jail path \"/a/../../b\" is not absolute or contains"),
        "{errors}"
    );
}

#[test]
fn host_mount_table_after_a_jail_is_unchanged() {
    let count = || std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let before = count();
    let mut jail = empty_jail();
    jail.root.entries.push(common::bind("/usr", "/usr"));
    let mut process = Running::act(&jail, "wait");
    assert_eq!(process.line(), "ready");

    assert_eq!(count(), before);
}

#[test]
fn program_with_a_limit_of_processes_cannot_raise_it() {
    let jail = Jail::new("bulkhead", UID, UID, Profile::None);
    let mut process = Running::shell(&jail, "ulimit -u; echo entered; read line");
    assert_eq!(process.line(), "64");
    assert_eq!(process.line(), "entered");

    let limits = process.proc("limits");
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max processes"))
        .expect("limit");
    assert_eq!(
        limit.split_whitespace().skip(2).take(2).collect::<Vec<_>>(),
        ["64", "64"]
    );
}

#[test]
fn name_longer_than_the_kernel_takes_is_cut() {
    let mut jail = Jail::new(&"n".repeat(100), UID, UID, Profile::None);
    jail.cpus = vec![0];
    let (output, _, _) = Running::shell(&jail, "/bin/busybox hostname").finish();
    assert_eq!(output, format!("{}\n", "n".repeat(64)));
}

#[test]
fn directory_of_the_host_left_open_leads_nowhere_for_a_process_without_paths() {
    let mut jail = Jail::new("bulkhead", UID, UID, Profile::None);
    let outside = |jail: &Jail| {
        let (output, errors, _) = Running::act(jail, "outside").finish();
        assert_eq!(errors, "");
        output.trim_end().to_owned()
    };
    // The hole is there: an empty root alone does not close it.
    assert_eq!(outside(&jail), "opened");
    if bulkhead_jail::landlock_version().is_none() {
        eprintln!("skipped: this host's kernel has no Landlock");
        return;
    }

    jail.without_paths = true;

    assert_eq!(outside(&jail), "permission denied");
}
