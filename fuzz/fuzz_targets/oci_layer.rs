//! No layer, whatever is in it, makes or changes anything outside its root.
#![no_main]

use std::fs;

use rustix::fs::{CWD, Mode, OFlags};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("the root");
    fs::write(dir.path().join("secret"), "secret").expect("the secret");
    std::os::unix::fs::symlink("../secret", root.join("link")).expect("a link");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, &root, flags, Mode::empty()).expect("the root");

    bulkhead_oci::fuzz::layer(fd, bytes);

    assert_eq!(fs::read(dir.path().join("secret")).expect("the secret"), b"secret");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 2);
});
