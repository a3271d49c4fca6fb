//! Both devices in front of a real kernel in QEMU, without hardware help.
//!
//! Needs root and a guest kernel: that of the build tree, or `BULKHEAD_TEST_VMLINUX=<kernel>`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;
#[macro_use]
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Hypervisor, Machine};

scenarios!(Hypervisor::qemu());
