//! The device against a guest that speaks FUSE itself, without a kernel that would keep it to the
//! rules.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{Fs, Tree, share};
use crate::rig::{DATA, Part, Rig};

const REQUESTS: usize = 1;
const ROOT: u64 = 1;
const REPLY_AT: u64 = DATA + 0x10_0000;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const CREATE: u32 = 35;

const KEEP_CACHE: u32 = 1 << 1;
const NOFLUSH: u32 = 1 << 5;

struct Guest {
    rig: Rig<Fs>,
    dir: TempDir,
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + u32::try_from(body.len()).unwrap()).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(77u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Guest {
    /// A share with a file, a directory, and a secret beside it.
    fn new() -> Self {
        Self::with(|tree| tree)
    }

    fn with(change: impl FnOnce(Tree) -> Tree) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let root = dir.path().join("share");
        std::fs::create_dir_all(root.join("dir")).unwrap();
        std::fs::write(root.join("file"), "contents").unwrap();
        let proc_fd = File::open("/proc/self/fd").unwrap();
        let tree = change(share(&root, proc_fd.into(), 10_000).unwrap());
        let mut guest = Self {
            rig: Rig::new(Fs::new(tree, "tag").unwrap()),
            dir,
        };
        let mut init = words(&[7, 41, 0, u32::MAX, u32::MAX]);
        init.extend([0; 44]);
        assert_eq!(guest.ask(INIT, 0, &init).0, 0);
        guest
    }

    fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// Sends a request; returns the error number (0 or negative) and the body of the reply.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let bytes = request(opcode, node, body);
        self.rig.put(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        let chain = [
            Part {
                at: DATA,
                len: 40,
                write: false,
            },
            Part {
                at: DATA + 40,
                len: len - 40,
                write: false,
            },
            Part {
                at: REPLY_AT,
                len: 0x1_0000,
                write: true,
            },
        ];
        self.rig.offer(REQUESTS, &chain);
        self.rig.kick(1);
        let used = self.rig.used(REQUESTS);
        assert_eq!(used.len(), 1, "no answer");
        let reply = self.rig.get(REPLY_AT, used[0].1 as usize);
        assert_eq!(
            u32_at(&reply, 0),
            used[0].1,
            "the reply's length is not that of the chain"
        );
        assert_eq!(u64_at(&reply, 8), 77, "the reply is to another request");
        (
            i32::from_le_bytes(reply[4..8].try_into().unwrap()),
            reply[16..].to_vec(),
        )
    }

    /// The node id of a name in a directory, or the error number.
    fn lookup(&mut self, node: u64, name: &[u8]) -> Result<u64, i32> {
        let (error, reply) = self.ask(LOOKUP, node, &[name, b"\0"].concat());
        if error == 0 {
            Ok(u64_at(&reply, 0))
        } else {
            Err(error)
        }
    }

    /// The handle and flags of an opened node, or the error number.
    fn open(&mut self, node: u64, flags: i32) -> Result<(u64, u32), i32> {
        let body = words(&[flags.unsigned_abs(), 0]);
        let (error, reply) = self.ask(OPEN, node, &body);
        if error == 0 {
            Ok((u64_at(&reply, 0), u32_at(&reply, 8)))
        } else {
            Err(error)
        }
    }

    fn read(&mut self, node: u64, handle: u64, len: u32) -> (i32, Vec<u8>) {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0u64.to_le_bytes());
        body.extend(words(&[len, 0, 0, 0, 0, 0]));
        self.ask(READ, node, &body)
    }
}

#[test]
fn request_for_a_file_gives_its_contents() {
    let mut guest = Guest::new();
    let node = guest.lookup(ROOT, b"file").unwrap();
    let (handle, _) = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 100), (0, b"contents".to_vec()));
}

#[test]
fn name_that_is_a_path_is_refused_by_every_request() {
    for name in [
        &b".."[..],
        b".",
        b"",
        b"../secret",
        b"dir/../../secret",
        b"/etc/passwd",
        b"a/b",
    ] {
        let mut guest = Guest::new();
        let file = guest.lookup(ROOT, b"file").unwrap();
        let named = |prefix: &[u32]| [&words(prefix)[..], name, b"\0"].concat();
        let linked = [&file.to_le_bytes()[..], name, b"\0"].concat();
        let from = [&ROOT.to_le_bytes()[..], name, b"\0new\0"].concat();
        let to = [&ROOT.to_le_bytes()[..], b"file\0", name, b"\0"].concat();
        let requests = [
            (LOOKUP, named(&[])),
            (UNLINK, named(&[])),
            (RMDIR, named(&[])),
            (SYMLINK, [name, b"\0target\0"].concat()),
            (MKNOD, named(&[libc::S_IFREG | 0o644, 0, 0, 0])),
            (MKDIR, named(&[0o755, 0])),
            (CREATE, named(&[libc::O_WRONLY.unsigned_abs(), 0o644, 0, 0])),
            (LINK, linked),
            (RENAME, from),
            (RENAME, to),
        ];
        for (opcode, body) in requests {
            let (error, _) = guest.ask(opcode, ROOT, &body);
            assert_eq!(error, -libc::EINVAL, "opcode {opcode}, name {name:?}");
        }
        assert_eq!(
            std::fs::read_to_string(guest.dir.path().join("secret")).unwrap(),
            "secret"
        );
        assert_eq!(std::fs::read_dir(guest.share()).unwrap().count(), 2);
    }
}

#[test]
fn symbolic_link_out_of_the_share_is_not_followed() {
    let mut guest = Guest::new();
    for (name, target) in [
        ("up", "../secret"),
        ("abs", "/etc/passwd"),
        ("proc", "/proc/self/root"),
    ] {
        symlink(target, guest.share().join(name)).unwrap();
        let node = guest.lookup(ROOT, name.as_bytes()).unwrap();
        assert!(
            guest.open(node, libc::O_RDONLY).is_err(),
            "{name} could be opened"
        );
        assert!(
            guest
                .open(node, libc::O_RDONLY | libc::O_DIRECTORY)
                .is_err()
        );
        assert!(guest.lookup(node, b"passwd").is_err());
        let mut body = words(&[(libc::O_WRONLY | libc::O_TRUNC).unsigned_abs(), 0o644, 0, 0]);
        body.extend([name.as_bytes(), b"\0"].concat());
        assert_ne!(
            guest.ask(CREATE, ROOT, &body).0,
            0,
            "{name} could be created through"
        );
    }
    assert_eq!(
        std::fs::read_to_string(guest.dir.path().join("secret")).unwrap(),
        "secret"
    );
}

#[test]
fn directory_replaced_by_a_link_does_not_lead_outside() {
    let mut guest = Guest::new();
    let node = guest.lookup(ROOT, b"dir").unwrap();
    // The guest keeps the directory by its number while the name changes its meaning.
    std::fs::rename(guest.share().join("dir"), guest.share().join("moved")).unwrap();
    symlink("..", guest.share().join("dir")).unwrap();

    assert_eq!(guest.lookup(node, b"secret"), Err(-libc::ENOENT));
    let link = guest.lookup(ROOT, b"dir").unwrap();
    assert!(guest.lookup(link, b"secret").is_err());
}

#[test]
fn device_nodes_fifos_and_sockets_are_never_opened() {
    let mut guest = Guest::new();
    let kinds = [
        ("fifo", libc::S_IFIFO, 0),
        ("socket", libc::S_IFSOCK, 0),
        // Needs no power over devices: a node with this number is a marker of overlayfs.
        ("node", libc::S_IFCHR, 0),
    ];
    for (name, kind, device) in kinds {
        let mut body = words(&[kind | 0o666, device, 0, 0]);
        body.extend([name.as_bytes(), b"\0"].concat());
        let (error, reply) = guest.ask(MKNOD, ROOT, &body);
        assert_eq!(error, 0, "{name} could not be made");
        let node = u64_at(&reply, 0);
        // A FIFO without a peer would block for ever, were it opened.
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
            assert!(guest.open(node, flags).is_err(), "{name} was opened");
        }
    }
    let meta = std::fs::symlink_metadata(guest.share().join("fifo")).unwrap();
    assert!(meta.file_type().is_fifo());
}

#[test]
fn handle_of_another_file_is_refused() {
    let mut guest = Guest::new();
    std::fs::write(guest.share().join("other"), "other").unwrap();
    let file = guest.lookup(ROOT, b"file").unwrap();
    let other = guest.lookup(ROOT, b"other").unwrap();
    let (handle, _) = guest.open(other, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file, handle, 10).0, -libc::EBADF);
    assert_eq!(guest.read(other, handle + 1, 10).0, -libc::EBADF);
}

#[test]
fn node_that_was_never_given_out_is_refused() {
    let mut guest = Guest::new();
    assert_eq!(guest.lookup(12345, b"file"), Err(-libc::EBADF));
    assert_eq!(guest.open(u64::MAX, libc::O_RDONLY), Err(-libc::EBADF));
}

#[test]
fn forgetting_more_than_was_learnt_is_survived() {
    let mut guest = Guest::new();
    let node = guest.lookup(ROOT, b"file").unwrap();
    let bytes = request(FORGET, node, &u64::MAX.to_le_bytes());
    guest.rig.put(DATA, &bytes);
    guest.rig.offer(
        0,
        &[Part {
            at: DATA,
            len: 48,
            write: false,
        }],
    );
    guest.rig.kick(0);
    assert_eq!(guest.rig.used(0), [(0, 0)]);
    assert!(guest.lookup(ROOT, b"file").is_ok());
}

#[test]
fn file_opened_again_unchanged_keeps_its_cached_contents() {
    let mut guest = Guest::with(Tree::trusting);
    let path = guest.share().join("file");
    let node = guest.lookup(ROOT, b"file").unwrap();
    let before = std::fs::metadata(&path).unwrap();

    let (_, first) = guest.open(node, libc::O_RDONLY).unwrap();
    let (_, second) = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(first & KEEP_CACHE, 0);
    assert_eq!(second & KEEP_CACHE, KEEP_CACHE);

    // Same length, same time of modification: only the time of the change itself tells, and that
    // moves in steps.
    let changed = |meta: &Metadata| (meta.ctime(), meta.ctime_nsec());
    while changed(&std::fs::metadata(&path).unwrap()) == changed(&before) {
        std::fs::write(&path, "CONTENTS").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    let (_, third) = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(third & KEEP_CACHE, 0);
}

#[test]
fn file_changed_a_moment_ago_is_not_trusted() {
    let mut guest = Guest::new();
    let path = guest.share().join("file");
    let node = guest.lookup(ROOT, b"file").unwrap();
    std::fs::write(&path, "one").unwrap();
    guest.open(node, libc::O_RDONLY).unwrap();
    let (_, again) = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(again & KEEP_CACHE, 0);
}

#[test]
fn file_opened_for_writing_is_flushed_when_closed() {
    let mut guest = Guest::new();
    let node = guest.lookup(ROOT, b"file").unwrap();
    assert_eq!(
        guest.open(node, libc::O_RDONLY).unwrap().1 & NOFLUSH,
        NOFLUSH
    );
    assert_eq!(guest.open(node, libc::O_WRONLY).unwrap().1 & NOFLUSH, 0);
    assert_eq!(guest.open(node, libc::O_RDWR).unwrap().1 & NOFLUSH, 0);
}

#[test]
fn request_without_room_for_a_reply_is_returned() {
    let mut guest = Guest::new();
    for room in [0, 1, 15] {
        guest.rig.put(DATA, &request(LOOKUP, ROOT, b"file\0"));
        let mut chain = vec![Part {
            at: DATA,
            len: 45,
            write: false,
        }];
        if room > 0 {
            chain.push(Part {
                at: REPLY_AT,
                len: room,
                write: true,
            });
        }
        guest.rig.offer(REQUESTS, &chain);
        guest.rig.kick(1);
        assert_eq!(
            guest.rig.used(REQUESTS).first().map(|(_, len)| *len),
            Some(0)
        );
    }
    assert!(guest.lookup(ROOT, b"file").is_ok());
}

#[test]
fn request_of_unknown_kind_is_answered_with_an_error() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(9999, ROOT, b"").0, -libc::ENOSYS);
}

#[test]
fn tag_of_bad_length_is_refused() {
    for tag in ["", &"x".repeat(37), "a\0b"] {
        let guest = tempfile::tempdir().unwrap();
        let proc_fd = File::open("/proc/self/fd").unwrap();
        let tree = share(guest.path(), proc_fd.into(), 10_000).unwrap();
        assert!(Fs::new(tree, tag).is_err(), "{tag:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes for a request, cut in any way, with any room for the reply: the chain comes back,
    /// and the next request is served.
    #[test]
    fn garbage_requests_leave_the_device_working(
        opcode in prop_oneof![0u32..60, any::<u32>()],
        node in prop_oneof![Just(ROOT), 0u64..4, any::<u64>()],
        body in proptest::collection::vec(any::<u8>(), 0..300),
        lie in prop_oneof![Just(None), any::<u32>().prop_map(Some)],
        cut in 1u32..400,
        room in 0u32..70_000,
    ) {
        let mut guest = Guest::new();
        let mut bytes = request(opcode, node, &body);
        if let Some(len) = lie {
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        guest.rig.put(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        let cut = cut.min(len);
        let mut chain = vec![Part { at: DATA, len: cut, write: false }];
        if cut < len {
            chain.push(Part { at: DATA + u64::from(cut), len: len - cut, write: false });
        }
        if room > 0 {
            chain.push(Part { at: REPLY_AT, len: room, write: true });
        }
        guest.rig.offer(REQUESTS, &chain);
        guest.rig.kick(1);
        prop_assert_eq!(guest.rig.used(REQUESTS).len(), 1);
        let mut init = words(&[7, 41, 0, u32::MAX, u32::MAX]);
        init.extend([0; 44]);
        guest.ask(INIT, 0, &init);
        prop_assert!(guest.lookup(ROOT, b"file").is_ok() || opcode == UNLINK || opcode == RENAME);
        prop_assert_eq!(std::fs::read_to_string(guest.dir.path().join("secret")).unwrap(), "secret");
    }
}
