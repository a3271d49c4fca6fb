//! `update`, `events`, `features`, `ps`, `delete`, and the options before the verb, as runc has them.

use std::fs;

use bulkhead_tests::harness::bundle::{Bundle, mount, push};
use bulkhead_tests::{Test, wait};
use serde_json::{Value, json};

use crate::made::Made;

fn limited<'t>(test: &'t Test, resources: Value) -> Bundle<'t> {
    test.bundle(|config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["cgroupsPath"] = format!("/bulkhead-{}", test.new_id()).into();
        let known = config["linux"]["resources"].as_object_mut().unwrap();
        known.extend(resources.as_object().unwrap().clone());
        let cgroup = mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]);
        push(config, "/mounts", cgroup);
    })
}

/// Podman 5 writes the container's `hosts` and `resolv.conf` then.
pub fn file_written_between_creation_and_start_is_seen(test: &Test) {
    let file = test.new_dir().join("hosts");
    fs::write(&file, "").unwrap();
    let bundle = test.bundle(|config| {
        let script = "cat /etc/hosts >/seen; sleep 1000";
        config["process"]["args"] = json!(["sh", "-c", script]);
        let bound = mount("/etc/hosts", "bind", file.to_str().unwrap(), &["bind"]);
        push(config, "/mounts", bound);
    });
    let made = Made::of(test, &bundle).create();
    fs::write(&file, "10.1.2.3 other\n").unwrap();

    let made = made.start();

    let seen = "until [ -s /seen ]; do sleep 0.1; done; cat /seen";
    assert_eq!(made.sh(seen), "10.1.2.3 other");
}

/// A file of a group of version 1 of the host.
fn host(pid: u32, controller: &str, file: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text
        .lines()
        .find_map(|line| {
            line.split_once(&format!(":{controller}:/"))
                .map(|(_, path)| path)
        })
        .unwrap();
    let file = format!("/sys/fs/cgroup/{controller}/{path}/{file}");
    fs::read_to_string(file).unwrap().trim().to_owned()
}

const IN_GUEST: &str = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max cpu.weight pids.max";

pub fn update_changes_limits_in_the_guest_and_on_the_host(test: &Test) {
    let resources = json!({
        "memory": { "limit": 128 << 20 }, "cpu": { "quota": 90_000, "period": 100_000 },
        "pids": { "limit": 50 },
    });
    let made = Made::of(test, &limited(test, resources)).create().start();
    assert_eq!(made.sh(IN_GUEST), "134217728\n0\n90000 100000\n100\n50");

    let options = [
        "--memory",
        "67108864",
        "--memory-reservation",
        "33554432",
        "--cpu-quota",
        "50000",
        "--cpu-share",
        "2048",
        "--pids-limit",
        "30",
        "--cpuset-cpus",
        "0",
    ];
    made.with("update", &options).expect_code(0);

    assert_eq!(
        made.sh(IN_GUEST),
        "67108864\n33554432\n50000 100000\n79\n30"
    );
    let pid = made.pid();
    assert_eq!(host(pid, "cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(host(pid, "cpu", "cpu.shares"), "2048");
    assert_eq!(host(pid, "cpuset", "cpuset.cpus"), "0");
    assert_eq!(host(pid, "pids", "pids.max"), "286");

    // Up to what it was started with the memory can be raised again.
    made.with("update", &["--memory", "134217728", "--pids-limit", "-1"])
        .expect_code(0);
    assert_eq!(
        made.sh(IN_GUEST),
        "134217728\n33554432\n50000 100000\n79\nmax"
    );
}

pub fn update_takes_limits_from_a_file_or_its_input(test: &Test) {
    let resources = json!({ "memory": { "limit": 128 << 20 } });
    let made = Made::of(test, &limited(test, resources)).create().start();

    let file = test.new_dir().join("resources.json");
    fs::write(
        &file,
        r#"{"memory": {"limit": 100663296}, "pids": {"limit": 0}}"#,
    )
    .unwrap();
    made.with("update", &["--resources", file.to_str().unwrap()])
        .expect_code(0);
    assert_eq!(made.sh("cat /sys/fs/cgroup/memory.max"), "100663296");

    let update = test.verb(["update", "-r", "-", &made.id]);
    let update = update.stdin(r#"{"cpu": {"shares": 512}}"#);
    update.output().expect_code(0);
    assert_eq!(made.sh("cat /sys/fs/cgroup/cpu.weight"), "20");
    assert_eq!(made.sh("cat /sys/fs/cgroup/memory.max"), "100663296");
}

pub fn update_that_cannot_be_done_changes_nothing(test: &Test) {
    let resources = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    let made = Made::of(test, &limited(test, resources)).create().start();
    let before = made.sh(IN_GUEST);

    for (options, parts) in [
        (
            &["--memory", "8589934592", "--pids-limit", "20"][..],
            ["virtual machine", "at most 64 MiB"],
        ),
        (
            &["--blkio-weight", "500", "--pids-limit", "20"],
            ["blockIO.weight", "not handed"],
        ),
        (
            &["--memory", "1000", "--memory-swap", "500"],
            ["memory.swap", "below"],
        ),
        (
            &["--cpuset-cpus", "4000", "--pids-limit", "20"],
            ["cpu.cpus", "4000"],
        ),
    ] {
        let updated = made.with("update", options);
        updated.expect_code(1);
        updated.expect_error(&parts);
    }
    assert_eq!(made.sh(IN_GUEST), before);
    assert_eq!(host(made.pid(), "pids", "pids.max"), "306");
}

pub fn update_of_an_ended_container_is_refused(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create().start();
    made.kill("KILL");

    let updated = made.with("update", &["--pids-limit", "20"]);

    updated.expect_code(1);
    assert!(
        updated.error().contains("container not running"),
        "{updated}"
    );
}

pub fn events_once_have_what_is_used(test: &Test) {
    let resources = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    let made = Made::of(test, &limited(test, resources)).create().start();

    // Time is counted in ticks of the guest.
    made.sh("i=0; while test $i -lt 30000; do i=$((i+1)); done");

    let event = made.with("events", &["--stats"]).json();

    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], made.id);
    let data = &event["data"];
    let number = |pointer: &str| data.pointer(pointer).and_then(Value::as_u64);
    assert!(number("/memory/usage/usage") > Some(0), "{data:#}");
    assert_eq!(number("/memory/usage/limit"), Some(64 << 20));
    assert!(number("/cpu/usage/total") > Some(0), "{data:#}");
    assert_eq!(number("/pids/limit"), Some(50));
    assert!(number("/pids/current") >= Some(1), "{data:#}");
    assert!(
        data["memory"]["raw"]
            .as_object()
            .is_some_and(|raw| !raw.is_empty())
    );
}

pub fn events_have_what_each_device_has_done(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create().start();
    let number = |device: &str, what: &str| {
        let event = made.with("events", &["--stats"]).json();
        let devices = event["data"]["machine"]["devices"].as_array();
        let mut devices = devices.unwrap_or_else(|| panic!("{event:#}")).iter();
        let device = devices.find(|entry| entry["device"] == device);
        device.and_then(|entry| entry[what].as_u64()).unwrap()
    };
    let (read, written) = ("to_guest_bytes", "from_guest_bytes");
    let before = [number("fs", written), number("vsock", written)];
    let read_before = number("fs", read);

    made.sh("dd if=/dev/zero of=/written bs=1k count=300 2>/dev/null");

    let after = number("fs", written) - before[0];
    assert!((300 << 10..2 * (300 << 10)).contains(&after), "{after}");
    // Not by the streams.
    let after = number("vsock", written) - before[1];
    assert!((1..30 << 10).contains(&after), "{after}");
    assert!(number("fs", read) > read_before);
    assert!(number("fs", "requests") > 10);
}

pub fn events_come_until_the_container_has_ended(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create().start();
    let events = test.verb(["events", "--interval", "100ms", &made.id]);
    let mut events = events.spawn();

    for _ in 0..2 {
        let event: Value = serde_json::from_str(&events.line()).unwrap();
        assert_eq!(event["type"], "stats");
    }
    made.kill("KILL");
    let after = made.with("events", &["--stats"]);
    made.delete();

    events.finish().expect_code(0);
    after.expect_code(1);
    assert!(after.error().contains("not running"), "{after}");
}

pub fn features_name_mount_options_that_work(test: &Test) {
    let features = test.verb(["features"]).output().json();
    let options = features["mountOptions"].as_array().unwrap();
    let names = options.iter().map(|option| option.as_str().unwrap());
    let names: Vec<&str> = names.filter(|name| !name.ends_with("bind")).collect();
    assert!(names.len() > 50);
    let bundle = test.bundle(|config| {
        for name in &names {
            push(
                config,
                "/mounts",
                mount(&format!("/m/{name}"), "tmpfs", "tmpfs", &[name]),
            );
        }
    });

    bundle.output().expect_code(0);
}

pub fn features_are_those_of_the_product(test: &Test) {
    let features = test.verb(["features"]).output().json();

    assert_eq!(features["ociVersionMax"], "1.2.0");
    assert_eq!(features["hooks"].as_array().map(Vec::len), Some(6));
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
    assert_eq!(features["linux"]["cgroup"]["systemd"], true);
    let namespaces = features["linux"]["namespaces"].as_array().unwrap();
    assert!(!namespaces.contains(&json!("user")));
}

pub fn checkpoint_and_restore_say_why_not(test: &Test) {
    for line in [
        &["checkpoint", "--image-path", "/tmp", "--leave-running", "c"][..],
        &["restore", "--bundle", "/tmp", "-d", "c"],
    ] {
        let output = test.verb(line).output();
        output.expect_code(1);
        output.expect_error(&[line[0], "virtual machine"]);
    }
}

pub fn version_is_as_engines_parse_it(test: &Test) {
    for option in ["--version", "-v"] {
        let output = test.verb([option]).output();
        let lines: Vec<&str> = output.text().lines().collect();
        assert!(lines[0].starts_with("bulkhead version 0."), "{output}");
        assert!(lines[1].starts_with("commit: "), "{output}");
        assert_eq!(lines[2], "spec: 1.2.0");
    }
}

pub fn global_options_of_runc_are_understood(test: &Test) {
    for options in [
        &["--systemd-cgroup", "list"][..],
        &["--rootless", "auto", "--criu", "/usr/sbin/criu", "list"],
        &["--rootless=false", "list"],
    ] {
        test.verb(options).output().expect_code(0);
    }
    let bundle = limited(test, json!({}));
    let dir = bundle.dir.to_str().unwrap();
    let systemd = test.verb(["--systemd-cgroup", "create", "-b", dir, &bundle.id]);
    let systemd = systemd.output();
    systemd.expect_code(1);
    systemd.expect_error(&["linux.cgroupsPath", "slice:prefix:name"]);
    let rootless = test.verb(["--rootless", "true", "list"]).output();
    rootless.expect_code(1);
    rootless.expect_error(&["--rootless", "root"]);
}

pub fn created_container_is_deleted_without_force(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create();
    let pid = made.pid();

    made.verb("delete", &[]).expect_code(0);

    wait::gone(pid);
    made.verb("state", &[]).expect_code(1);
}

pub fn signal_to_an_ended_container_is_answered_in_the_words_engines_look_for(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create().start();
    made.verb("kill", &["0"]).expect_code(0);
    made.kill("KILL");

    let killed = made.verb("kill", &["KILL"]);

    killed.expect_code(1);
    assert!(killed.error().contains("container not running"), "{killed}");
    // There is nobody left, which is what an engine wants.
    made.with("kill", &["--all"]).expect_code(0);
    made.delete();
    let gone = made.verb("kill", &["KILL"]);
    gone.expect_code(1);
    assert!(gone.error().contains("does not exist"), "{gone}");
}

pub fn processes_as_json_are_those_of_the_host(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create().start();

    let pids = made.with("ps", &["--format", "json"]).json();

    assert_eq!(pids, json!([made.pid()]));
    made.kill("KILL");
    let table = made.verb("ps", &[]);
    assert_eq!(table.text().lines().count(), 1, "{table}");
}

pub fn created_container_takes_a_process_and_can_be_paused(test: &Test) {
    let made = Made::of(test, &limited(test, json!({}))).create();

    assert_eq!(made.sh("hostname"), "box");
    made.verb("pause", &[]).expect_code(0);
    assert_eq!(made.state()["status"], "paused");
    made.verb("start", &[]).expect_code(1);
    made.verb("resume", &[]).expect_code(0);
    assert_eq!(made.state()["status"], "created");

    let made = made.start();
    assert_eq!(made.state()["status"], "running");
}
