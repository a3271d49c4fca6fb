//! The parts of the harness, one concept a file.

pub mod bundle;
pub mod console;
pub mod container;
pub mod created;
pub mod docker;
pub mod driver;
pub mod engines;
pub mod ground;
pub mod image;
pub mod inventory;
pub mod invocation;
pub mod podman;
pub mod product;
pub mod pty;
pub mod rootfs;
pub mod run;
pub mod running;
pub mod suite;
pub mod systemd;
pub mod test;
pub mod wait;
