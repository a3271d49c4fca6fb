//! How much of an image is read at most. Generous for what people make, finite for what
//! they are sent.

/// Bounds of an unpacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files of all layers together, holes of sparse files included.
    pub bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Layers.
    pub layers: usize,
    /// Parts of a path.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
            layers: 512,
            depth: 256,
        }
    }
}

/// Largest index, manifest or configuration, in bytes.
pub(super) const DOCUMENT_MAX: u64 = 8 << 20;

/// Most members of an archive that holds an image.
pub(super) const MEMBERS_MAX: usize = 65_536;

/// Deepest nesting of an index in an index.
pub(super) const INDEX_DEPTH_MAX: usize = 4;
