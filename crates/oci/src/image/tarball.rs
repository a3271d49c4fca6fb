//! Reads tar archives entry by entry: old, ustar, GNU and PAX, with long names, extended
//! attributes and sparse files. Fields are decoded by the `tar` crate; what is variable in
//! length is bounded here, before memory is spent on it.

mod pax;
mod sparse;

use std::io::{self, Read, Seek};

use tar::{EntryType, Header};
use thiserror::Error;

pub(super) use sparse::Segment;

const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;

/// Longest name of an entry or of a link's target, in bytes. No path the kernel takes is
/// longer than 4096; what is longer is refused by name rather than cut.
const NAME_MAX: u64 = 64 << 10;

/// Largest PAX header, in bytes: it holds names and extended attributes (64 KiB each).
const PAX_MAX: u64 = 1 << 20;

/// What is wrong with a tar archive.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TarError {
    /// It ends in the middle of something.
    #[error("The archive ends too early; it was cut off, copy it again")]
    Truncated,
    /// A header's checksum is wrong.
    #[error("A header has a wrong checksum at byte {0}; the archive is damaged")]
    Checksum(u64),
    /// A field of a header cannot be read.
    #[error("The {field} of a header at byte {at} is not a number in range")]
    Field {
        /// Which field.
        field: &'static str,
        /// Where the header begins.
        at: u64,
    },
    /// Something of variable length is too long.
    #[error("A {what} of {size} bytes at byte {at} is longer than the {limit} allowed")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
        /// Where its header begins.
        at: u64,
    },
    /// A PAX header is malformed.
    #[error("An extended header at byte {0} is malformed")]
    Pax(u64),
    /// The map of a sparse file is malformed.
    #[error("The map of a sparse file at byte {0} is malformed")]
    Sparse(u64),
    /// The type of an entry is not known.
    #[error("The entry at byte {at} has the unknown type {typ:#04x}")]
    Type {
        /// The type's byte.
        typ: u8,
        /// Where the header begins.
        at: u64,
    },
    /// Reading failed.
    #[error("Reading failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// A stream that can pass over bytes.
pub(super) trait Skip: Read + Sized {
    /// Passes over bytes; an error if there are not as many.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// A stream that is read through.
pub(super) struct Through<R>(pub(super) R);

impl<R: Read> Read for Through<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Through<R> {}

/// A file, in which passing over costs nothing. Whether the bytes are there shows when
/// something after them is read.
pub(super) struct Seeking<R>(pub(super) R);

impl<R: Read> Read for Seeking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read + Seek> Skip for Seeking<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.0.seek_relative(bytes)
    }
}

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    Character,
    Block,
}

/// An entry, without its content.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Target of a link; empty for others.
    pub(super) link: Vec<u8>,
    /// Permission bits with set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    /// Numbers of a device.
    pub(super) device: (u32, u32),
    /// Extended attributes: name and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file, in bytes, holes included.
    pub(super) size: u64,
    /// Bytes of content in the archive.
    pub(super) stored: u64,
    /// Where the content begins in the archive.
    pub(super) offset: u64,
    /// Where the content belongs in a sparse file; `None` for others.
    pub(super) sparse: Option<Vec<Segment>>,
}

/// The entries of an archive.
pub(super) struct Entries<R> {
    reader: R,
    /// How far the archive was read.
    position: u64,
    /// Content of the current entry that was not read.
    content: u64,
    /// Padding after it.
    padding: u64,
}

/// What precedes a header: names too long for it, and PAX records.
#[derive(Default)]
struct Preface {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: pax::Records,
}

impl<R: Skip> Entries<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            position: 0,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut preface = Preface::default();
        loop {
            let rest = self.content.saturating_add(self.padding);
            (self.content, self.padding) = (0, 0);
            self.reader.skip(rest)?;
            self.position = self.position.saturating_add(rest);

            let at = self.position;
            let Some(block) = self.header(at)? else {
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            let typ = header.entry_type();
            let field = |field| move |_: io::Error| TarError::Field { field, at };
            let size = header.entry_size().map_err(field("size"))?;
            if typ.is_gnu_longname() {
                preface.path = Some(self.name(size, at)?);
            } else if typ.is_gnu_longlink() {
                preface.link = Some(self.name(size, at)?);
            } else if typ.is_pax_local_extensions() {
                let text = self.variable("extended header", size, PAX_MAX, at)?;
                preface.pax = pax::Records::parse(&text).ok_or(TarError::Pax(at))?;
            } else if typ.is_pax_global_extensions() {
                // They describe the archive, such as the commit it was made of.
                self.variable("extended header", size, PAX_MAX, at)?;
            } else {
                return self.entry(&block, preface, at).map(Some);
            }
        }
    }

    /// Reads content of the current entry; 0 at its end.
    pub(super) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let read = self.reader.read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = u64::try_from(read).unwrap_or(u64::MAX);
        self.position = self.position.saturating_add(bytes);
        self.content = self.content.saturating_sub(bytes);
        Ok(read)
    }

    /// Reads a block; `None` if nothing is left.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position = self.position.saturating_add(BLOCK_U64);
        Ok(Some(block))
    }

    /// Reads a header; `None` at the end, which is a block of zeros or nothing at all.
    fn header(&mut self, at: u64) -> Result<Option<[u8; BLOCK]>, TarError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            // The checksum's own field counts as spaces.
            .map(|(index, byte)| {
                if (148..156).contains(&index) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        match Header::from_byte_slice(&block).cksum() {
            Ok(expected) if expected == sum => Ok(Some(block)),
            _ => Err(TarError::Checksum(at)),
        }
    }

    /// Reads something of variable length that belongs to the next entry.
    fn variable(
        &mut self,
        what: &'static str,
        size: u64,
        limit: u64,
        at: u64,
    ) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::TooLong {
                what,
                size,
                limit,
                at,
            });
        }
        self.content = size;
        self.padding = padding(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += self.read_content(rest)?;
        }
        Ok(bytes)
    }

    fn name(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.variable("name", size, NAME_MAX, at)?;
        // GNU tar ends it with a NUL.
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn entry(&mut self, block: &[u8; BLOCK], preface: Preface, at: u64) -> Result<Entry, TarError> {
        let header = Header::from_byte_slice(block);
        let field = |field| move |_: io::Error| TarError::Field { field, at };
        let pax = preface.pax;
        let path = pax
            .sparse_name()
            .or(pax.path.as_deref())
            .map(<[u8]>::to_vec)
            .or(preface.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .clone()
            .or(preface.link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let kind = kind(header.entry_type(), &path, at)?;
        let written = match pax.size {
            Some(size) => size,
            None => header.entry_size().map_err(field("size"))?,
        };
        // The others have no content, whatever their size says.
        let stored = if kind == Kind::File { written } else { 0 };
        let device = match kind {
            Kind::Character | Kind::Block => (
                header
                    .device_major()
                    .map_err(field("device number"))?
                    .unwrap_or_default(),
                header
                    .device_minor()
                    .map_err(field("device number"))?
                    .unwrap_or_default(),
            ),
            _ => (0, 0),
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = header.mtime().map_err(field("time"))?;
                (
                    i64::try_from(seconds).map_err(|_| TarError::Field { field: "time", at })?,
                    0,
                )
            }
        };
        let mut entry = Entry {
            path,
            kind,
            link: if matches!(kind, Kind::HardLink | Kind::Symlink) {
                link
            } else {
                Vec::new()
            },
            mode: header.mode().map_err(field("mode"))? & 0o7777,
            uid: pax
                .uid
                .map_or_else(|| header.uid(), Ok)
                .map_err(field("user id"))?,
            gid: pax
                .gid
                .map_or_else(|| header.gid(), Ok)
                .map_err(field("group id"))?,
            mtime,
            device,
            xattrs: Vec::new(),
            size: stored,
            stored,
            offset: 0,
            sparse: None,
        };
        // What a PAX or GNU archive says of a file with holes, in one of four ways.
        if kind == Kind::File {
            if header.entry_type().is_gnu_sparse() {
                self.old_sparse(header, &mut entry, at)?;
            }
            self.content = entry.stored;
            self.padding = padding(entry.stored);
            if let Some(map) = pax.sparse_map(stored).ok_or(TarError::Sparse(at))? {
                (entry.size, entry.sparse) = (map.size, Some(map.segments));
            } else if let Some(size) = pax.sparse_in_content() {
                let segments = self.sparse_in_content(size, at)?;
                (entry.size, entry.sparse) = (size, Some(segments));
                entry.stored = self.content;
            }
        }
        entry.xattrs = pax.xattrs;
        entry.offset = self.position;
        Ok(entry)
    }

    /// GNU's own format: four segments in the header, 21 in each block that follows it.
    fn old_sparse(&mut self, header: &Header, entry: &mut Entry, at: u64) -> Result<(), TarError> {
        let gnu = header.as_gnu().ok_or(TarError::Sparse(at))?;
        entry.size = gnu.real_size().map_err(|_| TarError::Sparse(at))?;
        let mut map = sparse::Map::new(entry.size, entry.stored);
        let mut add = |part: &tar::GnuSparseHeader| -> Option<()> {
            if part.is_empty() {
                return Some(());
            }
            map.add(part.offset().ok()?, part.length().ok()?)
        };
        for part in &gnu.sparse {
            add(part).ok_or(TarError::Sparse(at))?;
        }
        let mut extended = gnu.is_extended();
        while extended {
            let block = self.block()?.ok_or(TarError::Truncated)?;
            let mut further = tar::GnuExtSparseHeader::new();
            further.as_mut_bytes().copy_from_slice(&block);
            for part in further.sparse() {
                add(part).ok_or(TarError::Sparse(at))?;
            }
            extended = further.is_extended();
        }
        entry.sparse = Some(map.finish().ok_or(TarError::Sparse(at))?);
        Ok(())
    }

    /// PAX format 1.0: the map is decimal text in blocks of its own before the content.
    fn sparse_in_content(&mut self, size: u64, at: u64) -> Result<Vec<Segment>, TarError> {
        let mut text = sparse::MapText::default();
        while !text.complete() {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match self.read_content(rest)? {
                    0 => return Err(TarError::Sparse(at)),
                    read => filled += read,
                }
            }
            text.add(&block).ok_or(TarError::Sparse(at))?;
        }
        text.segments(size, self.content)
            .ok_or(TarError::Sparse(at))
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64
}

fn kind(typ: EntryType, path: &[u8], at: u64) -> Result<Kind, TarError> {
    Ok(match typ {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => Kind::Character,
        EntryType::Block => Kind::Block,
        other => {
            return Err(TarError::Type {
                typ: other.as_byte(),
                at,
            });
        }
    })
}

#[cfg(test)]
mod tests;
