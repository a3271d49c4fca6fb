//! A guest that speaks FUSE itself: any requests to a share of one file, one directory and one
//! link out of it. What lies beside the share must stay as it is.
//!
//! The input is a list of requests: kind, node, length of the body, room for the reply, body.

#![no_main]

use std::fs::File;
use std::os::unix::fs::symlink;

use bulkhead_devices::fs::{Fs, share};
use bulkhead_devices::rig::{DATA, Part, Rig};
use libfuzzer_sys::fuzz_target;

const REPLY: u64 = DATA + 0x10_0000;
const INIT: u32 = 26;

fn ask(rig: &mut Rig<Fs>, kind: u32, node: u64, body: &[u8], room: u32) {
    let len = 40 + u32::try_from(body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(len.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    rig.put(DATA, &bytes);
    let mut chain = vec![Part {
        at: DATA,
        len,
        write: false,
    }];
    if room > 0 {
        chain.push(Part {
            at: REPLY,
            len: room,
            write: true,
        });
    }
    rig.offer(1, &chain);
    rig.kick(1);
    assert_eq!(rig.used(1).len(), 1, "a request was not returned");
}

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("share");
    std::fs::create_dir_all(root.join("d")).unwrap();
    std::fs::write(root.join("f"), "contents").unwrap();
    std::fs::write(dir.path().join("s"), "secret").unwrap();
    symlink("../s", root.join("l")).unwrap();
    let tree = share(&root, File::open("/proc/self/fd").unwrap().into(), 1000).unwrap();
    let mut rig = Rig::new(Fs::new(tree, "tag").unwrap());
    let mut init = vec![0; 64];
    init[..8].copy_from_slice(&[7, 0, 0, 0, 41, 0, 0, 0]);
    init[12..20].fill(0xff);
    ask(&mut rig, INIT, 0, &init, 4096);
    // The nodes 2 to 4.
    for name in [b"f\0", b"d\0", b"l\0"] {
        ask(&mut rig, 1, 1, name, 4096);
    }

    let mut rest = data;
    while let [kind, node, len, room, tail @ ..] = rest {
        let (body, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        ask(
            &mut rig,
            u32::from(*kind % 56),
            u64::from(*node % 12),
            body,
            u32::from(*room) * 16,
        );
        rest = tail;
    }

    drop(rig);
    assert_eq!(std::fs::read(dir.path().join("s")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
});
