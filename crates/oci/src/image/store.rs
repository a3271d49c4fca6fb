//! The store of unpacked images: a directory for each, named by its digest.
//!
//! An image is unpacked beside its place and moved there when it is whole, so that what is
//! in place is always complete. The directory it is unpacked in is locked by whoever works
//! in it; one that nobody has locked was left by somebody who was killed.

use std::ffi::CString;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::config::ImageConfig;
use super::digest::{Digest, HashingReader};
use super::error::{ImageError, LayerError};
use super::layer::{Budget, Layer};
use super::limits::Limits;
use super::tree::{self, Tree};
use super::{Image, documents};

/// Names of directories in which images are being unpacked begin so.
const UNFINISHED: &str = ".unpack-";

/// A directory of unpacked images.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: OwnedFd,
}

/// An image that is unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// The image's digest.
    pub digest: Digest,
    /// Its root file system, to be used read-only: containers share it.
    pub rootfs: PathBuf,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Whether it was there before.
    pub cached: bool,
}

impl Store {
    /// Opens a store, and makes it if there is none; its directory is for its owner only.
    ///
    /// # Errors
    ///
    /// [`ImageError::Store`] with the system's reason.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |action| {
            move |source| ImageError::Store {
                action,
                path: path.into(),
                source,
            }
        };
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(path).map_err(failed("make"))?;
        let path = path.canonicalize().map_err(failed("find"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, &path, flags, Mode::empty())
            .map_err(|errno| failed("open")(errno.into()))?;
        Ok(Self { path, dir })
    }

    /// Unpacks an image, unless it is there already; blocks while another process unpacks
    /// the same one.
    ///
    /// # Errors
    ///
    /// [`ImageError`] says what is wrong with the image or the store. Nothing of the image
    /// is left in the store then.
    pub fn unpack(&self, image: &Image, limits: &Limits) -> Result<Unpacked, ImageError> {
        let digest = image.digest().clone();
        let unpacked = |cached| Unpacked {
            rootfs: self.path.join(digest.hex()).join("rootfs"),
            config: image.config().clone(),
            digest: digest.clone(),
            cached,
        };
        let place = file_name(digest.hex());
        if self.exists(&place) {
            return Ok(unpacked(true));
        }
        self.sweep();
        let unfinished = file_name(&format!("{UNFINISHED}{}", digest.hex()));
        let Some(lock) = self.lock(&unfinished, &place)? else {
            return Ok(unpacked(true));
        };
        let outcome = self.fill(&lock, image, limits).and_then(|()| {
            rustix::fs::renameat(&self.dir, &unfinished, &self.dir, &place)
                .map_err(|errno| self.failed("put in place", &place, errno))
        });
        match outcome {
            Ok(()) => Ok(unpacked(false)),
            Err(error) => {
                // The error is worth more than one about the clean-up; the next unpacking
                // tries again.
                let _ = tree::remove(&self.dir, &unfinished);
                Err(error)
            }
        }
    }

    fn exists(&self, name: &CString) -> bool {
        rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Makes and locks the directory to unpack in; `None` if the image is in place once
    /// the lock is had.
    fn lock(&self, unfinished: &CString, place: &CString) -> Result<Option<OwnedFd>, ImageError> {
        loop {
            match rustix::fs::mkdirat(&self.dir, unfinished, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed("make", unfinished, errno)),
            }
            let lock = match tree::open_dir(&self.dir, unfinished) {
                Ok(lock) => lock,
                // Whoever had it was done just now.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(self.failed("open", unfinished, errno)),
            };
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(self.failed("lock", unfinished, errno)),
            }
            let ours = self.is_at(&lock, unfinished);
            if self.exists(place) {
                if ours {
                    let _ = tree::remove(&self.dir, unfinished);
                }
                return Ok(None);
            }
            if ours {
                return Ok(Some(lock));
            }
        }
    }

    /// Whether an open directory still is what has the name.
    fn is_at(&self, fd: impl AsFd, name: &CString) -> bool {
        let there = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        match (rustix::fs::fstat(fd), there) {
            (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    /// Removes what was left by those who were killed. What cannot be removed is left to
    /// the next.
    fn sweep(&self) {
        for name in tree::names(&self.dir).unwrap_or_default() {
            if !name.to_bytes().starts_with(UNFINISHED.as_bytes()) {
                continue;
            }
            let Ok(lock) = tree::open_dir(&self.dir, &name) else {
                continue;
            };
            let free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if free && self.is_at(&lock, &name) {
                let _ = tree::remove(&self.dir, &name);
            }
        }
    }

    /// Unpacks all layers into a directory that is locked.
    fn fill(&self, dir: &OwnedFd, image: &Image, limits: &Limits) -> Result<(), ImageError> {
        let rootfs = c"rootfs";
        let failed = |action| move |errno| self.failed(action, rootfs, errno);
        for name in tree::names(dir).map_err(failed("read"))? {
            tree::remove(dir, &name).map_err(failed("clear"))?;
        }
        rustix::fs::mkdirat(dir, rootfs, Mode::RWXU).map_err(failed("make"))?;
        let root = tree::open_dir(dir, rootfs).map_err(failed("open"))?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed("set the mode of"))?;
        let tree = Tree::new(root);
        let mut budget = Budget::new(*limits);
        for (index, layer) in image.chosen.layers.iter().enumerate() {
            unpack_layer(image, layer, index + 1, &tree, &mut budget, limits)?;
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, name: &std::ffi::CStr, errno: Errno) -> ImageError {
        let path = self.path.join(name.to_string_lossy().as_ref());
        ImageError::Store {
            action,
            path,
            source: errno.into(),
        }
    }
}

/// Unpacks a layer and verifies the digests of its file and of the archive in it.
fn unpack_layer(
    image: &Image,
    layer: &documents::Layer,
    number: usize,
    tree: &Tree,
    budget: &mut Budget,
    limits: &Limits,
) -> Result<(), ImageError> {
    let source = &image.source;
    let (file, size) = source.file(&layer.file)?;
    let mismatch = |found: Digest, expected: &Digest| ImageError::Digest {
        image: source.path.clone(),
        what: layer.file.clone(),
        found: found.to_string(),
        expected: expected.to_string(),
    };
    if let Some((_, expected)) = &layer.blob {
        if size != *expected {
            return Err(ImageError::Size {
                image: source.path.clone(),
                what: layer.file.clone(),
                found: size,
                expected: *expected,
            });
        }
    }
    let mut compressed = HashingReader::new(file);
    let outcome = unpack_archive(&mut compressed, tree, budget, limits);
    let unreadable = |error| source.unreadable(&layer.file, error);
    let verified = compressed
        .finish()
        .map_err(unreadable)
        .and_then(|(found, _)| match &layer.blob {
            Some((expected, _)) if found != *expected => Err(mismatch(found, expected)),
            _ => Ok(()),
        });
    let failed = |source| ImageError::Layer {
        image: image.path().into(),
        layer: number,
        source,
    };
    match (outcome, verified) {
        // A file that was damaged explains whatever else went wrong.
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(failed(error)),
        (Ok(found), Ok(())) if found != layer.diff_id => Err(mismatch(found, &layer.diff_id)),
        (Ok(_), Ok(())) => Ok(()),
    }
}

/// Unpacks what may be compressed; gives the digest of the archive.
pub(super) fn unpack_archive(
    file: impl Read,
    tree: &Tree,
    budget: &mut Budget,
    limits: &Limits,
) -> Result<Digest, LayerError> {
    let archive = decompressed(file).map_err(LayerError::Read)?;
    // What is between the files of an archive is bounded with them.
    let most = limits.bytes.saturating_mul(2).saturating_add(64 << 20);
    let mut archive = HashingReader::new(Bounded {
        inner: archive,
        left: most,
    });
    Layer::new(tree, budget).unpack(&mut archive)?;
    let (digest, _) = archive.finish().map_err(LayerError::Read)?;
    Ok(digest)
}

/// Decompresses by what the first bytes say; media types are often wrong.
fn decompressed<'a>(file: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let start = io::BufRead::fill_buf(&mut file)?;
    if start.starts_with(b"\x1f\x8b") {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)))
    } else if start.starts_with(b"\x28\xb5\x2f\xfd") {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(file)?))
    } else {
        Ok(Box::new(file))
    }
}

/// A reader that fails where `Take` would end, so that too much is not taken for enough.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = u64::try_from(read)
            .ok()
            .and_then(|read| self.left.checked_sub(read))
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than allowed")
            })?;
        Ok(read)
    }
}

/// A name that is known to have no NUL byte.
fn file_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
