//! The sandbox process: one per virtual machine. It plans, spawns the jailed processes, follows the
//! agent, serves containerd's Task API to every front end, and keeps the journal.
//!
//! It has the host's power and therefore never maps guest memory: what it hears from the guest are
//! ttrpc messages of the agent and bytes of the console, both bounded.

pub mod cgroup;
pub mod channel;
pub mod claim;
pub mod client;
pub mod clock;
pub mod config;
pub mod console;
pub mod cost;
pub mod disks;
mod dns;
pub mod error;
pub mod failure;
pub mod hooks;
pub mod id;
pub mod limits;
pub mod network;
pub mod owner;
pub mod paths;
pub mod plan;
pub mod pod;
pub mod process;
pub mod request;
pub mod sandbox;
pub mod serve;
pub mod spawn;
pub mod standin;
pub mod state;
pub mod stdio;
pub mod sweep;
pub mod task;
pub mod timeline;
pub mod tracked;
pub mod vm;
pub mod watched;
