//! Leaves the tables for unwinding out of the guest's executable.
//!
//! A panic ends the guest with one line on its console; nothing ever unwinds or prints a backtrace.
//! The tables are a tenth of the executable, which is copied at each start.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=no-unwinding.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // The static build of the workspace's `agent` profile, which aborts on panic. (Cargo does not tell
    // a build script about the latter.) Every other build, as for tests, needs the tables.
    let is = |name: &str, value: &str| {
        env::var(name).is_ok_and(|all| all.split(',').any(|one| one == value))
    };
    if is("OPT_LEVEL", "z") && is("CARGO_CFG_TARGET_FEATURE", "crt-static") {
        let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/no-unwinding.ld");
    }
}
