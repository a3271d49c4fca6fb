//! Hooks: which run, when, with what, and what becomes of it when they fail.

use std::fs;

use bulkhead_tests::harness::bundle::Bundle;
use bulkhead_tests::{Test, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::made::{Made, hook, set_hooks};

/// A container that sleeps, with these hooks.
fn sleeper<'t>(test: &'t Test, hooks: impl FnOnce(&Bundle<'t>) -> Value) -> Bundle<'t> {
    let bundle = test.bundle(|config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["annotations"] = json!({ "org.example.key": "value" });
    });
    let hooks = hooks(&bundle);
    set_hooks(&bundle, &hooks);
    bundle
}

/// A hook that notes its name in the order of all, and its state in a file of its own.
fn noting(bundle: &Bundle<'_>, name: &str) -> Value {
    let script = format!("echo {name} >> $DIR/order; cat > $DIR/{name}");
    hook(&bundle.dir, &script)
}

fn lines(made: &Made<'_>) -> Vec<String> {
    let text = fs::read_to_string(made.dir.join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn all_noting(bundle: &Bundle<'_>) -> Value {
    json!({
        "prestart": [noting(bundle, "prestart"), noting(bundle, "prestart2")],
        "createRuntime": [noting(bundle, "createRuntime")],
        "createContainer": [noting(bundle, "createContainer")],
        "poststart": [noting(bundle, "poststart")],
        "poststop": [noting(bundle, "poststop"), noting(bundle, "poststop2")],
    })
}

pub fn hooks_run_in_order_each_with_the_state(test: &Test) {
    let bundle = sleeper(test, all_noting);
    let made = Made::of(test, &bundle).create();
    let pid = made.pid();

    assert_eq!(
        lines(&made)[..4],
        ["prestart", "prestart2", "createRuntime", "createContainer"]
    );
    let made = made.start();
    assert_eq!(lines(&made).last().unwrap(), "poststart");
    made.kill("KILL");
    assert_eq!(lines(&made).len(), 5, "{:?}", lines(&made));
    made.verb("delete", &[]).expect_code(0);
    assert_eq!(lines(&made)[5..], ["poststop", "poststop2"]);

    let told = |name: &str| -> Value { serde_json::from_str(&made.read(name)).unwrap() };
    for name in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        let state = told(name);
        assert_eq!(state["id"], made.id, "{name}");
        assert_eq!(state["bundle"], made.dir.to_str().unwrap(), "{name}");
        assert_eq!(
            state["annotations"],
            json!({ "org.example.key": "value" }),
            "{name}"
        );
        assert!(
            state["ociVersion"].as_str().unwrap().starts_with("1."),
            "{name}"
        );
    }
    for name in ["prestart", "createRuntime"] {
        assert_eq!(told(name)["status"], "creating");
        assert_eq!(told(name)["pid"], pid);
    }
    assert_eq!(told("poststart")["pid"], pid);
    assert_eq!(told("poststop")["status"], "stopped");
}

pub fn poststart_hook_runs_when_the_program_does(test: &Test) {
    let bundle = sleeper(
        test,
        |bundle| json!({ "poststart": [noting(bundle, "poststart")] }),
    );
    let made = Made::of(test, &bundle).create();
    assert!(!made.has("poststart"));

    let made = made.start();

    let state: Value = serde_json::from_str(&made.read("poststart")).unwrap();
    assert_eq!(state["status"], "running");
}

pub fn hook_has_its_arguments_and_environment_in_the_bundle(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        let out = bundle.dir.join("out");
        let script = format!(
            "echo $0 $1 $A $(pwd) >{0}; env | cut -d= -f1 | sort >>{0}",
            out.display()
        );
        json!({ "createRuntime": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", script, "zero", "one two"],
            "env": ["A=b=c", "PATH=/bin:/usr/bin"],
        }] })
    });
    let made = Made::of(test, &bundle).create();

    let text = made.read("out");
    let mut lines = text.lines();
    let first = format!("zero one two b=c {}", made.dir.display());
    assert_eq!(lines.next(), Some(&*first));
    let names: Vec<&str> = lines.filter(|name| *name != "_").collect();
    assert_eq!(names, ["A", "PATH", "PWD"]);
}

pub fn create_container_hook_is_in_the_containers_network(test: &Test) {
    let see = |name: &str, bundle: &Bundle<'_>| {
        hook(
            &bundle.dir,
            &format!("readlink /proc/self/ns/net > $DIR/{name}"),
        )
    };
    let bundle = sleeper(test, |bundle| {
        json!({
            "createRuntime": [see("runtime", bundle)],
            "createContainer": [see("container", bundle)],
        })
    });
    let made = Made::of(test, &bundle).create();

    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(made.read("runtime").trim(), of("self").to_str().unwrap());
    let container = of(&made.pid().to_string());
    assert_eq!(made.read("container").trim(), container.to_str().unwrap());
    assert_ne!(made.read("container"), made.read("runtime"));
}

pub fn hooks_of_the_engine_are_not_in_the_containers_group(test: &Test) {
    let see = |name: &str, bundle: &Bundle<'_>| {
        hook(&bundle.dir, &format!("cat /proc/self/cgroup > $DIR/{name}"))
    };
    let bundle = sleeper(test, |bundle| {
        json!({
            "prestart": [see("prestart", bundle)], "createRuntime": [see("createRuntime", bundle)],
            "poststart": [see("poststart", bundle)], "poststop": [see("poststop", bundle)],
        })
    });
    let path = format!("/bulkhead-{}", test.new_id());
    crate::made::change(&bundle, |config| {
        config["linux"]["cgroupsPath"] = path.clone().into()
    });

    let made = Made::of(test, &bundle).create().start();
    made.kill("KILL");
    made.verb("delete", &[]).expect_code(0);

    let ours = fs::read_to_string("/proc/self/cgroup").unwrap();
    for name in ["prestart", "createRuntime", "poststart", "poststop"] {
        assert_eq!(made.read(name), ours, "{name}");
    }
}

pub fn start_container_hook_runs_in_the_container(test: &Test) {
    let bundle = sleeper(test, |_| {
        json!({ "startContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", "cat > /told; echo $MARK > /mark; uname -r > /kernel"],
            "env": ["MARK=marked", "PATH=/bin"], "timeout": 30,
        }] })
    });
    let made = Made::of(test, &bundle).create();
    assert!(!made.has("rootfs/mark"));

    let made = made.start();

    assert_eq!(made.read("rootfs/mark"), "marked\n");
    assert_eq!(made.read("rootfs/kernel").trim(), made.sh("uname -r"));
    let state: Value = serde_json::from_str(&made.read("rootfs/told")).unwrap();
    assert_eq!(state["id"], made.id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], 1);
    assert_eq!(state["bundle"], made.dir.to_str().unwrap());
    assert_eq!(state["annotations"], json!({ "org.example.key": "value" }));
}

pub fn start_container_hook_that_fails_keeps_the_program_from_running(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        json!({
            "startContainer": [{ "path": "/bin/false" }], "poststop": [noting(bundle, "poststop")],
        })
    });
    crate::made::change(&bundle, |config| {
        config["process"]["args"] = json!(["/bin/sh", "-c", "echo ran > /ran"]);
    });
    let made = Made::of(test, &bundle).create();

    let started = made.verb("start", &[]);

    started.expect_code(1);
    started.expect_error(&["hooks.startContainer", "/bin/false"]);
    made.delete();
    assert!(!made.has("rootfs/ran"));
    assert_eq!(lines(&made), ["poststop"]);
}

pub fn hook_that_fails_calls_the_creation_off(test: &Test) {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = sleeper(test, |bundle| {
            let mut hooks = all_noting(bundle);
            let failing = "echo no such network >&2; exit 3";
            hooks[kind] = json!([hook(&bundle.dir, failing), noting(bundle, "second")]);
            hooks
        });
        let made = Made::of(test, &bundle);

        let created = made.try_create();

        created.expect_code(1);
        assert!(created.error().contains("no such network"), "{created}");
        if !test.driver.is_peer() {
            created.expect_error(&[&format!("hooks.{kind}[0]"), "exit code 3"]);
        }
        assert!(!made.has("second") && !made.has("poststart"));
        // It is as if the container had been deleted.
        assert_eq!(
            lines(&made).iter().rev().take(2).rev().collect::<Vec<_>>(),
            ["poststop", "poststop2"]
        );
        let state = made.verb("state", &[]);
        state.expect_code(1);
        assert!(state.error().contains("does not exist"), "{state}");
    }
}

pub fn hook_over_its_time_is_killed_and_calls_the_creation_off(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        let mut slow = hook(&bundle.dir, "echo $$ > $DIR/pid; exec sleep 1000");
        slow["timeout"] = 1.into();
        json!({ "createRuntime": [slow] })
    });
    let made = Made::of(test, &bundle);

    made.try_create().expect_code(1);

    wait::gone(made.read("pid").trim().parse().unwrap());
}

pub fn poststart_hook_that_fails_ends_the_container(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        json!({
            "poststart": [{ "path": "/bin/false" }], "poststop": [noting(bundle, "poststop")],
        })
    });
    let made = Made::of(test, &bundle).create();
    let pid = made.pid();

    let started = made.verb("start", &[]);

    started.expect_code(1);
    started.expect_error(&["hooks.poststart[0]", "/bin/false"]);
    wait::gone(pid);
    assert_eq!(made.state()["status"], "stopped");
    made.verb("delete", &[]).expect_code(0);
    assert_eq!(lines(&made), ["poststop"]);
}

pub fn poststop_hook_that_fails_keeps_nothing_from_being_removed(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        json!({ "poststop": [
            hook(&bundle.dir, "echo failing >> $DIR/order; exit 1"), noting(bundle, "second"),
        ] })
    });
    let made = Made::of(test, &bundle).create().start();
    made.kill("KILL");

    let deleted = made.verb("delete", &[]);

    deleted.expect_code(0);
    assert!(deleted.error().contains("hooks.poststop[0]"), "{deleted}");
    assert_eq!(lines(&made), ["failing", "second"]);
    assert!(!test.root().join(&made.id).exists());
}

pub fn poststop_hooks_of_a_killed_sandbox_run_once(test: &Test) {
    let bundle = sleeper(test, all_noting);
    let made = Made::of(test, &bundle).create().start();
    let journal = fs::read(test.root().join(&made.id).join("state.json")).unwrap();
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    let sandbox = i32::try_from(journal["sandbox"]["pid"].as_i64().unwrap()).unwrap();

    kill_process(Pid::from_raw(sandbox).unwrap(), Signal::KILL).unwrap();
    wait::gone(sandbox.unsigned_abs());
    assert_eq!(made.state()["status"], "stopped");
    test.verb(["list"]).output().expect_code(0);
    // The container is still there: only its removal is the moment of these hooks.
    assert!(!made.has("poststop"));
    made.verb("delete", &[]).expect_code(0);
    made.delete();

    let ran = lines(&made);
    assert_eq!(
        ran.iter().filter(|name| *name == "poststop").count(),
        1,
        "{ran:?}"
    );
    assert_eq!(ran.last().unwrap(), "poststop2");
}

pub fn hooks_of_an_attached_container_run_as_well(test: &Test) {
    let bundle = sleeper(test, all_noting);
    crate::made::change(&bundle, |config| {
        config["process"]["args"] = json!(["/bin/sh", "-c", "echo out; exit 4"]);
    });

    let output = bundle.output();

    output.expect_code(4);
    assert_eq!(output.stdout, b"out\n");
    let order = fs::read_to_string(bundle.dir.join("order")).unwrap();
    let order: Vec<&str> = order.lines().collect();
    assert_eq!(order.len(), 7, "{order:?}");
    assert_eq!(order[5..], ["poststop", "poststop2"]);
}

pub fn sandbox_killed_during_a_hook_leaves_nothing(test: &Test) {
    let bundle = sleeper(test, |bundle| {
        let hanging = "echo $$ > $DIR/new; mv $DIR/new $DIR/pid; exec sleep 1000";
        json!({ "prestart": [hook(&bundle.dir, hanging)], "poststop": [noting(bundle, "poststop")] })
    });
    let path = format!("/bulkhead-{}", test.new_id());
    crate::made::change(&bundle, |config| {
        config["linux"]["cgroupsPath"] = path.clone().into()
    });
    let made = Made::of(test, &bundle);
    let creating = made.creation().spawn();
    wait::until_changed(&made.dir, || made.has("pid"));
    let journal = fs::read(test.root().join(&made.id).join("state.json")).unwrap();
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    let sandbox = i32::try_from(journal["sandbox"]["pid"].as_i64().unwrap()).unwrap();

    kill_process(Pid::from_raw(sandbox).unwrap(), Signal::KILL).unwrap();

    creating.finish().expect_code(1);
    wait::gone(made.read("pid").trim().parse().unwrap());
    assert_eq!(lines(&made), ["poststop"]);
    assert!(!test.root().join(&made.id).exists());
    assert_eq!(
        crate::groups::left(&path),
        [""; 0].map(std::path::PathBuf::from)
    );
}

pub fn delete_by_force_ends_a_hook_that_hangs(test: &Test) {
    let bundle = sleeper(
        test,
        |bundle| json!({ "createRuntime": [hook(&bundle.dir, "echo $$ > $DIR/new; mv $DIR/new $DIR/pid; exec sleep 1000")] }),
    );
    let made = Made::of(test, &bundle);
    let dir = made.dir.clone();
    let creating = made.creation().spawn();
    wait::until_changed(&dir, || dir.join("pid").exists());
    let pid = made.read("pid").trim().parse().unwrap();

    assert_eq!(made.state()["status"], "creating");
    test.verb(["delete", "--force", &made.id])
        .output()
        .expect_code(0);

    wait::gone(pid);
    creating.finish().expect_code(1);
    assert!(!test.root().join(&made.id).exists());
}
