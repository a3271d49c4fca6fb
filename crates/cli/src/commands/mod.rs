//! One verb a file.

pub mod completion;
pub mod create;
pub mod delete;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod features;
pub mod kernel;
pub mod kill;
pub mod list;
pub mod logs;
pub mod pause;
pub mod ps;
pub mod refused;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
pub mod why;

mod common;
