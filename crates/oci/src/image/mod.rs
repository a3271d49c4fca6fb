//! Images.

mod config;

pub use config::ImageConfig;
