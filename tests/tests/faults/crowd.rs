//! Several at once, and many one after the other.

use bulkhead_tests::{Inventory, Test};

use crate::scene::{
    Cast, EVERYONE, descendants_gone, first_ended, listed, nothing_left, until_begun,
};

pub fn same_name_twice_at_once_has_one_winner(test: &Test) {
    let before = Inventory::take(test);
    for _ in 0..5 {
        let name = test.new_id();
        // The winner ends only after all have begun: they cannot take turns. Plain commands, because
        // a container of the harness would remove the one of that name, the winner's.
        let start = || {
            let run = test.sh("read line; echo won").option("-i").name(&name);
            run.invocation().stdin_pipe().spawn()
        };
        let mut all: Vec<_> = (0..4).map(|_| start()).collect();
        while all.len() > 1 {
            let loser = first_ended(&all);
            let output = all.remove(loser).finish();
            output.expect_code(125);
            output.expect_error(&["already in use", &name]);
        }
        let mut winner = all.remove(0);
        winner.write_line("");
        assert_eq!(winner.line(), "won");
        winner.finish().expect_code(0);
        nothing_left(test, &before);
    }
}

pub fn ten_at_once_start_and_end_clean(test: &Test) {
    let before = Inventory::take(test);
    let mut containers: Vec<_> = (0..10)
        .map(|_| {
            let run = test
                .sh("echo ready; read line; echo \"$line\"; exit 3")
                .option("-i");
            run.with(bulkhead_tests::Invocation::stdin_pipe).start()
        })
        .collect();
    containers
        .iter_mut()
        .for_each(|container| container.line_is("ready"));

    let mut expected: Vec<_> = containers
        .iter()
        .map(|container| (container.id.clone(), "running".to_owned()))
        .collect();
    expected.sort();
    assert_eq!(listed(test), expected);
    for (number, container) in containers.iter_mut().enumerate() {
        container.write_line(&format!("this is {number}"));
    }
    for (number, mut container) in containers.into_iter().enumerate() {
        assert_eq!(container.line(), format!("this is {number}"));
        container.finish().expect_code(3);
    }
    nothing_left(test, &before);
}

/// Each process, each time a little further on its way: wherever the kill hits, nothing is left.
pub fn containers_made_and_killed_in_a_row_leave_nothing(test: &Test) {
    let before = Inventory::take(test);
    for victim in EVERYONE {
        for _ in 0..3 {
            let container = test.run(["/bin/true"]).start();
            until_begun(test, &container.id);
            // It boots, runs or ends by now, as it happens.
            let cast = Cast::as_far_as_there(&container, test);
            cast.kill(victim);
            let output = container.finish();
            assert!(
                [0, 125, -9].contains(&output.code()),
                "{victim:?}: {output}"
            );
            cast.gone();
            // What the command had not written down yet.
            descendants_gone();
            nothing_left(test, &before);
        }
    }
}
