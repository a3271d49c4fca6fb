use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::bundle::{Bundle, BundleError};

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
        ]},
    })
}

/// The fields refused when `value` stands at `pointer`.
fn refused(pointer: &str, value: Value) -> Vec<String> {
    let mut config = config();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(name.into(), value)),
        Value::Array(list) => *list.get_mut(name.parse::<usize>().unwrap()).unwrap() = value,
        other => panic!("{other}"),
    }
    let spec = serde_json::from_value(config).unwrap();
    refusals(&spec)
        .into_iter()
        .map(|refusal| refusal.field)
        .collect()
}

#[test]
fn refusals_plain_configuration_has_none() {
    assert_eq!(refused("/hostname", json!("x")), Vec::<String>::new());
}

#[test]
fn refusals_name_the_exact_field() {
    let mount = |options: Value| json!({"destination": "/d", "type": "bind", "source": "/s", "options": options});
    let device = |typ: &str, major: i64, minor: i64| json!([{"path": "/dev/d", "type": typ, "major": major, "minor": minor}]);
    let limits =
        |value: Value| json!({ "namespaces": config()["linux"]["namespaces"], "resources": value });
    for (pointer, value, field) in [
        (
            "/linux/namespaces/1",
            json!({"type": "cgroup"}),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "cgroup"}),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces/2",
            json!({"type": "cgroup"}),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces/3",
            json!({"type": "cgroup"}),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "pid", "path": "/run/ns/pid"}),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/uidMappings",
            json!([{"hostID": 1, "containerID": 0, "size": 1}]),
            "linux.uidMappings",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets",
        ),
        (
            "/linux/rootfsPropagation",
            json!("rshared"),
            "linux.rootfsPropagation",
        ),
        (
            "/mounts/0",
            mount(json!(["rbind", "rshared"])),
            "mounts[0].options[1]",
        ),
        (
            "/mounts/0",
            mount(json!(["rbind", "rslave"])),
            "mounts[0].options[1]",
        ),
        (
            "/mounts/0",
            mount(json!(["rbind", "ridmap"])),
            "mounts[0].options[1]",
        ),
        (
            "/mounts/0",
            json!({"destination": "/d", "type": "ext4", "source": "/dev/sda"}),
            "mounts[0].type \"ext4\"",
        ),
        (
            "/linux/devices",
            device("c", 1, 1),
            "linux.devices[0] (\"/dev/d\")",
        ),
        ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND"}),
            "linux.memoryPolicy",
        ),
        ("/linux/mountLabel", json!("system_u:x"), "linux.mountLabel"),
        (
            "/linux/resources",
            json!({"cpu": {"cpus": "0"}}),
            "linux.resources.cpu.cpus",
        ),
        ("/vm", json!({"kernel": {"path": "/k"}}), "vm"),
        (
            "/process/apparmorProfile",
            json!("docker-default"),
            "process.apparmorProfile",
        ),
        (
            "/process/selinuxLabel",
            json!("system_u:x"),
            "process.selinuxLabel",
        ),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0"}),
            "process.execCPUAffinity",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
            "linux.seccomp.listenerPath",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_NOTIFY"}]}),
            "linux.seccomp.syscalls[0].action",
        ),
        (
            "/linux",
            limits(json!({"rdma": {"m": {"hcaHandles": 1}}})),
            "linux.resources.rdma",
        ),
        (
            "/linux",
            limits(json!({"network": {"classID": 1}})),
            "linux.resources.network.classID",
        ),
        (
            "/linux",
            limits(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]})),
            "linux.resources.hugepageLimits[0].limit",
        ),
        (
            "/linux",
            limits(json!({"blockIO": {"weight": 10}})),
            "linux.resources.blockIO.weight",
        ),
        (
            "/linux",
            limits(
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}}),
            ),
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            "/linux",
            limits(json!({"memory": {"swappiness": 0}})),
            "linux.resources.memory.swappiness",
        ),
        (
            "/linux",
            limits(json!({"memory": {"disableOOMKiller": true}})),
            "linux.resources.memory.disableOOMKiller",
        ),
        (
            "/linux",
            limits(json!({"cpu": {"realtimeRuntime": 5}})),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            "/linux",
            limits(json!({"unified": {"io.max": "8:0"}})),
            "linux.resources.unified[\"io.max\"]",
        ),
    ] {
        assert_eq!(
            refused(pointer, value.clone()),
            [field],
            "{pointer} = {value}"
        );
    }
}

#[test]
fn refusals_user_namespace_names_entry_and_mappings() {
    let mut config = config();
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    config["linux"]["gidMappings"] = json!([{"hostID": 1, "containerID": 0, "size": 1}]);
    let spec = serde_json::from_value(config).unwrap();
    let fields: Vec<_> = refusals(&spec)
        .into_iter()
        .map(|refusal| refusal.field)
        .collect();
    assert_eq!(fields, ["linux.namespaces[5].type", "linux.gidMappings"]);
}

#[test]
fn refusals_what_engines_write_by_default_passes() {
    let limits =
        |value: Value| json!({ "namespaces": config()["linux"]["namespaces"], "resources": value });
    for (pointer, value) in [
        ("/hooks", json!({"prestart": [{"path": "/bin/true"}]})),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/linux/mountLabel", json!("")),
        (
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]),
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/pipe", "type": "p"}]),
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/disk", "type": "b", "major": 8, "minor": 0}]),
        ),
        ("/linux/rootfsPropagation", json!("rslave")),
        ("/process/scheduler", json!({"policy": "SCHED_IDLE"})),
        (
            "/mounts/0",
            json!({"destination": "/d", "type": "tmpfs", "options": ["private"]}),
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/run/netns/n"}),
        ),
        (
            "/linux",
            limits(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})),
        ),
        (
            "/linux",
            limits(json!({"blockIO": {}, "network": {}, "rdma": {}})),
        ),
        (
            "/linux",
            limits(json!({"memory": {"disableOOMKiller": false}, "unified": {"memory.high": "1"}})),
        ),
    ] {
        assert_eq!(
            refused(pointer, value.clone()),
            Vec::<String>::new(),
            "{pointer} = {value}"
        );
    }
}

#[test]
fn bundle_with_refusals_reports_the_first_and_counts_the_rest() {
    let mut config = config();
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|ns| ns["type"] != "network");
    config["linux"]["mountLabel"] = json!("x");
    let error = Bundle::parse(Path::new("c"), config.to_string().as_bytes()).unwrap_err();
    assert!(
        matches!(&error, BundleError::Refused { others: 1, .. }),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(
        message.starts_with("Refused linux.namespaces: "),
        "{message}"
    );
    assert!(message.ends_with("(and 1 more like it)"), "{message}");
}

#[test]
fn rules_texts_are_complete_and_on_one_line() {
    for rule in rules() {
        for text in [rule.field, rule.reason, rule.alternative] {
            assert!(!text.is_empty() && text.lines().count() == 1, "{rule:?}");
            assert!(!text.ends_with('.'), "{rule:?}: {text}");
        }
    }
}

#[test]
fn command_checkpoint_is_refused_and_run_is_not() {
    assert!(command("checkpoint").is_some());
    assert!(command("run").is_none());
}
