//! `linux.cgroupsPath`: what an engine finds there, what bounds the machine, what is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_tests::harness::bundle::{Bundle, mount, push};
use bulkhead_tests::harness::inventory;
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Test, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::made::{Made, change, join};

/// A container that sleeps, in the group `path`.
fn sleeper<'t>(test: &'t Test, path: &str, resources: Value) -> Bundle<'t> {
    test.bundle(|config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["cgroupsPath"] = path.into();
        let known = config["linux"]["resources"].as_object_mut().unwrap();
        known.extend(resources.as_object().unwrap().clone());
    })
}

/// A path no other test has; the first part is ours alone, too.
fn path(test: &Test) -> String {
    let id = test.new_id();
    format!("/bulkhead-{id}/inner/{id}")
}

/// The group's directories: controllers, and where they are.
fn groups(of: u32) -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string(format!("/proc/{of}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = text.lines().map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        (fields.next().unwrap(), fields.next().unwrap())
    });
    lines
        .filter_map(|(controllers, path)| {
            let is_it = |line: &&str| {
                let (_, kind) = line.split_once(" - ").unwrap();
                let options = kind.rsplit(' ').next().unwrap();
                match controllers {
                    "" => kind.starts_with("cgroup2 "),
                    _ => {
                        kind.starts_with("cgroup ")
                            && controllers
                                .split(',')
                                .all(|one| options.split(',').any(|option| option == one))
                    }
                }
            };
            let mount = mounts.lines().find(is_it)?.split(' ').nth(4)?;
            let dir = Path::new(mount).join(path.trim_start_matches('/'));
            Some((controllers.to_owned(), dir))
        })
        .collect()
}

/// What is left of a path in any hierarchy.
pub fn left(path: &str) -> Vec<PathBuf> {
    let top = Path::new(path).components().nth(1).unwrap();
    groups(std::process::id())
        .iter()
        .filter_map(|(_, own)| {
            let mount = own
                .ancestors()
                .filter(|dir| dir.join("cgroup.procs").exists())
                .last()?;
            Some(mount.join(top))
        })
        .filter(|dir| dir.exists())
        .collect()
}

/// A file of the group of a process.
#[track_caller]
fn value(of: u32, controller: &str, v1: &str, v2: &str) -> String {
    let groups = groups(of);
    let own = groups
        .iter()
        .find(|(names, _)| names.split(',').any(|name| name == controller));
    let (dir, file) = match own {
        Some((_, dir)) => (dir, v1),
        None => {
            let unified = groups.iter().find(|(names, _)| names.is_empty());
            (&unified.expect("a hierarchy").1, v2)
        }
    };
    let text = fs::read_to_string(dir.join(file));
    text.unwrap_or_else(|error| panic!("{}: {error}", dir.join(file).display()))
        .trim()
        .to_owned()
}

pub fn process_of_the_engine_is_in_the_group_in_every_hierarchy(test: &Test) {
    let path = path(test);
    let made = Made::of(test, &sleeper(test, &path, json!({}))).create();

    let groups = groups(made.pid());

    assert!(!groups.is_empty());
    for (controllers, dir) in groups {
        assert!(
            dir.ends_with(&path[1..]),
            "{controllers}: {}",
            dir.display()
        );
    }
}

pub fn relative_path_is_below_the_engines_own_group(test: &Test) {
    let name = format!("bulkhead-{}", test.new_id());
    let made = Made::of(test, &sleeper(test, &name, json!({}))).create();

    let own = groups(std::process::id());
    for (controllers, dir) in groups(made.pid()) {
        let (_, ours) = own.iter().find(|(names, _)| *names == controllers).unwrap();
        // Where there is version 2 alone, beside it.
        let expected = [Some(ours.as_path()), ours.parent()];
        assert!(
            expected.contains(&dir.parent()),
            "{controllers}: {}",
            dir.display()
        );
        assert!(dir.ends_with(&name));
    }
}

pub fn limits_of_cpu_are_those_of_the_group(test: &Test) {
    let resources = json!({ "cpu": { "shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0", "mems": "0" } });
    let made = Made::of(test, &sleeper(test, &path(test), resources)).create();

    let pid = made.pid();
    assert_eq!(value(pid, "cpu", "cpu.shares", "cpu.weight"), "512");
    assert_eq!(value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max"), "150000");
    assert_eq!(value(pid, "cpu", "cpu.cfs_period_us", "cpu.max"), "100000");
    assert_eq!(value(pid, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(value(pid, "cpuset", "cpuset.mems", "cpuset.mems"), "0");
}

pub fn reading_from_a_throttled_device_takes_its_time(test: &Test) {
    const MIB: usize = 1 << 20;
    let dir = test.new_dir();
    let device = fs::metadata(&dir).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major == 0 {
        return skip(&test.name, "the tests' files are not on one block device");
    }
    // Nobody has it in memory: it comes from the device.
    let path = dir.join("file");
    fs::write(&path, vec![b'x'; 6 * MIB]).unwrap();
    let file = fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let throttle = json!([{ "major": major, "minor": minor, "rate": 2 * MIB }]);
    let resources = json!({ "blockIO": { "throttleReadBpsDevice": throttle } });
    let bundle = sleeper(test, &self::path(test), resources);
    change(&bundle, |config| {
        push(
            config,
            "/mounts",
            mount("/data", "bind", dir.to_str().unwrap(), &["rbind", "ro"]),
        );
    });
    let made = Made::of(test, &bundle).create().start();

    let start = Instant::now();
    assert_eq!(made.sh("wc -c </data/file"), (6 * MIB).to_string());

    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

pub fn limits_of_the_hosts_for_a_further_container_of_a_machine_are_refused(test: &Test) {
    let first = Made::of(test, &sleeper(test, &path(test), json!({}))).create();
    let pid = first.pid();
    let further = |resources: Value| {
        let bundle = sleeper(test, &path(test), resources);
        join(&bundle, pid);
        Made::of(test, &bundle)
    };
    let throttle = json!([{ "major": 8, "minor": 0, "rate": 1000 }]);
    for resources in [
        json!({ "blockIO": { "throttleWriteBpsDevice": throttle } }),
        json!({ "cpu": { "cpus": "0" } }),
    ] {
        let refused = further(resources).try_create();
        refused.expect_error(&["linux.resources", "started first"]);
    }

    let second = further(json!({})).create().start();
    let refused = second.with("update", &["--cpuset-cpus", "0"]);
    refused.expect_error(&["linux.resources", "started first"]);
    // It is the machine's now.
    first.delete();
    let updated = second.with("update", &["--cpuset-cpus", "0"]);
    updated.expect_code(0);
}

pub fn limits_of_memory_and_processes_leave_room_for_the_machine(test: &Test) {
    let limit: u64 = 96 << 20;
    let resources = json!({ "memory": { "limit": limit }, "pids": { "limit": 40 } });
    let made = Made::of(test, &sleeper(test, &path(test), resources)).create();

    let state = made.state();
    let pid = made.pid();
    let bytes: u64 = value(pid, "memory", "memory.limit_in_bytes", "memory.max")
        .parse()
        .unwrap();
    let machine = state["memoryBytes"].as_u64().unwrap();
    assert!(
        machine > limit && bytes > machine && bytes < machine + (1 << 30),
        "{bytes} {machine}"
    );
    assert_eq!(value(pid, "pids", "pids.max", "pids.max"), "296");
    // In the guest they are exact.
    drop(made);
}

pub fn machine_is_in_the_group_with_all_its_processes(test: &Test) {
    let path = path(test);
    let made = Made::of(test, &sleeper(test, &path, json!({})))
        .create()
        .start();

    let journal = fs::read(test.root().join(&made.id).join("state.json")).unwrap();
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    let sandbox = u32::try_from(journal["sandbox"]["pid"].as_u64().unwrap()).unwrap();
    let processes = inventory::tree(sandbox);
    assert!(processes.len() >= 3, "{processes:?}");
    for pid in processes {
        for (controllers, dir) in groups(pid) {
            assert!(
                dir.ends_with(&path[1..]),
                "{pid} {controllers}: {}",
                dir.display()
            );
        }
    }
    let used: u64 = value(sandbox, "memory", "memory.usage_in_bytes", "memory.current")
        .parse()
        .unwrap();
    // The guest's memory counts, not only the processes'.
    assert!(used > 8 << 20, "{used}");
}

pub fn group_is_gone_with_its_parents_after_the_end(test: &Test) {
    let path = path(test);
    let made = Made::of(test, &sleeper(test, &path, json!({})))
        .create()
        .start();
    assert_ne!(left(&path), [""; 0].map(PathBuf::from));

    made.kill("KILL");
    made.delete();

    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn group_is_gone_after_a_start_that_failed(test: &Test) {
    let path = path(test);
    let bundle = sleeper(test, &path, json!({}));
    change(&bundle, |config| {
        config["process"]["args"] = json!(["/no/such"])
    });

    let made = Made::of(test, &bundle);
    let created = made.try_create();
    let code = match created.code() {
        0 => made.verb("start", &[]).code(),
        code => code,
    };

    assert_ne!(code, 0);
    made.delete();
    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn group_is_gone_after_a_hook_that_failed(test: &Test) {
    let path = path(test);
    let bundle = sleeper(test, &path, json!({}));
    change(&bundle, |config| {
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    });

    Made::of(test, &bundle).try_create().expect_code(1);

    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn group_of_a_killed_sandbox_is_removed_by_the_next_verb(test: &Test) {
    let path = path(test);
    let made = Made::of(test, &sleeper(test, &path, json!({})))
        .create()
        .start();
    let (standin, journal) = (made.pid(), test.root().join(&made.id).join("state.json"));
    let journal: Value = serde_json::from_slice(&fs::read(journal).unwrap()).unwrap();
    let sandbox = u32::try_from(journal["sandbox"]["pid"].as_u64().unwrap()).unwrap();

    let pid = Pid::from_raw(i32::try_from(sandbox).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    wait::gone(sandbox);
    assert_eq!(made.state()["status"], "stopped");

    wait::gone(standin);
    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn parent_of_two_is_removed_by_the_last(test: &Test) {
    let parent = format!("/bulkhead-{}", test.new_id());
    let inner = |name: &str| sleeper(test, &format!("{parent}/{name}"), json!({}));
    let first = Made::of(test, &inner("a")).create();
    let second = Made::of(test, &inner("b")).create();

    first.delete();
    assert_ne!(left(&parent), [""; 0].map(PathBuf::from));
    second.delete();
    assert_eq!(left(&parent), [""; 0].map(PathBuf::from));
}

pub fn group_that_was_there_is_used_and_left(test: &Test) {
    let path = format!("/bulkhead-{}", test.new_id());
    let (_, own) = groups(std::process::id())
        .into_iter()
        .find(|(names, _)| names == "pids" || names.is_empty())
        .unwrap();
    let mount = own
        .ancestors()
        .filter(|dir| dir.join("cgroup.procs").exists());
    let dir = mount.last().unwrap().join(&path[1..]);
    fs::create_dir(&dir).unwrap();

    let made = Made::of(test, &sleeper(test, &path, json!({}))).create();
    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    made.delete();
    let there = dir.exists();
    fs::remove_dir(&dir).unwrap();

    assert!(members.lines().count() >= 3, "{members}");
    assert!(there);
    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn path_that_names_no_group_is_refused(test: &Test) {
    for (path, part) in [
        ("system.slice:engine:abc", "cgroupfs"),
        ("/a/../../b", "without `..`"),
        ("/", "/parent/name"),
    ] {
        let created = Made::of(test, &sleeper(test, path, json!({}))).try_create();
        created.expect_code(1);
        created.expect_error(&["linux.cgroupsPath", path, part]);
    }
}

pub fn cpus_that_are_not_there_are_refused_by_name(test: &Test) {
    let path = path(test);
    let resources = json!({ "cpu": { "cpus": "4000" } });

    let created = Made::of(test, &sleeper(test, &path, resources)).try_create();

    created.expect_code(1);
    created.expect_error(&["linux.resources.cpu.cpus", "4000", "cpuset.cpus"]);
    assert_eq!(left(&path), [""; 0].map(PathBuf::from));
}

pub fn cpus_without_a_group_are_refused(test: &Test) {
    let resources = json!({ "cpu": { "cpus": "0" } });

    let created = Made::of(test, &sleeper(test, "", resources)).try_create();

    created.expect_error(&["linux.resources.cpu.cpus", "linux.cgroupsPath"]);
}
