//! Images: opening them, checking every byte against its digest, and unpacking them.
//!
//! An image is an OCI layout directory, or an archive as `podman save`, `docker save` and
//! `skopeo copy` write it. Nothing in it is trusted: digests are verified while it is read,
//! sizes and numbers are bounded, and no entry of a layer can reach out of the directory it
//! is unpacked into.

mod config;
mod digest;
mod documents;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod layer;
mod limits;
mod metadata;
mod reference;
mod source;
mod store;
mod tarball;
mod tree;

use std::path::Path;

pub use config::ImageConfig;
pub use digest::{Digest, NotADigest};
pub use error::{ImageError, LayerError, NotAnImage};
pub use limits::Limits;
pub use reference::Reference;
pub use store::{Store, Unpacked};
pub use tarball::TarError;

/// An image that was chosen and whose documents were verified.
#[derive(Debug)]
pub struct Image {
    source: source::Source,
    chosen: documents::Chosen,
}

impl Image {
    /// Opens `PATH`, `PATH:TAG` or `PATH@DIGEST`; see [`Image::open`].
    ///
    /// # Errors
    ///
    /// As [`Image::open`].
    pub fn find(text: &str) -> Result<Self, ImageError> {
        Self::open(&Reference::find(text)?)
    }

    /// Opens an image and reads everything but its layers. Of an image for several machines
    /// that for this one is taken.
    ///
    /// # Errors
    ///
    /// [`ImageError`] says what is missing, broken, ambiguous or for another machine.
    pub fn open(reference: &Reference) -> Result<Self, ImageError> {
        let source = source::Source::open(&reference.path)?;
        let chosen = documents::choose(&source, reference.choice.as_deref())?;
        Ok(Self { source, chosen })
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// What names the image: the digest of its manifest, or in archives of docker, which
    /// have no such manifest, of its configuration.
    pub fn digest(&self) -> &Digest {
        &self.chosen.id
    }

    /// How the image wants to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.chosen.config
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
