//! The end of the guest: PID 1 never returns, it powers the machine off.
//!
//! A fatal error becomes one line on the kernel's console, which the host keeps.

use std::fmt;

use rustix::fs::{Mode, OFlags};
use rustix::system::{RebootCommand, reboot};

/// Set by a hypervisor whose machine has a reset line and no power switch: a kernel told to power such a
/// machine off would halt and wait for ever. Words `NAME=value` of the kernel's command line that the
/// kernel does not know are environment variables of PID 1.
const HOW: &str = "BULKHEAD_END";

/// Ends the machine without writing anything back. Does not return.
pub fn power_off() -> ! {
    let how = if std::env::var_os(HOW).is_some_and(|how| how == "reset") {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    };
    // It only returns when the capability is missing, that is, never in PID 1 of a guest. Leaving
    // makes the kernel panic ("Attempted to kill init"), which ends the machine as well.
    let _ = reboot(how);
    std::process::exit(1)
}

/// Says why on the console and powers the guest off. Does not return.
pub fn die(why: &dyn fmt::Display) -> ! {
    say(why);
    power_off()
}

/// Makes a panic end the guest with one line on the console.
pub fn power_off_on_panic() {
    std::panic::set_hook(Box::new(|panic| die(panic)));
}

/// Writes one line to the console at the level of an error.
pub fn say(what: &dyn fmt::Display) {
    let mut line = format!("<3>bulkhead-agent: {what}").replace('\n', ": ");
    line.push('\n');
    // The kernel's log reaches every console the guest has. Before /dev is mounted, or in a kernel
    // without it, the console the kernel opened for init is what is left.
    let log = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let written = log.and_then(|log| rustix::io::write(&log, line.as_bytes()));
    if written.is_err() {
        // Without any console there is nobody to tell.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            line.trim_start_matches("<3>").as_bytes(),
        );
    }
}

/// An error with the chain of its causes, on one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot open the door")]
    struct Door(#[source] std::io::Error);

    #[test]
    fn chain_prints_every_cause_in_order() {
        let error = Door(std::io::Error::other("no key"));
        assert_eq!(Chain(&error).to_string(), "Cannot open the door: no key");
    }
}
