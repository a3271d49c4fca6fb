//! Where the files of an image are: a directory, or an archive whose members are found
//! once and then read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::{ImageError, NotAnImage};
use super::limits::{DOCUMENT_MAX, MEMBERS_MAX};
use super::tarball::{Entries, Kind, Seeking, TarError};

/// Most links followed from one member of an archive to another.
const LINKS_MAX: usize = 8;

/// An image's files.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        members: HashMap<String, Member>,
    },
}

#[derive(Clone, Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

impl Source {
    /// Opens a directory or an archive and finds out what is in it.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let unreadable = |errno: Errno| ImageError::Unreadable {
            image: path.into(),
            what: ".".into(),
            source: errno.into(),
        };
        let not = |problem| ImageError::NotAnImage {
            image: path.into(),
            problem,
        };
        // NONBLOCK: a FIFO of that name must not stop us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                return Err(ImageError::Missing(path.to_string_lossy().into_owned()));
            }
            Err(Errno::NXIO | Errno::NODEV) => return Err(not(NotAnImage::OddFile)),
            Err(errno) => return Err(unreadable(errno)),
        };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|source| ImageError::Unreadable {
            image: path.into(),
            what: ".".into(),
            source,
        })?;
        let files = if metadata.is_dir() {
            Files::Directory(file.into())
        } else if metadata.is_file() {
            let members = members(path, &file)?;
            Files::Archive {
                file: Arc::new(file),
                members,
            }
        } else {
            return Err(not(NotAnImage::OddFile));
        };
        Ok(Self {
            path: path.into(),
            files,
        })
    }

    /// Whether the image has a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match &self.files {
            Files::Directory(dir) => rustix::fs::accessat(
                dir,
                name,
                rustix::fs::Access::EXISTS,
                rustix::fs::AtFlags::empty(),
            )
            .is_ok(),
            Files::Archive { members, .. } => find(members, name).is_some(),
        }
    }

    /// What it is instead of an image, if neither kind of index is in it.
    pub(super) fn plain(&self) -> NotAnImage {
        match &self.files {
            Files::Directory(_) => NotAnImage::PlainDirectory,
            Files::Archive { .. } => NotAnImage::PlainArchive,
        }
    }

    /// Opens a file of the image, with its size in bytes.
    pub(super) fn file(&self, name: &str) -> Result<(Box<dyn Read>, u64), ImageError> {
        let missing = || ImageError::Incomplete {
            image: self.path.clone(),
            what: name.to_owned(),
        };
        match &self.files {
            Files::Archive { file, members } => {
                let (offset, size) = find(members, name).ok_or_else(missing)?;
                Ok((
                    Box::new(Part {
                        file: Arc::clone(file),
                        offset,
                        left: size,
                    }),
                    size,
                ))
            }
            Files::Directory(dir) => {
                let unreadable = |source| self.unreadable(name, source);
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    Ok(fd) => File::from(fd),
                    Err(Errno::NOENT) => return Err(missing()),
                    Err(errno) => return Err(unreadable(errno.into())),
                };
                let metadata = file.metadata().map_err(unreadable)?;
                if !metadata.is_file() {
                    let problem = io::Error::new(io::ErrorKind::InvalidData, "not a regular file");
                    return Err(unreadable(problem));
                }
                Ok((Box::new(file), metadata.len()))
            }
        }
    }

    /// Reads a small file whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (reader, _) = self.file(name)?;
        let mut bytes = Vec::new();
        reader
            .take(DOCUMENT_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(name, source))?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= DOCUMENT_MAX) {
            return Ok(bytes);
        }
        let image = self.path.clone();
        Err(ImageError::TooLarge {
            image,
            what: "a document",
            limit: DOCUMENT_MAX,
        })
    }

    pub(super) fn unreadable(&self, what: &str, source: io::Error) -> ImageError {
        ImageError::Unreadable {
            image: self.path.clone(),
            what: what.to_owned(),
            source,
        }
    }
}

/// A part of a file, read without moving the file's own position.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let read = self.file.read_at(buffer, self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = u64::try_from(read).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(bytes);
        self.left = self.left.saturating_sub(bytes);
        Ok(read)
    }
}

/// Finds the members of an archive; of two with one name the last counts.
fn members(path: &Path, file: &File) -> Result<HashMap<String, Member>, ImageError> {
    let not = |problem| ImageError::NotAnImage {
        image: path.into(),
        problem,
    };
    let mut start = [0; 6];
    let read = file
        .read_at(&mut start, 0)
        .map_err(|source| ImageError::Unreadable {
            image: path.into(),
            what: ".".into(),
            source,
        })?;
    if let Some(name) = compression(start.get(..read).unwrap_or_default()) {
        return Err(not(NotAnImage::Compressed(name)));
    }
    let mut entries = Entries::new(Seeking(BufReader::new(file)));
    let mut members = HashMap::new();
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(members),
            Err(TarError::Checksum(0)) => return Err(not(NotAnImage::NotTar)),
            Err(TarError::Truncated) if members.is_empty() => return Err(not(NotAnImage::NotTar)),
            Err(source) => {
                return Err(ImageError::Archive {
                    image: path.into(),
                    source,
                });
            }
        };
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => Member::File {
                offset: entry.offset,
                size: entry.size,
            },
            Kind::Symlink | Kind::HardLink => {
                let Ok(target) = std::str::from_utf8(&entry.link) else {
                    continue;
                };
                Member::Link(target.to_owned())
            }
            _ => continue,
        };
        // Names of an image's files are ASCII.
        let Some(name) = std::str::from_utf8(&entry.path)
            .ok()
            .and_then(|name| clean("", name))
        else {
            continue;
        };
        let member = match (member, entry.kind) {
            // A symbolic link is relative to its own directory, a hard link to the archive.
            (Member::Link(target), Kind::Symlink) => match clean(directory(&name), &target) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            (Member::Link(target), _) => match clean("", &target) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            (member, _) => member,
        };
        members.insert(name, member);
        if members.len() > MEMBERS_MAX {
            return Err(ImageError::TooLarge {
                image: path.into(),
                what: "members",
                limit: u64::try_from(MEMBERS_MAX).unwrap_or(u64::MAX),
            });
        }
    }
}

fn compression(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"\x1f\x8b") {
        Some("gzip")
    } else if start.starts_with(b"\x28\xb5\x2f\xfd") {
        Some("zstd")
    } else if start.starts_with(b"\xfd7zXZ\0") {
        Some("xz")
    } else if start.starts_with(b"BZh") {
        Some("bzip2")
    } else {
        None
    }
}

fn directory(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Joins two names and takes out `.` and `..`; `None` if it leaves the archive.
fn clean(base: &str, name: &str) -> Option<String> {
    let base = if name.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where the content of a member is, links followed.
fn find(members: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = clean("", name)?;
    for _ in 0..LINKS_MAX {
        match members.get(&name)? {
            Member::File { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_names_stay_in_the_archive() {
        assert_eq!(clean("a/b", "../c").as_deref(), Some("a/c"));
        assert_eq!(clean("a", "/c/./d").as_deref(), Some("c/d"));
        assert_eq!(clean("a", "../../c"), None);
    }

    #[test]
    fn find_circle_of_links_ends() {
        let members = HashMap::from([
            ("a".to_owned(), Member::Link("b".into())),
            ("b".to_owned(), Member::Link("a".into())),
        ]);
        assert_eq!(find(&members, "a"), None);
    }
}
