//! The protocol between the sandbox process on the host and the agent in the guest.
//!
//! `proto/agent.proto` is the definition; this crate holds what is generated from it and the few
//! numbers and names both sides must agree on.

/// What the code generator wrote; nothing in here is ours to lint.
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_imports,
    unused_mut,
    unused_results,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
mod generated {
    pub mod agent {
        include!(concat!(env!("OUT_DIR"), "/agent.rs"));
    }
    pub mod service {
        include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
    }
}

pub mod dns;
mod start_failure;

pub use start_failure::StartFailure;

/// The messages of `proto/agent.proto`.
pub use generated::agent as messages;
pub use generated::service::{Agent, AgentClient, create_agent};

/// The host's vsock port the agent connects to and then serves the [`Agent`] service on.
pub const RPC_PORT: u32 = 1024;

/// First host vsock port the sandbox process hands out for streams.
pub const FIRST_STDIO_PORT: u32 = 0x1_0000;

/// The guest's vsock context id. One VM a sandbox, so every guest has the same.
pub const GUEST_CID: u32 = 3;

/// Tag of the one virtio-fs share that holds every root file system and volume.
pub const SHARE_TAG: &str = "bulkhead";

/// Where the agent mounts the share in the guest's own mount namespace.
pub const SHARE_DIR: &str = "/run/bulkhead/share";
