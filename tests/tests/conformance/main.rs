//! Conformance: what the OCI runtime specification demands and what engines rely on in runc's command
//! line, each requirement a test, run on runc, crun and Bulkhead, and the results as one table.
//!
//! A requirement that runc does not meet is either wrongly tested or listed as runc's exception; one that
//! Bulkhead does not meet must be listed with the reason. An exception that is none any more is a failure.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod consoles;
mod exec;
mod files;
mod groups;
mod hooks;
mod lifecycle;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod requirement;
mod runner;
mod seccomp;
mod state;
mod subject;
mod table;
mod verbs;

use std::process::ExitCode;

use requirement::Requirement;

/// All of them, in the order of the table.
fn requirements() -> Vec<&'static Requirement> {
    let sections = [
        state::STATE,
        lifecycle::CREATE,
        lifecycle::START,
        lifecycle::KILL,
        lifecycle::DELETE,
        hooks::HOOKS,
        files::ROOT,
        mounts::MOUNTS,
        process::PROCESS,
        files::REST,
        linux::FILES,
        namespaces::NAMESPACES,
        groups::CGROUPS,
        linux::KERNEL,
        seccomp::SECCOMP,
        verbs::ENGINE,
        exec::EXEC,
        consoles::CONSOLES,
        verbs::VERBS,
    ];
    sections.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    runner::run(&requirements())
}
