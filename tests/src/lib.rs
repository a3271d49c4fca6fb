//! What the end-to-end tests share: starting containers on each hypervisor, and on a peer runtime to
//! prove the test itself; waiting for events; taking inventories.
//!
//! A suite is a file of functions `fn thing_condition_outcome(test: &Test)` and one [`suite!`] or
//! [`bundle_suite!`] that says where each of them runs.

// A test reports a broken expectation by panicking; so do its tools.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod harness;

pub use harness::bundle::Bundle;
pub use harness::console::ConsoleSocket;
pub use harness::container::Container;
pub use harness::created::Created;
pub use harness::docker::Docker;
pub use harness::driver::Driver;
pub use harness::engines::Engines;
pub use harness::ground::Ground;
pub use harness::image::Image;
pub use harness::inventory::Inventory;
pub use harness::invocation::{Invocation, Output};
pub use harness::podman::Podman;
pub use harness::product::{Product, product};
pub use harness::pty::Pty;
pub use harness::run::Run;
pub use harness::running::Running;
pub use harness::test::Test;
pub use harness::wait;
