//! What can be wrong with an image.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::tarball::TarError;
use crate::text::{quoted, quoted_path};

/// Why an image cannot be used. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Nothing is there.
    #[error("No image at {}; give an OCI layout directory, or an archive made by `podman save`, `docker save` or `skopeo copy`", quoted(.0))]
    Missing(String),
    /// It is there but cannot be read.
    #[error("Could not read {} of the image {}", quoted(.what), quoted_path(.image))]
    Unreadable {
        /// The image.
        image: PathBuf,
        /// A file of the image.
        what: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It is not an image.
    #[error("{} is not an image: {problem}", quoted_path(.image))]
    NotAnImage {
        /// The path.
        image: PathBuf,
        /// What it is instead, and what would be right.
        problem: NotAnImage,
    },
    /// The archive is broken.
    #[error("The archive {} is broken", quoted_path(.image))]
    Archive {
        /// The archive.
        image: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// A file of the image is missing.
    #[error("The image {} lacks {}; it is incomplete, copy it again", quoted_path(.image), quoted(.what))]
    Incomplete {
        /// The image.
        image: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A JSON document of the image is broken.
    #[error("{} of the image {} is not valid: {problem}", quoted(.what), quoted_path(.image))]
    Document {
        /// The image.
        image: PathBuf,
        /// Which document.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No image with the tag or digest.
    #[error("{} has no image {}; it has {available}", quoted_path(.image), quoted(.wanted))]
    NoSuchTag {
        /// The image.
        image: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What is there.
        available: String,
    },
    /// Several images and none chosen.
    #[error("{} holds several images; choose one of them as in {}: {available}", quoted_path(.image), quoted(.example))]
    Ambiguous {
        /// The image.
        image: PathBuf,
        /// How to write it.
        example: String,
        /// What is there.
        available: String,
    },
    /// No image for this machine.
    #[error("The image {} is for {found}, and this machine is {wanted}; use an image for {wanted}", quoted_path(.image))]
    Architecture {
        /// The image.
        image: PathBuf,
        /// The architectures there are.
        found: String,
        /// This machine's.
        wanted: &'static str,
    },
    /// A digest differs.
    #[error("{} of the image {} has the digest {found} and should have {expected}; it was damaged or changed, copy it again", quoted(.what), quoted_path(.image))]
    Digest {
        /// The image.
        image: PathBuf,
        /// Which file.
        what: String,
        /// The digest it has.
        found: String,
        /// The digest it should have.
        expected: String,
    },
    /// A size differs.
    #[error("{} of the image {} has {found} bytes and should have {expected}; it was damaged or changed, copy it again", quoted(.what), quoted_path(.image))]
    Size {
        /// The image.
        image: PathBuf,
        /// Which file.
        what: String,
        /// Its size, in bytes; at most one more than expected.
        found: u64,
        /// The size it should have.
        expected: u64,
    },
    /// A limit is exceeded.
    #[error("The image {} has {what}, more than the {limit} allowed", quoted_path(.image))]
    TooLarge {
        /// The image.
        image: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A layer cannot be unpacked.
    #[error("Could not unpack layer {layer} of the image {}", quoted_path(.image))]
    Layer {
        /// The image.
        image: PathBuf,
        /// Which layer, from 1.
        layer: usize,
        /// The reason.
        #[source]
        source: LayerError,
    },
    /// The store of unpacked images cannot be used.
    #[error("Could not {action} {} in the store of images; check its permissions and free space", quoted_path(.path))]
    Store {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Why a path is not an image.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotAnImage {
    /// A directory without index.json.
    #[error("the directory has no index.json; for a directory of files use --rootfs")]
    PlainDirectory,
    /// Neither a directory nor a regular file.
    #[error("it is neither a directory nor a regular file")]
    OddFile,
    /// Compressed as a whole.
    #[error("it is compressed as a whole with {0}; decompress it first")]
    Compressed(&'static str),
    /// Not a tar archive.
    #[error("it is not a tar archive")]
    NotTar,
    /// A tar archive of something else.
    #[error(
        "the archive has neither index.json nor manifest.json; for an archive of files unpack it and use --rootfs"
    )]
    PlainArchive,
    /// An artifact.
    #[error("it is an artifact of type {}", quoted(.0))]
    Artifact(String),
    /// Encrypted.
    #[error("its layers are encrypted; decrypt it first")]
    Encrypted,
    /// For another operating system.
    #[error("it is for {}, and containers here run Linux", quoted(.0))]
    System(String),
}

/// Why a layer cannot be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive is broken.
    #[error("The layer is not a valid tar archive")]
    Tar(#[source] TarError),
    /// The layer cannot be decompressed or read.
    #[error("Could not read the layer")]
    Read(#[source] io::Error),
    /// An entry would leave the root file system.
    #[error("Entry {} would leave the root file system: {problem}; the image is malicious or broken", quoted(.entry))]
    Escape {
        /// The entry's name.
        entry: String,
        /// How.
        problem: &'static str,
    },
    /// An entry makes no sense.
    #[error("Entry {} is not valid: {problem}", quoted(.entry))]
    Entry {
        /// The entry's name.
        entry: String,
        /// Why.
        problem: &'static str,
    },
    /// An entry exceeds a limit.
    #[error("Entry {} makes {what} exceed {limit}", quoted(.entry))]
    Limit {
        /// The entry's name.
        entry: String,
        /// Which limit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The disk is full.
    #[error("No space is left for entry {}; free some in the store of images", quoted(.entry))]
    NoSpace {
        /// The entry's name.
        entry: String,
    },
    /// The system refused an entry.
    #[error("Could not {action} {}", quoted(.entry))]
    System {
        /// What was attempted.
        action: &'static str,
        /// The entry's name.
        entry: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}
