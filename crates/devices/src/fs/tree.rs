//! The shared tree as the guest is to use it: virtiofsd's passthrough with fewer round trips.
//!
//! Every request costs the guest two switches between processors; under User-Mode Linux that is
//! some hundred microseconds, as much as everything else about opening a small file. Of the four
//! requests that it takes to open, read and close one (open, read, flush, release), two can go
//! without anyone noticing:
//!
//! - The *read*, when the guest still holds the contents from an earlier open and the file is
//!   unchanged since: the same close-to-open promise as without a cache, kept by comparing size
//!   and times at each open, as NFS does.
//! - The *flush* of a file that was only read: there is nothing to write back, and nothing to fail.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse;
use virtiofsd::passthrough::PassthroughFs;

/// File times move in steps of the host's timer tick (up to 10 ms): a file that was changed just
/// now may change again without its times showing it.
const SETTLED: Duration = Duration::from_millis(50);

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// What a file's contents are recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: (u64, u32),
    changed: (u64, u32),
}

impl Version {
    fn of(attr: &fuse::Attr) -> Self {
        Self {
            size: attr.size,
            modified: (attr.mtime, attr.mtimensec),
            changed: (attr.ctime, attr.ctimensec),
        }
    }

    /// Whether a change from now on would show in the times.
    fn is_settled(&self, now: SystemTime, after: Duration) -> bool {
        let changed = Duration::new(self.changed.0, self.changed.1);
        now.duration_since(UNIX_EPOCH)
            .is_ok_and(|now| now.checked_sub(changed).is_some_and(|age| age >= after))
    }
}

/// A file system that the guest shares with the host.
pub struct Tree {
    inner: PassthroughFs,
    /// What the guest's cached contents of a file are; bounded by the inodes the guest holds.
    versions: Mutex<HashMap<Inode, Version>>,
    settled_after: Duration,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

impl Tree {
    /// Shares `inner`.
    #[must_use]
    pub fn new(inner: PassthroughFs) -> Self {
        Self {
            inner,
            versions: Mutex::default(),
            settled_after: SETTLED,
        }
    }

    /// Trusts file times at once.
    #[cfg(test)]
    pub(super) fn trusting(mut self) -> Self {
        self.settled_after = Duration::ZERO;
        self
    }

    /// Whether the contents that the guest may hold of `inode`, just opened, are still right;
    /// remembers what it will hold from now on.
    fn is_unchanged(&self, ctx: Context, inode: Inode, handle: Option<Handle>) -> bool {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self
            .inner
            .getattr(ctx, inode, handle)
            .map(|(attr, _)| Version::of(&attr));
        match version {
            Ok(version) if version.is_settled(SystemTime::now(), self.settled_after) => {
                versions.insert(inode, version) == Some(version)
            }
            _ => {
                versions.remove(&inode);
                false
            }
        }
    }

    fn forget_versions(&self, inodes: impl Iterator<Item = Inode>) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        for inode in inodes {
            versions.remove(&inode);
        }
    }
}

/// Refuses what is not the name of one thing in a directory. The guest's kernel sends nothing
/// else, and the passthrough hands names to the host as they are: a name with a slash, or `..`,
/// would be looked up like a path, with nothing but the jail's root to stop it.
fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// Requests that the passthrough answers once their names are checked.
macro_rules! named {
    ($($op:ident [$($name:ident),+] ($($arg:ident: $kind:ty),* $(,)?) -> $result:ty;)*) => {
        $(fn $op(&self, $($arg: $kind),*) -> $result {
            $(check_name($name)?;)+
            self.inner.$op($($arg),*)
        })*
    };
}

/// Requests that the passthrough answers alone.
macro_rules! pass {
    ($($name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $kind:ty),* $(,)?) -> $result:ty;)*) => {
        $(fn $name $(<$g: $bound>)? (&self, $($arg: $kind),*) -> $result {
            self.inner.$name($($arg),*)
        })*
    };
}

impl FileSystem for Tree {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn open(
        &self,
        ctx: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.inner.open(ctx, inode, kill_priv, flags)?;
        options.set(
            OpenOptions::KEEP_CACHE,
            self.is_unchanged(ctx, inode, handle),
        );
        let access = flags & libc::O_ACCMODE.unsigned_abs();
        options.set(
            OpenOptions::NOFLUSH,
            access == libc::O_RDONLY.unsigned_abs(),
        );
        Ok((handle, options))
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's own")]
    fn create(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        check_name(name)?;
        // The guest goes around its own cache; what it sends need not be aligned for the host's
        // disk. The passthrough takes the flag away when it opens a file, but not here.
        let flags = flags & !libc::O_DIRECT.unsigned_abs();
        self.inner
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)
    }

    fn forget(&self, ctx: Context, inode: Inode, count: u64) {
        self.forget_versions(std::iter::once(inode));
        self.inner.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Inode, u64)>) {
        self.forget_versions(requests.iter().map(|(inode, _)| *inode));
        self.inner.batch_forget(ctx, requests);
    }

    fn destroy(&self) {
        self.versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.inner.destroy();
    }

    named! {
        lookup[name](ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry>;
        symlink[name](ctx: Context, text: &CStr, parent: Inode, name: &CStr, extensions: Extensions)
            -> io::Result<Entry>;
        mknod[name](ctx: Context, parent: Inode, name: &CStr, mode: u32, device: u32, umask: u32,
            extensions: Extensions) -> io::Result<Entry>;
        mkdir[name](ctx: Context, parent: Inode, name: &CStr, mode: u32, umask: u32,
            extensions: Extensions) -> io::Result<Entry>;
        unlink[name](ctx: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        rmdir[name](ctx: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        rename[old, new](ctx: Context, from: Inode, old: &CStr, to: Inode, new: &CStr, flags: u32)
            -> io::Result<()>;
        link[name](ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry>;
    }

    pass! {
        init(capable: FsOptions) -> io::Result<FsOptions>;
        getattr(ctx: Context, inode: Inode, handle: Option<Handle>)
            -> io::Result<(fuse::Attr, Duration)>;
        setattr(ctx: Context, inode: Inode, attr: fuse::SetattrIn, handle: Option<Handle>,
            valid: SetattrValid) -> io::Result<(fuse::Attr, Duration)>;
        readlink(ctx: Context, inode: Inode) -> io::Result<Vec<u8>>;
        read<W: ZeroCopyWriter>(ctx: Context, inode: Inode, handle: Handle, writer: W, size: u32,
            offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
        write<R: ZeroCopyReader>(ctx: Context, inode: Inode, handle: Handle, reader: R, size: u32,
            offset: u64, lock_owner: Option<u64>, delayed: bool, kill_priv: bool, flags: u32)
            -> io::Result<usize>;
        flush(ctx: Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fsync(ctx: Context, inode: Inode, data_only: bool, handle: Handle) -> io::Result<()>;
        fallocate(ctx: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64)
            -> io::Result<()>;
        release(ctx: Context, inode: Inode, flags: u32, handle: Handle, flush: bool,
            flock_release: bool, lock_owner: Option<u64>) -> io::Result<()>;
        statfs(ctx: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        setxattr(ctx: Context, inode: Inode, name: &CStr, value: &[u8], flags: u32,
            extra: SetxattrFlags) -> io::Result<()>;
        getxattr(ctx: Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        listxattr(ctx: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply>;
        removexattr(ctx: Context, inode: Inode, name: &CStr) -> io::Result<()>;
        opendir(ctx: Context, inode: Inode, flags: u32)
            -> io::Result<(Option<Handle>, OpenOptions)>;
        readdir(ctx: Context, inode: Inode, handle: Handle, size: u32, offset: u64)
            -> io::Result<Self::DirIter>;
        fsyncdir(ctx: Context, inode: Inode, data_only: bool, handle: Handle) -> io::Result<()>;
        releasedir(ctx: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        access(ctx: Context, inode: Inode, mask: u32) -> io::Result<()>;
        lseek(ctx: Context, inode: Inode, handle: Handle, offset: u64, whence: u32)
            -> io::Result<u64>;
        copyfilerange(ctx: Context, inode_in: Inode, handle_in: Handle, offset_in: u64,
            inode_out: Inode, handle_out: Handle, offset_out: u64, len: u64, flags: u64)
            -> io::Result<usize>;
        syncfs(ctx: Context, inode: Inode) -> io::Result<()>;
    }
}
