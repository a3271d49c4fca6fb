//! Turns functions into tests, one for each driver they run on.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, RwLock};

use super::driver::Driver;
use super::test::Test;

/// Makes tests of functions `fn(&Test)`, as modules `uml`, `qemu` and `on_kvm`.
///
/// QEMU without hardware acceleration takes a second to boot, so only what its driver could break
/// runs there: `both` names those, `uml` the others. All run on KVM when asked for; see [`tests_on!`]. A suite that takes inventories of the machine
/// begins with `alone;`: no other test of the same file then runs beside it.
#[macro_export]
macro_rules! suite {
    (alone; both: $($both:ident),* $(,)?; uml: $($uml:ident),* $(,)?;) => {
        $crate::tests_on!(uml, run_alone, [$($both)* $($uml)*]);
        $crate::tests_on!(qemu, run_alone, [$($both)*]);
        $crate::tests_on!(on_kvm, run_alone, [$($both)* $($uml)*]);
    };
    (both: $($both:ident),* $(,)?; uml: $($uml:ident),* $(,)?;) => {
        $crate::tests_on!(uml, run_beside, [$($both)* $($uml)*]);
        $crate::tests_on!(qemu, run_beside, [$($both)*]);
        $crate::tests_on!(on_kvm, run_beside, [$($both)* $($uml)*]);
    };
}

/// As [`suite!`], with a module `peer` that runs `both` and `uml` on a peer runtime (runc, or the
/// one named by `BULKHEAD_TEST_RUNTIME`); `ours` runs on our drivers only.
#[macro_export]
macro_rules! bundle_suite {
    (
        both: $($both:ident),* $(,)?;
        uml: $($uml:ident),* $(,)?;
        ours: $($ours:ident),* $(,)?;
    ) => {
        $crate::tests_on!(uml, run_beside, [$($both)* $($uml)* $($ours)*]);
        $crate::tests_on!(qemu, run_beside, [$($both)* $($ours)*]);
        $crate::tests_on!(on_kvm, run_beside, [$($both)* $($uml)* $($ours)*]);
        $crate::tests_on!(peer, run_beside, [$($both)* $($uml)*]);
    };
}

/// One module of tests; used by the suites. Those of `on_kvm` run only when asked for (`cargo xtask test
/// --hypervisor kvm`, or `--ignored`): a boot takes some ten seconds where KVM interprets guest kernels.
/// The few that always run on KVM are in modules `kvm`.
#[macro_export]
macro_rules! tests_on {
    (on_kvm, $run:ident, [$($test:ident)*]) => {
        mod on_kvm {
            $(
                #[test]
                #[ignore = "runs when KVM is asked for"]
                fn $test() {
                    $crate::harness::suite::$run(
                        "kvm",
                        concat!("on_kvm::", stringify!($test)),
                        super::$test,
                    );
                }
            )*
        }
    };
    ($driver:ident, $run:ident, [$($test:ident)*]) => {
        mod $driver {
            $(
                #[test]
                fn $test() {
                    $crate::harness::suite::$run(
                        stringify!($driver),
                        concat!(stringify!($driver), "::", stringify!($test)),
                        super::$test,
                    );
                }
            )*
        }
    };
}

/// Held for reading by every test, for writing by those that must be alone.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test beside others.
pub fn run_beside(driver: &str, name: &str, test: impl FnOnce(&Test)) {
    let guard = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run(driver, name, test);
    drop(guard);
}

/// Runs a test while no other one of this process runs.
pub fn run_alone(driver: &str, name: &str, test: impl FnOnce(&Test)) {
    let guard = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run(driver, name, test);
    drop(guard);
}

fn run(driver: &str, name: &str, test: impl FnOnce(&Test)) {
    let driver = match Driver::named(driver) {
        Ok(driver) => driver,
        Err(reason) => return skip(name, &reason),
    };
    let context = Test::new(driver, name);
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&context)));
    match outcome {
        Ok(()) => context.finish(),
        Err(panic) => {
            context.tell();
            drop(context);
            resume_unwind(panic);
        }
    }
}

/// Says that a test cannot run here. Return from the test after it.
///
/// # Panics
/// When the file that `cargo xtask test` counts skipped tests in cannot be written.
pub fn skip(name: &str, reason: &str) {
    // Past the capture of test output: it has to be seen when the test passes.
    let line = format!("SKIP {name}: {reason}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os("BULKHEAD_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(format!("{name}: {reason}\n").as_bytes())
            .unwrap();
    }
}
