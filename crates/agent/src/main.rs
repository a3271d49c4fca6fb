//! PID 1 of the guest: sets up containers and serves the host.
mod container;

fn main() {}
