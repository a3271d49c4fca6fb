//! Control groups: where they are, and the limits.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::requirement::Exception::Crun;
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const CGROUPS: &[Requirement] = requirements! {
    "Linux: control groups";
    process_is_at_the_path = "`cgroupsPath`: the process named to the engine is there, in every hierarchy";
    group_is_removed_with_the_container = "`cgroupsPath`: `delete` removes what `create` made";
    parent_that_was_there_remains = "`cgroupsPath`: `delete` leaves a parent that was there before";
    memory_limit_is_on_the_host = "`memory.limit` holds on the host for all that is the container's";
    memory_limit_kills = "`memory.limit` passed: the process is killed";
    pids_limit_refuses_processes = "`pids.limit` reached: no more processes";
    cpu_quota_throttles = "`cpu.quota`, `cpu.period`: no more time than that";
    cpu_shares_are_on_the_host = "`cpu.shares` are those of the group on the host";
    device_rules_apply_in_order = "`devices`: rules apply in the listed order";
    limit_that_is_no_number_is_an_error = "A limit that is no number is an error" [
        Crun("1.8 ignores it"),
    ];
};

const ROOT: &str = "/sys/fs/cgroup";

/// A path below the roots of the hierarchies that no other test has.
fn path_of(subject: &Subject) -> String {
    format!("/bulkhead-conformance-{}", subject.new_id())
}

/// The directory of a group in a hierarchy; the same one in all where the host has but one.
fn dir(controller: &str, path: &str) -> PathBuf {
    let first = Path::new(ROOT).join(controller);
    let root = if first.is_dir() { first } else { ROOT.into() };
    root.join(path.trim_start_matches('/'))
}

/// All directories there are of a group.
fn dirs(path: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(ROOT).unwrap().flatten();
    let roots = hierarchies.map(|entry| entry.path());
    let dirs = roots.map(|root| root.join(path.trim_start_matches('/')));
    dirs.filter(|dir| dir.is_dir()).collect()
}

fn at(config: &mut Value, path: &str) {
    config["linux"]["cgroupsPath"] = json!(path);
}

fn process_is_at_the_path(subject: &Subject) {
    let path = path_of(subject);

    let container = subject.created("true", |config| at(config, &path));

    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    for controller in ["memory", "pids", "cpu", "freezer"] {
        let line = groups.lines().find(|line| {
            let mut names = line.split(':').nth(1).unwrap_or_default().split(',');
            names.any(|name| name == controller)
        });
        let line = line.unwrap_or_else(|| panic!("{controller}: {groups}"));
        assert!(line.ends_with(&format!(":{path}")), "{line}");
    }
}

fn group_is_removed_with_the_container(subject: &Subject) {
    let path = path_of(subject);
    let mut container = subject.created("true", |config| at(config, &path));
    assert!(!dirs(&path).is_empty());
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    assert_eq!(dirs(&path), Vec::<PathBuf>::new());
}

fn parent_that_was_there_remains(subject: &Subject) {
    let parent = Parent(dir("memory", &path_of(subject)));
    fs::create_dir(&parent.0).unwrap();
    let name = parent.0.file_name().unwrap().to_str().unwrap().to_owned();
    let path = format!("/{name}/inner");
    let mut container = subject.created("true", |config| at(config, &path));
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    assert!(parent.0.is_dir());
    assert!(!parent.0.join("inner").exists());
}

/// A group of ours, removed when dropped, in every hierarchy.
struct Parent(PathBuf);

impl Drop for Parent {
    fn drop(&mut self) {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        for dir in dirs(name) {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn memory_limit_is_on_the_host(subject: &Subject) {
    let path = path_of(subject);
    let limit: u64 = 64 << 20;

    let container = subject.created("true", |config| {
        at(config, &path);
        config["linux"]["resources"]["memory"] = json!({ "limit": limit });
    });

    let file = dir("memory", &path).join("memory.limit_in_bytes");
    let text = fs::read_to_string(file).unwrap();
    let on_host: u64 = text.trim().parse().unwrap();
    // A virtual machine has something of its own beside the container.
    assert!((limit..=limit + (1 << 30)).contains(&on_host), "{on_host}");
    drop(container);
}

fn memory_limit_kills(subject: &Subject) {
    let output = subject.ran("tail /dev/zero; echo $?", |config| {
        let limit = 32 << 20;
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    });

    assert_eq!(output.text(), "137");
}

fn pids_limit_refuses_processes(subject: &Subject) {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo unreached";

    let output = subject.ran(script, |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 8 });
    });

    assert_ne!(output.code(), 0, "{output}");
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("unreached"),
        "{output}"
    );
}

fn cpu_quota_throttles(subject: &Subject) {
    // Hundredths of a second of user and system time, in a second by the clock.
    let script = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done; \
                  set -- $(sed 's/.*) //' /proc/self/stat); set -- $(sed 's/.*) //' /proc/1/stat); \
                  echo $((${12} + ${13} + ${14} + ${15}))";

    let output = subject.ran(script, |config| {
        config["linux"]["resources"]["cpu"] = json!({ "quota": 20_000, "period": 100_000 });
    });

    let ticks: u32 = output.text().parse().unwrap();
    // Two seconds of a fifth, and room for a busy machine: without a limit it would be 100 to 200.
    assert!(ticks <= 80, "{ticks} hundredths of a second");
}

fn cpu_shares_are_on_the_host(subject: &Subject) {
    let path = path_of(subject);

    let container = subject.created("true", |config| {
        at(config, &path);
        config["linux"]["resources"]["cpu"] = json!({ "shares": 512 });
    });

    let file = dir("cpu", &path).join("cpu.shares");
    assert_eq!(fs::read_to_string(file).unwrap().trim(), "512");
    drop(container);
}

fn device_rules_apply_in_order(subject: &Subject) {
    // A device that no runtime allows by itself.
    let opened = |last_allows: bool| {
        let script = "mknod /log c 1 11 && (: >/log) && echo opened || echo refused";
        let output = subject.ran(script, |config| {
            let set = json!(["CAP_MKNOD"]);
            config["process"]["capabilities"] =
                json!({ "bounding": set, "permitted": set, "effective": set });
            let rule = |allow: bool| json!({ "allow": allow, "type": "c", "major": 1, "minor": 11, "access": "rw" });
            config["linux"]["resources"]["devices"] = json!([
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "access": "m" },
                rule(!last_allows),
                rule(last_allows),
            ]);
        });
        output.text().to_owned()
    };

    assert_eq!(opened(true), "opened");
    assert_eq!(opened(false), "refused");
}

fn limit_that_is_no_number_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": "much" });
    });
}
