//! A state directory that somebody has damaged by hand: told with the file and the remedy, and
//! `delete --force` recovers, whatever runs.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use bulkhead_tests::{Created, Inventory, Invocation, Test};
use serde_json::json;

use crate::scene::{Cast, Victim, choose_hypervisor, descendants_gone, listed, nothing_left};

/// What is done to a container's journal.
type Damage = (&'static str, fn(&Path));

const JOURNAL: [Damage; 6] = [
    ("cut short", |journal| {
        let file = fs::File::options().write(true).open(journal).unwrap();
        file.set_len(100).unwrap();
    }),
    ("emptied", |journal| fs::write(journal, "").unwrap()),
    ("garbage", |journal| {
        fs::write(journal, [0xff; 500]).unwrap()
    }),
    ("something else", |journal| {
        fs::write(journal, "[1]").unwrap()
    }),
    ("removed", |journal| fs::remove_file(journal).unwrap()),
    ("a directory", |journal| {
        fs::remove_file(journal).unwrap();
        fs::create_dir(journal).unwrap();
    }),
];

fn running(test: &Test) -> (Created<'_>, Cast) {
    choose_hypervisor(test);
    let container = Created::new(test, test.bundle_sh("cat", |_| {}), Invocation::stdin_pipe);
    container.start();
    let cast = Cast::of_engine(test, container.id());
    (container, cast)
}

/// Every verb tells of the damage, but for the one that removes it.
#[track_caller]
fn told(test: &Test, what: &str, id: &str, parts: &[&str]) {
    let list = test.verb(["list", "--quiet"]).output();
    assert_eq!(list.text(), "", "{what}");
    for part in parts {
        assert!(list.error().contains(part), "{what}: {list}");
    }
    for verb in [
        &["state", id][..],
        &["start", id],
        &["exec", id, "/bin/true"],
        &["pause", id],
        &["ps", id],
        &["update", "--pids-limit", "20", id],
        &["kill", id, "KILL"],
        &["delete", id],
    ] {
        let refused = test.verb(verb).output();
        assert_ne!(refused.code(), 0, "{what}: {refused}");
        refused.expect_error(parts);
    }
}

#[track_caller]
fn recovered(test: &Test, before: &Inventory, container: &mut Created<'_>, cast: &Cast) {
    let delete = test.verb(["delete", "--force", container.id()]).output();
    delete.expect_code(0);
    container.wait();
    cast.gone();
    descendants_gone();
    nothing_left(test, before);
}

pub fn journal_damaged_under_a_running_container_is_told_and_removable(test: &Test) {
    let before = Inventory::take(test);
    for (what, damage) in JOURNAL {
        let (mut container, cast) = running(test);
        let journal = test.root().join(container.id()).join("state.json");
        damage(&journal);

        let journal = journal.display().to_string();
        told(test, what, container.id(), &[&journal, "delete --force"]);

        recovered(test, &before, &mut container, &cast);
    }
}

pub fn journal_damaged_of_an_ended_container_is_told_and_removable(test: &Test) {
    let before = Inventory::take(test);
    for (what, damage) in JOURNAL {
        let (mut container, cast) = running(test);
        cast.kill(Victim::Sandbox);
        container.wait();
        cast.gone();
        let journal = test.root().join(container.id()).join("state.json");
        damage(&journal);

        let journal = journal.display().to_string();
        told(test, what, container.id(), &[&journal, "delete --force"]);

        recovered(test, &before, &mut container, &cast);
    }
}

pub fn journal_damaged_of_a_group_leaves_no_group(test: &Test) {
    choose_hypervisor(test);
    let before = Inventory::take(test);
    for victim in [None, Some(Victim::Sandbox)] {
        let path = format!("/bulkhead-{}", test.new_id());
        let bundle = test.bundle_sh("cat", |config| {
            config["linux"]["cgroupsPath"] = json!(path);
        });
        let mut container = Created::new(test, bundle, Invocation::stdin_pipe);
        container.start();
        let cast = Cast::of_engine(test, container.id());
        if let Some(victim) = victim {
            cast.kill(victim);
            cast.gone();
        }
        fs::write(test.root().join(container.id()).join("state.json"), "").unwrap();

        recovered(test, &before, &mut container, &cast);
    }
}

pub fn sockets_removed_container_is_told_of_and_removable(test: &Test) {
    let before = Inventory::take(test);
    let (mut container, cast) = running(test);
    let id = container.id().to_owned();
    let dir = test.root().join(&id);
    for socket in ["sandbox.sock", "attach.sock"] {
        fs::remove_file(dir.join(socket)).unwrap();
    }

    assert_eq!(listed(test), [(id.clone(), "running".to_owned())]);
    for verb in [
        &["exec", &id, "/bin/true"][..],
        &["exec", "--detach", &id, "/bin/true"],
        &["pause", &id],
        &["kill", &id, "KILL"],
    ] {
        let refused = test.verb(verb).output();
        refused.expect_error(&[&id, "sandbox process", "delete --force"]);
    }

    recovered(test, &before, &mut container, &cast);
}

pub fn directory_replaced_by_a_file_is_told_and_removable(test: &Test) {
    let before = Inventory::take(test);
    let (mut container, cast) = running(test);
    let dir = test.root().join(container.id());
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "something else").unwrap();

    let shown = dir.display().to_string();
    told(test, "a file", container.id(), &[&shown, "delete --force"]);

    recovered(test, &before, &mut container, &cast);
}

pub fn directory_removed_under_a_running_container_can_still_be_ended(test: &Test) {
    let before = Inventory::take(test);
    let (mut container, cast) = running(test);
    fs::remove_dir_all(test.root().join(container.id())).unwrap();

    assert_eq!(listed(test), []);
    for verb in ["state", "kill", "delete"] {
        let refused = container.verb(verb, &[]);
        refused.expect_error(&[container.id(), "does not exist"]);
    }

    recovered(test, &before, &mut container, &cast);
}

/// A further container in the machine of the first.
fn joined<'t>(test: &'t Test, first: &Created<'_>) -> Created<'t> {
    let bundle = test.bundle_sh("cat", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        for namespace in namespaces {
            if let Some(name) = ["network", "ipc", "uts"]
                .into_iter()
                .find(|name| namespace["type"] == *name)
            {
                let file = if name == "network" { "net" } else { name };
                namespace["path"] = json!(format!("/proc/{}/ns/{file}", first.pid));
            }
        }
        config.as_object_mut().unwrap().remove("hostname");
    });
    let second = Created::new(test, bundle, Invocation::stdin_pipe);
    second.start();
    second
}

/// One of two containers in a machine is gone, the other lives and can be spoken to.
#[track_caller]
fn one_left(test: &Test, what: &str, gone: &mut Created<'_>, left: &mut Created<'_>) {
    let delete = test.verb(["delete", "--force", gone.id()]).output();
    assert_eq!(delete.code(), 0, "{what}: {delete}");
    assert_eq!(gone.wait().signal(), Some(9), "{what}");
    let other = (left.id().to_owned(), "running".to_owned());
    assert_eq!(listed(test), [other], "{what}");
    left.write_line("still here");
    assert_eq!(left.line(), "still here", "{what}");
    left.verb("exec", &["/bin/true"]).expect_code(0);
}

pub fn one_of_two_deleted_by_force_leaves_the_other(test: &Test) {
    let before = Inventory::take(test);
    let (mut first, cast) = running(test);
    let mut second = joined(test, &first);

    one_left(test, "whole", &mut second, &mut first);

    recovered(test, &before, &mut first, &cast);
}

pub fn one_of_two_damaged_and_deleted_by_force_leaves_the_other(test: &Test) {
    let damages: [Damage; 4] = [
        ("sockets removed", |dir| {
            for socket in ["sandbox.sock", "attach.sock"] {
                fs::remove_file(dir.join(socket)).unwrap();
            }
        }),
        ("journal and sockets removed", |dir| {
            for file in ["state.json", "sandbox.sock", "attach.sock"] {
                fs::remove_file(dir.join(file)).unwrap();
            }
        }),
        ("directory removed", |dir| fs::remove_dir_all(dir).unwrap()),
        ("directory replaced", |dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        }),
    ];
    let before = Inventory::take(test);
    for (what, damage) in damages {
        for first_goes in [true, false] {
            let (mut first, cast) = running(test);
            let mut second = joined(test, &first);
            let (gone, left) = if first_goes {
                (&mut first, &mut second)
            } else {
                (&mut second, &mut first)
            };
            damage(&test.root().join(gone.id()));

            one_left(test, what, gone, left);

            recovered(test, &before, left, &cast);
        }
    }
}
