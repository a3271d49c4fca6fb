//! Doors for fuzz targets into what is private to images.

use std::os::fd::OwnedFd;

use super::layer::Budget;
use super::limits::Limits;
use super::tarball::{Entries, Through};
use super::tree::Tree;

/// Limits that keep a run short.
pub(crate) const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    entries: 500,
    layers: 8,
    depth: 32,
};

pub(crate) fn archive(bytes: &[u8]) {
    let mut entries = Entries::new(Through(bytes));
    let mut buffer = [0; 256];
    while let Ok(Some(_)) = entries.next() {
        while matches!(entries.read_content(&mut buffer), Ok(1..)) {}
    }
}

pub(crate) fn layer(root: OwnedFd, bytes: &[u8]) {
    let tree = Tree::new(root);
    let _ = super::store::unpack_archive(bytes, &tree, &mut Budget::new(LIMITS), &LIMITS);
}
