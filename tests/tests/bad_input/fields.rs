//! Fields of a configuration that are wrong, or ask for what cannot be done.

use bulkhead_tests::Test;
use bulkhead_tests::harness::bundle::{mount, push};
use serde_json::{Value, json};

use crate::expect::{BUNDLE, refused};

/// One change to the default configuration and what the error must say.
type Case = (fn(&mut Value), &'static [&'static str]);

#[track_caller]
fn each_refused(test: &Test, cases: &[Case]) {
    for (change, parts) in cases {
        refused(test, &test.bundle(change).output(), BUNDLE, parts);
    }
}

fn remove_namespace(config: &mut Value, kind: &str) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != kind);
}

fn set_path(config: &mut Value, kind: &str, path: &str) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    let entry = list.iter_mut().find(|namespace| namespace["type"] == kind);
    entry.unwrap()["path"] = path.into();
}

pub fn fields_with_wrong_values_refused_by_name(test: &Test) {
    each_refused(
        test,
        &[
            (
                |c| c["ociVersion"] = "3.0.0".into(),
                &["ociVersion", "3.0.0"],
            ),
            (|c| c["ociVersion"] = 1.into(), &["ociVersion"]),
            (
                |c| c["hooks"] = json!({ "prestart": [{ "path": "bin/true" }] }),
                &["hooks.prestart[0].path", "absolute"],
            ),
            (
                |c| c["hooks"] = json!({ "poststop": [{ "path": "/bin/true", "timeout": 0 }] }),
                &["hooks.poststop[0].timeout"],
            ),
            (
                |c| push(c, "/linux/namespaces", json!({ "type": "nonsense" })),
                &["linux.namespaces[5].type", "nonsense"],
            ),
            (
                |c| push(c, "/linux/namespaces", json!({ "type": "pid" })),
                &["linux.namespaces[5]", "pid"],
            ),
            (|c| c["process"]["args"] = json!([]), &["process.args"]),
            (
                |c| c["process"]["args"] = json!("/bin/true"),
                &["process.args"],
            ),
            (
                |c| c["process"]["args"] = json!(["/bin/true", 1]),
                &["process.args[1]"],
            ),
            (
                |c| c["process"]["args"] = json!(["/bin/tr\0ue"]),
                &["process.args[0]", "NUL"],
            ),
            (
                |c| c["process"]["cwd"] = "relative".into(),
                &["process.cwd", "relative"],
            ),
            (
                |c| c["process"]["env"] = json!(["no-equals-sign"]),
                &["process.env[0]"],
            ),
            (
                |c| c["process"]["user"]["uid"] = json!(-1),
                &["process.user.uid"],
            ),
            (
                |c| c["process"]["user"]["uid"] = json!(4_294_967_296_u64),
                &["process.user.uid"],
            ),
            (
                |c| {
                    c["process"]["rlimits"] =
                        json!([{ "type": "RLIMIT_LUCK", "soft": 1, "hard": 1 }])
                },
                &["process.rlimits[0].type", "RLIMIT_LUCK"],
            ),
            (
                |c| {
                    c["process"]["rlimits"] =
                        json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }])
                },
                &["process.rlimits[0]"],
            ),
            (
                |c| c["process"]["oomScoreAdj"] = json!(1001),
                &["process.oomScoreAdj"],
            ),
            (|c| c["hostname"] = "x".repeat(65).into(), &["hostname"]),
            (
                |c| push(c, "/mounts", mount("/a/../../b", "tmpfs", "tmpfs", &[])),
                &["mounts[6].destination", ".."],
            ),
            (
                |c| {
                    push(
                        c,
                        "/mounts",
                        mount("/a", "bind", "/no/such/source", &["bind"]),
                    )
                },
                &["mounts[6].source", "does not exist"],
            ),
            (
                |c| {
                    push(
                        c,
                        "/mounts",
                        mount("/a", "tmpfs", "tmpfs", &["nonsense=\u{1b}[2J"]),
                    )
                },
                &["mounts[6]"],
            ),
            (
                |c| c["linux"]["rootfsPropagation"] = "sideways".into(),
                &["linux.rootfsPropagation", "sideways"],
            ),
            (
                |c| c["linux"]["sysctl"] = json!({ "../../etc/passwd": "1" }),
                &["linux.sysctl"],
            ),
            (
                |c| c["linux"]["maskedPaths"] = json!(["relative"]),
                &["linux.maskedPaths[0]"],
            ),
            (
                |c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_PERHAPS" }),
                &["linux.seccomp.defaultAction", "SCMP_ACT_PERHAPS"],
            ),
            (
                |c| c["linux"]["resources"]["memory"] = json!({ "limit": "much" }),
                &["linux.resources.memory.limit"],
            ),
            (
                |c| c["linux"]["resources"]["pids"] = json!({ "limit": 1.5 }),
                &["linux.resources.pids.limit"],
            ),
        ],
    );
}

pub fn fields_that_cannot_be_done_refused_by_name(test: &Test) {
    each_refused(
        test,
        &[
            (
                |c| remove_namespace(c, "network"),
                &["linux.namespaces", "host's network"],
            ),
            (
                |c| remove_namespace(c, "pid"),
                &["linux.namespaces", "host's processes"],
            ),
            (|c| remove_namespace(c, "ipc"), &["linux.namespaces", "ipc"]),
            (|c| remove_namespace(c, "uts"), &["linux.namespaces", "uts"]),
            (
                |c| set_path(c, "network", "/proc/self/ns/net"),
                &["/proc/self/ns/net", "host's own"],
            ),
            (
                |c| set_path(c, "pid", "/proc/1/ns/pid"),
                &["linux.namespaces[0].path", "remove the path"],
            ),
            (
                |c| set_path(c, "ipc", "/proc/1/ns/ipc"),
                &["linux.namespaces[2].path"],
            ),
            (
                |c| set_path(c, "mount", "/proc/1/ns/mnt"),
                &["linux.namespaces[4].path"],
            ),
            (
                |c| push(c, "/linux/namespaces", json!({ "type": "user" })),
                &["linux.namespaces[5].type"],
            ),
            (
                |c| push(c, "/linux/namespaces", json!({ "type": "time" })),
                &["linux.namespaces[5].type"],
            ),
            (
                |c| {
                    c["linux"]["uidMappings"] =
                        json!([{ "containerID": 0, "hostID": 1000, "size": 1 }])
                },
                &["linux.uidMappings"],
            ),
            (
                |c| c["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } }),
                &["linux.timeOffsets"],
            ),
            (
                |c| c["linux"]["rootfsPropagation"] = "shared".into(),
                &["linux.rootfsPropagation"],
            ),
            (
                |c| c["linux"]["intelRdt"] = json!({ "closID": "a" }),
                &["linux.intelRdt"],
            ),
            (
                |c| c["linux"]["mountLabel"] = "system_u:object_r:x".into(),
                &["linux.mountLabel"],
            ),
            (
                |c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
                &["linux.seccomp.defaultAction", "SCMP_ACT_ERRNO"],
            ),
            (
                |c| {
                    c["linux"]["seccomp"] =
                        json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x" })
                },
                &["linux.seccomp.listenerPath"],
            ),
            (
                |c| {
                    c["linux"]["devices"] =
                        json!([{ "path": "/dev/sda", "type": "b", "major": 8, "minor": 1048575 }])
                },
                &["linux.devices[0]", "/dev/sda", "8:1048575"],
            ),
            (
                |c| {
                    c["linux"]["devices"] =
                        json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }])
                },
                &["linux.devices[0]", "/dev/kvm"],
            ),
            (
                |c| push(c, "/mounts", mount("/a", "ext4", "/dev/sda1", &[])),
                &["mounts[6].type", "ext4"],
            ),
            (
                |c| {
                    push(
                        c,
                        "/mounts",
                        mount("/a", "bind", "/etc", &["rbind", "rshared"]),
                    )
                },
                &["mounts[6].options[1]"],
            ),
            (
                |c| c["process"]["apparmorProfile"] = "strict".into(),
                &["process.apparmorProfile"],
            ),
            (
                |c| c["process"]["selinuxLabel"] = "system_u:x".into(),
                &["process.selinuxLabel"],
            ),
            (
                |c| c["vm"] = json!({ "kernel": { "path": "/boot/vmlinuz" } }),
                &["vm", "--kernel"],
            ),
            (
                |c| c["windows"] = json!({ "layerFolders": ["a"] }),
                &["windows"],
            ),
        ],
    );
}

pub fn resources_that_would_not_be_enforced_refused_by_name(test: &Test) {
    each_refused(
        test,
        &[
            (
                |c| c["linux"]["resources"]["blockIO"] = json!({ "weight": 500 }),
                &["linux.resources.blockIO.weight"],
            ),
            (
                |c| c["linux"]["resources"]["network"] = json!({ "classID": 1 }),
                &["linux.resources.network.classID"],
            ),
            (
                |c| c["linux"]["resources"]["rdma"] = json!({ "mlx5": { "hcaHandles": 1 } }),
                &["linux.resources.rdma"],
            ),
            (
                |c| {
                    c["linux"]["resources"]["hugepageLimits"] =
                        json!([{ "pageSize": "2MB", "limit": 1 }])
                },
                &["linux.resources.hugepageLimits[0].limit"],
            ),
            (
                |c| c["linux"]["resources"]["memory"] = json!({ "swappiness": 10 }),
                &["linux.resources.memory.swappiness"],
            ),
            (
                |c| c["linux"]["resources"]["cpu"] = json!({ "realtimeRuntime": 1000 }),
                &["linux.resources.cpu.realtimeRuntime"],
            ),
            (
                |c| c["linux"]["resources"]["unified"] = json!({ "rdma.max": "1" }),
                &["linux.resources.unified", "rdma.max"],
            ),
        ],
    );
}

pub fn annotations_unknown_or_forbidden_refused(test: &Test) {
    let annotated = |key: &str, value: &str| {
        let (key, value) = (key.to_owned(), value.to_owned());
        test.bundle(move |config| config["annotations"] = json!({ key: value }))
    };
    let output = annotated("io.bulkhead.nonsense", "1").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["io.bulkhead.nonsense", "no such annotation"],
    );

    let output = annotated("io.bulkhead.memory_mib", "much").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["io.bulkhead.memory_mib", "much", "MiB"],
    );

    let output = annotated("io.bulkhead.kernel", "no-such-kernel").output();
    refused(test, &output, BUNDLE, &["no-such-kernel"]);

    std::fs::write(
        test.config_dir().join("config.toml"),
        "allowed_annotations = []\n",
    )
    .unwrap();
    let output = annotated("io.bulkhead.memory_mib", "128").output();
    refused(
        test,
        &output,
        BUNDLE,
        &["io.bulkhead.memory_mib", "allowed_annotations"],
    );
}
