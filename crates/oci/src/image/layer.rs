//! Puts the entries of a layer into a tree.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use super::error::LayerError;
use super::limits::Limits;
use super::metadata::{owner, set_metadata, set_xattrs, times};
use super::tarball::{Entries, Entry, Kind, TarError, Through};
use super::tree::{self, Tree, Unreachable};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other files of the file system that invented whiteouts.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// What is left of the limits of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    limits: Limits,
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: limits.bytes,
            entries: limits.entries,
        }
    }
}

/// A layer on its way into a tree that holds the layers below it.
pub(super) struct Layer<'a> {
    tree: &'a Tree,
    budget: &'a mut Budget,
    /// Paths this layer made or passed through: its whiteouts leave them alone.
    made: HashSet<Box<[u8]>>,
    /// Links this layer made.
    links: HashSet<Box<[u8]>>,
    /// Directories with their times, which change with what is put into them.
    times: HashMap<Box<[u8]>, (i64, u32)>,
    /// The directory last worked in.
    place: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(tree: &'a Tree, budget: &'a mut Budget) -> Self {
        let buffer = vec![0; 128 << 10];
        Self {
            tree,
            budget,
            made: HashSet::new(),
            links: HashSet::new(),
            times: HashMap::new(),
            place: None,
            buffer,
        }
    }

    /// Unpacks an archive.
    pub(super) fn unpack(mut self, archive: impl Read) -> Result<(), LayerError> {
        let mut entries = Entries::new(Through(archive));
        while let Some(entry) = entries.next().map_err(broken)? {
            self.count(&entry)?;
            self.put(&entry, &mut entries)?;
        }
        self.set_times()
    }

    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let limits = self.budget.limits;
        let exceeded = |what, limit| LayerError::Limit {
            entry: shown(&entry.path),
            what,
            limit,
        };
        self.budget.entries = self
            .budget
            .entries
            .checked_sub(1)
            .ok_or_else(|| exceeded("the number of entries", limits.entries))?;
        self.budget.bytes = self
            .budget
            .bytes
            .checked_sub(entry.size)
            .ok_or_else(|| exceeded("the size of the image", limits.bytes))?;
        Ok(())
    }

    fn put<R: Read>(
        &mut self,
        entry: &Entry,
        content: &mut Entries<Through<R>>,
    ) -> Result<(), LayerError> {
        let parts = self.parts(&entry.path, &entry.path)?;
        let Some((last, above)) = parts.split_last() else {
            return self.put_root(entry);
        };
        if parts
            .iter()
            .any(|part| part.starts_with(WHITEOUT_META) && *part != OPAQUE)
        {
            return Ok(());
        }
        if *last == OPAQUE {
            return self.clear_lower(entry, above);
        }
        if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            return self.hide(entry, above, hidden);
        }
        let system = |action| move |errno| refused(action, entry, errno);
        let name = tree::name(last).map_err(system("name"))?;
        let parent = self.enter(entry, above, true)?;
        match entry.kind {
            Kind::Directory => self.put_directory(entry, &parent, &name)?,
            Kind::File => self.put_file(entry, &parent, &name, content)?,
            Kind::Symlink => self.put_symlink(entry, &parent, &name)?,
            Kind::HardLink => self.put_hard_link(entry, &parent, &name, &parts)?,
            Kind::Fifo | Kind::Character | Kind::Block => self.put_node(entry, &parent, &name)?,
        }
        let path = parts.join(&b'/').into_boxed_slice();
        if entry.kind == Kind::Directory {
            self.times.insert(path.clone(), entry.mtime);
        } else {
            self.times.remove(&path);
        }
        if entry.kind == Kind::Symlink {
            self.links.insert(path.clone());
        }
        self.made.insert(path);
        self.place = Some((above.join(&b'/'), parent));
        Ok(())
    }

    /// The parts of a name that stays in the tree.
    fn parts<'p>(&self, path: &'p [u8], entry: &[u8]) -> Result<Vec<&'p [u8]>, LayerError> {
        let escape = |problem| LayerError::Escape {
            entry: shown(entry),
            problem,
        };
        let parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        if path.is_empty() {
            let problem = "it has no name";
            return Err(LayerError::Entry {
                entry: shown(entry),
                problem,
            });
        }
        // The root itself may be called "/".
        if path.starts_with(b"/") && !parts.is_empty() {
            return Err(escape("its name is absolute"));
        }
        if parts.contains(&b"..".as_slice()) {
            return Err(escape("its name climbs with .."));
        }
        if parts.len() > self.budget.limits.depth {
            let limit = u64::try_from(self.budget.limits.depth).unwrap_or(u64::MAX);
            let what = "the depth of a path";
            return Err(LayerError::Limit {
                entry: shown(entry),
                what,
                limit,
            });
        }
        Ok(parts)
    }

    /// Opens the directory an entry belongs in, and makes what is missing of it.
    fn enter(&mut self, entry: &Entry, above: &[&[u8]], make: bool) -> Result<OwnedFd, LayerError> {
        let path = above.join(&b'/');
        if let Some((_, fd)) = self.place.take_if(|(place, _)| *place == path) {
            return Ok(fd);
        }
        let fd = match self.open(above) {
            Err(Unreachable::System(Errno::NOENT)) if make => {
                for length in 1..=above.len() {
                    self.make_parent(entry, above.get(..length).unwrap_or_default())?;
                }
                self.open(above)
            }
            outcome => outcome,
        };
        for length in 1..=above.len() {
            let prefix = above.get(..length).unwrap_or_default().join(&b'/');
            if !self.made.contains(prefix.as_slice()) {
                self.made.insert(prefix.into_boxed_slice());
            }
        }
        fd.map_err(|problem| self.unreachable(entry, problem))
    }

    /// Follows links as long as they stay in the tree. One that leads out of it is followed
    /// as the container would (/var/run is a link to /run), unless this very layer made
    /// it: no program packs files that way, but an attack does.
    fn open(&self, parts: &[&[u8]]) -> Result<OwnedFd, Unreachable> {
        match self.tree.open(parts) {
            Err(Unreachable::Leaves(length)) => {
                let link = parts.get(..length).unwrap_or_default().join(&b'/');
                if self.links.contains(link.as_slice()) {
                    return Err(Unreachable::Leaves(length));
                }
                self.tree.open_as_root(parts)
            }
            outcome => outcome,
        }
    }

    fn make_parent(&self, entry: &Entry, parts: &[&[u8]]) -> Result<(), LayerError> {
        let Some((last, above)) = parts.split_last() else {
            return Ok(());
        };
        let parent = self
            .open(above)
            .map_err(|problem| self.unreachable(entry, problem))?;
        let system = |errno| refused("make a directory for", entry, errno);
        let name = tree::name(last).map_err(system)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(system(errno)),
        }
        let made = tree::open_dir(&parent, &name).map_err(system)?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(system)
    }

    fn unreachable(&self, entry: &Entry, problem: Unreachable) -> LayerError {
        match problem {
            Unreachable::Leaves(_) => LayerError::Escape {
                entry: shown(&entry.path),
                problem: "a link on its way leads out",
            },
            Unreachable::NotADirectory => LayerError::Entry {
                entry: shown(&entry.path),
                problem: "something on its way is not a directory",
            },
            Unreachable::System(Errno::LOOP) => LayerError::Entry {
                entry: shown(&entry.path),
                problem: "the links on its way lead in a circle",
            },
            Unreachable::System(errno) => refused("reach the directory of", entry, errno),
        }
    }

    fn put_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            let problem = "the root is a directory";
            return Err(LayerError::Entry {
                entry: shown(&entry.path),
                problem,
            });
        }
        let system = |errno| refused("open", entry, errno);
        let root = tree::open_dir(self.tree.root(), c".").map_err(system)?;
        self.times.insert(Box::default(), entry.mtime);
        set_metadata(entry, &root)
    }

    fn put_directory(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
    ) -> Result<(), LayerError> {
        let system = |errno| refused("make the directory", entry, errno);
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if tree::file_type(parent, name).map_err(system)? != FileType::Directory {
                    self.remove(entry, parent, name)?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(system)?;
                }
            }
            Err(errno) => return Err(system(errno)),
        }
        set_metadata(entry, &tree::open_dir(parent, name).map_err(system)?)
    }

    fn put_file<R: Read>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
        content: &mut Entries<Through<R>>,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = self.replacing(entry, parent, name, "make the file", || {
            rustix::fs::openat(
                parent,
                name,
                flags | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )
        })?;
        let mut file = std::fs::File::from(file);
        match &entry.sparse {
            None => self.copy(entry, &mut file, entry.stored, content)?,
            Some(segments) => {
                let write = |errno| refused("write", entry, errno);
                rustix::fs::ftruncate(&file, entry.size).map_err(write)?;
                for segment in segments {
                    let start = SeekFrom::Start(segment.offset);
                    rustix::fs::seek(&file, start).map_err(write)?;
                    self.copy(entry, &mut file, segment.length, content)?;
                }
            }
        }
        set_metadata(entry, &file)?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|errno| refused("set the time of", entry, errno))
    }

    fn copy<R: Read>(
        &mut self,
        entry: &Entry,
        file: &mut std::fs::File,
        length: u64,
        content: &mut Entries<Through<R>>,
    ) -> Result<(), LayerError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let buffer = self.buffer.get_mut(..most).unwrap_or_default();
            let read = content
                .read_content(buffer)
                .map_err(|error| broken(error.into()))?;
            if read == 0 {
                return Err(broken(TarError::Truncated));
            }
            file.write_all(buffer.get(..read).unwrap_or_default())
                .map_err(|error| failed("write", entry, error))?;
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn put_symlink(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
    ) -> Result<(), LayerError> {
        let system = |action| move |errno| refused(action, entry, errno);
        let target = tree::name(&entry.link).map_err(system("make the link"))?;
        self.replacing(entry, parent, name, "make the link", || {
            rustix::fs::symlinkat(&target, parent, name)
        })?;
        let (uid, gid) = owner(entry)?;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), nofollow)
            .map_err(system("set the owner of"))?;
        set_xattrs(entry, |attribute, value| {
            let path = tree::proc_path(parent, Some(name))?;
            rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty())
        })?;
        rustix::fs::utimensat(parent, name, &times(entry.mtime), nofollow)
            .map_err(system("set the time of"))
    }

    fn put_hard_link(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
        own: &[&[u8]],
    ) -> Result<(), LayerError> {
        let invalid = |problem| LayerError::Entry {
            entry: shown(&entry.path),
            problem,
        };
        let target = self.parts(&entry.link, &entry.path)?;
        if target == own {
            return Err(invalid("it is a hard link to itself"));
        }
        let Some((last, above)) = target.split_last() else {
            return Err(invalid("it is a hard link to the root"));
        };
        let system = |errno| refused("make the hard link", entry, errno);
        let target_name = tree::name(last).map_err(system)?;
        let target_parent = self.enter(entry, above, false)?;
        match tree::file_type(&target_parent, &target_name) {
            Ok(FileType::Directory) => return Err(invalid("it is a hard link to a directory")),
            Ok(_) => {}
            Err(Errno::NOENT) => return Err(invalid("it is a hard link to what is not there")),
            Err(errno) => return Err(system(errno)),
        }
        // Without the flag to follow, a link is linked to and not what it names.
        self.replacing(entry, parent, name, "make the hard link", || {
            rustix::fs::linkat(&target_parent, &target_name, parent, name, AtFlags::empty())
        })
    }

    fn put_node(&mut self, entry: &Entry, parent: &OwnedFd, name: &CStr) -> Result<(), LayerError> {
        let system = |action| move |errno| refused(action, entry, errno);
        let typ = match entry.kind {
            Kind::Character => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let (major, minor) = entry.device;
        let device = rustix::fs::makedev(major, minor);
        self.replacing(entry, parent, name, "make the node", || {
            rustix::fs::mknodat(parent, name, typ, Mode::RUSR | Mode::WUSR, device)
        })?;
        // Opening a device would run its driver: only its place is opened.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(system("open the node"))?;
        let (uid, gid) = owner(entry)?;
        let path = tree::proc_path(&node, None).map_err(system("name"))?;
        rustix::fs::chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .map_err(system("set the owner of"))?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode))
            .map_err(system("set the mode of"))?;
        set_xattrs(entry, |attribute, value| {
            rustix::fs::setxattr(&path, attribute, value, XattrFlags::empty())
        })?;
        rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(system("set the time of"))
    }

    /// Makes something; if the name is taken, once more without what has it.
    fn replacing<T>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CStr,
        action: &'static str,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(entry, parent, name)?;
                make().map_err(|errno| refused(action, entry, errno))
            }
            outcome => outcome.map_err(|errno| refused(action, entry, errno)),
        }
    }

    fn remove(&mut self, entry: &Entry, parent: impl AsFd, name: &CStr) -> Result<(), LayerError> {
        // The directory last worked in may be among what goes.
        self.place = None;
        tree::remove(parent, name).map_err(|errno| refused("replace", entry, errno))
    }

    /// `.wh.NAME`: the layers below have no NAME here.
    fn hide(&mut self, entry: &Entry, above: &[&[u8]], hidden: &[u8]) -> Result<(), LayerError> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            let problem = "it would hide a directory from itself";
            return Err(LayerError::Escape {
                entry: shown(&entry.path),
                problem,
            });
        }
        let path: Vec<u8> = above
            .iter()
            .copied()
            .chain([hidden])
            .collect::<Vec<_>>()
            .join(&b'/');
        if self.made.contains(path.as_slice()) {
            return Ok(());
        }
        let system = |errno| refused("remove what is hidden by", entry, errno);
        let name = tree::name(hidden).map_err(system)?;
        match self.open(above) {
            Ok(parent) => self.remove(entry, parent, &name),
            Err(Unreachable::System(Errno::NOENT) | Unreachable::NotADirectory) => Ok(()),
            Err(problem) => Err(self.unreachable(entry, problem)),
        }
    }

    /// `.wh..wh..opq`: the directory has nothing of the layers below.
    fn clear_lower(&mut self, entry: &Entry, above: &[&[u8]]) -> Result<(), LayerError> {
        let directory = match self.open(above) {
            Ok(directory) => directory,
            Err(Unreachable::System(Errno::NOENT) | Unreachable::NotADirectory) => return Ok(()),
            Err(problem) => return Err(self.unreachable(entry, problem)),
        };
        self.place = None;
        self.clear(entry, &directory, &above.join(&b'/'))
    }

    /// Removes what this layer did not make. Goes no deeper than this layer's paths do.
    fn clear(&self, entry: &Entry, directory: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        let system = |errno| refused("remove what is hidden by", entry, errno);
        for name in tree::names(directory).map_err(system)? {
            let mut inner = path.to_vec();
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(name.to_bytes());
            if !self.made.contains(inner.as_slice()) {
                tree::remove(directory, &name).map_err(system)?;
            } else if tree::file_type(directory, &name).map_err(system)? == FileType::Directory {
                let below = tree::open_dir(directory, &name).map_err(system)?;
                self.clear(entry, &below, &inner)?;
            }
        }
        Ok(())
    }

    /// Directories get their times last.
    fn set_times(&mut self) -> Result<(), LayerError> {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let parts: Vec<&[u8]> = path
                .split(|byte| *byte == b'/')
                .filter(|part| !part.is_empty())
                .collect();
            // A later entry may have taken its place; then there is nothing to set.
            let Ok(directory) = self.tree.open(&parts) else {
                continue;
            };
            rustix::fs::utimensat(&directory, c".", &times(mtime), AtFlags::empty()).map_err(
                |errno| LayerError::System {
                    action: "set the time of",
                    entry: shown(&path),
                    source: errno.into(),
                },
            )?;
        }
        Ok(())
    }
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn broken(error: TarError) -> LayerError {
    match error {
        TarError::Io(error) => LayerError::Read(error),
        error => LayerError::Tar(error),
    }
}

pub(super) fn refused(action: &'static str, entry: &Entry, errno: Errno) -> LayerError {
    failed(action, entry, errno.into())
}

fn failed(action: &'static str, entry: &Entry, source: io::Error) -> LayerError {
    let entry = shown(&entry.path);
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LayerError::NoSpace { entry },
        _ => LayerError::System {
            action,
            entry,
            source,
        },
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
