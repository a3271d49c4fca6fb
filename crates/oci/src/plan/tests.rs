use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::bundle::SourceProblem;
use crate::id::IdError;

/// A bundle with these mounts; `data/` and `file` exist in its directory.
fn bundle(mounts: &Value) -> (TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let spec = serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            "env": ["A=1", "B=2", "A=3"], "apparmorProfile": "unconfined",
        },
        "annotations": {"io.example": "1"},
        "hooks": {"prestart": [{"path": "/bin/true"}]},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": "/x",
            "resources": {
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "cpu": {"cpus": "0", "shares": 5},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}
            ],
        },
    }))
    .unwrap();
    let bundle = Bundle::from_spec(dir.path(), spec).unwrap();
    (dir, bundle)
}

fn bind(source: impl AsRef<Path>, options: &[&str]) -> Value {
    json!([{"destination": "/d", "type": "bind", "source": source.as_ref(), "options": options}])
}

fn problem_with(mounts: &Value) -> SourceProblem {
    let (_dir, bundle) = bundle(mounts);
    match guest_plan("c", &bundle) {
        Err(BundleError::Source { problem, field, .. }) => {
            assert_eq!(field, "mounts[0].source");
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn guest_plan_binds_become_numbered_shares() {
    let (dir, bundle) = bundle(&json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "none", "source": "data", "options": ["rbind", "ro"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "file", "options": ["bind", "ro", "rw"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]));
    let real = dir.path().canonicalize().unwrap();

    let plan = guest_plan("web", &bundle).unwrap();

    assert_eq!(plan.rootfs_target, "web/rootfs");
    assert_eq!(
        plan.shares,
        [
            Share {
                source: real.join("data"),
                target: "web/m0".into(),
                read_only: true,
                recursive: true,
                directory: true
            },
            Share {
                source: real.join("file"),
                target: "web/m1".into(),
                read_only: false,
                recursive: false,
                directory: false
            },
        ]
    );
    let mounts = plan.spec.mounts().as_ref().unwrap();
    let sources: Vec<_> = mounts
        .iter()
        .map(|m| m.source().as_ref().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        sources,
        [
            "proc",
            "/run/bulkhead/share/web/m0",
            "/run/bulkhead/share/web/m1",
            "cgroup"
        ]
    );
    assert_eq!(mounts[1].typ().as_deref(), Some("bind"));
    assert_eq!(mounts[1].options().as_ref().unwrap(), &["rbind", "ro"]);
}

#[test]
fn guest_plan_host_parts_are_gone() {
    let (_dir, bundle) = bundle(&json!([]));

    let plan = guest_plan("c", &bundle).unwrap();

    let json: Value = serde_json::from_slice(&plan.spec_json().unwrap()).unwrap();
    assert_eq!(json.get("annotations"), None);
    assert_eq!(json.get("hooks"), None);
    assert_eq!(
        json["root"],
        json!({"path": "/run/bulkhead/share/c/rootfs", "readonly": true})
    );
    assert_eq!(json["process"].get("apparmorProfile"), None);
    assert_eq!(json["linux"].get("cgroupsPath"), None);
    assert_eq!(json["linux"]["resources"].get("hugepageLimits"), None);
    assert_eq!(json["linux"]["resources"]["cpu"], json!({"shares": 5}));
    let types: Vec<_> = json["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ns| ns["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["pid", "ipc", "uts", "mount", "cgroup"]);
}

#[test]
fn guest_plan_hooks_in_the_container_come_with_the_annotations_they_are_told() {
    let (_dir, mut bundle) = bundle(&json!([]));
    let hooks = json!({
        "prestart": [{"path": "/bin/true"}], "startContainer": [{"path": "/hook", "timeout": 5}],
    });
    bundle
        .spec
        .set_hooks(serde_json::from_value(hooks).unwrap());

    let plan = guest_plan("c", &bundle).unwrap();

    let json: Value = serde_json::from_slice(&plan.spec_json().unwrap()).unwrap();
    assert_eq!(
        json["hooks"],
        json!({"startContainer": [{"path": "/hook", "timeout": 5}]})
    );
    assert_eq!(json["annotations"], json!({"io.example": "1"}));
}

#[test]
fn guest_plan_environment_last_value_counts() {
    let (_dir, bundle) = bundle(&json!([]));
    let plan = guest_plan("c", &bundle).unwrap();
    assert_eq!(
        plan.spec
            .process()
            .as_ref()
            .unwrap()
            .env()
            .as_ref()
            .unwrap(),
        &["B=2", "A=3"]
    );
}

#[test]
fn guest_plan_linked_source_is_resolved() {
    let (dir, bundle) = bundle(&bind("link", &["bind"]));
    symlink("data", dir.path().join("link")).unwrap();
    let plan = guest_plan("c", &bundle).unwrap();
    assert_eq!(
        plan.shares[0].source,
        dir.path().canonicalize().unwrap().join("data")
    );
}

#[test]
fn guest_plan_source_that_cannot_be_shared_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();

    assert_eq!(
        problem_with(&bind("nothing", &["bind"])),
        SourceProblem::Missing
    );
    assert_eq!(
        problem_with(&bind("file/below", &["bind"])),
        SourceProblem::Inaccessible
    );
    assert_eq!(
        problem_with(&bind(&socket, &["bind"])),
        SourceProblem::Socket
    );
    assert_eq!(problem_with(&bind(&fifo, &["bind"])), SourceProblem::Fifo);
    assert_eq!(
        problem_with(&bind("/dev/null", &["bind"])),
        SourceProblem::Device
    );
    assert_eq!(
        problem_with(&bind("/dev", &["bind"])),
        SourceProblem::Devices
    );
    assert_eq!(
        problem_with(&bind("/proc/sys", &["bind"])),
        SourceProblem::KernelFiles("proc")
    );
    assert_eq!(
        problem_with(&bind("/sys/kernel", &["bind"])),
        SourceProblem::KernelFiles("sysfs")
    );
}

#[test]
fn guest_plan_link_to_kernel_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/proc/self", dir.path().join("link")).unwrap();
    let problem = problem_with(&bind(dir.path().join("link"), &["bind"]));
    assert_eq!(problem, SourceProblem::KernelFiles("proc"));
}

#[test]
fn guest_plan_recursive_bind_over_kernel_files_is_refused() {
    assert!(matches!(
        problem_with(&bind("/", &["rbind"])),
        SourceProblem::ContainsKernelFiles(_)
    ));
}

#[test]
fn guest_plan_plain_bind_of_the_root_is_shared() {
    let (_dir, bundle) = bundle(&bind("/", &["bind"]));
    let plan = guest_plan("c", &bundle).unwrap();
    assert_eq!(plan.shares[0].source, Path::new("/"));
    assert!(!plan.shares[0].recursive);
}

#[test]
fn guest_plan_name_that_is_a_path_is_refused() {
    let (_dir, bundle) = bundle(&json!([]));
    let error = guest_plan("../x", &bundle).unwrap_err();
    assert!(matches!(error, BundleError::Id(IdError { .. })), "{error}");
}

#[test]
fn spec_json_too_large_is_an_error() {
    let (_dir, bundle) = bundle(&json!([]));
    let mut plan = guest_plan("c", &bundle).unwrap();
    plan.spec
        .set_hostname(Some("x".repeat(MAX_GUEST_SPEC_BYTES)));
    let error = plan.spec_json().unwrap_err();
    assert!(
        matches!(error, BundleError::GuestSpecTooLarge { .. }),
        "{error}"
    );
}

#[test]
fn network_namespace_is_the_path_of_its_entry() {
    let with = |entry: Value| {
        let spec =
            json!({"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "pid"}, entry]}});
        network_namespace(&serde_json::from_value(spec).unwrap())
    };
    let path = "/run/netns/n";
    assert_eq!(
        with(json!({"type": "network", "path": path})),
        Some(path.into())
    );
    assert_eq!(with(json!({"type": "network", "path": ""})), None);
    assert_eq!(with(json!({"type": "network"})), None);
    assert_eq!(with(json!({"type": "ipc", "path": "/x"})), None);
}
