//! Wall-clock time as text.

use std::time::{Duration, SystemTime};

/// Now, RFC 3339, UTC, nanoseconds.
#[must_use]
pub fn rfc3339_now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// Nanoseconds since the epoch as RFC 3339, UTC; empty for 0.
#[must_use]
pub fn rfc3339(epoch_ns: u64) -> String {
    if epoch_ns == 0 {
        return String::new();
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(epoch_ns);
    humantime::format_rfc3339_nanos(time).to_string()
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn epoch_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
