//! Podman with our runtime: what its users do, on `uml`, a part on `qemu`, and the same tests on a peer
//! (`peer::`, runc or the one named by `BULKHEAD_TEST_RUNTIME`), where they prove themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod crowd;
mod exec;
mod lifecycle;
mod network;
mod options;
mod pods;
mod run;

use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Engines, Podman, Test};

/// Makes tests of functions `fn(&Podman)`: `both` run on User-Mode Linux, QEMU and the peer, `uml` on all
/// but QEMU, all on KVM when asked for, `newer` once more with newer engines. `not_yet` names what the peer does and ours does not,
/// each with the reason; there they count as skipped.
#[macro_export]
macro_rules! podman_suite {
    (
        both: $($both:ident),* $(,)?;
        uml: $($uml:ident),* $(,)?;
        $(newer: $($newer:ident),* $(,)?;)?
        $(not_yet: $($missing:ident = $reason:literal),* $(,)?;)?
    ) => {
        mod uml {
            $crate::podman_suite!(@run uml [$($both)* $($uml)*]);
            $($crate::podman_suite!(@skip uml [$($missing = $reason)*]);)?
        }
        mod qemu {
            $crate::podman_suite!(@run qemu [$($both)*]);
        }
        mod on_kvm {
            $crate::podman_suite!(@asked kvm [$($both)* $($uml)*]);
        }
        mod peer {
            $crate::podman_suite!(@run peer [$($both)* $($uml)* $($($missing)*)?]);
        }
        $(mod newer {
            mod uml {
                $crate::podman_suite!(@newer uml [$($newer)*]);
            }
            mod peer {
                $crate::podman_suite!(@newer peer [$($newer)*]);
            }
        })?
    };
    (@run $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            fn $test() {
                let name = concat!("podman::", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::run_beside(
                    stringify!($driver),
                    name,
                    |test| $crate::with_podman(test, super::$test),
                );
            }
        )*
    };
    (@asked $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            #[ignore = "runs when KVM is asked for"]
            fn $test() {
                let name = concat!("podman::on_", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::run_beside(
                    stringify!($driver),
                    name,
                    |test| $crate::with_podman(test, super::$test),
                );
            }
        )*
    };
    (@newer $driver:ident [$($test:ident)*]) => {
        $(
            #[test]
            fn $test() {
                let name = concat!("podman::newer::", stringify!($driver), "::", stringify!($test));
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
                let name = concat!("podman::", stringify!($driver), "::", stringify!($test));
                bulkhead_tests::harness::suite::skip(name, concat!("not yet: ", $reason));
            }
        )*
    };
}

/// Runs a test with a Podman of its own, of which nothing may be left.
fn with_podman(test: &Test, run: impl FnOnce(&Podman<'_>)) {
    with_engines(test, Engines::chosen(&Podman::PROGRAMS), run);
}

/// The same with these engines.
fn with_engines(test: &Test, engines: Result<Engines, String>, run: impl FnOnce(&Podman<'_>)) {
    let engines = match engines {
        Ok(engines) => engines,
        Err(reason) => return skip(&test.name, &reason),
    };
    let podman = Podman::new(test, &engines);
    run(&podman);
    podman.finish();
}
