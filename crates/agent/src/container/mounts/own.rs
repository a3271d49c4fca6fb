//! Which places inside a container are safe to name.

use std::ffi::CStr;

/// The places where the child itself mounted a file system of the kernel's: on
/// the way to a path below them no link of the image's can be met, so that the
/// path needs no careful walk.
#[derive(Debug, Default)]
pub struct Own {
    /// Destination, and whether the file system there is the kernel's.
    places: Vec<(Vec<u8>, bool)>,
}

impl Own {
    pub(super) fn add(&mut self, place: &CStr, own: bool) {
        self.places.push((place.to_bytes().to_vec(), own));
    }

    /// Whether `path` lies below such a place.
    pub fn covers(&self, path: &CStr) -> bool {
        let path = path.to_bytes();
        self.places
            .iter()
            .filter(|(place, _)| {
                path.strip_prefix(place.as_slice())
                    .is_some_and(|rest| rest.starts_with(b"/"))
            })
            .max_by_key(|(place, _)| place.len())
            .is_some_and(|(_, own)| *own)
    }

    /// Whether something was mounted at exactly `path` that is the kernel's.
    pub fn has(&self, path: &CStr) -> bool {
        self.places
            .iter()
            .rev()
            .find(|(place, _)| place == path.to_bytes())
            .is_some_and(|p| p.1)
    }
}
