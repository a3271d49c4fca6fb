//! Docker with our runtime: what its users do, on `uml`, a part on `qemu`, and the same tests on a peer
//! (`peer::`, runc or the one named by `BULKHEAD_TEST_RUNTIME`), where they prove themselves.
//!
//! One containerd and one dockerd serve all tests of a run, but for those that stop them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod daemon;
mod network;
mod run;

use std::sync::Arc;

use bulkhead_tests::harness::docker::Daemons;
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Docker, Engines, Test};

/// Makes tests of functions `fn(&Docker)`: `both` run on User-Mode Linux, QEMU and the peer, `uml` on all
/// but QEMU, all on KVM when asked for, `newer` once more with newer engines. `not_yet` names what the peer does and ours does not,
/// each with the reason; there they count as skipped.
#[macro_export]
macro_rules! docker_suite {
    (
        both: $($both:ident),* $(,)?;
        uml: $($uml:ident),* $(,)?;
        $(newer: $($newer:ident),* $(,)?;)?
        $(not_yet: $($missing:ident = $reason:literal),* $(,)?;)?
    ) => {
        mod uml {
            $crate::docker_suite!(@run uml [$($both)* $($uml)*]);
            $($crate::docker_suite!(@skip uml [$($missing = $reason)*]);)?
        }
        mod qemu {
            $crate::docker_suite!(@run qemu [$($both)*]);
        }
        mod on_kvm {
            $crate::docker_suite!(@asked kvm [$($both)* $($uml)*]);
        }
        mod peer {
            $crate::docker_suite!(@run peer [$($both)* $($uml)* $($($missing)*)?]);
        }
        $(mod newer {
            mod uml {
                $crate::docker_suite!(@newer uml [$($newer)*]);
            }
            mod peer {
                $crate::docker_suite!(@newer peer [$($newer)*]);
            }
        })?
    };
    (@run $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            fn $test() {
                let name = concat!("docker::", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::run_beside(
                    stringify!($driver),
                    name,
                    |test| $crate::with_docker(test, super::$test),
                );
            }
        )*
    };
    (@asked $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            #[ignore = "runs when KVM is asked for"]
            fn $test() {
                let name = concat!("docker::on_", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::run_beside(
                    stringify!($driver),
                    name,
                    |test| $crate::with_docker(test, super::$test),
                );
            }
        )*
    };
    (@newer $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            fn $test() {
                let name = concat!("docker::newer::", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::run_beside(
                    stringify!($driver),
                    name,
                    |test| {
                        let engines = bulkhead_tests::Engines::newer();
                        $crate::with_engines(test, engines, super::super::$test);
                    },
                );
            }
        )*
    };
    (@skip $driver:ident [$($test:ident = $reason:literal)*]) => {
        $(
            #[test]
            fn $test() {
                let name = concat!("docker::", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::skip(name, concat!("not yet: ", $reason));
            }
        )*
    };
}

/// Runs a test with the shared daemons.
fn with_docker(test: &Test, run: impl FnOnce(&Docker<'_>)) {
    with_engines(test, Engines::chosen(&Daemons::PROGRAMS), run);
}

/// The same with the shared daemons of these engines.
fn with_engines(test: &Test, engines: Result<Engines, String>, run: impl FnOnce(&Docker<'_>)) {
    match engines {
        Ok(engines) => with_daemons(test, Daemons::shared(&engines), run),
        Err(reason) => skip(&test.name, &reason),
    }
}

/// Runs a test with these daemons; none of its containers may be left.
fn with_daemons(test: &Test, daemons: Arc<Daemons>, run: impl FnOnce(&Docker<'_>)) {
    let docker = Docker::new(test, daemons);
    run(&docker);
    docker.finish();
}
