//! A verb that takes long, and others meanwhile.

use std::fs;

use bulkhead_tests::harness::bundle::Bundle;
use bulkhead_tests::{Running, Test, wait};
use serde_json::json;

use crate::made::{Made, hook, join, set_hooks};

fn sleeper(test: &Test) -> Bundle<'_> {
    test.bundle(|config| config["process"]["args"] = json!(["sleep", "1000"]))
}

/// A creation that hangs in a hook until it is told to go on.
struct Slow<'t> {
    made: Made<'t>,
    creating: Running,
}

impl<'t> Slow<'t> {
    fn create(test: &'t Test, bundle: &Bundle<'t>) -> Self {
        let script = "mkfifo $DIR/go; touch $DIR/here; read line < $DIR/go";
        set_hooks(
            bundle,
            &json!({ "createRuntime": [hook(&bundle.dir, script)] }),
        );
        let made = Made::of(test, bundle);
        let creating = made.creation().spawn();
        wait::until_changed(&made.dir, || made.has("here"));
        Self { made, creating }
    }

    /// The creation goes on and succeeds, and so does the start.
    fn finish(mut self, test: &Test) {
        assert!(self.creating.is_running());
        // A peer knows nothing of it yet.
        if !test.driver.is_peer() {
            assert_eq!(self.made.state()["status"], "creating");
        }
        fs::write(self.made.dir.join("go"), "\n").unwrap();
        self.creating.finish().expect_code(0);
        let made = self.made.start();
        assert_eq!(made.state()["status"], "running");
        made.kill("KILL");
    }
}

/// Everything from its creation to its end, of another container.
fn whole_life(test: &Test, bundle: &Bundle<'_>) {
    let made = Made::of(test, bundle).create().start();
    assert_eq!(made.sh("echo here"), "here");
    made.verb("pause", &[]).expect_code(0);
    made.verb("resume", &[]).expect_code(0);
    let listed = test.verb(["list", "--quiet"]).output();
    assert!(listed.text().lines().any(|id| id == made.id), "{listed}");
    made.kill("KILL");
    made.verb("delete", &[]).expect_code(0);
}

pub fn verbs_do_not_wait_for_one_on_another_container(test: &Test) {
    let slow = Slow::create(test, &sleeper(test));

    whole_life(test, &sleeper(test));

    slow.finish(test);
}

pub fn verbs_do_not_wait_for_one_on_another_container_of_the_machine(test: &Test) {
    let first = Made::of(test, &sleeper(test)).create().start();
    let pid = first.pid();
    let member = || {
        let bundle = sleeper(test);
        join(&bundle, pid);
        bundle
    };
    let slow = Slow::create(test, &member());

    whole_life(test, &member());
    assert_eq!(first.sh("echo here"), "here");

    slow.finish(test);
}

/// What an engine asks while another verb is under way.
pub fn state_does_not_wait_for_a_verb_on_the_same_container(test: &Test) {
    let bundle = sleeper(test);
    let script = "mkfifo $DIR/go; touch $DIR/here; read line < $DIR/go";
    let hooks = json!({ "poststart": [hook(&bundle.dir, script)] });
    set_hooks(&bundle, &hooks);
    let made = Made::of(test, &bundle).create();
    let starting = test.verb(["start", &made.id]).spawn();
    wait::until_changed(&made.dir, || made.has("here"));

    assert_eq!(made.state()["status"], "running");
    assert_eq!(made.sh("echo here"), "here");

    fs::write(made.dir.join("go"), "\n").unwrap();
    starting.finish().expect_code(0);
    made.kill("KILL");
}

pub fn standin_takes_less_than_a_mebibyte(test: &Test) {
    let made = Made::of(test, &sleeper(test)).create().start();

    let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", made.pid())).unwrap();

    let line = memory.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: u32 = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!((1..=1024).contains(&kib), "{memory}");
}
