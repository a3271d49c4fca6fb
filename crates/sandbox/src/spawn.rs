//! Arguments of our own hats.

use std::ffi::CString;
use std::io;

use serde::Serialize;

/// What follows the program's name in `bulkhead <hat> <json>`.
///
/// # Errors
/// When the configuration cannot be expressed as an argument (a NUL byte in it).
pub fn arguments(hat: &str, config: &impl Serialize) -> io::Result<Vec<CString>> {
    let json = serde_json::to_string(config)?;
    [hat, &json]
        .into_iter()
        .map(|text| CString::new(text).map_err(|error| io::Error::other(error.to_string())))
        .collect()
}
