//! What `--version` and `features` tell of this build.

use std::sync::OnceLock;

/// The version of the workspace.
pub const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, if the build knew.
pub const COMMIT: &str = match option_env!("BULKHEAD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The newest OCI runtime specification it follows.
pub const SPECIFICATION: &str = "1.2.0";

/// In runc's form, which engines parse: the program's name comes before.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("version {NUMBER}\ncommit: {COMMIT}\nspec: {SPECIFICATION}"))
}
