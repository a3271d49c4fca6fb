//! Which container engines a test drives: this machine's, or newer ones in a root file system of their own.

use std::path::PathBuf;

use super::driver::in_path;

/// Whose engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engines {
    /// Those installed on this machine.
    Installed,
    /// Those in this root file system, which `cargo xtask engines` makes.
    Newer(PathBuf),
}

impl Engines {
    /// The engines a suite drives: the installed ones, or the newer ones where `BULKHEAD_TEST_ENGINES` is
    /// `newer`, with which a whole suite can be run on those.
    ///
    /// # Errors
    /// Why there are none, if one of these programs is missing.
    pub fn chosen(programs: &[&str]) -> Result<Self, String> {
        if std::env::var_os("BULKHEAD_TEST_ENGINES").is_some_and(|value| value == "newer") {
            return Self::newer();
        }
        match programs.iter().find(|name| in_path(name).is_none()) {
            Some(name) => Err(format!("{name} is not installed: cargo xtask setup")),
            None => Ok(Self::Installed),
        }
    }

    /// The newer ones.
    ///
    /// # Errors
    /// Why there are none.
    pub fn newer() -> Result<Self, String> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (
            set("BULKHEAD_NEWER_ENGINES"),
            set("BULKHEAD_NO_NEWER_ENGINES"),
        ) {
            (Some(root), _) => Ok(Self::Newer(root.into())),
            (None, Some(reason)) => Err(reason),
            (None, None) => {
                Err("BULKHEAD_NEWER_ENGINES is not set to what cargo xtask engines prints".into())
            }
        }
    }
}
