//! Names of containers and of processes in them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest accepted name, bytes. Engines use 64 hexadecimal digits; a name is also a directory and
/// part of a mount point in the guest.
pub const MAX_LENGTH: usize = 128;

/// A checked container name: `[A-Za-z0-9_+.-]`, at most [`MAX_LENGTH`] bytes, not starting with `.`
/// or `-` (runc's alphabet, without what would read as a path or an option).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// Why a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Nothing was given.
    #[error("Container id is empty: give a name of letters, digits, '_', '+', '-' and '.'")]
    Empty,
    /// More than [`MAX_LENGTH`] bytes.
    #[error(
        "Container id is {0} bytes long, at most {MAX_LENGTH} are allowed: choose a shorter one"
    )]
    TooLong(usize),
    /// A character outside the alphabet, or a leading `.` or `-`.
    #[error(
        "Container id {0:?} is not valid: use letters, digits, '_', '+', '-' and '.', starting with a letter, digit, '_' or '+'"
    )]
    Invalid(String),
}

impl Id {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name nobody chose: 12 hexadecimal digits from the kernel's random generator.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0u8; 6];
        // Up to 256 bytes come whole and uninterrupted once the pool is initialised; should the
        // call be unavailable, the clock still tells starts apart and `mkdir` refuses a clash.
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            bytes.copy_from_slice(&now.tv_nsec.to_le_bytes()[..6]);
        }
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(IdError::TooLong(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if text.starts_with(['.', '-']) || !text.chars().all(allowed) {
            return Err(IdError::Invalid(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_usual_names_accepted() {
        for name in ["a", "web-1", "0f9a", "a.b+c_d", &"x".repeat(MAX_LENGTH)] {
            assert_eq!(name.parse::<Id>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn parse_names_that_could_be_paths_or_options_refused() {
        for name in ["..", ".", ".hidden", "-rf", "a/b", "a b", "ä", "a\n", "a\0"] {
            assert!(
                matches!(name.parse::<Id>(), Err(IdError::Invalid(_))),
                "{name:?}"
            );
        }
        assert_eq!("".parse::<Id>(), Err(IdError::Empty));
        assert_eq!("x".repeat(129).parse::<Id>(), Err(IdError::TooLong(129)));
    }

    #[test]
    fn generate_twice_differs_and_is_valid() {
        let (a, b) = (Id::generate(), Id::generate());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<Id>().unwrap(), a);
    }
}
