//! `bulkhead`: containers, each in its own virtual machine.
//!
//! One executable with several hats: the command a person types, the sandbox process, the jailed
//! device process and the launcher of jailed hypervisors. The last three are started by us alone
//! and are told apart by the first argument, before anything else is looked at.

mod attach;
mod commands;
mod detached;
mod error;
mod hats;
mod log;
mod options;
mod session;
mod standin;
mod terminal;
mod version;

use std::process::ExitCode;

use bulkhead_sandbox::timeline::now_ns;

fn main() -> ExitCode {
    let began_ns = now_ns();
    if let Some(code) = hats::dispatch() {
        return code;
    }
    options::run(began_ns)
}
