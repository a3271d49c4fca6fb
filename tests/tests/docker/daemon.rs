//! What needs a dockerd of its own.

use std::sync::Arc;

use bulkhead_tests::harness::docker::Daemons;
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Docker, Engines, Test, tests_on};

use crate::with_daemons;

tests_on!(
    uml,
    run_beside,
    [live_restore_keeps_containers_across_a_restart]
);
tests_on!(
    peer,
    run_beside,
    [live_restore_keeps_containers_across_a_restart]
);

fn live_restore_keeps_containers_across_a_restart(test: &Test) {
    let engines = match Engines::chosen(&Daemons::PROGRAMS) {
        Ok(engines) => engines,
        Err(reason) => return skip(&test.name, &reason),
    };
    let daemons = Arc::new(Daemons::start(&engines, &["--live-restore"]));
    with_daemons(test, daemons, |docker: &Docker| {
        let script = "trap 'exit 7' TERM; echo ready; while :; do [ ! -e /go ] || echo went; sleep 0.1; done";
        let name = docker.detached(&[], script);
        docker
            .command(["logs", "--follow", &name])
            .spawn()
            .line_is("ready");
        let before = docker.inspect(&name)["State"]["Pid"].clone();

        docker.daemons.stop_dockerd();
        docker.daemons.start_dockerd(&["--live-restore"]);

        assert_eq!(docker.inspect(&name)["State"]["Pid"], before);
        docker
            .docker(&["exec", &name, "touch", "/go"])
            .expect_code(0);
        docker
            .command(["logs", "--follow", &name])
            .spawn()
            .line_is("went");
        docker
            .docker(&["stop", "--time", "60", &name])
            .expect_code(0);
        assert_eq!(docker.inspect(&name)["State"]["ExitCode"], 7);
    });
}
