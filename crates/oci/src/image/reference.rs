//! How an image is named: a path, and which of the images there.

use std::path::{Path, PathBuf};

use super::error::ImageError;

/// A path with a choice: `PATH`, `PATH:TAG` or `PATH@DIGEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The directory or archive.
    pub path: PathBuf,
    /// The tag, name or digest after it; `None` takes the only one or `latest`.
    pub choice: Option<String>,
}

impl Reference {
    /// Splits a text at the longest path that exists: paths and tags may both hold colons.
    ///
    /// # Errors
    ///
    /// [`ImageError::Missing`] if there is nothing at any of them.
    pub fn find(text: &str) -> Result<Self, ImageError> {
        let whole = [(text, None)].into_iter();
        let split = text
            .char_indices()
            .rev()
            .filter(|(_, c)| matches!(c, ':' | '@'))
            .filter_map(|(at, _)| Some((text.get(..at)?, Some(text.get(at + 1..)?.to_owned()))));
        for (path, choice) in whole.chain(split) {
            if !path.is_empty() && Path::new(path).exists() {
                let choice = choice.filter(|choice| !choice.is_empty());
                return Ok(Self {
                    path: path.into(),
                    choice,
                });
            }
        }
        Err(ImageError::Missing(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn find_choice_begins_after_the_longest_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("a"), "").unwrap();
        fs::write(at("a:b"), "").unwrap();
        for (text, path, choice) in [
            ("a", "a", None),
            ("a:", "a", None),
            ("a:b", "a:b", None),
            ("a:c", "a", Some("c")),
            ("a:b:local/bb:latest", "a:b", Some("local/bb:latest")),
            ("a@sha256:00", "a", Some("sha256:00")),
        ] {
            let found = Reference::find(&at(text)).unwrap();
            assert_eq!(
                found,
                Reference {
                    path: at(path).into(),
                    choice: choice.map(str::to_owned)
                }
            );
        }
    }

    #[test]
    fn find_nothing_is_an_error() {
        for text in ["", ":", "/nonexistent/image:tag"] {
            assert!(
                matches!(Reference::find(text), Err(ImageError::Missing(_))),
                "{text}"
            );
        }
    }
}
