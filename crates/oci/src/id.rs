//! Names of containers: they become directory names on the host and in the guest.

use thiserror::Error;

/// Longest name of a container, in bytes: a unix socket's path must hold it.
pub const ID_MAX: usize = 76;

/// Why a string cannot be the name of a container.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("Container name {} {problem}", crate::text::quoted(.id))]
pub struct IdError {
    /// The name asked for.
    pub id: String,
    /// What is wrong with it.
    pub problem: IdProblem,
}

/// What is wrong with a container's name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum IdProblem {
    /// There is none.
    #[error("is empty; give a name")]
    Empty,
    /// It is longer than [`ID_MAX`].
    #[error("is too long; use at most 76 characters")]
    TooLong,
    /// It holds a character a name cannot have, or begins with one.
    #[error(
        "is not a name; begin with a letter or a digit and use letters, digits, and the characters _ . + - only"
    )]
    Characters,
}

/// Checks the name of a container.
///
/// # Errors
///
/// [`IdError`] if the name is empty, longer than [`ID_MAX`], or could mean something
/// else than a file name.
pub fn check_id(id: &str) -> Result<(), IdError> {
    let broken = |problem| {
        Err(IdError {
            id: id.to_owned(),
            problem,
        })
    };
    let Some(first) = id.bytes().next() else {
        return broken(IdProblem::Empty);
    };
    if id.len() > ID_MAX {
        return broken(IdProblem::TooLong);
    }
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    if !(first.is_ascii_alphanumeric() || first == b'_') || !id.bytes().all(known) {
        return broken(IdProblem::Characters);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_id_ordinary_names_are_accepted() {
        for id in ["a", "web-1", "k8s.io_x+y", &"f".repeat(64)] {
            assert_eq!(check_id(id), Ok(()), "{id}");
        }
    }

    #[test]
    fn check_id_names_that_are_paths_are_refused() {
        for id in [".", "..", "../x", "a/b", "a\0b", "a b", "-x", "ä"] {
            let problem = check_id(id).map_err(|error| error.problem);
            assert_eq!(problem, Err(IdProblem::Characters), "{id}");
        }
    }

    #[test]
    fn check_id_too_long_is_refused() {
        let problem = check_id(&"f".repeat(77)).map_err(|error| error.problem);
        assert_eq!(problem, Err(IdProblem::TooLong));
    }
}
