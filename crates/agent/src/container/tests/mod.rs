//! The container set-up on a real kernel: each test creates containers, as root,
//! in a forked single-threaded process, as the agent does.
//!
//! What needs the controllers of cgroup v2 is ignored on hosts without them and
//! runs in a guest: see [`guest`].

mod cgroups;
mod exec;
mod guest;
mod harness;
mod isolation;
mod launching;
mod lifecycle;
mod mounting;
mod options;
mod processes;
mod programs;
mod refusals;
mod seccomp;
mod terminals;
