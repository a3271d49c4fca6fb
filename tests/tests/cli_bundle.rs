//! `bulkhead run --bundle DIR ID`, runc's form: what `config.json` says, the container gets.
//!
//! Each test is proved on a peer runtime, as module `peer`.

use bulkhead_tests::{Test, bundle_suite};

bundle_suite! {
    both: process_of_bundle_runs;
    uml: ;
    ours: ;
}

fn process_of_bundle_runs(test: &Test) {
    let bundle = test.bundle_sh("echo hello; exit 3", |_| {});

    let output = bundle.output();

    output.expect_code(3);
    assert_eq!(output.stdout, b"hello\n");
}
