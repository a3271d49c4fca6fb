use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::bundle::{Bundle, BundleError};
use crate::run::{Security, parse_cpus, parse_tmpfs, parse_volume};

/// A root file system with two users.
fn rootfs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(
        dir.path().join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        dir.path().join("etc/group"),
        "root:x:0:\nusers:x:100:\nwheel:x:10:ann\n",
    )
    .unwrap();
    dir
}

fn options(rootfs: &TempDir) -> RunOptions {
    RunOptions {
        id: "web".into(),
        rootfs: rootfs.path().into(),
        args: vec!["true".into()],
        ..RunOptions::default()
    }
}

fn json_of(spec: &Spec) -> Value {
    serde_json::to_value(spec).unwrap()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn spec_for_run_plain_passes_the_bundles_checks() {
    let dir = rootfs();
    let spec = spec_for_run(&options(&dir), None).unwrap();
    let bundle = Bundle::from_spec(dir.path(), spec).unwrap();
    assert_eq!(bundle.rootfs, dir.path().canonicalize().unwrap());
    crate::guest_plan("web", &bundle)
        .unwrap()
        .spec_json()
        .unwrap();
}

#[test]
fn spec_for_run_plain_has_what_docker_gives() {
    let dir = rootfs();
    let spec = json_of(&spec_for_run(&options(&dir), None).unwrap());

    assert_eq!(spec["hostname"], "web");
    assert_eq!(spec["process"]["args"], json!(["true"]));
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(spec["process"]["terminal"], false);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert_eq!(
        spec["process"]["user"],
        json!({"uid": 0, "gid": 0, "additionalGids": [0]})
    );
    assert_eq!(
        spec["process"]["env"],
        json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=web",
            "HOME=/root"
        ])
    );
    assert_eq!(
        spec["process"]["capabilities"]["effective"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
    let destinations: Vec<_> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup"
        ]
    );
    assert_eq!(spec["linux"]["resources"].get("memory"), None);
    assert!(
        spec["linux"]["maskedPaths"]
            .as_array()
            .unwrap()
            .contains(&json!("/proc/kcore"))
    );
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec.get("annotations"), None);
}

#[test]
fn spec_for_run_image_supplies_what_options_leave_open() {
    let dir = rootfs();
    let image = ImageConfig {
        user: "ann".into(),
        env: strings(&["PATH=/app", "A=image", "broken"]),
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["serve"]),
        working_dir: "/srv".into(),
        stop_signal: "SIGINT".into(),
    };
    let plain = RunOptions {
        args: Vec::new(),
        env: strings(&["A=mine"]),
        ..options(&dir)
    };

    let spec = json_of(&spec_for_run(&plain, Some(&image)).unwrap());

    assert_eq!(spec["process"]["args"], json!(["/entry", "serve"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert_eq!(
        spec["process"]["user"],
        json!({"uid": 1000, "gid": 100, "additionalGids": [100, 10]})
    );
    assert_eq!(
        spec["process"]["env"],
        json!(["PATH=/app", "HOSTNAME=web", "HOME=/home/ann", "A=mine"])
    );
    assert_eq!(spec["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert_eq!(
        spec["annotations"],
        json!({"org.opencontainers.image.stopSignal": "SIGINT"})
    );

    let with_args = RunOptions {
        args: strings(&["x"]),
        ..plain.clone()
    };
    let spec = json_of(&spec_for_run(&with_args, Some(&image)).unwrap());
    assert_eq!(spec["process"]["args"], json!(["/entry", "x"]));

    let with_entrypoint = RunOptions {
        entrypoint: Some(strings(&["/mine"])),
        ..plain
    };
    let spec = json_of(&spec_for_run(&with_entrypoint, Some(&image)).unwrap());
    assert_eq!(spec["process"]["args"], json!(["/mine"]));
}

#[test]
fn spec_for_run_every_option_is_seen() {
    let dir = rootfs();
    let all = RunOptions {
        terminal: true,
        workdir: Some("/tmp".into()),
        user: Some("1234:wheel".into()),
        volumes: vec![
            parse_volume("/a:/data/deep:ro", dir.path(), false).unwrap(),
            parse_volume("./b:/data", dir.path(), false).unwrap(),
        ],
        tmpfs: vec![parse_tmpfs("/dev/shm:size=1g").unwrap()],
        read_only: true,
        hostname: Some("other".into()),
        memory_bytes: Some(256 << 20),
        cpus: Some(parse_cpus("1.5").unwrap()),
        pids_limit: Some(100),
        cap_add: vec!["SYS_ADMIN".parse().unwrap()],
        cap_drop: vec!["KILL".parse().unwrap()],
        security: Security::parse(&strings(&[
            "seccomp=unconfined",
            "no-new-privileges",
            "systempaths=unconfined",
        ]))
        .unwrap(),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        ..options(&dir)
    };

    let spec = json_of(&spec_for_run(&all, None).unwrap());

    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "other");
    let process = &spec["process"];
    assert_eq!(process["terminal"], true);
    assert_eq!(process["cwd"], "/tmp");
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(
        process["user"],
        json!({"uid": 1234, "gid": 10, "additionalGids": [10]})
    );
    assert!(
        process["env"]
            .as_array()
            .unwrap()
            .contains(&json!("TERM=xterm"))
    );
    let bounding = process["capabilities"]["bounding"].as_array().unwrap();
    assert!(bounding.contains(&json!("CAP_SYS_ADMIN")) && !bounding.contains(&json!("CAP_KILL")));
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 256 << 20}));
    assert_eq!(
        resources["cpu"],
        json!({"quota": 150_000, "period": 100_000})
    );
    assert_eq!(resources["pids"], json!({"limit": 100}));
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(spec["linux"].get("maskedPaths"), None);
    assert_eq!(spec["annotations"], json!({"a": "b"}));
    let destinations: Vec<_> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/data",
            "/data/deep",
            "/dev/shm"
        ]
    );
}

#[test]
fn spec_for_run_two_mounts_on_one_place_are_refused() {
    let dir = rootfs();
    let twice = RunOptions {
        volumes: vec![parse_volume("/a:/data", dir.path(), false).unwrap()],
        tmpfs: vec![parse_tmpfs("/data/").unwrap()],
        ..options(&dir)
    };
    assert!(matches!(
        spec_for_run(&twice, None),
        Err(RunError::DuplicateMount(_))
    ));
}

#[test]
fn spec_for_run_without_command_says_where_to_put_one() {
    let dir = rootfs();
    let none = RunOptions {
        args: Vec::new(),
        ..options(&dir)
    };
    let error = spec_for_run(&none, None).unwrap_err();
    assert!(error.to_string().contains("--"), "{error}");
}

#[test]
fn spec_for_run_relative_workdir_is_refused() {
    let dir = rootfs();
    let relative = RunOptions {
        workdir: Some("tmp".into()),
        ..options(&dir)
    };
    assert!(matches!(
        spec_for_run(&relative, None),
        Err(RunError::Workdir(_))
    ));
}

#[test]
fn spec_for_run_label_is_refused_by_the_checks() {
    let dir = rootfs();
    let labelled = RunOptions {
        security: Security::parse(&strings(&["label=type:x"])).unwrap(),
        ..options(&dir)
    };
    let spec = spec_for_run(&labelled, None).unwrap();
    let error = Bundle::from_spec(dir.path(), spec).unwrap_err();
    assert!(matches!(error, BundleError::Refused { .. }), "{error}");
}

#[test]
fn default_spec_passes_the_checks_and_has_what_runc_gives() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let text = serde_json::to_string_pretty(&default_spec()).unwrap();
    fs::write(dir.path().join("config.json"), &text).unwrap();
    Bundle::load(dir.path()).unwrap();

    fs::remove_file(dir.path().join("config.json")).unwrap();
    let made = std::process::Command::new("runc")
        .arg("spec")
        .current_dir(dir.path())
        .status();
    if made.is_err() {
        eprintln!("SKIP: runc is not installed");
        return;
    }
    let runc: Value =
        serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    let ours: Value = serde_json::from_str(&text).unwrap();
    for field in [
        "/root",
        "/process/args",
        "/process/env",
        "/process/cwd",
        "/process/rlimits",
        "/process/user",
        "/process/noNewPrivileges",
        "/linux/readonlyPaths",
    ] {
        assert_eq!(ours.pointer(field), runc.pointer(field), "{field}");
    }
    let places = |spec: &Value| -> std::collections::BTreeSet<String> {
        spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["destination"].to_string())
            .collect()
    };
    assert_eq!(places(&ours), places(&runc));
}
