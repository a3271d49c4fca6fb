//! Namespaces, users, capabilities, limits and names.

use std::fs;

use serde_json::json;

use super::harness::{Sleeper, isolated, rootfs, run, run_in, shell, sleeping, spec, with};

/// The lines of the process' status that begin with `prefix`, without it.
fn status(prefix: &str, spec: serde_json::Value) -> Vec<String> {
    let outcome = run(spec);
    let lines = outcome.output().lines();
    lines
        .filter(|l| l.starts_with(prefix))
        .map(|l| l[prefix.len()..].trim().to_owned())
        .collect()
}

fn cat_status() -> serde_json::Value {
    spec(&["cat", "/proc/self/status"])
}

#[test]
fn first_process_has_pid_1_and_sees_no_other() {
    let outcome = run(shell("echo $$; echo /proc/[0-9]*"));

    assert_eq!(outcome.output(), "1\n/proc/1\n");
}

#[test]
fn every_listed_namespace_is_new() {
    let kinds = ["pid", "ipc", "uts", "mnt", "cgroup", "net"];
    let own: Vec<_> = kinds
        .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap())
        .to_vec();
    let script = "for n in pid ipc uts mnt cgroup net; do readlink /proc/self/ns/$n; done";

    let outcome = run(shell(script));

    let same: Vec<_> = outcome
        .output()
        .lines()
        .zip(own)
        .zip(kinds)
        .filter(|((theirs, ours), _)| ours.as_os_str() == *theirs)
        .map(|(_, kind)| kind)
        .collect();
    assert_eq!(same, Vec::<&str>::new());
}

#[test]
fn network_that_is_not_listed_is_the_agents() {
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let mut spec = shell("readlink /proc/self/ns/net");
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "network");

    let outcome = run(spec);

    assert_eq!(outcome.output().trim_end(), own.to_str().unwrap());
}

#[test]
fn namespace_with_a_path_is_joined() {
    let rootfs = rootfs();

    let (first, second) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let ns = |kind: &str| format!("/proc/{}/ns/{kind}", sleeper.pid);
        let namespaces = json!([
            {"type": "mount"}, {"type": "pid", "path": ns("pid")},
            {"type": "ipc", "path": ns("ipc")}, {"type": "uts", "path": ns("uts")},
        ]);
        let spec = shell(
            "for n in pid ipc uts; do readlink /proc/self/ns/$n; done; ps | grep -c '[s]leep 1000'",
        );
        let spec = with(
            with(spec, "/linux/namespaces", namespaces),
            "/hostname",
            json!(""),
        );
        let links: String = ["pid", "ipc", "uts"]
            .map(|kind| format!("{}\n", fs::read_link(ns(kind)).unwrap().display()))
            .concat();
        let second = run_in(rootfs.path(), spec);
        sleeper.kill();
        (links, second)
    });

    assert_eq!(second.output(), format!("{first}1\n"));
}

#[test]
fn names_of_host_and_domain_are_set() {
    let spec = with(
        shell("hostname; cat /proc/sys/kernel/domainname"),
        "/domainname",
        json!("ex.org"),
    );

    assert_eq!(run(spec).output(), "box\nex.org\n");
}

#[test]
fn hostname_without_a_namespace_of_its_own_is_refused() {
    let outcome = run(with(
        spec(&["true"]),
        "/linux/namespaces",
        json!([{"type": "mount"}]),
    ));

    assert!(
        outcome.failure().starts_with("Invalid hostname"),
        "{outcome:?}"
    );
}

#[test]
fn user_has_its_ids_groups_and_umask() {
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 77], "umask": 0o27});
    let spec = with(shell("id -u; id -g; id -G; umask"), "/process/user", user);

    assert_eq!(run(spec).output(), "1000\n1001\n1001 5 77\n0027\n");
}

#[test]
fn umask_is_022_where_none_is_given() {
    assert_eq!(run(shell("umask")).output(), "0022\n");
}

#[test]
fn streams_can_be_reopened_by_an_unprivileged_user() {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat < /dev/stdin";
    let outcome = run(with(
        shell(script),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    ));

    assert_eq!(outcome.output(), "out\n");
    assert_eq!(outcome.stderr, "err\n");
}

#[test]
fn capabilities_of_root_are_exactly_the_sets_given() {
    let caps = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"],
        "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_CHOWN"],
    });

    let spec = with(cat_status(), "/process/noNewPrivileges", json!(false));
    let sets = status("Cap", with(spec, "/process/capabilities", caps));

    // Executing as root makes permitted and effective of bounding and inheritable.
    assert_eq!(
        sets,
        [
            "Inh:\t0000000000000001",
            "Prm:\t0000000000200021",
            "Eff:\t0000000000200021",
            "Bnd:\t0000000000200021",
            "Amb:\t0000000000000000",
        ]
    );
}

#[test]
fn capabilities_of_a_user_are_the_ambient_ones() {
    let caps = json!({
        "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let spec = with(
        cat_status(),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    );

    let sets = status("Cap", with(spec, "/process/capabilities", caps));

    assert_eq!(
        sets,
        [
            "Inh:\t0000000000000400",
            "Prm:\t0000000000000400",
            "Eff:\t0000000000000400",
            "Bnd:\t0000000000000401",
            "Amb:\t0000000000000400",
        ]
    );
}

#[test]
fn process_without_capabilities_has_none_even_as_root() {
    let spec = with(cat_status(), "/process/capabilities", json!(null));

    assert!(
        status("Cap", spec)
            .iter()
            .all(|line| line.ends_with("0000000000000000"))
    );
}

#[test]
fn ambient_capability_that_is_not_inheritable_is_left_out_as_in_runc() {
    let caps = json!(["CAP_KILL", "CAP_CHOWN"]);
    let caps = json!({"bounding": caps, "permitted": caps, "effective": caps, "ambient": caps,
        "inheritable": ["CAP_CHOWN"]});
    let spec = with(
        cat_status(),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    );

    let sets = status("CapAmb:", with(spec, "/process/capabilities", caps));

    assert_eq!(sets, ["0000000000000001"]);
}

#[test]
fn no_new_privileges_is_set_as_asked() {
    for asked in [true, false] {
        let spec = with(cat_status(), "/process/noNewPrivileges", json!(asked));

        assert_eq!(status("NoNewPrivs:", spec), [u8::from(asked).to_string()]);
    }
}

#[test]
fn resource_limits_are_set() {
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_FSIZE", "soft": 4096, "hard": u64::MAX},
    ]);

    let outcome = run(with(
        spec(&["cat", "/proc/self/limits"]),
        "/process/rlimits",
        limits,
    ));

    let words = |name: &str| {
        let line = outcome
            .output()
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap();
        line[name.len()..]
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(words("Max open files"), "100 200");
    assert_eq!(words("Max core file size"), "0 0");
    assert_eq!(words("Max file size"), "4096 unlimited");
}

#[test]
fn oom_score_adjustment_is_written() {
    let spec = with(
        spec(&["cat", "/proc/self/oom_score_adj"]),
        "/process/oomScoreAdj",
        json!(321),
    );

    assert_eq!(run(spec).output(), "321\n");
}

#[test]
fn kernel_parameters_are_set_in_the_containers_namespaces() {
    let before = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    let sysctl = json!({"kernel.msgmax": "4321"});

    let outcome = run(with(
        spec(&["cat", "/proc/sys/kernel/msgmax"]),
        "/linux/sysctl",
        sysctl,
    ));

    assert_eq!(outcome.output(), "4321\n");
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(),
        before
    );
}

#[test]
fn unknown_kernel_parameter_is_an_error_naming_it() {
    let outcome = run(with(
        spec(&["true"]),
        "/linux/sysctl",
        json!({"kernel.no_such_thing": "1"}),
    ));

    assert!(
        outcome
            .failure()
            .contains("linux.sysctl[\"kernel.no_such_thing\"]"),
        "{outcome:?}"
    );
}

#[test]
fn personality_is_set_where_the_kernel_has_it_and_refused_elsewhere() {
    let spec = shell("cat /proc/self/personality");
    let spec = with(spec, "/linux/personality", json!({"domain": "LINUX32"}));

    let outcome = run(spec);

    if fs::exists("/proc/sys/abi/vsyscall32").unwrap() {
        assert_eq!(outcome.output(), "00000008\n");
    } else {
        assert!(outcome.failure().contains("no 32-bit mode"), "{outcome:?}");
    }
}

#[test]
fn priorities_are_set() {
    let spec = shell("busybox awk '{print $19}' /proc/self/stat");
    let scheduler = json!({"policy": "SCHED_BATCH", "nice": 7});
    let io = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    let spec = with(
        with(spec, "/process/scheduler", scheduler),
        "/process/ioPriority",
        io,
    );

    assert_eq!(run(spec).output(), "7\n");
}

#[test]
fn ignored_and_blocked_signals_of_the_creator_are_not_inherited() {
    let spec = with(cat_status(), "/process/user", json!({"uid": 0, "gid": 0}));

    let masks = status("Sig", spec);

    let mask = |name: &str| {
        masks
            .iter()
            .find(|line| line.starts_with(name))
            .unwrap()
            .clone()
    };
    assert_eq!(mask("Blk"), "Blk:\t0000000000000000");
    // Signals 32 and 33 are the C library's own, it lets nobody touch them; whoever runs the tests
    // may have passed them on ignored. In a guest nobody has.
    let ignored = mask("Ign").replace("Ign:\t", "");
    let ignored = u64::from_str_radix(&ignored, 16).unwrap() & !(0b11 << 31);
    assert_eq!(ignored, 0);
}
