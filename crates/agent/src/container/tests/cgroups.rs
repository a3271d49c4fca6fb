//! Limits: their arithmetic anywhere, their effect where there are controllers.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::harness::{Outcome, Sleeper, cgroup_root, isolated, rootfs, run, shell, sleeping, with};
use crate::container::cgroup::limits;

const NEEDS_V2: &str = "needs the controllers of cgroup v2";

fn planned(resources: Value) -> BTreeMap<String, String> {
    let resources = serde_json::from_value(resources).unwrap();
    limits::plan(&resources)
        .unwrap()
        .into_iter()
        .map(|s| (s.file, s.value))
        .collect()
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter()
        .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn memory_and_swap_become_their_own_files() {
    assert_eq!(
        planned(json!({"memory": {"limit": 1000, "swap": 1500, "reservation": 500}})),
        files(&[
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("memory.low", "500")
        ])
    );
    assert_eq!(
        planned(json!({"memory": {"limit": -1, "swap": -1}})),
        files(&[("memory.max", "max"), ("memory.swap.max", "max")])
    );
}

#[test]
fn cpu_shares_become_weights_over_their_whole_range() {
    for (shares, weight) in [
        (1, "1"),
        (2, "1"),
        (1024, "39"),
        (262_144, "10000"),
        (u64::MAX, "10000"),
    ] {
        assert_eq!(
            planned(json!({"cpu": {"shares": shares}})),
            files(&[("cpu.weight", weight)])
        );
    }
}

#[test]
fn cpu_quota_and_period_share_one_file() {
    for (cpu, value) in [
        (json!({"quota": 50_000}), "50000 100000"),
        (json!({"quota": 50_000, "period": 200_000}), "50000 200000"),
        (json!({"period": 200_000}), "max 200000"),
        (json!({"quota": -1}), "max 100000"),
    ] {
        assert_eq!(planned(json!({"cpu": cpu})), files(&[("cpu.max", value)]));
    }
}

#[test]
fn other_limits_have_a_file_each() {
    assert_eq!(
        planned(json!({
            "cpu": {"cpus": "0-1", "mems": "0", "idle": 1, "burst": 5},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "unified": {"memory.high": "99"},
        })),
        files(&[
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("cpu.idle", "1"),
            ("cpu.max.burst", "5"),
            ("pids.max", "7"),
            ("hugetlb.2MB.max", "4096"),
            ("memory.high", "99"),
        ])
    );
    assert_eq!(
        planned(json!({"pids": {"limit": -1}})),
        files(&[("pids.max", "max")])
    );
}

#[test]
fn block_device_limits_name_the_device() {
    let device = |rate: u64| json!([{"major": 8, "minor": 1, "rate": rate}]);

    assert_eq!(
        planned(json!({"blockIO": {"weight": 1000}})),
        files(&[("io.weight", "default 10000")])
    );
    for (field, rate, value) in [
        ("throttleReadBpsDevice", 5, "8:1 rbps=5"),
        ("throttleWriteBpsDevice", 6, "8:1 wbps=6"),
        ("throttleReadIOPSDevice", 7, "8:1 riops=7"),
        ("throttleWriteIOPSDevice", 0, "8:1 wiops=max"),
    ] {
        assert_eq!(
            planned(json!({"blockIO": {field: device(rate)}})),
            files(&[("io.max", value)])
        );
    }
}

/// Runs a script under limits, with the control group in sight.
fn limited(resources: Value, script: &str) -> Outcome {
    assert!(
        cgroup_root().join("cgroup.controllers").exists(),
        "{NEEDS_V2}"
    );
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]});
    run(with(
        with(shell(script), "/linux/resources", resources),
        "/mounts/-",
        cgroup,
    ))
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn limits_are_what_the_container_finds_in_its_group() {
    let outcome = limited(
        json!({
            "memory": {"limit": 33_554_432, "swap": 33_554_432, "reservation": 1_048_576},
            "cpu": {"shares": 1024, "quota": 20_000, "period": 50_000},
            "pids": {"limit": 33},
            "unified": {"memory.high": "30000128"},
        }),
        "cd /sys/fs/cgroup; cat memory.max memory.low cpu.weight cpu.max pids.max memory.high; \
         touch x 2>&1; true",
    );

    let output = outcome.output();
    assert!(
        output.starts_with("33554432\n1048576\n39\n20000 50000\n33\n29999104\n")
            || output.starts_with("33554432\n1048576\n39\n20000 50000\n33\n30000128\n"),
        "{output}"
    );
    assert!(output.contains("Read-only file system"), "{output}");
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn process_beyond_the_memory_limit_is_killed_and_counted() {
    let rootfs = rootfs();
    // tmpfs pages count as the container's memory.
    let spec = shell("dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; echo survived $?");
    let spec = with(
        spec,
        "/linux/resources",
        json!({"memory": {"limit": 16 << 20}}),
    );

    let (outcome, kills, limit) = isolated(|| {
        let (io, ends) = super::harness::pipes();
        let (container, child) = super::harness::create(spec, rootfs.path(), io).unwrap();
        let outcome = super::harness::finish(child, ends);
        let kills = container.oom_kills().unwrap();
        let limit = container.stats().unwrap().memory_limit_bytes;
        container.destroy().unwrap();
        (outcome, kills, limit)
    });

    assert!(kills >= 1, "{outcome:?}");
    assert_eq!(limit, Some(16 << 20));
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn processes_beyond_their_number_are_refused() {
    let outcome = limited(
        json!({"pids": {"limit": 3}}),
        "sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & echo done",
    );

    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn device_rules_decide_what_can_be_opened() {
    let rules = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ]});
    // /dev/kmsg (1:11) may be written; /dev/port (1:4) may not be opened; nodes can be made.
    let spec = shell(
        "mknod /dev/kmsg c 1 11 && echo x > /dev/kmsg && echo wrote; \
         head -c1 /dev/kmsg > /dev/null 2>&1 || echo unreadable; \
         mknod /dev/zero2 c 1 5 && head -c1 /dev/zero2 | wc -c; \
         mknod /dev/port c 1 4 && head -c1 /dev/port 2>&1; true",
    );

    let outcome = run(with(spec, "/linux/resources", rules));

    let output = outcome.output();
    assert!(output.starts_with("wrote\nunreadable\n1\n"), "{output}");
    assert!(output.contains("Operation not permitted"), "{output}");
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn throttled_device_that_is_unknown_is_refused_by_name() {
    let device = json!([{"major": 250, "minor": 99, "rate": 1}]);

    let outcome = limited(
        json!({"blockIO": {"throttleReadBpsDevice": device}}),
        "true",
    );

    assert!(
        outcome
            .failure()
            .contains("linux.resources.blockIO.throttleReadBpsDevice[0]"),
        "{outcome:?}"
    );
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn statistics_have_memory_and_processes() {
    let rootfs = rootfs();
    let spec = with(
        sleeping(),
        "/linux/resources",
        json!({"pids": {"limit": 9}}),
    );

    let (memory, pids, limit, account) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), spec);
        let stats = sleeper.container.stats().unwrap();
        sleeper.kill();
        (
            stats.memory_current_bytes,
            stats.pids_current,
            stats.pids_limit,
            stats.memory_stat,
        )
    });

    assert!(memory > 0);
    assert!(
        account.iter().any(|(name, _)| name == "anon"),
        "{account:?}"
    );
    assert_eq!((pids, limit), (1, Some(9)));
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn limits_are_changed_all_or_none() {
    let rootfs = rootfs();
    let spec = with(
        sleeping(),
        "/linux/resources",
        json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 9}, "cpu": {"quota": 50_000}}),
    );
    let update = |sleeper: &Sleeper, resources: Value| {
        let result = sleeper
            .container
            .update(&serde_json::from_value(resources).unwrap());
        let stats = sleeper.container.stats().unwrap();
        (
            result.map_err(|error| error.to_string()),
            stats.memory_limit_bytes,
            stats.pids_limit,
        )
    };

    let (changed, refused) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), spec);
        let changed = update(
            &sleeper,
            json!({"memory": {"limit": 48 << 20}, "pids": {"limit": 7}}),
        );
        let refused = update(
            &sleeper,
            json!({"memory": {"limit": 16 << 20}, "unified": {"pids.none": "5"}}),
        );
        sleeper.kill();
        (changed, refused)
    });

    assert_eq!(changed, (Ok(()), Some(48 << 20), Some(7)));
    assert!(refused.0.unwrap_err().contains("pids.none"));
    assert_eq!((refused.1, refused.2), (Some(48 << 20), Some(7)));
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn group_is_the_root_of_what_the_container_sees() {
    let outcome = limited(
        json!({}),
        "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/t* 2>&1; true",
    );

    assert!(outcome.output().starts_with("0::/\n"), "{outcome:?}");
    assert!(outcome.output().contains("No such file"), "{outcome:?}");
    assert!(Path::new("/sys/fs/cgroup").exists());
}

#[test]
#[ignore = "needs the controllers of cgroup v2"]
fn further_process_joins_the_first_where_the_container_has_groups_of_its_own() {
    let rootfs = rootfs();
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup"});
    let script = "cd /sys/fs/cgroup; mkdir own; echo 1 > own/cgroup.procs; \
        echo +pids > cgroup.subtree_control; echo up; sleep 1000";
    let process =
        with(shell("cat /proc/self/cgroup"), "/process/cwd", json!("/"))["process"].take();

    let outcome = isolated(|| {
        let sleeper =
            Sleeper::start_and_wait(rootfs.path(), with(shell(script), "/mounts/-", cgroup));
        let outcome = sleeper.exec(process);
        sleeper.kill();
        outcome
    });

    assert_eq!(outcome.output(), "0::/own\n");
}
