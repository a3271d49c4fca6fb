//! PID 1 of the guest: sets containers up and serves the host.
//!
//! ```text
//! main ─ boot ──► rpc (one ttrpc service) ──► container (one step of set-up per file)
//!          │        │  registry, process ──► streams (pipes and terminals ↔ vsock)
//!          └────────┴─ reaper (every exit)      end (power off; one line on the console)
//! ```
//!
//! Everything runs on one thread. The program has no `main` of Rust's runtime: that would ask the
//! kernel for things PID 1 has no use for, and would set `SIGPIPE` to be ignored in containers.
#![cfg_attr(not(test), no_main)]

mod boot;
mod bpf;
mod clock;
mod container;
mod devices;
mod disks;
mod dns;
mod end;
mod home;
mod network;
mod process;
mod reaper;
mod registry;
mod rpc;
mod streams;
mod vsock;
mod watched;

use std::sync::Arc;

use boot::{BootError, Booted};
use reaper::{ChildSignals, Reaper};

/// Where the C library hands over. Only returns if this is not a guest's first process.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_arguments: libc::c_int, _values: *const *const libc::c_char) -> libc::c_int {
    if !rustix::process::getpid().is_init() {
        eprintln!(
            "bulkhead-agent: This program is the first process of a Bulkhead guest (PID 1) and \
             does nothing elsewhere; start containers with `bulkhead run`"
        );
        return 1;
    }
    end::power_off_on_panic();
    match run() {
        Ok(()) => end::power_off(),
        Err(error) => end::die(&end::Chain(&error)),
    }
}

/// Boots and serves; returns when the host has hung up.
fn run() -> Result<(), BootError> {
    let Booted { home, mut timeline } = boot::boot()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(BootError::Runtime)?;
    runtime.block_on(async {
        let reaper = Arc::new(Reaper::default());
        let signals = ChildSignals::subscribe().map_err(BootError::Runtime)?;
        let home = watched::both_ways(home).map_err(BootError::Runtime)?;
        let reaping = Arc::clone(&reaper);
        let reaping = tokio::spawn(async move { reaping.run(signals).await });
        home.writable().await.map(drop).map_err(BootError::Home)?;
        vsock::connected(home.get_ref()).map_err(BootError::Home)?;
        timeline.lap("agent: call home");
        tokio::select! {
            served = rpc::serve(home, reaper, timeline.into_spans()) => {
                served.map_err(BootError::Serve)
            }
            reaped = reaping => Err(match reaped {
                Ok(Err(error)) => BootError::Reaper(error),
                Ok(Ok(())) => BootError::Reaper(std::io::Error::other("it stopped")),
                Err(error) => BootError::Reaper(std::io::Error::other(error)),
            }),
        }
    })
}
