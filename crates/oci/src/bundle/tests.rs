use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A configuration as an engine would write it.
fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["PATH=/bin"]},
        "hostname": "web",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
        ]},
    })
}

/// A bundle directory with the configuration and an empty root file system.
fn bundle(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// The message for a configuration changed at `pointer` (null removes).
fn message_with(pointer: &str, value: Value) -> String {
    let mut config = minimal();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(map) => map.insert(name.into(), value),
        Value::Array(list) => list
            .get_mut(name.parse::<usize>().unwrap())
            .map(|v| std::mem::replace(v, value)),
        other => panic!("{other}"),
    };
    let dir = bundle(&config.to_string());
    let message = Bundle::load(dir.path()).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn load_minimal_bundle_is_accepted() {
    let dir = bundle(&minimal().to_string());
    let loaded = Bundle::load(dir.path()).unwrap();
    assert_eq!(
        loaded.rootfs,
        dir.path().canonicalize().unwrap().join("rootfs")
    );
    assert_eq!(loaded.spec.hostname().as_deref(), Some("web"));
}

#[test]
fn load_bundle_of_runc_spec_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let made = std::process::Command::new("runc")
        .arg("spec")
        .current_dir(dir.path())
        .status();
    let Ok(status) = made else {
        eprintln!("SKIP: runc is not installed");
        return;
    };
    assert!(status.success());
    Bundle::load(dir.path()).unwrap();
}

#[test]
fn load_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Bundle::load(&dir.path().join("nothing")).unwrap_err();
    assert!(matches!(error, BundleError::NoBundle { .. }), "{error}");
    assert_has(&error.to_string(), &["nothing", "--bundle"]);
}

#[test]
fn load_file_as_bundle_is_refused() {
    let dir = bundle("{}");
    let error = Bundle::load(&dir.path().join("config.json")).unwrap_err();
    assert!(
        matches!(error, BundleError::NotADirectory { .. }),
        "{error}"
    );
}

#[test]
fn load_directory_without_config_names_spec_command() {
    let dir = tempfile::tempdir().unwrap();
    let error = Bundle::load(dir.path()).unwrap_err();
    assert!(matches!(error, BundleError::NoConfig { .. }), "{error}");
    assert_has(&error.to_string(), &["bulkhead spec"]);
}

#[test]
fn load_config_that_is_a_fifo_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(
        CWD,
        dir.path().join("config.json"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let error = Bundle::load(dir.path()).unwrap_err();
    assert!(
        matches!(error, BundleError::ConfigNotAFile { .. }),
        "{error}"
    );
}

#[test]
fn load_config_that_is_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("config.json")).unwrap();
    let error = Bundle::load(dir.path()).unwrap_err();
    assert!(
        matches!(error, BundleError::ConfigNotAFile { .. }),
        "{error}"
    );
}

#[test]
fn load_ten_megabytes_is_refused_with_the_limit() {
    let mut config = minimal();
    config["annotations"] = json!({"bulk": "x".repeat(10 << 20)});
    let dir = bundle(&config.to_string());
    let error = Bundle::load(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            BundleError::TooLarge {
                limit: MAX_CONFIG_BYTES,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().len() < 400);
}

#[test]
fn load_config_at_the_limit_is_accepted() {
    let mut config = minimal().to_string();
    config.push_str(&" ".repeat(usize::try_from(MAX_CONFIG_BYTES).unwrap() - config.len()));
    let dir = bundle(&config);
    Bundle::load(dir.path()).unwrap();
}

#[test]
fn load_bundle_name_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"b\xff"));
    fs::create_dir(&odd).unwrap();
    let error = Bundle::load(&odd).unwrap_err();
    assert!(matches!(error, BundleError::NotUtf8 { .. }), "{error}");
}

#[test]
fn parse_broken_json_has_position_and_hint() {
    for (json, line, hint) in [
        ("{\n \"a\": 1,\n}", 3, "comma"),
        ("{\n \"a\" 1}", 2, "position"),
        ("{\"ociVersion\": \"1.0.2\"", 1, "ends too early"),
        ("", 1, "empty"),
        ("{a: 1}", 1, "double quotes"),
        ("{} {}", 1, "closing bracket"),
        ("\u{feff}{}", 1, "byte order mark"),
    ] {
        let error = Bundle::parse(Path::new("config.json"), json.as_bytes()).unwrap_err();
        let BundleError::Syntax { line: found, .. } = &error else {
            panic!("{json}: {error}")
        };
        assert_eq!((*found).max(1), line, "{json}: {error}");
        assert_has(&error.to_string(), &[hint, "config.json"]);
    }
}

#[test]
fn parse_not_utf8_is_a_syntax_error() {
    let error = Bundle::parse(Path::new("c"), b"{\"hostname\": \"\xff\"}").unwrap_err();
    assert!(matches!(error, BundleError::Syntax { .. }), "{error}");
}

#[test]
fn parse_wrong_type_names_the_field() {
    assert_has(
        &message_with("/process/user/uid", json!("root")),
        &["process.user.uid"],
    );
    assert_has(
        &message_with("/process/user/uid", json!(-1)),
        &["process.user.uid"],
    );
    assert_has(
        &message_with("/mounts/0", json!({"type": "x"})),
        &["mounts[0]", "destination"],
    );
    assert_has(
        &message_with("/linux/namespaces/2", json!({"type": "netns"})),
        &["linux.namespaces[2].type", "netns", "network"],
    );
    assert_has(
        &message_with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_FILES", "hard": 1, "soft": 1}]),
        ),
        &["process.rlimits[0].type", "RLIMIT_FILES", "RLIMIT_NOFILE"],
    );
}

#[test]
fn parse_wrong_environment_never_shows_values() {
    for env in [
        json!("TOKEN=secret"),
        json!({"TOKEN": "secret"}),
        json!(["TOKEN=x", "secret"]),
        json!(["=secret"]),
        json!(["A=secret\0"]),
    ] {
        let message = message_with("/process/env", env);
        assert_has(&message, &["process.env"]);
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn parse_very_long_value_stays_a_short_line() {
    let message = message_with(
        "/linux/namespaces/0",
        json!({"type": "x\n".repeat(100_000)}),
    );
    assert!(message.len() < 600, "{}", message.len());
}

#[test]
fn check_missing_parts_are_named_with_remedy() {
    assert_has(
        &message_with("/ociVersion", json!("")),
        &["ociVersion", "1.0.2"],
    );
    assert_has(
        &message_with("/ociVersion", json!("2.0.0")),
        &["2.0.0", "1.x"],
    );
    assert_has(&message_with("/ociVersion", json!("1.0")), &["\"1.0\""]);
    assert_has(&message_with("/root", Value::Null), &["root is missing"]);
    assert_has(
        &message_with("/root/path", json!("")),
        &["root.path is empty"],
    );
    assert_has(
        &message_with("/process", Value::Null),
        &["process is missing"],
    );
    assert_has(
        &message_with("/process/args", Value::Null),
        &["process.args is missing"],
    );
    assert_has(
        &message_with("/process/args", json!([])),
        &["process.args is empty"],
    );
    assert_has(
        &message_with("/process/args", json!([""])),
        &["process.args[0] is empty"],
    );
    assert_has(
        &message_with("/process/cwd", json!("")),
        &["process.cwd is empty"],
    );
    assert_has(&message_with("/linux", Value::Null), &["linux is missing"]);
    assert_has(
        &message_with("/linux/namespaces", json!([])),
        &["linux.namespaces", "mount"],
    );
}

#[test]
fn check_values_out_of_shape_are_named() {
    assert_has(
        &message_with("/process/cwd", json!("home")),
        &["process.cwd", "absolute"],
    );
    assert_has(
        &message_with("/process/cwd", json!("/a/../..")),
        &["process.cwd", ".."],
    );
    assert_has(
        &message_with("/process/args", json!(["a", "b\0"])),
        &["process.args[1]", "NUL"],
    );
    assert_has(
        &message_with("/process/user/uid", json!(u32::MAX)),
        &["process.user.uid", "4294967295"],
    );
    assert_has(
        &message_with("/process/user/umask", json!(512)),
        &["process.user.umask"],
    );
    assert_has(
        &message_with("/process/oomScoreAdj", json!(2000)),
        &["process.oomScoreAdj", "2000"],
    );
    assert_has(
        &message_with("/hostname", json!("x".repeat(65))),
        &["hostname", "65"],
    );
    assert_has(&message_with("/hostname", json!("a b")), &["hostname"]);
    assert_has(
        &message_with("/mounts/0", json!({"destination": "", "type": "proc"})),
        &["mounts[0].destination", "empty"],
    );
    assert_has(
        &message_with("/mounts/0", json!({"destination": "/p"})),
        &["mounts[0].type"],
    );
    assert_has(
        &message_with(
            "/mounts/0",
            json!({"destination": "/p", "options": ["bind"]}),
        ),
        &["mounts[0].source"],
    );
    assert_has(
        &message_with("/linux/maskedPaths", json!(["proc"])),
        &["linux.maskedPaths[0]"],
    );
    assert_has(
        &message_with("/linux/rootfsPropagation", json!("rr")),
        &["linux.rootfsPropagation"],
    );
    assert_has(
        &message_with("/linux/sysctl", json!({"../x": "1"})),
        &["linux.sysctl"],
    );
    assert_has(
        &message_with("/linux/resources", json!({"memory": {"limit": -5}})),
        &["linux.resources.memory.limit"],
    );
    assert_has(
        &message_with(
            "/linux/resources",
            json!({"memory": {"limit": 100, "swap": 50}}),
        ),
        &["memory.swap"],
    );
    assert_has(
        &message_with("/linux/resources", json!({"cpu": {"period": 5}})),
        &["cpu.period"],
    );
    assert_has(
        &message_with("/linux/resources", json!({"cpu": {"cpus": "a"}})),
        &["cpu.cpus"],
    );
    assert_has(
        &message_with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}]),
        ),
        &["process.rlimits[0].soft"],
    );
    assert_has(
        &message_with("/process/capabilities", json!({"effective": ["CAP_KILL"]})),
        &["process.capabilities.effective"],
    );
    assert_has(
        &message_with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]}),
        ),
        &["linux.seccomp.syscalls[0].names"],
    );
    assert_has(
        &message_with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}]}),
        ),
        &["linux.seccomp.syscalls[0].errnoRet", "SCMP_ACT_ERRNO"],
    );
    assert_has(
        &message_with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
        ),
        &["linux.seccomp.defaultErrnoRet"],
    );
}

#[test]
fn check_hooks_are_named_by_moment_and_place() {
    let hooks = |hook: Value| json!({"prestart": [], "poststop": [{"path": "/bin/true"}, hook]});
    for (hook, parts) in [
        (json!({"path": ""}), ["hooks.poststop[1].path", "empty"]),
        (
            json!({"path": "a/b"}),
            ["hooks.poststop[1].path", "absolute"],
        ),
        (
            json!({"path": "/a", "timeout": 0}),
            ["hooks.poststop[1].timeout", "1 second"],
        ),
        (
            json!({"path": "/a", "env": ["A=1", "SECRET"]}),
            ["hooks.poststop[1].env[1]", "NAME=value"],
        ),
        (
            json!({"path": "/a", "args": ["a", "b\u{0}"]}),
            ["hooks.poststop[1].args[1]", "NUL"],
        ),
    ] {
        let message = message_with("/hooks", hooks(hook));
        assert_has(&message, &parts);
        assert!(!message.contains("SECRET"), "{message}");
    }
}

#[test]
fn check_resources_of_an_update_as_those_of_a_bundle() {
    let message = |resources: Value| {
        let resources = serde_json::from_value(resources).unwrap();
        check_resources(&resources).map_err(|error| error.to_string())
    };
    assert_eq!(
        message(json!({"cpu": {"cpus": "0-1", "quota": -1}})),
        Ok(())
    );
    let refused = message(json!({"blockIO": {"weight": 500}})).unwrap_err();
    assert_has(&refused, &["linux.resources.blockIO.weight"]);
    let wrong = message(json!({"memory": {"limit": -5}})).unwrap_err();
    assert_has(&wrong, &["linux.resources.memory.limit"]);
}

#[test]
fn check_duplicates_are_named() {
    assert_has(
        &message_with("/linux/namespaces/1", json!({"type": "pid"})),
        &["linux.namespaces[1].type", "\"pid\"", "before"],
    );
    assert_has(
        &message_with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "hard": 1, "soft": 1}, {"type": "RLIMIT_CPU", "hard": 1, "soft": 1}]),
        ),
        &["process.rlimits[1].type"],
    );
}

#[test]
fn check_hostname_without_uts_namespace_is_a_conflict() {
    let message = message_with("/linux/namespaces/3", json!({"type": "cgroup"}));
    assert_has(&message, &["hostname", "uts"]);
}

#[test]
fn rootfs_problems_are_typed() {
    let dir = bundle(&minimal().to_string());
    let problem = |dir: &TempDir| match Bundle::load(dir.path()) {
        Err(BundleError::Root { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let rootfs = dir.path().join("rootfs");

    fs::remove_dir(&rootfs).unwrap();
    assert_eq!(problem(&dir), RootProblem::Missing);
    fs::write(&rootfs, "").unwrap();
    assert_eq!(problem(&dir), RootProblem::NotADirectory);
    fs::remove_file(&rootfs).unwrap();
    symlink("/", &rootfs).unwrap();
    assert_eq!(problem(&dir), RootProblem::HostRoot);
}

#[test]
fn rootfs_absolute_path_is_used_as_it_is() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut config = minimal();
    config["root"]["path"] = json!(elsewhere.path());
    let dir = bundle(&config.to_string());
    let loaded = Bundle::load(dir.path()).unwrap();
    assert_eq!(loaded.rootfs, elsewhere.path().canonicalize().unwrap());
}

/// Small JSON values of any shape.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-zA-Z]{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Every place of a value, as JSON pointers.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(k, v)| places(v, format!("{at}/{k}"), all)),
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(i, v)| places(v, format!("{at}/{i}"), all));
        }
        _ => {}
    }
    all.push(at);
}

proptest! {
    #[test]
    fn parse_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Err(error) = Bundle::parse(Path::new("c"), &bytes) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn parse_any_value_at_any_place_never_panics(place in any::<prop::sample::Index>(), value in any_json()) {
        let mut config = minimal();
        let mut all = Vec::new();
        places(&config, String::new(), &mut all);
        *config.pointer_mut(place.get::<String>(&all)).unwrap() = value;
        if let Err(error) = Bundle::parse(Path::new("c"), config.to_string().as_bytes()) {
            let message = error.to_string();
            prop_assert_eq!(message.lines().count(), 1, "{}", message);
            prop_assert!(message.len() < 2000, "{}", message);
        }
    }
}

#[test]
fn parse_relative_destination_is_below_the_root() {
    let mut config = minimal();
    config["mounts"] = json!([{"destination": "a/b", "type": "tmpfs", "source": "tmpfs"}]);

    let spec = Bundle::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap();

    let mounts = spec.mounts().as_ref().unwrap();
    assert_eq!(mounts[0].destination(), Path::new("/a/b"));
}

#[test]
fn parse_unknown_capability_is_left_out_with_a_warning() {
    let mut config = minimal();
    let set = json!(["CAP_CHOWN", "CAP_TIME_TRAVEL"]);
    config["process"]["capabilities"] =
        json!({"bounding": set, "permitted": set, "effective": set});

    let (spec, warnings) =
        super::read::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap();

    let process = spec.process().as_ref().unwrap();
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    assert_eq!(warnings.len(), 3);
    assert!(warnings[0].contains("CAP_TIME_TRAVEL"), "{warnings:?}");
}
