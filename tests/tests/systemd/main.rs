//! `--systemd-cgroup`: containers in scopes of a systemd of the test's own; first with its runc.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod engines;

use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::harness::systemd::Systemd;
use bulkhead_tests::{Bundle, Test, bundle_suite, tests_on};
use engines::Engine;
use serde_json::json;

bundle_suite! {
    both: ;
    uml:
        container_is_in_a_scope_with_its_limits,
        update_changes_what_systemd_knows,
        path_in_another_form_is_refused,
        podman_with_its_systemd_manager_runs_a_container,
        docker_with_its_systemd_driver_runs_a_container;
    ours: ;
}

mod ours {
    use super::*;

    tests_on!(
        uml,
        run_beside,
        [scope_of_a_killed_sandbox_is_removed_by_the_next_verb]
    );
}

/// A container that sleeps, in `machine.slice:bh:ID`, and has limits.
fn sleeper(test: &Test) -> Bundle<'_> {
    let mut bundle = test.bundle(|_| {});
    let mut config = bulkhead_tests::harness::bundle::default_config();
    config["process"]["args"] = json!(["sleep", "1000"]);
    config["linux"]["cgroupsPath"] = format!("machine.slice:bh:{}", bundle.id).into();
    config["linux"]["resources"] = json!({
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 },
        "memory": { "limit": 128 << 20 },
        "pids": { "limit": 100 },
    });
    std::fs::write(bundle.dir.join("config.json"), config.to_string()).unwrap();
    bundle.dir = bundle.dir.canonicalize().unwrap();
    bundle
}

/// The container is created and started.
fn started<'t>(test: &'t Test, systemd: &Systemd) -> (Bundle<'t>, String) {
    let bundle = sleeper(test);
    let dir = bundle.dir.to_str().unwrap();
    let create = systemd.runtime(test, &["create", "--bundle", dir, &bundle.id]);
    create.expect_code(0);
    systemd.runtime(test, &["start", &bundle.id]).expect_code(0);
    let unit = format!("bh-{}.scope", bundle.id);
    (bundle, unit)
}

/// Processes and threads that are allowed when a container has `limit`: ours need some beside.
fn processes(test: &Test, limit: u64) -> String {
    let own = if test.driver.is_peer() { 0 } else { 256 };
    (limit + own).to_string()
}

fn container_is_in_a_scope_with_its_limits(test: &Test) {
    let systemd = match Systemd::start(test) {
        Ok(systemd) => systemd,
        Err(reason) => return skip(&test.name, &reason),
    };
    let (bundle, unit) = started(test, &systemd);

    assert_eq!(systemd.property(&unit, "ActiveState"), "active");
    assert_eq!(systemd.property(&unit, "Slice"), "machine.slice");
    assert_eq!(systemd.property(&unit, "Delegate"), "yes");
    assert_eq!(systemd.property(&unit, "CPUQuotaPerSecUSec"), "500ms");
    assert_eq!(systemd.property(&unit, "TasksMax"), processes(test, 100));
    let group = format!("machine.slice/{unit}");
    assert_eq!(systemd.file("cpu", &format!("{group}/cpu.shares")), "512");
    let memory = systemd.file("memory", &format!("{group}/memory.limit_in_bytes"));
    let memory: u64 = memory.parse().unwrap();
    assert!(((128 << 20)..(1 << 30)).contains(&memory), "{memory}");
    for controller in ["systemd", "cpu", "memory", "pids", "freezer"] {
        let list = systemd.file(controller, &format!("{group}/cgroup.procs"));
        assert!(!list.is_empty(), "{controller}");
    }

    let delete = systemd.runtime(test, &["delete", "--force", &bundle.id]);
    delete.expect_code(0);

    assert_eq!(systemd.property(&unit, "LoadState"), "not-found");
    let list = format!("ls -d /sys/fs/cgroup/*/{group} 2>/dev/null; true");
    let left = systemd.command(["sh", "-c", &list]).output();
    assert_eq!(left.text(), "");
}

fn update_changes_what_systemd_knows(test: &Test) {
    let systemd = match Systemd::start(test) {
        Ok(systemd) => systemd,
        Err(reason) => return skip(&test.name, &reason),
    };
    let (bundle, unit) = started(test, &systemd);

    let update = [
        "update",
        "--pids-limit",
        "50",
        "--cpu-quota",
        "20000",
        &bundle.id,
    ];
    systemd.runtime(test, &update).expect_code(0);

    assert_eq!(systemd.property(&unit, "TasksMax"), processes(test, 50));
    assert_eq!(systemd.property(&unit, "CPUQuotaPerSecUSec"), "200ms");
    let group = format!("machine.slice/{unit}");
    let file = systemd.file("pids", &format!("{group}/pids.max"));
    assert_eq!(file, processes(test, 50));
    // What systemd writes anew is the same.
    systemd
        .command(["systemctl", "daemon-reload"])
        .output()
        .expect_code(0);
    let file = systemd.file("cpu", &format!("{group}/cpu.cfs_quota_us"));
    assert_eq!(file, "20000");
    let delete = systemd.runtime(test, &["delete", "--force", &bundle.id]);
    delete.expect_code(0);
}

fn path_in_another_form_is_refused(test: &Test) {
    let systemd = match Systemd::start(test) {
        Ok(systemd) => systemd,
        Err(reason) => return skip(&test.name, &reason),
    };
    let bundle = test.bundle(|config| config["linux"]["cgroupsPath"] = "/a/b".into());

    let dir = bundle.dir.to_str().unwrap();
    let output = systemd.runtime(test, &["create", "--bundle", dir, &bundle.id]);

    output.expect_code(1);
    assert!(output.error().contains("slice:prefix:name"), "{output}");
}

fn scope_of_a_killed_sandbox_is_removed_by_the_next_verb(test: &Test) {
    let systemd = match Systemd::start(test) {
        Ok(systemd) => systemd,
        Err(reason) => return skip(&test.name, &reason),
    };
    let (bundle, unit) = started(test, &systemd);
    // In its namespace processes have other numbers.
    let kill = "pid=$(pgrep --full \"bulkhead [s]andbox .*$1\") && kill -9 $pid && tail --pid=$pid -f /dev/null";
    let kill = systemd.command(["sh", "-c", kill, "sh", &bundle.id]);
    kill.output().expect_code(0);

    let delete = systemd.runtime(test, &["delete", "--force", &bundle.id]);

    delete.expect_code(0);
    assert_eq!(systemd.property(&unit, "LoadState"), "not-found");
}

fn podman_with_its_systemd_manager_runs_a_container(test: &Test) {
    match Systemd::start(test) {
        Ok(systemd) => lives_in_a_scope(test, &systemd, &Engine::podman(test, &systemd)),
        Err(reason) => skip(&test.name, &reason),
    }
}

fn docker_with_its_systemd_driver_runs_a_container(test: &Test) {
    match Systemd::start(test) {
        Ok(systemd) => lives_in_a_scope(test, &systemd, &Engine::docker(test, &systemd)),
        Err(reason) => skip(&test.name, &reason),
    }
}

/// A container goes through its states, and systemd has its scope and its limits.
fn lives_in_a_scope(test: &Test, systemd: &Systemd, engine: &Engine<'_>) {
    assert_eq!(engine.runs(&["--rm"], "echo out"), "out");

    let limits = ["--memory=128m", "--cpus=0.5", "--pids-limit=100"];
    let options = [&["--detach", "--name=named"][..], &limits].concat();
    let id = engine.runs(
        &options,
        "trap 'exit 3' TERM; while :; do sleep 1 & wait $!; done",
    );
    let unit = format!("{}-{id}.scope", engine.scope);

    assert_eq!(systemd.property(&unit, "ActiveState"), "active");
    assert_eq!(systemd.property(&unit, "Slice"), engine.slice);
    assert_eq!(systemd.property(&unit, "CPUQuotaPerSecUSec"), "500ms");
    assert_eq!(systemd.property(&unit, "TasksMax"), processes(test, 100));
    let memory: u64 = systemd.property(&unit, "MemoryLimit").parse().unwrap();
    assert!(((128 << 20)..(1 << 30)).contains(&memory), "{memory}");

    assert_eq!(engine.succeeds(&["exec", "named", "echo", "in"]), "in");
    let exec = engine.run(&["exec", "named", "sh", "-c", "exit 7"]);
    exec.expect_code(7);
    let stats = ["stats", "--no-stream", "--format={{.MemUsage}}", "named"];
    let stats = engine.succeeds(&stats);
    assert!(!stats.starts_with('0'), "{stats}");

    engine.succeeds(&["update", "--pids-limit=50", "named"]);
    assert_eq!(systemd.property(&unit, "TasksMax"), processes(test, 50));

    let state = |field: &str| engine.succeeds(&["inspect", "--format", field, "named"]);
    engine.succeeds(&["pause", "named"]);
    assert_eq!(state("{{.State.Status}}"), "paused");
    engine.succeeds(&["unpause", "named"]);

    engine.succeeds(&["stop", "named"]);
    assert_eq!(state("{{.State.ExitCode}}"), "3");
    assert_eq!(systemd.property(&unit, "LoadState"), "not-found");

    engine.succeeds(&["start", "named"]);
    assert_eq!(systemd.property(&unit, "ActiveState"), "active");
    engine.succeeds(&["rm", "--force", "named"]);
    assert_eq!(systemd.property(&unit, "LoadState"), "not-found");
    assert_eq!(engine.succeeds(&["ps", "--all", "--quiet"]), "");
}
