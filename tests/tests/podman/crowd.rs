//! Many containers at once.

use bulkhead_tests::Podman;
use bulkhead_tests::harness::podman::IMAGE;
use bulkhead_tests::harness::running::Running;

use crate::podman_suite;

podman_suite! {
    both: ;
    uml:
        fifty_at_once_are_started_and_removed_at_once;
}

/// As many as the promise has.
const MANY: usize = 50;

fn fifty_at_once_are_started_and_removed_at_once(podman: &Podman) {
    let names: Vec<String> = (0..MANY).map(|_| podman.test.new_id()).collect();
    let all = |command: &dyn Fn(&str) -> Running| -> Vec<Running> {
        names.iter().map(|name| command(name)).collect()
    };

    let starting = all(&|name| {
        let run = ["run", "--detach", "--network=none", "--name", name, IMAGE];
        podman.command(run).args(["sleep", "1000"]).spawn()
    });
    for start in starting {
        start.finish().expect_code(0);
    }

    let running = podman.podman(&["ps", "--quiet"]);
    assert_eq!(running.text().lines().count(), MANY, "{running}");
    let removing = all(&|name| {
        let remove = ["rm", "--force", "--time", "0", name];
        podman.command(remove).spawn()
    });
    for removal in removing {
        removal.finish().expect_code(0);
    }
    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
    assert_eq!(podman.test.containers(), Vec::<String>::new());
}
