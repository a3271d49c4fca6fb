//! What is refused, by name, before anything is made.

use serde_json::{Value, json};

use super::harness::{create, isolated, parse, pipes, rootfs, sleeping, with};
use crate::container::ContainerError;

/// The error of creating a container from the specification changed in one place.
fn error_of(pointer: &str, value: Value) -> String {
    let rootfs = rootfs();
    let spec = with(sleeping(), pointer, value);
    isolated(|| {
        let (io, _ends) = pipes();
        let error = create(spec, rootfs.path(), io).map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                ContainerError::Unsupported { .. } | ContainerError::Invalid { .. }
            ),
            "{error:?}"
        );
        error.to_string()
    })
}

#[test]
fn field_that_the_guest_does_not_do_is_refused_by_name() {
    let hook = json!([{"path": "/bin/true"}]);
    let mapping = json!([{"hostID": 1, "containerID": 0, "size": 1}]);
    let list = |kind: &str| json!([{"type": "mount"}, {"type": kind}]);
    for (pointer, value, name) in [
        (
            "/linux/namespaces",
            list("user"),
            "linux.namespaces[1] (user)",
        ),
        (
            "/linux/namespaces",
            list("time"),
            "linux.namespaces[1] (time)",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount", "path": "/x"}]),
            "linux.namespaces[0].path",
        ),
        ("/linux/uidMappings", mapping.clone(), "linux.uidMappings"),
        ("/linux/gidMappings", mapping.clone(), "linux.gidMappings"),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1}}),
            "linux.timeOffsets",
        ),
        ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_DEFAULT"}),
            "linux.memoryPolicy",
        ),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
        (
            "/linux/rootfsPropagation",
            json!("odd"),
            "linux.rootfsPropagation",
        ),
        (
            "/process/apparmorProfile",
            json!("x"),
            "process.apparmorProfile",
        ),
        ("/process/selinuxLabel", json!("x"), "process.selinuxLabel"),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0"}),
            "process.execCPUAffinity",
        ),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a\0b"]), "process.args[0]"),
        ("/process/cwd", json!("rel"), "process.cwd"),
        (
            "/process/user",
            json!({"uid": 0, "gid": 0, "umask": 0o1000}),
            "process.user.umask",
        ),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler.policy",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "process.ioPriority",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "process.rlimits[0]",
        ),
        ("/hooks", json!({"prestart": hook}), "hooks.prestart"),
        (
            "/hooks",
            json!({"createRuntime": hook}),
            "hooks.createRuntime",
        ),
        (
            "/hooks",
            json!({"createContainer": hook}),
            "hooks.createContainer",
        ),
        ("/hooks", json!({"poststart": hook}), "hooks.poststart"),
        ("/hooks", json!({"poststop": hook}), "hooks.poststop"),
        ("/vm", json!({"kernel": {"path": "/x"}}), "vm"),
        (
            "/mounts",
            json!([{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]),
            "mounts[0].options[0]",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "type": "tmpfs", "uidMappings": mapping}]),
            "mounts[0].uidMappings",
        ),
        (
            "/mounts",
            json!([{"destination": "x", "type": "tmpfs"}]),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            json!([{"destination": "/", "type": "tmpfs"}]),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            json!([{"destination": "/a/../b", "type": "tmpfs"}]),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "options": ["bind"]}]),
            "mounts[0].source",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "source": "/y", "options": ["bind", "sync"]}]),
            "mounts[0].options",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "source": "/y", "options": ["bind", "odd=1"]}]),
            "mounts[0].options",
        ),
        ("/linux/maskedPaths", json!(["rel"]), "linux.maskedPaths[0]"),
        (
            "/linux/devices",
            json!([{"path": "/d", "type": "a"}]),
            "linux.devices[0].type",
        ),
        (
            "/linux/devices",
            json!([{"path": "d", "type": "p"}]),
            "linux.devices[0].path",
        ),
        (
            "/linux/devices",
            json!([{"path": "/d", "type": "c", "major": 4096}]),
            "linux.devices[0].major",
        ),
        ("/linux/sysctl", json!({"../x": "1"}), "linux.sysctl"),
        (
            "/linux/resources",
            json!({"rdma": {"x": {}}}),
            "linux.resources.rdma",
        ),
        (
            "/linux/resources",
            json!({"network": {"classID": 1}}),
            "linux.resources.network",
        ),
        (
            "/linux/resources",
            json!({"memory": {"swappiness": 1}}),
            "linux.resources.memory.swappiness",
        ),
        (
            "/linux/resources",
            json!({"memory": {"swap": 5}}),
            "linux.resources.memory.swap",
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": 6, "swap": 5}}),
            "linux.resources.memory.swap",
        ),
        (
            "/linux/resources",
            json!({"memory": {"disableOOMKiller": true}}),
            "linux.resources.memory.disableOOMKiller",
        ),
        (
            "/linux/resources",
            json!({"cpu": {"realtimeRuntime": 1}}),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            "/linux/resources",
            json!({"blockIO": {"leafWeight": 10}}),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            "/linux/resources",
            json!({"blockIO": {"weight": 5}}),
            "linux.resources.blockIO.weight",
        ),
        (
            "/linux/resources",
            json!({"unified": {"cgroup.freeze": "1"}}),
            "linux.resources.unified",
        ),
        (
            "/linux/resources",
            json!({"unified": {"../memory.max": "1"}}),
            "linux.resources.unified",
        ),
        (
            "/linux/resources",
            json!({"unified": {"memory.nonesuch": "1"}}),
            "linux.resources.unified",
        ),
    ] {
        let error = error_of(pointer, value);

        assert!(error.contains(name), "{name} is not in: {error}");
    }
}

#[test]
fn limit_whose_controller_is_missing_is_refused_by_name() {
    // No kernel has this page size.
    let limits = json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]});

    let error = error_of("/linux/resources", limits);

    assert!(
        error.contains("linux.resources.hugepageLimits[0]"),
        "{error}"
    );
}

#[test]
fn empty_values_of_engines_are_no_requests() {
    let spec = with(
        sleeping(),
        "/linux/resources",
        json!({
            "memory": {"disableOOMKiller": false, "kernel": 0, "swap": 0, "limit": 0, "useHierarchy": true},
            "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "realtimePeriod": 0},
            "pids": {"limit": 0}, "blockIO": {"weight": 0}, "devices": [], "hugepageLimits": [],
            "network": {}, "rdma": {}, "unified": {},
        }),
    );
    let spec = parse(with(spec, "/process/apparmorProfile", json!("")));

    let settings = crate::container::cgroup::limits::plan(
        spec.linux().as_ref().unwrap().resources().as_ref().unwrap(),
    )
    .unwrap();

    assert_eq!(settings, []);
}
